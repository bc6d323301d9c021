"""Describing values over units: mean, median, interquartile mean, effect sizes, probability of improvement.

All of it is description: no verdict rests on anything in here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hf_optim.core.numerals import decimal
from hf_optim.study.statistics.paired import NAN, ROUNDING, Summary, summarise, t_quantile, win_rate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Description:
    """One optimizer's values on a task: the mean with its 95 % t-interval, median and interquartile mean."""

    n: int
    mean: Summary
    median: float
    iqm: float


@dataclass(frozen=True)
class Effect:
    """How large a difference is: `d_z` = mean difference / its standard deviation over the pairs, which is what the
    paired test sees; `d_av` = mean difference / mean of the two standard deviations, comparable between studies with
    and without pairing. `wins` is P(A beats B) over the pairs with its Clopper-Pearson interval; `improvement` is
    P(A beats B) over all combinations of units with the Brunner-Munzel interval, which ignores the pairing.
    """

    d_z: float
    d_av: float
    wins: Estimate
    improvement: Estimate


def describe(values: Sequence[float]) -> Description:
    """The description of values over units."""
    if not values:
        return Description(0, summarise([]), NAN, NAN)
    return Description(len(values), summarise(values), float(np.median(values)), iqm(values))


def iqm(values: Sequence[float]) -> float:
    """The interquartile mean: the mean without the lowest and the highest quarter (rounded down) of the values."""
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return math.fsum(kept) / len(kept)


def effect(pairs: Sequence[tuple[float, float]], greater_is_better: bool) -> Effect:
    """The effect sizes of (optimizer, baseline) pairs; positive where the optimizer is better.

    NaN where there are too few pairs or no spread to divide by.
    """
    sign = 1.0 if greater_is_better else -1.0
    a, b = (np.array(side) * sign for side in zip(*pairs, strict=True)) if pairs else (np.empty(0), np.empty(0))
    d_z = d_av = NAN
    if len(a) > 1:
        d = a - b
        spread, average = float(d.std(ddof=1)), float(a.std(ddof=1) + b.std(ddof=1)) / 2
        rounding = ROUNDING * float(max(np.abs(a).max(), np.abs(b).max()))
        d_z = float(d.mean()) / spread if spread > rounding else NAN
        d_av = float(d.mean()) / average if average > rounding else NAN
    return Effect(d_z, d_av, Estimate(*win_rate(list(a - b))), improvement(a, b))


def improvement(a: Array, b: Array) -> Estimate:
    """P(a > b) over all combinations, ties counting half, with its 95 % Brunner-Munzel interval.

    Where all of one side beat all of the other, or with fewer than two values a side, there is no interval. The
    interval is that of statsmodels' `rank_compare_2indep`.
    """
    n, m = len(a), len(b)
    if not n or not m:
        return Estimate(NAN, NAN, NAN)
    # Counted in sorted values: a table of all combinations of ten thousand units would be a gigabyte.
    over, under = _beaten(a, b), n - _beaten(b, a)
    share = float(over.sum()) / (n * m)
    # How often each value of one side beats the other side: their variances are those of the share.
    spread = ((over / m).var(ddof=1) / n, (under / n).var(ddof=1) / m) if min(n, m) > 1 else (0.0, 0.0)
    error = float(sum(spread))
    if error <= 1e-12:
        return Estimate(share, NAN, NAN)
    freedom = error**2 / (spread[0] ** 2 / (n - 1) + spread[1] ** 2 / (m - 1))
    half = t_quantile(0.975, freedom) * math.sqrt(error)
    return Estimate(share, max(0.0, share - half), min(1.0, share + half))


def _beaten(a: Array, b: Array) -> Array:
    """How many values of `b` each of `a` is above, ties counting half."""
    ordered = np.sort(b)
    sides = [np.searchsorted(ordered, a, side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / 2)


def text(figure: Estimate | Summary, decimals: int, signed: bool = False) -> str:
    """0.912 [0.904, 0.920]; without an interval the number alone, a dash without a number."""
    number = figure.mean if isinstance(figure, Summary) else figure.value
    sign = "+" if signed else ""
    if math.isnan(number):
        return "–"
    shown, *ends = (decimal(value, decimals, sign) for value in (number, figure.low, figure.high))
    return shown if math.isnan(figure.low) else f"{shown} [{', '.join(ends)}]"
