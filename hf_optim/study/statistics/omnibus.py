"""Whether any optimizer of a task differs: repeated-measures ANOVA and Friedman's test. They give no verdict.

The blocks are the units, which all optimizers share.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Anova:
    """One-way ANOVA with repeated measures: F, its degrees of freedom, p, and p after Greenhouse and Geisser's
    correction for optimizers that do not spread alike (`epsilon` 1: they do).
    """

    f: float
    freedom: tuple[int, int]
    p: float
    epsilon: float
    p_corrected: float


@dataclass(frozen=True)
class Friedman:
    """Friedman's test on ranks: chi-square, p, and the mean rank of each optimizer (1 is best)."""

    chi_square: float
    p: float
    mean_ranks: Mapping[str, float]


@dataclass(frozen=True)
class Omnibus:
    """All optimizers of a task against each other, over the units that all of them have."""

    optimizers: tuple[str, ...]
    units: int
    anova: Anova | None
    friedman: Friedman | None


def compare_all(values: Mapping[str, Mapping[int, float]], greater_is_better: bool) -> Omnibus:
    """Both tests of one task; `values` maps labels to the metric by unit. Three optimizers or more."""
    labels, table = block(values)
    n, k = table.shape
    enough = n > 1 and k > 2
    return Omnibus(
        tuple(labels),
        n,
        anova(table) if enough else None,
        friedman(labels, table, greater_is_better) if enough else None,
    )


def block(values: Mapping[str, Mapping[int, float]]) -> tuple[list[str], Array]:
    """The labels, and their values over the units that all of them have, as a (units, optimizers) array."""
    labels = list(values)
    shared = set.intersection(*(set(by_unit) for by_unit in values.values())) if values else set()
    table = [[values[label][s] for label in labels] for s in sorted(shared)]
    return labels, np.array(table, dtype=float).reshape(len(shared), len(labels))


def anova(table: Array) -> Anova | None:
    """One-way ANOVA with repeated measures of a (blocks, treatments) array; None where nothing varies.

    statsmodels' AnovaRM gives the same F and p and builds a design matrix of all blocks squared for it.
    """
    from scipy.special import fdtrc

    n, k = table.shape
    grand = table.mean()
    between = n * float(((table.mean(axis=0) - grand) ** 2).sum())
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + grand
    within = float((rest**2).sum())
    if within <= 1e-20 * float((table**2).sum()):
        return None
    freedom = k - 1, (k - 1) * (n - 1)
    f = between / freedom[0] / (within / freedom[1])
    scaled = rest / 2.0 ** float(np.frexp(np.abs(rest).max())[1])  # exact: fourth powers may be beyond all numbers
    centred = scaled.T @ scaled  # doubly centred covariance of the treatments, up to a factor
    epsilon = float(np.trace(centred) ** 2 / ((k - 1) * (centred**2).sum()))
    return Anova(
        f, freedom, float(fdtrc(*freedom, f)), epsilon, float(fdtrc(freedom[0] * epsilon, freedom[1] * epsilon, f))
    )


def friedman(labels: Sequence[str], table: Array, greater_is_better: bool) -> Friedman | None:
    """Friedman's test of a (blocks, treatments) array with three treatments or more; None where all are tied."""
    from scipy import stats

    ranks = stats.rankdata(-table if greater_is_better else table, axis=1).mean(axis=0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        test = stats.friedmanchisquare(*table.T)
    if math.isnan(test.pvalue):
        return None
    shown = {label: float(rank) for label, rank in zip(labels, ranks, strict=True)}
    return Friedman(float(test.statistic), float(test.pvalue), shown)
