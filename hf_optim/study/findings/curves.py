"""Learning curves over seeds, from the histories of runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.study.findings.spending import spent
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number

POINTS = 60  # a curve with more logged steps is averaged into this many buckets, which keeps a report of 500 runs small


@dataclass(frozen=True)
class Curve:
    """One optimizer's curve: at each step the mean over its runs, and the lowest and highest run.

    `failed` marks the curve of a single run that failed; those are drawn apart and never enter a mean.
    """

    optimizer: str
    steps: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    runs: int
    failed: bool = False


Series = dict[float, float]


class Histories:
    """The histories of one task, read once."""

    def __init__(self, results: Results, task: Mapping[str, Any]) -> None:
        self.optimizers: list[str] = list(task["only"])
        self._keys: set[str] = set()
        self._logged: dict[str, list[tuple[bool, dict[str, Series]]]] = {}
        for label in self.optimizers:
            self._logged[label] = []
            for run, record in results.runs(task["label"], label):
                if record is not None:
                    rows = results.history(run)
                    self._keys.update(*rows)
                    self._logged[label].append((record["status"] == "ok", _logged(rows)))

    def keys(self) -> set[str]:
        """What was logged under, and the step."""
        return self._keys

    def spent(self, against: str) -> dict[str, Curve]:
        """What was spent by each step, on average over the finished runs: passes, tokens, flops or seconds."""
        # Every step, unlike in a drawing: the mean of a last bucket would end before the curves do.
        return {c.optimizer: c for c in self.curves(against, math.inf) if not c.failed}

    def singles(self, key: str, points: float) -> dict[str, list[Curve]]:
        """The curves of single finished runs, of at most so many points, by optimizer."""
        series = {
            label: [every[key] for ok, every in runs if ok and key in every] for label, runs in self._logged.items()
        }
        buckets = _buckets(sorted({step for runs in series.values() for logged in runs for step in logged}), points)
        return {
            label: [_mean(label, [_bucketed(logged, buckets)]) for logged in runs] for label, runs in series.items()
        }

    def curves(self, key: str, points: float = POINTS) -> list[Curve]:
        """The curves of one logged value, of at most so many points, in the plan's order, without optimizers that did
        not log it.
        """
        series = {
            label: [(ok, every[key]) for ok, every in runs if key in every] for label, runs in self._logged.items()
        }
        buckets = _buckets(sorted({step for runs in series.values() for _, logged in runs for step in logged}), points)
        drawn: list[Curve] = []
        for label, runs in series.items():
            fine = [_bucketed(logged, buckets) for ok, logged in runs if ok]
            if fine:
                drawn.append(_mean(label, fine))
            for ok, logged in runs:
                if not ok:
                    drawn.append(_mean(label, [_bucketed(logged, buckets)], failed=True))
        return [c for c in drawn if c.steps]


def _logged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Every figure of a history by step, in one pass over its rows, each of which holds few; "passes", too."""
    every: dict[str, Series] = {}
    for row in rows:
        step = number(row.get("step"))
        if math.isnan(step):
            continue
        for key, value in row.items():
            # A rate may be logged one a group: the first group is the one with decay, that is, nearly all weights.
            value = number(value[0] if isinstance(value, list) and value else value)
            if not math.isnan(value):
                every.setdefault(key, {})[step] = value
        if not math.isnan(passes := spent(row, "passes")):
            every.setdefault("passes", {})[step] = passes
    return every


def _buckets(steps: Sequence[float], points: float) -> dict[float, float]:
    """Maps each step to the step that stands for its bucket."""
    if len(steps) <= points:
        return {step: step for step in steps}
    low, width = steps[0], (steps[-1] - steps[0]) / points
    groups: dict[int, list[float]] = {}
    for step in steps:
        groups.setdefault(min(int(points) - 1, int((step - low) / width)), []).append(step)
    return {step: round(math.fsum(group) / len(group), 2) for group in groups.values() for step in group}


def _bucketed(series: Series, buckets: Mapping[float, float]) -> Series:
    groups: dict[float, list[float]] = {}
    for step, value in series.items():
        groups.setdefault(buckets[step], []).append(value)
    return {step: math.fsum(values) / len(values) for step, values in groups.items()}


def _mean(label: str, runs: Sequence[Series], failed: bool = False) -> Curve:
    # Only where every run has a value: otherwise the mean would jump when a run joins or leaves.
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    columns = [[run[step] for run in runs] for step in steps]
    return Curve(
        optimizer=label,
        steps=tuple(steps),
        mean=tuple(math.fsum(c) / len(c) for c in columns),
        low=tuple(min(c) for c in columns),
        high=tuple(max(c) for c in columns),
        runs=len(runs),
        failed=failed,
    )
