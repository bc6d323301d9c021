"""Small-sample statistics for paired runs: intervals, tests of difference and equivalence, correction, power.

Everything that a verdict rests on. At three to ten seeds a percentile bootstrap calls 8 to 27 % of identical pairs
different, so no verdict ever comes from one. Only `scipy.special` is needed, which loads in a fraction of the time of
`scipy.stats`; the tests hold each function to its counterpart in scipy or statsmodels.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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

    `p` is the two-sided paired-t p-value, `adjusted` the same after Holm; `p_equivalent` and `adjusted_equivalent` the
    same for equivalence within `margin` (NaN where none was stated). `better` is P(optimizer beats baseline) over the
    pairs (ties count half) with its 95 % Clopper-Pearson interval. `power` is that of finding a difference as large as
    the one observed with this many seeds, at the level that Holm's most severe step asks for; `detectable` the true
    difference that this many seeds find with 80 % power at the uncorrected 5 % level. `seeds_needed` is how many seeds
    would decide, either way, if the truth is what was observed, at the corrected level; None where it cannot be
    computed or exceeds MOST_SEEDS.
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
    margin: float = NAN
    p_equivalent: float = NAN
    adjusted_equivalent: float = NAN
    power: float = NAN


@dataclass(frozen=True)
class Decision:
    """What the tests say of one comparison: see `Comparison`."""

    p: float
    adjusted: float
    p_equivalent: float
    adjusted_equivalent: float
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
    if _no_variance(summary):
        return 1.0 if abs(summary.mean) <= 1e-12 else NAN
    return float(2 * stdtr(n - 1, -abs(summary.mean) / (summary.sd / math.sqrt(n))))


def equivalence_p(differences: Sequence[float], margin: float) -> float:
    """p-value of equivalence within +-margin; NaN with fewer than two pairs or without any variance.

    Twice the larger p-value of the two one-sided paired t-tests (Schuirmann 1987), so that p < 0.05 says: the whole
    95 % interval lies within the margin. The usual 90 % interval allows too much where the two metrics are skewed in
    different degrees, as accuracies near their ceiling are: 7 % false equivalences instead of 5.
    """
    from scipy.special import stdtr

    summary = summarise(differences)
    if summary.n < 2 or _no_variance(summary):
        return NAN
    error = summary.sd / math.sqrt(summary.n)
    sides = [stdtr(summary.n - 1, -(margin + side * summary.mean) / error) for side in (1, -1)]
    return min(1.0, 2 * float(max(sides)))


def _no_variance(summary: Summary) -> bool:
    # Equal decimals differ in the last bits once subtracted, so "no variance" needs a tolerance.
    return summary.sd <= 1e-12 * max(1.0, abs(summary.mean))


def paired_p_values(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """`paired_p` of every row of an (m, n) array at once."""
    import numpy as np
    from scipy.special import stdtr

    n = differences.shape[1]
    if n < 2:
        return np.full(len(differences), NAN)
    mean, sd = differences.mean(axis=1), differences.std(axis=1, ddof=1)
    flat = sd <= 1e-12 * np.maximum(1.0, np.abs(mean))
    p = 2 * stdtr(n - 1, -np.abs(mean) / (np.where(flat, 1.0, sd) / math.sqrt(n)))
    return np.where(flat, np.where(np.abs(mean) <= 1e-12, 1.0, NAN), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the given order. NaN (no test made) stays NaN and is not counted."""
    return adjust(p_values, [NAN] * len(p_values))[0]


def adjust(differences: Sequence[float], equivalences: Sequence[float]) -> tuple[list[float], list[float]]:
    """Corrects the p-values of difference and of equivalence of all comparisons of a study together.

    Holm's step-down with Shaffer's (1986) use of logic: of one comparison's two null hypotheses, "no difference" and
    "a difference of at least the margin", only one can be true. So no claim of the study is false with a probability
    above the level, and stating a margin costs little power. Without equivalences (all NaN) this is Holm's correction.
    """
    both = (differences, equivalences)
    tests = sorted((p, kind, i) for kind in (0, 1) for i, p in enumerate(both[kind]) if not math.isnan(p))
    left = Counter(i for _, _, i in tests)
    adjusted = ([NAN] * len(differences), [NAN] * len(equivalences))
    running = 0.0
    for p, kind, i in tests:
        # As many hypotheses can still be true as comparisons have one that is not yet rejected.
        running = max(running, min(1.0, p * len(left)))
        adjusted[kind][i] = running
        left[i] -= 1
        if not left[i]:
            del left[i]
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
    if not effect or math.isnan(effect):
        return None
    return _fewest(lambda n: power(effect, n, alpha) >= target)


def equivalence_power(effect: float, margin: float, n: int, alpha: float = ALPHA) -> float:
    """Power to show equivalence within `margin` at a true difference of `effect`, both in standard deviations.

    The chance that both one-sided tests succeed is at least the sum of their chances less one; above one half the two
    hardly differ.
    """
    from scipy.special import nctdtr

    effect = abs(effect)
    if n < 2 or effect >= margin:
        return 0.0
    critical = _t_quantile(1 - alpha / 2, n - 1)
    chances = []
    for gap in (margin - effect, margin + effect):
        below = float(nctdtr(n - 1, gap * math.sqrt(n), critical))
        chances.append(1 - below if not math.isnan(below) else float(gap * math.sqrt(n) > critical))
    return max(0.0, sum(chances) - 1)


def equivalence_seeds(effect: float, margin: float, alpha: float = ALPHA, target: float = POWER) -> int | None:
    """The fewest pairs that show equivalence with `target` power; None if that takes more than MOST_SEEDS."""
    if math.isnan(effect):
        return None
    return _fewest(lambda n: equivalence_power(effect, margin, n, alpha) >= target)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest n from 2 to MOST_SEEDS that is enough, where more is never worse."""
    if not enough(MOST_SEEDS):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
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


def decide(
    differences: Sequence[Sequence[float]], greater_is_better: Sequence[bool], margins: Sequence[float]
) -> list[Decision]:
    """The verdicts on every comparison of a study at once, since the correction needs them all.

    `differences[i]` holds optimizer minus baseline for each shared seed; `margins[i]` is NaN where none was stated.
    "equivalent" goes before "better" and "worse": what is smaller than the margin was said not to matter.
    """
    p_values = [paired_p(one) for one in differences]
    equivalence = [NAN if math.isnan(m) else equivalence_p(one, m) for one, m in zip(differences, margins, strict=True)]
    adjusted, adjusted_equivalent = adjust(p_values, equivalence)
    found = []
    for i, (one, greater) in enumerate(zip(differences, greater_is_better, strict=True)):
        if len(one) < 2:
            verdict = "one seed: no verdict" if one else "no verdict"
        elif adjusted_equivalent[i] < ALPHA:
            verdict = "equivalent"
        elif adjusted[i] < ALPHA:
            verdict = "better" if (math.fsum(one) > 0) == greater else "worse"
        else:
            verdict = "undecided"
        found.append(Decision(p_values[i], adjusted[i], equivalence[i], adjusted_equivalent[i], verdict))
    return found


def compare(
    pairs: Sequence[Sequence[tuple[float, float]]],
    greater_is_better: Sequence[bool],
    margins: Sequence[float] | None = None,
) -> list[Comparison]:
    """Compares every (optimizer, baseline) list of pairs of a study at once.

    `pairs[i]` holds (optimizer value, baseline value) for each seed that both finished; `margins[i]` is the smallest
    difference that matters, NaN where none was stated (default: none was).
    """
    differences = [[a - b for a, b in one] for one in pairs]
    stated = [NAN] * len(pairs) if margins is None else list(margins)
    decisions = decide(differences, greater_is_better, stated)
    tests = max(1, sum(not math.isnan(one.p) for one in decisions))
    return [
        _comparison(d, one, ALPHA / tests, greater, margin)
        for d, one, greater, margin in zip(differences, decisions, greater_is_better, stated, strict=True)
    ]


def _comparison(d: Sequence[float], decision: Decision, level: float, greater: bool, margin: float) -> Comparison:
    summary = summarise(d)
    better, low, high = win_rate([x if greater else -x for x in d])
    effect = summary.mean / summary.sd if summary.sd > 0 and not math.isnan(decision.p) else NAN
    needed = None
    if decision.verdict == "undecided" and not math.isnan(effect):
        ways = [seeds_needed(effect, level)]
        if not math.isnan(margin):
            ways.append(equivalence_seeds(effect, margin / summary.sd, level))
        # What was seen may look decidable with the seeds already there (power is not certainty): ask for more.
        needed = min((max(way, summary.n + 1) for way in ways if way is not None), default=None)
    return Comparison(
        pairs=summary.n,
        difference=summary,
        p=decision.p,
        adjusted=decision.adjusted,
        better=better,
        better_low=low,
        better_high=high,
        detectable=detectable(summary.n, summary.sd),
        seeds_needed=needed,
        verdict=decision.verdict,
        margin=margin,
        p_equivalent=decision.p_equivalent,
        adjusted_equivalent=decision.adjusted_equivalent,
        power=NAN if math.isnan(effect) else power(effect, summary.n, level),
    )


def _t_quantile(q: float, freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, q))
