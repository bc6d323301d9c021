"""How much faster than the baseline: by what factor the baseline's budget must grow until it does as well.

The baseline is trained, and tuned, at several complete budgets; nothing is read off within a run, where the schedule
decides. A factor s belongs to the interval unless a paired t-test over units rejects that the baseline at s times the
budget, interpolated linearly in the logarithm of the budget, is as good as the other at the whole budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_optim.study.statistics.paired import ALPHA, NAN

GRID = 400  # factors tried between the smallest and the largest budget


@dataclass(frozen=True)
class SpeedUp:
    """The factor and its 95 % interval; an end that the budgets do not bound is NaN ("more than", "less than"). Where
    the other beats the baseline at every budget, `low` is the greatest of them and the rest is open.
    """

    n: int
    value: float
    low: float
    high: float
    #: the least and the greatest budget, in units of the whole one
    least: float
    most: float


def invert(
    baseline: NDArray[np.float64],
    other: Sequence[float],
    budgets: Sequence[float],
    least_sd: float = 0.0,
    level: float = ALPHA,
) -> SpeedUp:
    """The speed-up of `other`, (units,), over `baseline`, (units, budgets), paired by unit; greater values are better.

    Args:
        budgets: factors of the whole budget, ascending, such as (.5, 1, 2, 4).
        least_sd: the least deviation of differences, half a grain of the metric.
    """
    from scipy.special import stdtrit

    n, least, most = len(other), float(budgets[0]), float(budgets[-1])
    if n < 2:
        return SpeedUp(n, NAN, NAN, NAN, least, most)
    logs = np.linspace(math.log(least), math.log(most), GRID)
    mean_curve = np.interp(logs, np.log(budgets), baseline.mean(axis=0))
    value = _crossing(logs, float(np.mean(other)) - mean_curve)
    if not math.isnan(value):  # always inside, however narrow the interval
        logs = np.sort(np.append(logs, math.log(value)))
    curves = np.array([np.interp(logs, np.log(budgets), row) for row in baseline])
    d = np.asarray(other, dtype=float)[:, None] - curves  # (units, factors)
    critical = float(stdtrit(n - 1, 1 - level / 2)) / math.sqrt(n)
    mean, inside = d.mean(axis=0), _kept(d, critical, least_sd)
    if not inside.any():
        ends = (most, NAN) if mean[-1] > 0 else (NAN, least)
        return SpeedUp(n, value, *ends, least, most)
    kept = np.flatnonzero(inside)
    first, last = kept[0], kept[-1]

    def end(i: int, j: int) -> float:
        """Where between a kept factor i and its neighbour j, which is not, the test begins to reject."""
        within, beyond = 0.0, 1.0
        for _ in range(40):  # between two factors the curves are as good as straight
            middle = (within + beyond) / 2
            taken = bool(_kept(d[:, i] + middle * (d[:, j] - d[:, i]), critical, least_sd))
            within, beyond = (middle, beyond) if taken else (within, middle)
        return math.exp(logs[i] + within * (logs[j] - logs[i]))

    low = NAN if first == 0 else end(first, first - 1)
    high = NAN if last == len(logs) - 1 else end(last, last + 1)
    return SpeedUp(n, value, low, high, least, most)


def _kept(d: NDArray[np.float64], critical: float, least_sd: float) -> NDArray[np.bool_]:
    """Whether the test does not reject, for differences by unit (and factor)."""
    return np.asarray(np.abs(d.mean(axis=0)) <= critical * np.maximum(d.std(axis=0, ddof=1), least_sd))


def _crossing(logs: NDArray[np.float64], mean: NDArray[np.float64]) -> float:
    """Where the mean difference is zero; NaN where the budgets do not reach that far."""
    turns = np.flatnonzero(np.signbit(mean[1:]) != np.signbit(mean[:-1]))
    if not len(turns):
        return NAN
    i = turns[0]
    return math.exp(logs[i] + (logs[i + 1] - logs[i]) * mean[i] / (mean[i] - mean[i + 1]))
