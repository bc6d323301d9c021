"""Describing values over seeds: mean, median, IQM with bootstrap intervals, effect sizes, probability of improvement.

All of it is description: at three to ten seeds a bootstrap interval covers less than it says (docs/calibration.md has
the numbers), so no verdict rests on anything in here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_optim.study.statistics.paired import Summary, win_rate

RESAMPLES = 10_000
SEED = 20_260_101
NAN = math.nan
_BATCH = 5_000_000  # resampled values held at a time
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Description:
    """Mean, median and interquartile mean of one cell's values, each with its 95 % BCa bootstrap interval."""

    n: int
    mean: Estimate
    median: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class Effect:
    """How large a difference is: `d_z` = mean difference / its standard deviation over the pairs, which is what the
    paired test sees; `d_av` = mean difference / mean of the two standard deviations, comparable between studies with
    and without pairing. `wins` is P(A beats B) over the pairs with its Clopper-Pearson interval; `improvement` is
    P(A beats B) over all combinations of seeds with the Brunner-Munzel interval, which ignores the pairing.
    """

    d_z: float
    d_av: float
    wins: Estimate
    improvement: Estimate


def mean(values: Array, axis: int = -1) -> Array:
    """The mean along an axis."""
    return np.asarray(np.mean(values, axis=axis))


def median(values: Array, axis: int = -1) -> Array:
    """The median along an axis."""
    return np.asarray(np.median(values, axis=axis))


def iqm(values: Array, axis: int = -1) -> Array:
    """The interquartile mean: the mean without the lowest and the highest quarter (rounded down) of the values."""
    return np.asarray(stats.trim_mean(values, 0.25, axis=axis))


def bootstrap(values: Array, statistic: Callable[..., Any], resamples: int = RESAMPLES) -> list[Estimate]:
    """A statistic of each row of an (m, n) array with its 95 % BCa interval; no interval below three values.

    The generator is seeded, so the same values give the same interval. Rows without any spread get no interval.
    """
    m, n = values.shape
    points = statistic(values, axis=-1)
    if n < 3:
        return [Estimate(float(v), NAN, NAN) for v in points]
    found: list[Estimate] = []
    rows = max(1, _BATCH // n // 100)
    for start in range(0, m, rows):
        part = values[start : start + rows]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # scipy says of every row without spread that it has no interval
            made = stats.bootstrap(
                (part,), statistic, n_resamples=resamples, batch=max(1, _BATCH // part.size), axis=-1, method="BCa",
                vectorized=True, rng=np.random.default_rng(SEED),
            )  # fmt: skip
        ends = made.confidence_interval
        found += [
            Estimate(float(v), float(low), float(high))
            for v, low, high in zip(points[start : start + rows], ends.low, ends.high, strict=True)
        ]
    return found


def describe(cells: Sequence[Sequence[float]], resamples: int = RESAMPLES) -> list[Description]:
    """The description of each cell (a list of values over seeds); cells with as many values are resampled together."""
    found: list[Description | None] = [None] * len(cells)
    nothing = Estimate(NAN, NAN, NAN)
    by_length: dict[int, list[int]] = {}
    for i, cell in enumerate(cells):
        by_length.setdefault(len(cell), []).append(i)
    for n, places in by_length.items():
        if n == 0:
            for i in places:
                found[i] = Description(0, nothing, nothing, nothing)
            continue
        values = np.array([cells[i] for i in places], dtype=float)
        columns = [bootstrap(values, statistic, resamples) for statistic in (mean, median, iqm)]
        for i, a, b, c in zip(places, *columns, strict=True):
            found[i] = Description(n, a, b, c)
    return [one for one in found if one is not None]


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
        d_z = float(d.mean()) / spread if spread > 1e-12 * max(1.0, abs(float(d.mean()))) else NAN
        d_av = float(d.mean()) / average if average > 1e-12 * max(1.0, abs(float(d.mean()))) else NAN
    return Effect(d_z, d_av, Estimate(*win_rate(list(a - b))), improvement(a, b))


def improvement(a: Array, b: Array) -> Estimate:
    """P(a > b) over all combinations, ties counting half, with its 95 % Brunner-Munzel interval.

    Where all of one side beat all of the other, or with fewer than two values a side, there is no interval. The
    interval is that of statsmodels' `rank_compare_2indep`.
    """
    from scipy.special import stdtrit

    n, m = len(a), len(b)
    if not n or not m:
        return Estimate(NAN, NAN, NAN)
    above = np.greater.outer(a, b) + 0.5 * np.equal.outer(a, b)
    share = float(above.mean())
    # How often each value of one side beats the other side: their variances are those of the share.
    spread = (above.mean(axis=1).var(ddof=1) / n, above.mean(axis=0).var(ddof=1) / m) if min(n, m) > 1 else (0.0, 0.0)
    error = float(sum(spread))
    if error <= 1e-12:
        return Estimate(share, NAN, NAN)
    freedom = error**2 / (spread[0] ** 2 / (n - 1) + spread[1] ** 2 / (m - 1))
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(error)
    return Estimate(share, max(0.0, share - half), min(1.0, share + half))


def text(one: Estimate | Summary, decimals: int, signed: bool = False) -> str:
    """0.912 [0.904, 0.920]; without an interval the number alone, a dash without a number."""
    number = one.mean if isinstance(one, Summary) else one.value
    sign = "+" if signed else ""
    if math.isnan(number):
        return "–"
    shown = f"{number:{sign}.{decimals}f}"
    return shown if math.isnan(one.low) else f"{shown} [{one.low:{sign}.{decimals}f}, {one.high:{sign}.{decimals}f}]"
