"""How many seeds a paired comparison takes: sizes of samples for the claims."""

from __future__ import annotations

import functools
import math

from hf_optim.study.statistics.paired import ALPHA, POWER, power

#: nobody will run more
MOST_SEEDS = 1000


def seeds_needed(effect: float, alpha: float = ALPHA, target: float = POWER) -> int | None:
    """The fewest pairs with which the paired t-test finds `effect` (in deviations of a paired difference) with `target`
    power; None if that takes more than MOST_SEEDS, or for no effect.
    """
    if not effect or math.isnan(effect) or power(effect, MOST_SEEDS, alpha) < target:
        return None
    low, high = 1, 2
    while power(effect, high, alpha) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, alpha) >= target else (middle, high)
    return min(high, MOST_SEEDS)


@functools.cache
def visible(seeds: int, deviation: float, alpha: float = ALPHA, target: float = POWER) -> float:
    """The least true difference that so many pairs find, in the metric's unit; NaN below two."""
    if seeds < 2:
        return math.nan
    low, high = 0.0, 1.0
    while power(high, seeds, alpha) < target:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, seeds, alpha) < target else (low, middle)
    return high * deviation
