"""What a run goes on from, looked through before Trainer reads it: each of its files by name.

Trainer takes most of it as it stands, and would fail in some later step of the run, which is then the run's failure.
"""

from __future__ import annotations

import math
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch.optim.lr_scheduler import LambdaLR
from transformers import PretrainedConfig, TrainerState
from transformers.trainer_pt_utils import safe_globals

from hf_optim.bases.optimizer import Optimizer
from hf_optim.bases.wrapper import Wrapper
from hf_optim.core import shape, validate
from hf_optim.errors import DamagedCheckpoint, UserError, one_line
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import files, saved_files, shards
from hf_optim.experiment.disk import check_given
from hf_optim.experiment.evaluator import quiet
from hf_optim.experiment.record import MOST_NAMES, MOST_ROWS, step_of
from hf_optim.experiment.spending import SPENT
from hf_optim.hub.feed import unwrapped

OPTIMIZER, SCHEDULE, STATE = "optimizer.pt", "scheduler.pt", "trainer_state.json"
RANDOM = "rng_state*.pth"
#: files that torch reads, as Trainer, accelerate and PEFT call them; others are nobody's here
SAVED = (OPTIMIZER, SCHEDULE, "scaler.pt", RANDOM, "optimizer*.bin", "pytorch_model*.bin",
         "adapter_model.bin")  # fmt: skip
#: folders of torch's distributed checkpoints, as accelerate calls them
SHARDED = ("optimizer*", "pytorch_model_fsdp*")
#: how the files of a checkpoint end
WRITTEN = (*checkpoints.READ_WHOLE, ".safetensors", ".bin", ".pt", ".pth")
#: what a run takes from Trainer's state beside `checkpoints.STATE`
TOLD = {"max_steps?": int, "num_train_epochs?": float, "num_input_tokens_seen?": int, "total_flos?": float,
        "epoch?": (float, None), "train_batch_size?": (int, None), "best_metric?": (float, None),
        "best_global_step?": (int, None), "best_model_checkpoint?": None, "is_hyper_param_search?": bool,
        "trial_name?": None, "trial_params?": None, "stateful_callbacks": {"TrainerControl": dict}}  # fmt: skip
EVERY = ("logging_steps", "eval_steps", "save_steps")
#: what of `SPENT` is counted, and added up as whole numbers
COUNTS = ("forward_passes", "backward_passes", "tokens")


def check(checkpoint: Path, model: torch.nn.Module | None = None) -> None:
    """Raise `DamagedCheckpoint` for what Trainer could not go on from, or only seems to; `model` is the run's own."""
    try:
        checkpoints.check_adapters(checkpoint)
        if (config := checkpoint / "config.json").is_file():
            checkpoints.check_checkpoint(checkpoint, getattr(model, "config", None))
            with quiet(), _told_by(config.name):
                PretrainedConfig.from_json_file(str(config))
        _check_state(checkpoint)
        for file in sorted(checkpoint.glob("*.safetensors")):
            with _told_by(file.name), safe_open(file, "pt"):  # its table of contents, and room for what it names
                pass
        for folder in SHARDED:
            for file in sorted(checkpoint.glob(f"{folder}/.metadata")):
                with _told_by(f"{file.parent.name}/{file.name}"), file.open("rb") as stored:
                    shards.read_metadata(stored)
        saved = {file for pattern in SAVED for file in checkpoint.glob(pattern)}
        for file in sorted(saved | checkpoints.pickled_weights(checkpoint)):
            saved_files.check(file)
        _check_schedule(checkpoint / SCHEDULE)
        for file in checkpoint.glob(RANDOM):
            _check_random(file)
        _check_numbers(checkpoint / OPTIMIZER)
    except (OSError, ValueError) as error:
        check_given(checkpoint, error)
        why = one_line(error).removeprefix(f"{type(error).__name__}: ")[:200]
        raise DamagedCheckpoint(
            f"resume: {checkpoint} cannot be gone on with ({why}): take it away and start again"
        ) from error
    _check_room(checkpoint)


def _check_room(checkpoint: Path) -> None:
    """What stands in the place of a checkpoint to come, and is none that a writer has left there, is somebody's."""
    for later in sorted(checkpoint.parent.glob(files.CHECKPOINTS)):
        if step_of(later.name) <= step_of(checkpoint.name):
            continue
        folders = [path for path in later.iterdir() if path.is_dir()] if later.is_dir() else []
        # those of shards and adapters are called as no file is
        wrong = [path for path in folders if path.suffix in WRITTEN] if later.is_dir() else [later]
        if wrong:
            raise DamagedCheckpoint(f"resume: {wrong[0]} stands where the run writes a checkpoint: take it away")


def _check_state(checkpoint: Path) -> None:
    state = files.read_json(checkpoint, STATE)
    shape.check_shape(state, {**checkpoints.STATE, **TOLD}, STATE)
    with _told_by(STATE):
        TrainerState(**state)
    if state.get("is_hyper_param_search"):  # trackers would call the run, and where they write, as it says
        raise ValueError(f"{STATE}: a run of ours is of no search of Trainer's")
    for name in EVERY:
        if not _is_number(state.get(name, 1)) or state.get(name, 1) < 1:
            raise ValueError(f"{STATE}: {name} is no number of steps")
    names = {name for row in state["log_history"] for name in row}
    if len(state["log_history"]) > MOST_ROWS or len(names) > MOST_NAMES:
        raise ValueError(f"{STATE}: a log of more than {MOST_ROWS:,} rows or {MOST_NAMES:,} names: none could be read")
    for row in state["log_history"]:
        for name, value in row.items():
            if not _is_number(value) and not (name == "epoch" and value is None):
                raise ValueError(f"{STATE}: {name[:40]} in log_history is no number")
            if name in SPENT and not 0 <= value < (2**53 if name in COUNTS else shape.FARTHEST):
                raise ValueError(f"{STATE}: {name} in log_history is nothing that a run has spent")
        if not 0 <= row["step"] <= state["global_step"] or not 0 <= (row.get("epoch") or 0):
            raise ValueError(f"{STATE}: a row of log_history is of no step of the run's until then")


@contextmanager
def _told_by(name: str) -> Iterator[None]:
    """Within it what a library says of a file is that file's."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a file may fail in any way
        raise ValueError(f"{name} cannot be read: {one_line(error)}") from error


def _check_numbers(file: Path) -> None:
    """What has diverged goes on diverging, at the cost of all its steps, and what was edited so would be believed."""
    if not file.is_file():  # shards
        return
    how: dict[str, Any] = {"mmap": True} if zipfile.is_zipfile(file) else {}
    told = _read(file, **how)
    states = told.get("state") if isinstance(told, dict) else None
    for key, state in states.items() if isinstance(states, dict) else ():
        for name, value in state.items() if isinstance(state, dict) else ():
            if not isinstance(value, torch.Tensor) or not (value.is_floating_point() and value.itemsize > 1):
                continue
            if count := value.numel() - int(value.isfinite().sum()):
                place = f"{name} of parameter {_called(told, key)}"
                raise ValueError(f"{file.name}: {count} of {value.numel()} numbers of {place} are NaN or infinite")


def _read(file: Path, **how: Any) -> Any:
    with _told_by(file.name), safe_globals():  # NumPy's, as Trainer reads its random states
        return torch.load(str(file), map_location="cpu", weights_only=True, **how)


def drawn_on(checkpoint: Path, processes: int) -> bool:
    """Whether each process finds random states to go on from; Trainer goes on without them and does not say so."""
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    return all((checkpoint / name).is_file() for name in names)


def _check_random(file: Path) -> None:
    """The states of the three generators, each taken by another of its kind."""
    told = _read(file)
    try:
        random.Random().setstate(told["python"])
        np.random.RandomState().set_state(told["numpy"])
        torch.Generator().set_state(told["cpu"])
        place, drawn = told["numpy"][2], told["python"][2]
    except Exception as error:  # of any kind
        raise ValueError(f"{file.name} holds no states of random numbers: {one_line(error)}") from error
    # NumPy reads on from any place in memory, and Python adds whatever it has drawn before
    if not (type(place) is int and 0 <= place <= 624) or not (drawn is None or _is_number(drawn)):
        raise ValueError(f"{file.name} holds no states of random numbers")


def _called(told: dict[Any, Any], key: Any) -> str:
    """A parameter's name, where its group says it; else its number."""
    for group in told.get("param_groups") or ():
        indices, names = group.get("params") or (), group.get("hf_optim_names") or ()
        if key in indices and len(names) == len(indices):
            return str(names[list(indices).index(key)])
    return str(key)


def _check_schedule(file: Path) -> None:
    """A schedule's state is put into the schedule as it stands, whatever it names."""
    told = _read(file)
    if not isinstance(told, dict):
        raise ValueError(f"{file.name} holds no state of a schedule")
    for name, value in told.items():
        if not isinstance(name, str) or callable(getattr(LambdaLR, name, None)):
            raise ValueError(f"{file.name} names what is no state of a schedule")
        counts, rates = name in ("last_epoch", "_step_count"), name in ("base_lrs", "_last_lr")
        if counts and not (type(value) is int and 0 <= value < 2**53):
            raise ValueError(f"{file.name}: {name} is no count of steps")
        if rates and not (isinstance(value, list) and all(map(_is_rate, value))):
            raise ValueError(f"{file.name}: {name} holds other than rates")
    written = LambdaLR(torch.optim.SGD([torch.zeros(1)]), lambda _: 1.0).state_dict().keys()
    if wrong := sorted(told.keys() - written - {"verbose"}):  # which older releases of torch write
        raise ValueError(f"{file.name} names {wrong[0][:40]}, which is no state of a schedule")
    if lacking := sorted({"base_lrs", "last_epoch"} - told.keys()):
        raise ValueError(f"{file.name} lacks {lacking[0]}")


def settings(optimizer: Any) -> list[dict[str, Any]]:
    """The settings of each group of an optimizer of ours or torch's, which a wrapper may hold, as its specification has
    them. What others call settings they may write into.
    """
    own, names = unwrapped(optimizer), set[str]()
    while isinstance(own, Wrapper):
        own = own.base
    if isinstance(own, Optimizer):
        told = {"lr"} | ({"steps_per_epoch"} - own.given)  # by the schedule, and as training begins
        opt_outs = {own.transform.opt_out} - {""} if own.transform is not None else set()
        names = (own.defaults.keys() | own.kept.keys()) - validate.FOREIGN_KEYS - told | opt_outs
    elif type(own).__module__.startswith("torch.optim."):
        names = own.defaults.keys() - validate.FOREIGN_KEYS - {"lr"}
    return [{name: group.get(name) for name in sorted(names)} for group in own.param_groups]


@contextmanager
def as_specified(trainer: Any, step: int) -> Iterator[None]:
    """Within it Trainer takes a checkpoint's optimizer and schedule, whose settings torch puts in the place of the
    run's. A UserError where these are others: the record would be of a run that there was not. What wrappers' groups
    have from their beginning stays the run's: a window is told how long an epoch is as it begins.
    """
    groups, rates = settings(trainer.optimizer), list(trainer.lr_scheduler.base_lrs)
    own, kept = unwrapped(trainer.optimizer), set[str]()
    while isinstance(own, Wrapper):
        kept |= {*own.kept}
        own = own.base
    begun = [{name: group[name] for name in kept} for group in trainer.optimizer.param_groups]
    yield
    for group, values in zip(trainer.optimizer.param_groups, begun, strict=True):
        group.update(values)
    for mine, theirs in zip(groups, settings(trainer.optimizer), strict=True):
        for name in mine:
            if not validate.equal(mine[name], theirs[name]):
                raise UserError(f"its optimizer has {name} = {theirs[name]!r}, and the run {mine[name]!r}")
    schedule = trainer.lr_scheduler
    if not validate.equal(schedule.base_lrs, rates):
        raise UserError(f"its schedule is of the rates {schedule.base_lrs!r}, and the run of {rates!r}")
    if not (trainer.args.fp16 or schedule.last_epoch == step):  # whose scaler leaves steps out
        raise UserError(f"its schedule is at step {schedule.last_epoch}")
    now = [float(group["lr"]) for group in trainer.optimizer.param_groups]
    last = due = [float(rate) for rate in schedule.get_last_lr()]
    if not trainer.spending.bounded:  # what is spent is not known yet
        due = [float(rate) * schedule.lr_lambdas[0](schedule.last_epoch) for rate in rates]
    if not (len(last) == len(due) == len(now) and np.allclose([now, last], due, rtol=1e-5, atol=0)):
        raise UserError(f"its optimizer has the rates {now}, and its schedule {last}")


def _is_rate(value: Any) -> bool:
    return _is_number(value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 2**64 if isinstance(value, int) else math.isfinite(value)
