"""One score an optimizer: its mean advantage over tasks, each in a unit of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_optim.study.statistics.paired import NAN, MeanDifference


def score(means: Sequence[MeanDifference], units: Sequence[float]) -> MeanDifference:
    """The mean over tasks of the mean difference in units of the task, with Satterthwaite's degrees of freedom.

    Args:
        means: the mean difference on each task, positive where the optimizer is better.
        units: what counts as 1 on each task: the stated margin, or |untrained - baseline|.

    The tasks' chance is independent: their repetitions draw settings, weights and batches of their own.
    """
    t = len(means)
    if not t or any(one.n < 2 for one in means):
        return MeanDifference(min((one.n for one in means), default=0), NAN, NAN, NAN, NAN)
    value = math.fsum(one.value / unit for one, unit in zip(means, units, strict=True)) / t
    parts = [(one.error / unit / t) ** 2 for one, unit in zip(means, units, strict=True)]
    variance = math.fsum(parts)
    n = min(one.n for one in means)
    if variance <= 0:
        return MeanDifference(n, value, 0.0, 0.0, NAN)
    freedom = variance**2 / math.fsum(p**2 / one.freedom for p, one in zip(parts, means, strict=True))
    return MeanDifference(n, value, math.sqrt(variance * n), math.sqrt(variance), freedom)
