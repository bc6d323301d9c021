"""Failure as an outcome: what a failed run counts as, and whether one optimizer fails more often than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.study.statistics.holm import at_most_one, tarone_holm
from hf_optim.study.statistics.looks import shares
from hf_optim.study.statistics.paired import ALPHA, NAN, clopper_pearson, unit_mean

Runs = Sequence[float]  # the values of one unit's runs, NaN for one that failed


@dataclass(frozen=True)
class FailureRate:
    """In how many of n units a run failed, with the exact 95 % interval of the share."""

    count: int
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class FailureTest:
    """Whether two arms fail differently often: Fisher's p at the deciding look (else the last), and p after looks and
    family; NaN where the counts could not have reached significance.
    """

    p: float
    adjusted: float
    look: int

    @property
    def sure(self) -> bool:
        """Whether the difference is more than chance."""
        return self.adjusted < ALPHA


def rate(units: Sequence[Runs]) -> FailureRate:
    """The failures of an arm, by unit: runs of one unit share its setting, and are not independent."""
    count, n = sum(any(v != v for v in runs) for runs in units), len(units)
    return FailureRate(count, n, *_share(count, n))


def together(rates: Sequence[FailureRate]) -> FailureRate:
    """The failures of an arm on several tasks, whose runs share nothing."""
    count, n = sum(one.count for one in rates), sum(one.n for one in rates)
    return FailureRate(count, n, *_share(count, n))


def _share(count: int, n: int) -> tuple[float, float]:
    return clopper_pearson(count, n) if n else (NAN, NAN)


def with_worst(first: Sequence[Runs], second: Sequence[Runs], greater: bool) -> tuple[list[float], list[float]]:
    """The mean of each unit of two arms, where a failed run takes the worst finished value of both arms.

    Never the value of the untrained model: it lies so far away that one failure among n pairs drives t to 1. Empty
    where nothing has finished.
    """
    finished = [v for units in (first, second) for runs in units for v in runs if v == v]  # NaN is not itself
    if not finished:
        return [], []
    worst = min(finished) if greater else max(finished)
    return _means(first, worst), _means(second, worst)


def _means(units: Sequence[Runs], worst: float) -> list[float]:
    return [unit_mean([v if v == v else worst for v in runs]) for runs in units]


def fisher(a: int, n: int, b: int, m: int) -> tuple[float, float]:
    """Fisher's exact two-sided p of `a` failures of n against `b` of m; and the smallest p that these sums allow."""
    total = a + b
    first, last = max(0, total - m), min(n, total)
    # Whole numbers: "at most as likely" needs no tolerance here. Of thousands of units each has thousands of digits, so
    # that one is made from the one before, and none is kept. The least likely stands at an end.
    mine = math.comb(n, a) * math.comb(m, b)
    weight, other = (math.comb(n, k) * math.comb(m, total - k) for k in (first, last))
    least, tail, smallest = min(weight, other), 0, 0
    for k in range(first, last + 1):
        tail += weight if weight <= mine else 0
        smallest += weight if weight <= least else 0
        weight = weight * ((n - k) * (total - k)) // ((k + 1) * (m - total + k + 1))
    whole = math.comb(n + m, total)
    return tail / whole, smallest / whole


def compare(counts: Sequence[Sequence[tuple[int, int, int, int]]], looks: Sequence[int]) -> list[FailureTest]:
    """The failure tests of a family: for each pair of arms, (failed, of, failed, of) at every look so far.

    At each look the level is its share of the 5 %. Holm's procedure counts only the pairs whose sums could reach
    significance (Tarone 1990): where hardly anything fails, one failure more is not diluted by pairs without any.
    """
    weights = shares(looks)
    tests = [FailureTest(NAN, NAN, 0) for _ in counts]
    for k in range(max((len(by_look) for by_look in counts), default=0)):
        exact = [fisher(*by_look[k]) if k < len(by_look) else (NAN, NAN) for by_look in counts]
        level = ALPHA * weights[k]
        for i, adjusted in enumerate(tarone_holm(exact, level)):
            after = adjusted / weights[k]
            if not tests[i].sure and (math.isnan(tests[i].adjusted) or not after > tests[i].adjusted):
                tests[i] = FailureTest(exact[i][0], at_most_one(after), k)
    return tests
