"""Small-sample statistics for paired runs: intervals, paired t-tests, Holm's correction, power and verdicts.

Verdicts come from the paired t-test alone, with Holm's correction over every comparison of a study. At three to ten
seeds a percentile bootstrap calls 8 to 27 % of identical pairs different, so no verdict here ever comes from one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

ALPHA = 0.05
POWER = 0.80
MOST_SEEDS = 1000  # seeds_needed gives up here: nobody will run more
NAN = math.nan


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1) and the 95 % t-interval of the mean; NaN where too few values exist."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One optimizer against the baseline, paired by seed. `difference` is optimizer minus baseline.

    `p` is the two-sided paired-t p-value, `adjusted` the same after Holm, `better` P(optimizer beats baseline) over the
    pairs (ties count half) with its 95 % Clopper-Pearson interval, `detectable` the true difference that this many
    seeds find with 80 % power at the uncorrected 5 % level. `seeds_needed` is for the difference as observed, at the
    level that Holm's most severe step asks for; None where it cannot be computed or exceeds MOST_SEEDS.
    """

    pairs: int
    difference: Summary
    p: float
    adjusted: float
    better: float
    better_low: float
    better_high: float
    detectable: float
    seeds_needed: int | None
    verdict: str


def summarise(values: Sequence[float], level: float = 1 - ALPHA) -> Summary:
    """The mean of `values` with its t-interval. One value has a mean and no interval; none has neither."""
    n = len(values)
    if n == 0:
        return Summary(0, NAN, NAN, NAN, NAN)
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, NAN, NAN, NAN)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = _t_quantile(0.5 + level / 2, n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test; NaN with fewer than two pairs.

    All differences zero gives 1. Differences that are equal but not zero give NaN: with metrics counted on a finite
    test set that happens by coincidence, and a variance of zero would turn it into certainty.
    """
    from scipy.special import stdtr

    n = len(differences)
    if n < 2:
        return NAN
    summary = summarise(differences)
    # Equal decimals differ in the last bits once subtracted, so "no variance" needs a tolerance.
    if summary.sd <= 1e-12 * max(1.0, abs(summary.mean)):
        return 1.0 if abs(summary.mean) <= 1e-12 else NAN
    return float(2 * stdtr(n - 1, -abs(summary.mean) / (summary.sd / math.sqrt(n))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the given order. NaN (no test made) stays NaN and is not counted."""
    tests = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [NAN] * len(p_values)
    running = 0.0
    for rank, (p, i) in enumerate(tests):
        running = max(running, min(1.0, p * (len(tests) - rank)))
        adjusted[i] = running
    return adjusted


def power(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Power of the two-sided paired t-test at a true difference of `effect` standard deviations, with n pairs."""
    from scipy.special import nctdtr

    if n < 2:
        return 0.0
    critical = _t_quantile(1 - alpha / 2, n - 1)
    shift = abs(effect) * math.sqrt(n)
    # Far from the critical value the noncentral t underflows to NaN: there the answer is certain.
    tails = 1 - float(nctdtr(n - 1, shift, critical)), float(nctdtr(n - 1, shift, -critical))
    if math.isnan(tails[0]):
        return 1.0 if shift > critical else 0.0
    return min(1.0, tails[0] + (0.0 if math.isnan(tails[1]) else tails[1]))


def seeds_needed(effect: float, alpha: float = ALPHA, target: float = POWER) -> int | None:
    """The fewest pairs with which the paired t-test finds `effect` (in standard deviations) with `target` power."""
    if not effect or math.isnan(effect) or power(effect, MOST_SEEDS, alpha) < target:
        return None
    low, high = 1, 2
    while power(effect, high, alpha) < target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if power(effect, middle, alpha) < target:
            low = middle
        else:
            high = middle
    return high if high <= MOST_SEEDS else None


def detectable(n: int, sd: float, alpha: float = ALPHA, target: float = POWER) -> float:
    """The smallest true difference, in the metric's unit, that n pairs find with `target` power; NaN below two."""
    return NAN if n < 2 or math.isnan(sd) else _detectable_effect(n, alpha, target) * sd


@functools.cache
def _detectable_effect(n: int, alpha: float, target: float) -> float:
    low, high = 0.0, 1.0
    while power(high, n, alpha) < target:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, n, alpha) < target else (low, middle)
    return high


def win_rate(differences: Sequence[float]) -> tuple[float, float, float]:
    """P(A > B) over pairs, with its 95 % Clopper-Pearson interval; ties count half."""
    from scipy.special import betaincinv

    n = len(differences)
    if n == 0:
        return NAN, NAN, NAN
    wins = sum(1.0 if d > 0 else 0.5 if d == 0 else 0.0 for d in differences)
    low = float(betaincinv(wins, n - wins + 1, ALPHA / 2)) if wins > 0 else 0.0
    high = float(betaincinv(wins + 1, n - wins, 1 - ALPHA / 2)) if wins < n else 1.0
    return wins / n, low, high


def compare(pairs: Sequence[Sequence[tuple[float, float]]], greater_is_better: Sequence[bool]) -> list[Comparison]:
    """Compares every (optimizer, baseline) list of pairs of a study at once, since Holm needs them all.

    `pairs[i]` holds (optimizer value, baseline value) for each seed that both finished.
    """
    differences = [[a - b for a, b in one] for one in pairs]
    p_values = [paired_p(one) for one in differences]
    adjusted = holm(p_values)
    tests = max(1, sum(not math.isnan(p) for p in p_values))
    return [
        _comparison(d, p, q, tests, greater)
        for d, p, q, greater in zip(differences, p_values, adjusted, greater_is_better, strict=True)
    ]


def _comparison(d: Sequence[float], p: float, adjusted: float, tests: int, greater: bool) -> Comparison:
    summary = summarise(d)
    signed = [x if greater else -x for x in d]
    better, low, high = win_rate(signed)
    effect = summary.mean / summary.sd if summary.sd > 0 and not math.isnan(p) else NAN
    needed = None
    verdict = "undecided"
    if summary.n < 2:
        verdict = "one seed: no verdict" if summary.n == 1 else "no verdict"
    elif adjusted < ALPHA:
        verdict = "better" if (summary.mean > 0) == greater else "worse"
    else:
        needed = seeds_needed(effect, ALPHA / tests)
        # What was seen may look decidable with the seeds already there (power is not certainty): ask for more.
        needed = max(needed, summary.n + 1) if needed is not None else None
    return Comparison(
        pairs=summary.n,
        difference=summary,
        p=p,
        adjusted=adjusted,
        better=better,
        better_low=low,
        better_high=high,
        detectable=detectable(summary.n, summary.sd),
        seeds_needed=needed,
        verdict=verdict,
    )


def _t_quantile(q: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, q))
