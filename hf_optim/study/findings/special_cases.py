"""A test of the tuning itself (Choi et al. 2019): when both are tuned, a general rule never loses to its special case.

Where one does, beyond the interval, not the rule is worse: its search space, its bounds or the budget kept the tuning
from finding the special case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_optim import registry
from hf_optim.study.folder.judgement import pair
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.plan import Plan


@dataclass(frozen=True)
class Finding:
    """A general rule that lost to its special case: its advantage (below zero), and the interval that excludes zero."""

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
    info = registry.info(name)
    inside = set(info.special_cases)
    if info.as_base and (inner := registry.inner(info, spec.get("base"))) is not None:
        inside |= {inner["name"], *_inside(inner)}
    return inside


def findings(results: Results) -> list[Finding]:
    """The general rules that lost on a task, by the tests of all pairs, which have 5 % of their own."""
    judgement, flagged = results.standing.judgement, []
    for task in results.plan.tasks if judgement else ():
        for general, special in related(results.plan):
            comparison = pair(judgement, task["label"], general, special) if judgement else None
            if comparison is not None and comparison.verdict == "worse":
                mean, low, high = comparison.mean.value, comparison.low, comparison.high
                flagged.append(Finding(task["label"], general, special, mean, low, high))
    return flagged
