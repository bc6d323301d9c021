"""A test of the tuning itself (Choi et al. 2019): when both are tuned, a general rule never loses to its special case.

Where one does, beyond the interval, not the rule is worse: its search space, its bounds or the budget kept the tuning
from finding the special case.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim import registry
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan.plan import Plan

NEARLY_ZERO = 1e-12  # where 0 itself is refused
#: (general rule, the values with which it is the special case, special case)
PAIRS: tuple[tuple[str, Mapping[str, float], str], ...] = (
    ("adamw", {"weight_decay": 0.0}, "adam"),
    ("sgdm", {"momentum": 0.0}, "sgd"),
    ("nesterov", {"momentum": NEARLY_ZERO}, "sgd"),
    ("hd_sgd", {"hypergrad_lr": 0.0, "momentum": 0.0}, "sgd"),
    ("hd_adam", {"hypergrad_lr": 0.0}, "adam"),
)
#: (wrapper, the values with which it is its base)
WRAPPERS: tuple[tuple[str, Mapping[str, float]], ...] = (
    ("tlr", {"gamma": NEARLY_ZERO}),
    ("lookahead", {"alpha": 1.0}),
    ("hdk", {"eta": 0.0}),
)


@dataclass(frozen=True)
class Finding:
    """A general rule that lost to its special case: the paired difference, general minus special, and its interval."""

    task: str
    general: str
    special: str
    difference: float
    low: float
    high: float


def related(plan: Plan) -> Iterator[tuple[str, str]]:
    """The labels (general, special) of a study's optimizers that are in such a relation."""
    named = [(str(o["label"]), o["spec"]) for o in plan.optimizers]
    for general, spec in named:
        inner = _inside(spec)
        for special, other in named:
            if general != special and other["name"] in inner:
                yield general, special


def _inside(spec: Mapping[str, Any]) -> set[str]:
    """The names of what `spec` contains as a special case, directly or through another."""
    name = str(spec["name"])
    if ":" in name:
        return set()
    info, found = registry.info(name), {special for general, _, special in PAIRS if general == name}
    base = spec.get("base")
    inner = {**(info.base or {}), **({"name": base} if isinstance(base, str) else base or {})}
    if any(info.cls == registry.info(wrapper).cls for wrapper, _ in WRAPPERS) and inner:
        found |= {inner["name"], *_inside(inner)}
    return found


def findings(plan: Plan, reader: RecordStore) -> list[Finding]:
    """The general rules that lost on a task beyond the 95 % t-interval of the difference, paired by seed."""
    found = []
    for task in plan.tasks:
        for general, special in related(plan):
            if general in task["only"] and special in task["only"]:
                mine, other = (_values(plan, task, label, reader) for label in (general, special))
                seeds = sorted(mine.keys() & other.keys())
                difference, low, high = _interval([mine[s] for s in seeds], [other[s] for s in seeds])
                if high < 0 if task["primary"]["greater_is_better"] else low > 0:
                    found.append(Finding(task["label"], general, special, difference, low, high))
    return found


def _values(plan: Plan, task: Mapping[str, Any], label: str, reader: RecordStore) -> dict[int, float]:
    found = {}
    for run in plan.runs:
        if (run.task, run.optimizer) == (task["label"], label) and (record := reader.record(run.id)):
            value = number(record["metrics"].get(task["primary"]["name"]))
            if not math.isnan(value):
                found[run.seed] = value
    return found


def _interval(mine: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    from scipy.stats import ttest_rel

    differences = [a - b for a, b in zip(mine, other, strict=True)]
    if len(differences) < 2 or len(set(differences)) == 1:
        return math.nan, math.nan, math.nan
    interval = ttest_rel(mine, other).confidence_interval(0.95)
    return math.fsum(differences) / len(differences), float(interval.low), float(interval.high)
