"""Time to a target stated beforehand, and performance profiles as AlgoPerf scores them (Dahl et al. 2023, section 4).

A run's time is the step at which the metric reaches the target, interpolated between evaluations, and infinite if it
never does; an optimizer's time on a task is the median over seeds. Divided by the shortest time of the task it is a
ratio r, at least 1; the profile at tau is the share of tasks with r <= tau, and the score the mean of the profile from
1 to 4. Beside the steps stand the passes, operations and seconds that were spent by then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_optim.study.findings.spending import KINDS, spent
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.criteria import TARGET_KEYS

TAU = 4.0
POINTS = 100  # AlgoPerf's grid; the exact integral differs from its sum by at most one grid step a task
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reached:
    """One optimizer on one task: the steps of every seed (infinite if the target was not reached), and their median.
    `spent` has the medians of what else was spent by then, by kind, where every run that arrived logged it.
    """

    optimizer: str
    times: Mapping[int, float]
    time: float
    spent: Mapping[str, float] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many seeds reached the target."""
        return sum(math.isfinite(t) for t in self.times.values())


@dataclass(frozen=True)
class TargetTable:
    """The times of one task."""

    task: str
    metric: str
    value: float
    better: str
    rows: tuple[Reached, ...]


@dataclass(frozen=True)
class Profile:
    """Scores by optimizer, best first, and the share of tasks within each tau. Description: there is no interval."""

    scores: Mapping[str, float]
    taus: tuple[float, ...]
    shares: Mapping[str, tuple[float, ...]]


def time_to_target(
    rows: Sequence[Mapping[str, Any]], metric: str, value: float, better: str, kind: str = "step"
) -> float:
    """The step at which `metric` reaches `value`, or what was spent by then (`spending.KINDS`), interpolated linearly
    between the evaluations before and after; infinite if it never does, or where no row says what was spent.
    """
    before: tuple[float, float] | None = None
    for row in rows:
        seen, step = number(row.get(metric)), spent(row, kind)
        if math.isnan(seen) or math.isnan(step):
            continue
        if seen >= value if better == "higher" else seen <= value:
            if before is None or seen == before[1]:
                return step
            return before[0] + (step - before[0]) * (value - before[1]) / (seen - before[1])
        before = step, seen
    return math.inf


def target_tables(results: Results) -> list[TargetTable]:
    """The times of every task with a target, from the histories; a failed run has not reached it, and of one without a
    history that can be read it is not known.
    """
    tables = []
    for task in results.plan.tasks:
        target = (results.plan.targets or {}).get(task["label"])
        if target is None:
            continue
        metric, value, better = (target[key] for key in TARGET_KEYS)  # a plan's may have further keys
        rows: list[Reached] = []
        for label in task["only"]:
            logs: dict[int, list[dict[str, Any]]] = {}
            for run, record in results.runs(task["label"], label):
                if record is None:
                    continue
                if record["status"] != "ok" or run.id in results.in_vain:
                    logs[run.seed] = []
                elif log := results.store.course(run.id):
                    logs[run.seed] = log
            times = {
                kind: {seed: time_to_target(log, metric, value, better, kind) for seed, log in logs.items()}
                for kind in ("step", *KINDS)
            }
            steps = times.pop("step")
            # What was not logged is not known, which is not "never".
            known = {
                k: v for k, v in times.items() if [*map(math.isinf, v.values())] == [*map(math.isinf, steps.values())]
            }
            rows.append(Reached(label, steps, _median(steps), {kind: _median(v) for kind, v in known.items()}))
        tables.append(TargetTable(task["label"], metric, value, better, tuple(rows)))
    return tables


def _median(times: Mapping[int, float]) -> float:
    return float(np.median(list(times.values()))) if times else math.nan


def cells(table: TargetTable) -> list[dict[str, str]]:
    """The rows of a table as text, by column: who reached the target, and what it took in the median."""
    kinds = [kind for kind in KINDS if any(kind in row.spent for row in table.rows)]
    return [
        {
            "optimizer": row.optimizer,
            "reached": f"{row.count}/{len(row.times)}",
            "median steps": _amount(row.time),
            **{f"median {KINDS[kind]}": _amount(row.spent.get(kind, math.nan)) for kind in kinds},
        }
        for row in table.rows
    ]


def _amount(value: float) -> str:
    return "never" if math.isinf(value) else "–" if math.isnan(value) else f"{value:.6g}"


def ratios(times: Array) -> Array:
    """Times to target, (..., optimizers, tasks), over the shortest of each task; infinite where the target was not
    reached (infinite or NaN time), and for all on a task that nobody solved.
    """
    clean = np.where(np.isnan(times), np.inf, times)
    best = clean.min(axis=-2, keepdims=True)
    # A target that is reached before the first step takes no time: whoever does the same is at 1, all others beyond.
    known = np.isfinite(clean) & np.isfinite(best) & (best > 0)
    quotients = np.divide(clean, best, out=np.full(clean.shape, np.inf), where=known)
    return np.where((clean == 0) & (best == 0), 1.0, quotients)


def shares(times: Array, taus: Array) -> Array:
    """The performance profile, (optimizers, taus), of times to target, (optimizers, tasks): the share of tasks whose
    ratio is at most tau.
    """
    return np.asarray((ratios(times)[..., None] <= taus).mean(axis=-2))


def score(times: Array, tau: float = TAU, points: int = POINTS) -> Array:
    """The score of each optimizer, 0 to 1: the trapezoidal sum of its profile over `points` equidistant taus in
    [1, tau], divided by tau - 1; `times` as in `ratios`.
    """
    # A task adds a step to the profile, and a step's sum is a count of grid points, the two ends by half.
    first = np.searchsorted(np.linspace(1.0, tau, points), ratios(times))
    added = np.maximum(0.0, points - first - 0.5) - np.where(first == 0, 0.5, 0.0)
    return np.asarray(added.mean(axis=-1) / (points - 1))


def profile(tables: Sequence[TargetTable]) -> Profile | None:
    """The profile over all tasks with a target, of the optimizers that all of them have; None without any."""
    if not tables:
        return None
    labels = [r.optimizer for r in tables[0].rows if all(r.optimizer in [x.optimizer for x in t.rows] for t in tables)]
    if not labels:
        return None
    median = np.full((len(labels), len(tables)), math.inf)
    for column, table in enumerate(tables):
        by_label = {row.optimizer: row for row in table.rows}
        seeds = sorted(set.union(*(set(by_label[label].times) for label in labels)))
        for line, label in enumerate(labels if seeds else ()):
            # A run that has no record yet has not reached the target.
            median[line, column] = np.median([by_label[label].times.get(seed, math.inf) for seed in seeds])
    final = score(median)
    order = np.argsort(-final, kind="stable")
    taus = np.linspace(1.0, TAU, POINTS)
    at = shares(median, taus)
    return Profile(
        {labels[i]: float(final[i]) for i in order},
        tuple(taus.tolist()),
        {labels[i]: tuple(at[i].tolist()) for i in order},
    )
