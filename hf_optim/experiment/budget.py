"""How long a run is and in which steps: the preset's numbers with the specification's, for this many processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Subset

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.spec import AUTO, RunSpec
from hf_optim.experiment.task import Data, Preset

LOGS_PER_RUN = 60


def resampled(data: Data, seed: int) -> Data:
    """`data` with a bootstrap sample of its train split: as many samples, drawn with replacement."""
    size = len(data.train)  # type: ignore[arg-type]
    drawn = torch.randint(size, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    note = f"{data.note}; a bootstrap sample of the train split, seed {seed}"
    return replace(data, train=Subset(data.train, drawn), note=note)


@dataclass(frozen=True)
class Budget:
    """The numbers of a run: the preset's, with the spec's overrides, for this many processes."""

    steps: int
    steps_per_epoch: int
    batch: int
    per_device: int
    accumulation: int
    eval_every: int
    log_every: int
    max_grad_norm: float
    drop_last: bool
    schedule: dict[str, Any]
    passes: int | None = None
    seconds: float | None = None
    precision: str = "fp32"
    compile_model: bool = False
    workers: int = 0

    def in_parts(self, parts: int) -> Budget:
        """The same steps, each process's share of a batch computed in so many parts, which must divide it."""
        share = self.per_device * self.accumulation
        return replace(self, per_device=share // parts, accumulation=parts)

    def trained(self, steps: int, samples: int) -> int:
        """Samples that so many steps have seen, of a train split of `samples`."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        whole = min(samples, self.steps_per_epoch * self.batch)
        return epochs * whole + min(rest * self.batch, whole)


def budget(spec: RunSpec, preset: Preset, samples: int, processes: int) -> Budget:
    """Work the numbers out, in one part a step where they are to be found (`auto`, see `footprint`).

    Raises:
        UserError: the batch does not divide, or the data are fewer than a batch.
    """
    given = spec.overrides
    batch, accumulation = given.get("batch_size", preset.batch_size.value), given.get("gradient_accumulation_steps", 1)
    accumulation = 1 if accumulation == AUTO else accumulation
    if batch % (processes * accumulation):
        raise UserError(
            f"overrides: batch_size {batch} is the whole step's and must divide by "
            f"{counted(processes, 'process')} x {counted(accumulation, 'accumulation step')}"
        )
    if processes > 1 and "seconds" in given:
        raise UserError("overrides: seconds end a run of one process; several would not end together: give passes")
    drop_last = preset.drop_last.value
    if drop_last and samples < batch:
        raise UserError(
            f"data: the train samples ({samples}) are fewer than one batch of {batch}: set overrides batch_size"
        )
    per_epoch = samples // batch if drop_last else math.ceil(samples / batch)
    epochs = per_epoch * given.get("epochs", preset.epochs.value)
    steps = given.get("steps", epochs if "epochs" in given else preset.steps.value or epochs)
    spread = preset.evaluations.value
    return Budget(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch=batch,
        per_device=batch // (processes * accumulation),
        accumulation=accumulation,
        eval_every=given.get("eval_every", math.ceil(steps / spread) if spread else per_epoch),
        log_every=max(1, steps // LOGS_PER_RUN),
        max_grad_norm=float(given.get("max_grad_norm", preset.max_grad_norm.value)),
        drop_last=drop_last,
        schedule=spec.schedule or preset.schedule.value,
        passes=given.get("passes"),
        seconds=given.get("seconds"),
        precision=given.get("precision", preset.precision.value),
        compile_model=given.get("compile_model", False),
        workers=given.get("workers", 0),
    )
