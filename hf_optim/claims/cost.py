"""What a study costs, said before it starts: operations, hours, money.

A training step is three forward passes of its batch, counted once (`configs/claims/flops.json`, written by
`scripts/count_flops.py`), or the time that it takes to start the step's kernels, whichever is more. Line searches,
evaluations during training and data loading are not counted, generated images of diffusion models are. It is a rough
figure: a factor of two either way is no surprise.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hf_optim.core import configs, numerals
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.study.plan.plan import Run


@dataclass(frozen=True)
class Machine:
    """What operations cost: per second that are reached, seconds that a step takes at least, dollars an hour, at a
    time (cores or GPUs).
    """

    name: str
    operations: float
    step_seconds: float
    dollars: float
    at_a_time: int = 1


GPU = Machine("GPU", 30e12, 0.02, 3.0)
CORE = Machine("core", 13e9, 0.005, 0.05)
#: operations of a step over those of its forward pass
TRAINING = 3


@dataclass(frozen=True)
class Cost:
    """The sum over runs; `unknown` are those whose model was not counted."""

    runs: int
    operations: float
    hours: float
    unknown: int = 0

    def sentence(self, machine: Machine) -> str:
        """In words, for this machine."""
        if not self.runs:
            return "0 runs, nothing to pay"
        money = self.hours * machine.dollars
        parts = [
            counted(self.runs, "run"),
            f"about {self.operations:.2g} operations",
            f"{duration(self.hours)} of one {machine.name}",
            f"${money:,.0f}" if money >= 10 else f"${money:.2f}",
        ]
        if machine.at_a_time > 1:
            parts[2] += f", {duration(self.hours / machine.at_a_time)} with {machine.at_a_time} at a time"
        more = f" (at {machine.operations / 1e12:g} TFLOP/s and ${machine.dollars:g} an hour)"
        more += f"; {counted(self.unknown, 'run')} of a model that was not counted" if self.unknown else ""
        return ", ".join(parts) + more


def duration(hours: float) -> str:
    """Hours in words."""
    if hours < 1:
        return counted(round(60 * hours), "minute")
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.1f} hours"


def hours(text: str) -> float:
    """Hours of `10h`, `90m` or a plain number of hours."""
    unit = {"h": 1.0, "m": 1 / 60, "d": 24.0}.get(text[-1:], None)
    try:
        value = numerals.number(text[:-1] if unit else text) * (unit or 1.0)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--budget: expected hours as 10h, minutes as 90m or days as 2d, got {text!r}")
    return value


def of(runs: Iterable[Run], machine: Machine) -> Cost:
    """What the runs cost on the machine."""
    count, operations, time, unknown = 0, 0.0, 0.0, 0
    for run in runs:
        count += 1
        work = _operations(run.spec)
        if work is None:
            unknown += 1
            continue
        operations += work[0]
        time += max(work[0] / machine.operations, work[1] * machine.step_seconds) / 3600
    return Cost(count, operations, time, unknown)


@functools.cache
def _counted() -> dict[str, list[float]]:
    file = configs.folder("claims") / "flops.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _operations(spec: Mapping[str, Any]) -> tuple[float, int] | None:
    """(operations, steps) of a run; None where its model was not counted."""
    from hf_optim.experiment.task import load

    data = f" {spec['data']}" if spec.get("data") else ""
    counted = _counted().get(f"{spec['task']}/{spec['model']} {spec['size']}{data}")
    if counted is None:
        return None
    samples, forward = counted
    preset = load(spec["task"]).preset(spec["model"], spec["size"])
    given = spec.get("overrides") or {}
    batch = given.get("batch_size", preset.batch_size.value)
    epoch = max(1, math.ceil(samples / batch))
    steps = given.get("steps") or (
        given["epochs"] * epoch if "epochs" in given else preset.steps.value or preset.epochs.value * epoch
    )
    total = TRAINING * forward * batch * steps
    values = preset.model.value
    if "generated" in values:  # images of a diffusion model, at every evaluation and at the end
        evaluations = (preset.evaluations.value or 1) + bool(values.get("early")) + 1
        total += forward * values["generated"] * values["ddim_steps"] * evaluations
    return total, steps
