"""Small-sample statistics of paired units: means, the tests of difference and equivalence, power.

A unit is what chance is drawn anew for: a repetition of the tuning, or a seed where nothing is repeated. Everything
that a verdict rests on. Only `scipy.special` is needed, which loads in a fraction of the time of `scipy.stats`; the
tests hold each function to its counterpart in scipy or statsmodels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05
POWER = 0.80
NAN = math.nan
MOST_UNITS = 1000  # nobody will run more
ROUNDING = 1e-12  # what is equal in decimals differs by less, as a share of its size, once averaged or subtracted


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and an interval of the mean, 95 % unless said; NaN where too few values
    exist.
    """

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class MeanDifference:
    """A mean over n units with what a t-test needs: its standard error and degrees of freedom.

    `sd` is the deviation of a unit, `error` NaN below two units and 0 where nothing varies and no grain is known. What
    is no more than `rounding` may be made by floating-point numbers alone.
    """

    n: int
    value: float
    sd: float
    error: float
    freedom: float
    rounding: float = ROUNDING

    @property
    def flat(self) -> bool:
        """Whether nothing varies, so that no test can be made."""
        return not self.error > self.rounding


def unit_mean(values: Sequence[float]) -> float:
    """The mean of a unit's runs, to thirteen figures: two units of the same runs' sum are a tie, not a win by a bit."""
    return values[0] if len(values) == 1 else float(f"{math.fsum(values) / len(values):.13g}")


def summarise(values: Sequence[float], level: float = 1 - ALPHA) -> Summary:
    """The mean of `values` with its t-interval. One value has a mean and no interval; none has neither."""
    n = len(values)
    if n == 0:
        return Summary(0, NAN, NAN, NAN, NAN)
    # Equal values have no deviation; that of their rounded mean would have figures, and ask for as many decimals.
    mean = values[0] if min(values) == max(values) else math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, NAN, NAN, NAN)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(0.5 + level / 2, n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def mean_difference(
    differences: Sequence[float], least_sd: float = 0.0, largest: float | None = None
) -> MeanDifference:
    """The mean of paired differences; their deviation is taken to be at least `least_sd`. `largest` is the size of what
    was subtracted, which says what rounding may make of equal differences (default: 1, or the mean where that is more).

    A metric that is counted on N samples has a grain of 1/N: differences that happen to be equal, or nearly so, are
    rounded, not certain. Half a grain is the deviation that rounding alone allows for.
    """
    summary = summarise(differences)
    if summary.n < 2:
        return MeanDifference(summary.n, summary.mean, NAN, NAN, NAN)
    sd = max(summary.sd, least_sd)
    size = max(1.0, abs(summary.mean)) if largest is None else largest
    return MeanDifference(summary.n, summary.mean, sd, sd / math.sqrt(summary.n), summary.n - 1, ROUNDING * size)


def difference_p(difference: MeanDifference) -> float:
    """Two-sided p-value that the true mean is zero; NaN with fewer than two units.

    All differences zero gives 1. Equal differences that are not zero give NaN where no grain is known: a variance of
    zero would turn them into certainty.
    """
    from scipy.special import stdtr

    if difference.n < 2:
        return NAN
    if difference.flat:
        return 1.0 if abs(difference.value) <= difference.rounding else NAN
    return float(2 * stdtr(difference.freedom, -abs(difference.value) / difference.error))


def equivalence_p(difference: MeanDifference, margin: float) -> float:
    """p-value of equivalence within +-margin; NaN with fewer than two units or without any variance.

    Twice the larger p-value of the two one-sided t-tests (Schuirmann 1987), so that p < 0.05 says: the whole 95 %
    interval lies within the margin. The usual 90 % interval allows too much where the two metrics are skewed in
    different degrees, as accuracies near their ceiling are: 7 % false equivalences instead of 5.
    """
    from scipy.special import stdtr

    if difference.n < 2 or difference.flat or math.isnan(margin):
        return NAN
    sides = [stdtr(difference.freedom, -(margin + side * difference.value) / difference.error) for side in (1, -1)]
    return min(1.0, 2 * float(max(sides)))


def interval(difference: MeanDifference, level: float) -> tuple[float, float]:
    """The t-interval of the mean that misses the truth with probability `level`."""
    if difference.n < 2 or difference.flat:
        return NAN, NAN
    half = t_quantile(1 - level / 2, difference.freedom) * difference.error
    return difference.value - half, difference.value + half


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t-test at a true difference of `effect` standard deviations, with n pairs."""
    from scipy.special import nctdtr

    if n < 2:
        return 0.0
    critical = t_quantile(1 - alpha / 2, n - 1)
    shift = abs(effect) * math.sqrt(n)
    # Far from the critical value the noncentral t underflows to NaN: there the answer is certain.
    tails = 1 - float(nctdtr(n - 1, shift, critical)), float(nctdtr(n - 1, shift, -critical))
    if math.isnan(tails[0]):
        return 1.0 if shift > critical else 0.0
    return min(1.0, tails[0] + (0.0 if math.isnan(tails[1]) else tails[1]))


@functools.cache
def detectable(n: int, alpha: float = ALPHA, target: float = POWER) -> float:
    """The smallest true difference, in standard deviations of a unit, that n units find with `target` power."""
    if n < 2:
        return NAN
    low, high = 0.0, 1.0
    while power(high, n, alpha) < target:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, n, alpha) < target else (low, middle)
    return high


def units_needed(effect: float, alpha: float = ALPHA, target: float = POWER) -> int | None:
    """The fewest units with which the paired t-test finds `effect` (in deviations of a unit) with `target` power; None
    if that takes more than MOST_UNITS, or for no effect.
    """
    if not effect or math.isnan(effect) or power(effect, MOST_UNITS, alpha) < target:
        return None
    low, high = 1, 2
    while power(effect, high, alpha) < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, alpha) >= target else (middle, high)
    return min(high, MOST_UNITS)


def win_rate(differences: Sequence[float]) -> tuple[float, float, float]:
    """P(A > B) over pairs, with its 95 % Clopper-Pearson interval; ties count half."""
    n = len(differences)
    if n == 0:
        return NAN, NAN, NAN
    wins = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences)
    return (wins / n, *clopper_pearson(wins, n))


def clopper_pearson(count: float, n: int, level: float = 1 - ALPHA) -> tuple[float, float]:
    """The exact interval of a share of which `count` of `n` were seen."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    low = float(betaincinv(count, n - count + 1, tail)) if count > 0 else 0.0
    high = float(betaincinv(count + 1, n - count, 1 - tail)) if count < n else 1.0
    return low, high


def t_quantile(q: float, freedom: float) -> float:
    """Student's quantile; the degrees of freedom need not be whole."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, q))
