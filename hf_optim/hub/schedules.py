"""Learning-rate schedules: one factor a step, multiplied with every group's own rate.

A schedule is a mapping with a `name` and its parameters; `warmup` (any of them takes it) is a share of the run below
1 or a number of steps, with a linear rise that never starts at 0 (a rate of 0 would stick in rules that keep their
step size).

    constant
    linear      end: factor at the end (0)
    cosine      end: factor at the end (0); cycles: restarts, Loshchilov and Hutter's SGDR with equal periods (1)
    wsd         decay: share of the run (below 1) or number of steps at the end that fall linearly (0.2), after the
                warm-up and a stable part at 1; end: factor at the end (0)
    multistep   at: shares of the run in (0, 1) or step numbers ([0.5, 0.75]); gamma: factor at each (0.1)
    step        every: share of the run or number of steps (0.3); gamma (0.1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from hf_optim.core.validate import closest
from hf_optim.core.wording import counted
from hf_optim.errors import UserError

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {"end": 0.0},
    "cosine": {"end": 0.0, "cycles": 1},
    "wsd": {"decay": 0.2, "end": 0.0},
    "multistep": {"at": [0.5, 0.75], "gamma": 0.1},
    "step": {"every": 0.3, "gamma": 0.1},
}


def check_schedule(schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule with its defaults filled in; a `UserError` names what is wrong and the valid names."""
    if not isinstance(schedule, Mapping) or not isinstance(schedule.get("name"), str):
        raise UserError(f"schedule: expected a mapping with a name, as {{name: cosine}}, got {schedule!r}")
    name = schedule["name"]
    if name not in SCHEDULES:
        raise UserError(f"schedule: unknown name {name!r}{closest(name, SCHEDULES)}; valid: {', '.join(SCHEDULES)}")
    valid = {"name": name, "warmup": 0, **SCHEDULES[name]}
    for key, value in schedule.items():
        if key not in valid:
            known = [k for k in valid if k != "name"]
            near = closest(key, known)
            raise UserError(f"schedule {name!r}: unknown parameter {key!r}{near}; valid: {', '.join(known)}")
        if key == "name":
            continue
        entries = value if key == "at" else [value]
        if not isinstance(entries, (list, tuple)) or not entries:
            raise UserError(f"schedule {name!r}: {key} must be a list of numbers, as [0.5, 0.75], got {value!r}")
        for entry in entries:
            counted = isinstance(entry, (int, float)) and not isinstance(entry, bool)
            if not counted or not 0 <= entry < 2**63:  # so no NaN either
                unit = "" if key in ("end", "gamma", "cycles") else " (a share of the run below 1, else steps)"
                raise UserError(f"schedule {name!r}: {key} must be a finite number of 0 or more{unit}, got {entry!r}")
            if key in ("every", "at", "cycles", "decay") and entry == 0:
                raise UserError(f"schedule {name!r}: {key} must be above 0")
    if not isinstance(schedule.get("cycles", 1), int):
        raise UserError(f"schedule {name!r}: cycles must be a whole number, got {schedule['cycles']!r}")
    return {**valid, **schedule}


def described(schedule: Mapping[str, Any]) -> str:
    """A schedule in words, as it was given: "cosine, warmup 0.1"."""
    return ", ".join([str(schedule["name"]), *(f"{key} {value}" for key, value in schedule.items() if key != "name")])


def unreached(schedule: Mapping[str, Any], total: int) -> str:
    """What of a schedule a run of `total` steps ends before, in words, or nothing: mostly a number meant in epochs."""
    values = check_schedule(schedule)
    numbers = {"warmup": [values["warmup"]], "every": [values.get("every", 0)], "at": values.get("at", ())}
    late = [f"{key} {n:g}" for key, some in numbers.items() for n in some if _steps(n, total) >= total > 0]
    if not late:
        return ""
    return (
        f"the run ends after {counted(total, 'step')}, before its schedule's {', '.join(late)}: what is below 1 is a "
        "share of the run, all else a number of steps"
    )


def factor(schedule: Mapping[str, Any], total: int) -> Callable[[int], float]:
    """The factor as a function of the number of steps already taken (0 at the first step) in a run of `total` steps."""
    values = check_schedule(schedule)
    warmup = _steps(values["warmup"], total)

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return _after_warmup(values, min(step, total), warmup, total)

    return at


def _steps(value: float, total: int) -> int:
    """A share of the run (below 1) or a number of steps, as a number of steps."""
    return round(value * total) if value < 1 else round(value)


def _after_warmup(values: Mapping[str, Any], step: int, warmup: int, total: int) -> float:
    name = values["name"]
    if name == "constant":
        return 1.0
    if name == "multistep":
        return float(values["gamma"] ** sum(step >= _steps(milestone, total) for milestone in values["at"]))
    if name == "step":
        return float(values["gamma"] ** (step // max(1, _steps(values["every"], total))))
    if name == "wsd":
        decay = min(_steps(values["decay"], total), total - warmup)
        fallen = max(0, step - (total - decay)) / max(1, decay)
        return float(1 + (values["end"] - 1) * fallen)
    done = (step - warmup) / max(1, total - warmup)
    if name == "cosine":
        cycles = values["cycles"]
        position = 1.0 if done >= 1 else (done * cycles) % 1.0
        return float(values["end"] + (1 - values["end"]) * 0.5 * (1 + math.cos(math.pi * position)))
    return float(1 + (values["end"] - 1) * done)
