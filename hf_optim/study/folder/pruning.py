"""Stopping hopeless trials early, the same way whatever the order in which trials finish.

Optuna's median rule compares a trial with those that happen to be finished. Here the first `FIRST` trials of an
optimizer always run whole, and every later one is measured by their medians: at an evaluation after so many steps it is
stopped if its best validation value so far is worse than the median of theirs at that step. So a study that is killed,
spread over machines or given more trials prunes exactly the same ones.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.study.folder.store import number

FIRST = 4
#: thresholds of all trials of a search together: each trial's specification holds its own
MOST = 20_000


def thresholds(
    histories: Sequence[Sequence[Mapping[str, Any]] | None], metric: str, greater: bool, trials: int = 1
) -> list[tuple[int, float]]:
    """(step, median value) at each evaluation but the first (before training) and the last (after it), or at every
    second or later one where so many `trials` would have more than `MOST`.

    A history is None for a trial that failed: it counts as worst at every step.
    """
    whole = [_series(rows, metric) for rows in histories if rows is not None]
    if not whole:
        return []
    steps = sorted(set.intersection(*(set(series) for series in whole)))
    worst = [-math.inf if greater else math.inf] * (len(histories) - len(whole))
    inner = [step for step in steps[:-1] if step > 0]
    kept = inner[:: max(1, math.ceil(len(inner) * trials / MOST))]
    medians = ((step, statistics.median([*worst, *(series[step] for series in whole)])) for step in kept)
    return [(step, value) for step, value in medians if math.isfinite(value)]


def _series(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    by_step = {number(row.get("step")): number(row.get(metric)) for row in rows if metric in row}
    return {int(step): value for step, value in by_step.items() if not (math.isnan(step) or math.isnan(value))}
