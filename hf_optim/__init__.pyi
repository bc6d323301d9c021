# Made by scripts/build_stubs.py from the registry: do not edit.
from hf_optim import check as check
from hf_optim import metrics as metrics
from hf_optim import study as study
from hf_optim.bases.optimizer import Optimizer as Optimizer
from hf_optim.bases.wrapper import Wrapper as Wrapper
from hf_optim.core.rule import Transform as Transform
from hf_optim.errors import BadCheckpoint as BadCheckpoint
from hf_optim.errors import BadLoss as BadLoss
from hf_optim.errors import MissingLoss as MissingLoss
from hf_optim.errors import UserError as UserError
from hf_optim.hub import Callback as Callback
from hf_optim.hub import Monitor as Monitor
from hf_optim.hub import Session as Session
from hf_optim.hub import attach as attach
from hf_optim.hub import factory as factory
from hf_optim.optimizers.acprop import ACProp as ACProp
from hf_optim.optimizers.adabelief import AdaBelief as AdaBelief
from hf_optim.optimizers.adabound import AdaBound as AdaBound
from hf_optim.optimizers.adafactor import Adafactor as Adafactor
from hf_optim.optimizers.adagrad import Adagrad as Adagrad
from hf_optim.optimizers.adam import Adam as Adam
from hf_optim.optimizers.adamw import AdamW as AdamW
from hf_optim.optimizers.adamw_agr import AdamWAGR as AdamWAGR
from hf_optim.optimizers.adan import Adan as Adan
from hf_optim.optimizers.adan_agr import AdanAGR as AdanAGR
from hf_optim.optimizers.ademamix import AdEMAMix as AdEMAMix
from hf_optim.optimizers.adopt import ADOPT as ADOPT
from hf_optim.optimizers.amvt import AMVT as AMVT
from hf_optim.optimizers.amvt_modules import AMVTModules as AMVTModules
from hf_optim.optimizers.cautious_adamw import CautiousAdamW as CautiousAdamW
from hf_optim.optimizers.cautious_lion import CautiousLion as CautiousLion
from hf_optim.optimizers.decgd import DecGD as DecGD
from hf_optim.optimizers.hd_adam import HDAdam as HDAdam
from hf_optim.optimizers.hd_sgd import HDSGD as HDSGD
from hf_optim.optimizers.l4_adam import L4Adam as L4Adam
from hf_optim.optimizers.l4_mom import L4Mom as L4Mom
from hf_optim.optimizers.lamb import LAMB as LAMB
from hf_optim.optimizers.lion import Lion as Lion
from hf_optim.optimizers.mars import MARS as MARS
from hf_optim.optimizers.muon import Muon as Muon
from hf_optim.optimizers.nadam import NAdam as NAdam
from hf_optim.optimizers.nadamw import NAdamW as NAdamW
from hf_optim.optimizers.padam import PAdam as PAdam
from hf_optim.optimizers.ponos import PoNoS as PoNoS
from hf_optim.optimizers.prodigy import Prodigy as Prodigy
from hf_optim.optimizers.radam import RAdam as RAdam
from hf_optim.optimizers.rmsprop import RMSprop as RMSprop
from hf_optim.optimizers.schedule_free_adamw import ScheduleFreeAdamW as ScheduleFreeAdamW
from hf_optim.optimizers.schedule_free_sgd import ScheduleFreeSGD as ScheduleFreeSGD
from hf_optim.optimizers.sgd import SGD as SGD
from hf_optim.optimizers.sgd_agr import SGDAGR as SGDAGR
from hf_optim.optimizers.signum import Signum as Signum
from hf_optim.optimizers.sls import SLS as SLS
from hf_optim.optimizers.smaran import SMARAN as SMARAN
from hf_optim.optimizers.soap import SOAP as SOAP
from hf_optim.optimizers.sps import SPS as SPS
from hf_optim.optimizers.yogi import Yogi as Yogi
from hf_optim.registry import create as create
from hf_optim.registry import info as info
from hf_optim.registry import list_optimizers as list_optimizers
from hf_optim.wrappers.hdk import HDK as HDK
from hf_optim.wrappers.lookahead import Lookahead as Lookahead
from hf_optim.wrappers.tlr import TLR as TLR
from hf_optim.wrappers.tlr_legacy import TLRLegacy as TLRLegacy

__version__: str
__all__ = [
    "ACProp",
    "ADOPT",
    "AMVT",
    "AMVTModules",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWAGR",
    "Adan",
    "AdanAGR",
    "BadCheckpoint",
    "BadLoss",
    "Callback",
    "CautiousAdamW",
    "CautiousLion",
    "DecGD",
    "HDAdam",
    "HDK",
    "HDSGD",
    "L4Adam",
    "L4Mom",
    "LAMB",
    "Lion",
    "Lookahead",
    "MARS",
    "MissingLoss",
    "Monitor",
    "Muon",
    "NAdam",
    "NAdamW",
    "Optimizer",
    "PAdam",
    "PoNoS",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "SGD",
    "SGDAGR",
    "SLS",
    "SMARAN",
    "SOAP",
    "SPS",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "Session",
    "Signum",
    "TLR",
    "TLRLegacy",
    "Transform",
    "UserError",
    "Wrapper",
    "Yogi",
    "attach",
    "create",
    "factory",
    "info",
    "list_optimizers",
]
