"""The options of a command line that stand for a run's overrides."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hf_optim.core import numerals
from hf_optim.errors import UserError
from hf_optim.experiment.spec import AUTO, OVERRIDES, PRECISIONS

if TYPE_CHECKING:
    from hf_optim.experiment.cards import Card

#: how a run is computed, which a whole study may be told
THROUGHPUT = ("precision", "compile_model", "workers", "gradient_accumulation_steps")
HELP = {
    "steps": "optimizer steps",
    "epochs": "passes over the train split",
    "passes": "end after so many forward and backward passes together, in place of steps",
    "seconds": "end after so many seconds of training, in place of steps",
    "batch_size": "samples of one optimizer step, over all processes and accumulation",
    "eval_every": "steps between evaluations on the validation split (default: once an epoch)",
    "max_grad_norm": "clip the gradient's norm; 0 does not",
    "gradient_accumulation_steps": "parts that a step's batch is computed in; auto: as few as fit into memory",
    "sharpness": "record the Hessian's largest eigenvalue at the end, on so many train samples",
    "train_curve": "evaluate so many train samples whenever validation is evaluated",
    "init_seed": "of the initial weights alone (default: --seed)",
    "order_seed": "of the order of batches alone (default: --seed)",
    "split_seed": "train on a bootstrap sample of the train split, drawn with this seed",
    "patience": "end the run after so many evaluations without a lower validation loss",
    "precision": "what the model computes in: fp32, tf32, bf16 or fp16 (default: the preset's)",
    "compile_model": "compile the model (torch.compile)",
    "workers": "processes that read the data ahead (default: 0; changes no number)",
}


def add(group: Any, keys: Iterable[str]) -> None:
    """Add the options of these overrides to a parser or a group of it."""
    for key in keys:
        kind: dict[str, Any] = {"type": OVERRIDES[key], "metavar": "N"}
        if key == "precision":
            kind = {"choices": PRECISIONS}
        elif key == "compile_model":
            kind = {"action": "store_true", "default": None}
        elif key == "gradient_accumulation_steps":
            kind = {"type": _parts, "metavar": "N|auto"}
        group.add_argument(f"--{key.replace('_', '-')}", dest=key, help=HELP[key], **kind)


def given(options: argparse.Namespace) -> dict[str, Any]:
    """Those of `THROUGHPUT` that the command line gives."""
    return {key: value for key in THROUGHPUT if (value := getattr(options, key)) is not None}


def _parts(text: str) -> int | str:
    try:
        return AUTO if text == AUTO else numerals.whole(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number or {AUTO}, got {text!r}") from None


def add_card(parser: Any) -> None:
    """Add the option that names the GPU whose costs a dry run says."""
    parser.add_argument("--card", metavar="NAME", help="with --dry-run: costs on this GPU, as A100 (default: here)")


def card(options: argparse.Namespace) -> Card | None:
    """The card that the command line names; a `UserError` for one that is not known, or is not asked about."""
    from hf_optim.experiment.cards import find

    if options.card is not None and not options.dry_run:
        raise UserError("--card says for which GPU costs are to be said: it belongs to --dry-run")
    return None if options.card is None else find(options.card)
