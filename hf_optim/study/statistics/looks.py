"""Verdicts at planned looks: what may be said after so many units, when more are still planned.

Looks are numbers of units, such as 5, 10 and 20. A look's share of the 5 % is its share of new units, w = .25, .25, .5;
the p-value of a comparison after some looks is the smallest p_k / w_k of them (Bonferroni over looks), and these are
corrected over the family by Holm's procedure, with a margin in Shaffer's form. Both steps only ever fall when a look is
added, so what is decided stays decided, and no claim of a family is false with a probability above 5 %, however the
family stops.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.study.statistics.holm import adjust, at_most_one
from hf_optim.study.statistics.paired import (
    ALPHA,
    NAN,
    POWER,
    MeanDifference,
    detectable,
    difference_p,
    equivalence_p,
    interval,
)


@dataclass(frozen=True)
class Claim:
    """One comparison: its mean difference at each look so far, positive where the optimizer is better, and the margin
    in the same unit (NaN: none was stated).
    """

    means: Sequence[MeanDifference]
    margin: float = NAN
    #: of so many of the first looks "equivalent" may be said: from the first failure on it is withheld
    unfailed: float = math.inf


@dataclass(frozen=True)
class Decision:
    """What a family's tests say of one claim.

    `look` counts from 0: the one that decided, else the last. `p` and `p_equivalent` are those of that look, `adjusted`
    and `adjusted_equivalent` after looks and family. [`low`, `high`] leaves zero exactly where better or worse is
    said, and lies within the margin exactly where equivalent is: its level is 5 % by the same factor. It holds singly.
    """

    verdict: str
    look: int
    mean: MeanDifference
    low: float
    high: float
    p: float
    adjusted: float
    p_equivalent: float
    adjusted_equivalent: float


def shares(looks: Sequence[int]) -> list[float]:
    """Each look's share of the level: that of its new units."""
    before = [0, *looks[:-1]]
    return [(n - old) / looks[-1] for n, old in zip(looks, before, strict=True)]


def decide(claims: Sequence[Claim], looks: Sequence[int]) -> list[Decision]:
    """The decisions on a family. `looks` are all that were planned, also those that are still to come."""
    weights = shares(looks)
    reached = max((len(claim.means) for claim in claims), default=0)
    p_values = [[difference_p(m) for m in claim.means] for claim in claims]
    equivalence = [
        [equivalence_p(m, c.margin) if k < c.unfailed else NAN for k, m in enumerate(c.means)] for c in claims
    ]  # fmt: skip
    decisions: list[Decision | None] = [None] * len(claims)
    for k in range(reached):
        best = [_least(p, weights, k) for p in p_values]
        close = [_least(p, weights, k) for p in equivalence]
        adjusted, adjusted_close = adjust([p for p, _ in best], [p for p, _ in close])
        for i, claim in enumerate(claims):
            if decisions[i] is not None or not claim.means:
                continue
            # Equivalent goes first: what is smaller than the margin was said not to matter.
            kinds = ((adjusted_close[i], close[i], "equivalent"), (adjusted[i], best[i], "different"))
            sure = next(((kind, at, p, q) for q, (p, at), kind in kinds if q < ALPHA), None)
            if sure is None and k < reached - 1:
                continue
            kind, at, p, q = sure or ("undecided", len(claim.means) - 1, NAN, NAN)
            mean = claim.means[at]
            if sure:
                level = ALPHA * weights[at] * (p / q if q > 0 else 1 / len(claims))
            else:
                # The wider one: it holds zero and reaches beyond the margin.
                factors = [q / p for q, (p, _), _ in kinds if p > 0]
                level = ALPHA * weights[at] / max(factors, default=1.0)
            word = ("better" if mean.value > 0 else "worse") if kind == "different" else kind
            if kind == "undecided" and math.isnan(p_values[i][at]):
                word = "no verdict"
            ends = interval(mean, level)
            decisions[i] = Decision(
                word, at, mean, *ends, p_values[i][at], at_most_one(adjusted[i]), equivalence[i][at],
                at_most_one(adjusted_close[i]),
            )  # fmt: skip
    nothing = MeanDifference(0, NAN, NAN, NAN, NAN)
    return [decision or Decision("no verdict", 0, nothing, NAN, NAN, NAN, NAN, NAN, NAN) for decision in decisions]


def _least(p_values: Sequence[float], weights: Sequence[float], k: int) -> tuple[float, int]:
    """The smallest p_j / w_j of the looks up to k, and which; NaN where no look has one."""
    known = [(p / w, j) for j, (p, w) in enumerate(zip(p_values[: k + 1], weights, strict=False)) if not math.isnan(p)]
    return min(known, default=(NAN, min(k, len(p_values) - 1)))


@functools.cache
def detectable_effect(looks: tuple[int, ...], comparisons: int, target: float = POWER) -> float:
    """The true difference, in deviations of a unit, that a design of these looks finds with `target` power at least.

    At the level of Holm's most severe step, and at the best of its looks alone, so that the design finds a little more.
    """
    levels = [ALPHA * w / max(1, comparisons) for w in shares(looks)]
    known = [detectable(n, level, target) for n, level in zip(looks, levels, strict=True) if n > 1]
    return min(known, default=NAN)
