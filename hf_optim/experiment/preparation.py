"""What a run needs before its first step, checked: names, data, numbers, model, optimizer and a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, set_seed

from hf_optim import registry
from hf_optim.core.wording import counted
from hf_optim.errors import DamagedCheckpoint, UserError, one_line
from hf_optim.experiment import flops, footprint, leftovers, precision, resuming
from hf_optim.experiment import record as records
from hf_optim.experiment.budget import Budget, budget, resampled
from hf_optim.experiment.checkpoint import last_checkpoint, pickled_weights
from hf_optim.experiment.disk import check_given, check_space, writing
from hf_optim.experiment.evaluator import train_part
from hf_optim.experiment.files import check_tree, read_json, remove, write_json
from hf_optim.experiment.record import step_of
from hf_optim.experiment.spec import AUTO, RunSpec
from hf_optim.experiment.task import Data, Preset, Task, read_data


@dataclass(frozen=True)
class Prepared:
    """A run of which everything is known but what it comes to.

    `checkpoint` is the one that it goes on from, `first` whether this is the process that writes, `tracking` what
    Trainer is told about trackers.
    """

    spec: RunSpec
    folder: Path
    task: Task
    preset: Preset
    data: Data
    numbers: Budget
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    cost: flops.PassCost | None
    checkpoint: str | None
    checkpoint_every: int | None
    tracking: dict[str, Any]
    processes: int
    first: bool
    started: datetime


def prepare(
    spec: RunSpec,
    folder: Path,
    task: Task,
    model_name: str,
    preset: Preset,
    *,
    checkpoint_every: int | None,
    resume: bool,
    tracking: dict[str, Any],
    started: datetime,
) -> Prepared:
    """Reads the data, builds model and optimizer, and clears the folder; raises as `training.train` does."""
    processes, first = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")) == 0
    data = read_data(task, preset, spec.data)
    if "split_seed" in spec.overrides:
        data = resampled(data, spec.overrides["split_seed"])
    numbers = budget(spec, preset, len(data.train), processes)  # type: ignore[arg-type]
    set_seed(spec.overrides.get("init_seed", spec.seed))
    model = task.model(model_name, preset, data)
    optimizer = registry.build(spec.optimizer, model)  # values out of range are the user's error, not a failed run
    precision.check_precision(numbers.precision)
    precision.check_launcher(numbers.precision, numbers.compile_model)
    if spec.overrides.get("gradient_accumulation_steps") == AUTO:
        batch = flops.probe(train_part(data, None), task.collate(data))
        needs = footprint.measure(model, footprint.slots_of(optimizer), batch, numbers.precision)
        numbers = numbers.in_parts(needs.parts(numbers.per_device, footprint.available()))
    checkpoint = last_checkpoint(folder, training=True) if resume else None
    if checkpoint is not None:  # all of it is looked through before anything is written
        if first:
            check_kept(folder, spec)
        if step_of(Path(checkpoint).name) > numbers.steps:
            raise DamagedCheckpoint(
                f"resume: {checkpoint} is beyond the run's {counted(numbers.steps, 'step')}: take it away"
            )
        resuming.check(Path(checkpoint), model)
    if first:
        clear(folder, spec, keep=checkpoint is not None, checkpoints=checkpoint_every is not None)
    cost = flops.cost(model, train_part(data, None), task.collate(data))
    return Prepared(
        spec,
        folder,
        task,
        preset,
        data,
        numbers,
        model,
        optimizer,
        cost,
        checkpoint,
        checkpoint_every,
        tracking,
        processes,
        first,
        started,
    )


def check_devices() -> None:
    """NCCL refuses processes that share a GPU, in words that do not say so."""
    here, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > cards > 0 and not os.environ.get("ACCELERATE_USE_CPU"):
        raise UserError(
            f"{here} processes on this machine would share {counted(cards, 'GPU')}: start {cards}, or "
            "hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def check_kept(folder: Path, spec: RunSpec) -> None:
    """Raise `DamagedCheckpoint` where a folder that a run goes on in is another run's, or leads elsewhere."""
    try:
        if os.path.lexists(folder / records.SPEC) and read_json(folder, records.SPEC) != spec.to_dict():
            raise DamagedCheckpoint(
                f"resume: {folder} holds checkpoints of another run (see its {records.SPEC}): choose another folder"
            )
        # all of it is read, or written into
        for name in (records.SAMPLES, *(path.name for path in folder.glob("checkpoint-*"))):
            check_tree(folder / name)
            pickled_weights(folder / name)  # which names what lies elsewhere
    except DamagedCheckpoint:
        raise
    except (OSError, ValueError) as error:
        check_given(folder, error)
        raise DamagedCheckpoint(f"resume: {folder}: {one_line(error)}") from error


def clear(folder: Path, spec: RunSpec, *, keep: bool, checkpoints: bool) -> None:
    """Make the folder and clear an older run out of it; `keep` leaves the checkpoints of the run that goes on."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (records.RECORD, records.HISTORY):
            remove(folder, name)
            leftovers.sweep(folder, name)
        if not keep:  # whose the checkpoints are is said as long as there is one
            for old in (folder / records.SAMPLES, *folder.glob("checkpoint-*"), folder / records.SPEC):
                remove(folder, old.name)
        check_space(folder)
        if checkpoints or keep:
            write_json(folder, records.SPEC, spec.to_dict())
