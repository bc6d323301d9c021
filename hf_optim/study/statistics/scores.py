"""One score an optimizer: its mean advantage over tasks, each in a unit of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_optim.core.shape import FARTHEST
from hf_optim.study.statistics.paired import NAN, MeanDifference


def score(means: Sequence[MeanDifference], units: Sequence[float]) -> MeanDifference:
    """The mean over tasks of the mean difference in units of the task, with Satterthwaite's degrees of freedom, which
    are lowered for being estimated.

    Few units make a task's variance look small by chance, and the formula then counts too many degrees: at three units
    it turns 5 % into 6, and 0.25 % (5 % over twenty optimizers) into 0.7. A squared variance of nu degrees is too large
    by (nu + 2) / nu on average; divided by that, and never below the degrees of one task, the level holds.

    Args:
        means: the mean difference on each task, positive where the optimizer is better.
        units: what counts as 1 on each task: the stated margin, or |untrained - baseline|.

    The tasks' chance is independent: each has seeds of its own, for its settings, weights and batches (`plan`).
    """
    t = len(means)
    if not t or any(mean.n < 2 for mean in means):
        return MeanDifference(min((mean.n for mean in means), default=0), NAN, NAN, NAN, NAN)
    values = [mean.value / unit for mean, unit in zip(means, units, strict=True)]
    if not all(abs(value) < FARTHEST for value in values):  # a unit of nearly nothing
        return MeanDifference(min(mean.n for mean in means), NAN, NAN, NAN, NAN)
    value = math.fsum(values) / t
    errors = [mean.error / unit / t for mean, unit in zip(means, units, strict=True)]
    error = math.hypot(*errors)  # squares of a diverged run's would be beyond all numbers
    n = min(mean.n for mean in means)
    rounding = math.fsum(mean.rounding / unit for mean, unit in zip(means, units, strict=True)) / t
    if error <= 0:
        return MeanDifference(n, value, 0.0, 0.0, NAN, rounding)
    each = [mean.freedom for mean in means]
    shares = [(part / error) ** 2 for part in errors]  # of the variance
    freedom = 1 / math.fsum(p**2 * (nu + 2) / nu**2 for p, nu in zip(shares, each, strict=True))
    return MeanDifference(n, value, error * math.sqrt(n), error, max(freedom, min(each)), rounding)
