"""The statistics of a claim: comparisons paired by seed, decided together.

A claim is taken apart into comparisons, each of which says "first is better than second by more than -slack". Each is
decided one way, the other way, or not at all, and Holm's correction over all of a claim's comparisons makes the
decisions right together, so that whatever logic a rule builds on them (all of them, none of them) is right too.

A run that failed is an outcome, the worst there is: it counts as the worst finished value of the two arms, or, for a
time to a target, as the whole budget. Where one arm never finished and the other did, there is no value to compare and
Fisher's exact test of the failures decides. A seed on which both failed says nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_optim.study.folder.store import number
from hf_optim.study.statistics.failures import fisher
from hf_optim.study.statistics.holm import holm
from hf_optim.study.statistics.paired import ALPHA, ROUNDING, Summary, difference_p, mean_difference, summarise


@dataclass(frozen=True)
class Comparison:
    """ "`first` is better than `second` by more than -slack" on `task`.

    pairs: (first, second) by seed, turned so that larger is better; NaN where the run failed or never arrived.
    sign: -1 where the metric itself is better when lower; figures are shown in the metric's own direction.
    slack: the part of the difference that is given away; a negative one asks for more than a difference.
    worst: what a NaN counts as, where that is known; None takes the worst finished value of the pairs.
    exact: the metric is counted and not drawn, such as bytes: one pair decides.
    """

    task: str
    first: str
    second: str
    metric: str
    pairs: tuple[tuple[float, float], ...]
    sign: int = 1
    slack: float = 0.0
    worst: float | None = None
    exact: bool = False

    def failures(self) -> tuple[int, int]:
        """How many runs of each arm have no value."""
        return sum(math.isnan(a) for a, _ in self.pairs), sum(math.isnan(b) for _, b in self.pairs)


@dataclass(frozen=True)
class Finding:
    """What the records say of a comparison.

    truth: whether it is so; None where it is not decided. difference: first minus second in the metric's own direction
    and without the slack.
    """

    comparison: Comparison
    truth: bool | None
    difference: Summary
    p: float
    adjusted: float

    @property
    def pairs(self) -> int:
        """Seeds on which at least one of the two has a value."""
        return len(_informative(self.comparison))


def paired(a: Mapping[int, float], b: Mapping[int, float], sign: int) -> tuple[tuple[float, float], ...]:
    """Two arms' values by seed as pairs, turned so that larger is better."""
    return tuple((sign * a[s], sign * b[s]) for s in sorted(a.keys() & b.keys()))


def decide(comparisons: Sequence[Comparison]) -> list[Finding]:
    """Every comparison of a claim, decided together at 5 %."""
    filled = [_differences(comparison) for comparison in comparisons]
    p_values = [_p_value(comparison, values) for comparison, values in zip(comparisons, filled, strict=True)]
    adjusted = holm(p_values)
    return [
        _finding(comparison, values, p, corrected)
        for comparison, values, p, corrected in zip(comparisons, filled, p_values, adjusted, strict=True)
    ]


def _t_test(comparison: Comparison, values: Sequence[float]) -> float:
    """The paired t-test; equal differences of a metric that moves in grains are rounded, not certain."""
    return difference_p(mean_difference(values, _grain(comparison) / 2, _largest(comparison)))


def _largest(comparison: Comparison) -> float:
    """The size of what is subtracted."""
    return max(
        (abs(v) for v in (*itertools.chain(*comparison.pairs), comparison.slack) if math.isfinite(v)), default=0.0
    )


def _grain(comparison: Comparison) -> float:
    """The smallest step between two values that were seen: at least the metric's own grain."""
    seen = sorted({v for pair in comparison.pairs for v in pair if not math.isnan(v)})
    steps = [b - a for a, b in zip(seen, seen[1:], strict=False)]
    return min((step for step in steps if step > ROUNDING * _largest(comparison)), default=0.0)


def _informative(comparison: Comparison) -> list[tuple[float, float]]:
    return [(a, b) for a, b in comparison.pairs if not (math.isnan(a) and math.isnan(b))]


def _never(comparison: Comparison) -> int:
    """1 where the second arm alone never finished, -1 where the first alone did not, else 0."""
    pairs = _informative(comparison)
    first, second = (all(math.isnan(pair[i]) for pair in pairs) for i in (0, 1))
    return 0 if not pairs or first == second else (-1 if first else 1)


def _differences(comparison: Comparison) -> list[float]:
    """With the slack; NaN, which decides nothing, where a claim's own numbers lead beyond what can be squared."""
    pairs = _informative(comparison)
    finished = [v for pair in pairs for v in pair if not math.isnan(v)]
    if not finished:
        return []
    worst = min(finished) if comparison.worst is None else min(comparison.worst, *finished)
    filled = [(worst if math.isnan(a) else a, worst if math.isnan(b) else b) for a, b in pairs]
    return [number(a - b + comparison.slack) for a, b in filled]


def _p_value(comparison: Comparison, values: Sequence[float]) -> float:
    if comparison.exact:
        agreed = {v > 0 for v in values}
        return 0.0 if len(agreed) == 1 and all(abs(v) > 1e-12 for v in values) else 1.0 if values else math.nan
    if _never(comparison) and len(values) >= 2:
        exact, _ = fisher(len(values), len(values), 0, len(values))
        # A bound on the value, as a budget is on a time, makes the t-test a cautious one rather than none.
        timed = _t_test(comparison, values) if comparison.worst is not None else math.nan
        return exact if math.isnan(timed) else min(exact, timed)
    return _t_test(comparison, values)


def _finding(comparison: Comparison, values: list[float], p: float, adjusted: float) -> Finding:
    truth = None
    if not math.isnan(adjusted) and adjusted < ALPHA:
        truth = _never(comparison) > 0 if _never(comparison) and not comparison.exact else math.fsum(values) > 0
    shown = summarise([comparison.sign * (v - comparison.slack) for v in values])
    return Finding(comparison, truth, shown, p, adjusted)
