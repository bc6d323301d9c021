"""Holm's correction of the p-values of a family, with what Shaffer's logic and Tarone's discreteness add to it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hf_optim.study.statistics.paired import NAN


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the given order, at most 1. NaN (no test made) stays NaN and is not counted."""
    return [at_most_one(p) for p in adjust(p_values, [NAN] * len(p_values))[0]]


def at_most_one(p: float) -> float:
    """A corrected p as it is shown; NaN stays NaN, which `min` would lose."""
    return p if math.isnan(p) else min(1.0, p)


def adjust(differences: Sequence[float], equivalences: Sequence[float]) -> tuple[list[float], list[float]]:
    """Corrects the p-values of difference and of equivalence of a family together. They may exceed 1, as a factor of
    the p-value is wanted that is not cut off.

    Holm's step-down with Shaffer's (1986) use of logic: of one comparison's two null hypotheses, "no difference" and
    "a difference of at least the margin", only one can be true. So no claim of the family is false with a probability
    above the level, and stating a margin costs little power. Without equivalences (all NaN) this is Holm's correction.
    """
    both = (differences, equivalences)
    tests = sorted((p, kind, i) for kind in (0, 1) for i, p in enumerate(both[kind]) if not math.isnan(p))
    left = Counter(i for _, _, i in tests)
    adjusted = ([NAN] * len(differences), [NAN] * len(equivalences))
    running = 0.0
    for p, kind, i in tests:
        # As many hypotheses can still be true as comparisons have one that is not yet rejected.
        running = max(running, p * len(left))
        adjusted[kind][i] = running
        left[i] -= 1
        if not left[i]:
            del left[i]
    return adjusted


def tarone_holm(tests: Sequence[tuple[float, float]], level: float) -> list[float]:
    """Holm's p over the hypotheses that could be rejected; 1 for the others, NaN where there is no test.

    Each test is its p and the smallest p that its counts could have given (Tarone 1990).
    """
    least = [p for _, p in tests if not math.isnan(p)]
    # Tarone's K: the smallest number such that no more than K hypotheses can reach level / K.
    k = next((k for k in range(1, len(least) + 1) if sum(p <= level / k for p in least) <= k), len(least))
    tested = sorted((p, i) for i, (p, most) in enumerate(tests) if most <= level / k)
    adjusted = [NAN if math.isnan(p) else 1.0 for p, _ in tests]
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, p * (k - rank))
        adjusted[i] = running
    return adjusted
