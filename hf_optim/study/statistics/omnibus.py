"""Comparing all optimizers of a task with each other: ANOVA, Friedman and post-hoc tests over all pairs.

The blocks are the seeds, which all optimizers share. The omnibus tests ask only whether any optimizer differs; they
give no verdict.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from hf_optim.study.statistics.paired import ALPHA, holm, paired_p_values
from hf_optim.study.statistics.ties import block

NAN = math.nan
MOST_EXACT = 13  # values, for which all signs are tried where there are ties
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
    """Friedman's test on ranks: chi-square, p, the mean rank of each optimizer (1 is best), and Nemenyi's critical
    difference: mean ranks that differ by less cannot be told apart at 5 %.
    """

    chi_square: float
    p: float
    mean_ranks: Mapping[str, float]
    critical_difference: float


@dataclass(frozen=True)
class Pair:
    """Two optimizers of a task: mean of first minus second, and p-values before and after correction over all pairs of
    the task: paired t (Holm, Bonferroni) and Wilcoxon's signed ranks (Holm). `nemenyi`: their mean ranks differ by the
    critical difference or more.
    """

    first: str
    second: str
    difference: float
    t: float
    t_holm: float
    t_bonferroni: float
    wilcoxon: float
    wilcoxon_holm: float
    nemenyi: bool


@dataclass(frozen=True)
class Omnibus:
    """All optimizers of a task against each other, over the seeds that all of them finished."""

    optimizers: tuple[str, ...]
    seeds: int
    anova: Anova | None
    friedman: Friedman | None
    pairs: tuple[Pair, ...]


def compare_all(values: Mapping[str, Mapping[int, float]], greater_is_better: bool) -> Omnibus:
    """Every test between the optimizers of one task; `values` maps labels to the metric by seed."""
    labels, table = block(values)
    n, k = table.shape
    ranked = friedman(labels, table, greater_is_better) if n > 1 and k > 2 else None
    return Omnibus(
        tuple(labels), n, anova(table) if n > 1 and k > 2 else None, ranked, tuple(_pairs(labels, table, ranked))
    )


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
    if within <= 1e-20 * max(1.0, float((table**2).sum())):
        return None
    freedom = k - 1, (k - 1) * (n - 1)
    f = between / freedom[0] / (within / freedom[1])
    centred = rest.T @ rest  # doubly centred covariance of the treatments, up to a factor
    epsilon = float(np.trace(centred) ** 2 / ((k - 1) * (centred**2).sum()))
    return Anova(
        f, freedom, float(fdtrc(*freedom, f)), epsilon, float(fdtrc(freedom[0] * epsilon, freedom[1] * epsilon, f))
    )


def friedman(labels: Sequence[str], table: Array, greater_is_better: bool) -> Friedman | None:
    """Friedman's test of a (blocks, treatments) array with three treatments or more; None where all are tied."""
    from scipy import stats

    n, k = table.shape
    ranks = stats.rankdata(-table if greater_is_better else table, axis=1).mean(axis=0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        made = stats.friedmanchisquare(*table.T)
    if math.isnan(made.pvalue):
        return None
    shown = {label: float(rank) for label, rank in zip(labels, ranks, strict=True)}
    return Friedman(float(made.statistic), float(made.pvalue), shown, critical_difference(k, n))


def critical_difference(treatments: int, blocks: int) -> float:
    """Nemenyi's critical difference of mean ranks at 5 % (Demsar 2006, equation 2)."""
    return _studentized(treatments) * math.sqrt(treatments * (treatments + 1) / (12 * blocks))


@cache
def _studentized(treatments: int) -> float:
    from scipy import stats

    return float(stats.studentized_range.ppf(1 - ALPHA, treatments, np.inf))


def wilcoxon(differences: Array) -> Array:
    """Two-sided p-values of Wilcoxon's signed-rank test for every row of an (m, n) array; NaN where all are zero.

    Rows with ties or zeros and up to 13 values are tested exactly, over all 2^n signs: what scipy does row by row, in
    seconds a row at ten values.
    """
    from scipy import stats

    # Equal decimals differ in the last bits once subtracted: ties must be seen as such.
    d = np.round(differences, 12)
    size = np.abs(d)
    ordered = np.sort(size, axis=1)
    tied = (ordered[:, 0] == 0) | (np.diff(ordered, axis=1) == 0).any(axis=1)
    found = np.full(len(d), NAN)
    small = tied & (d.shape[1] <= MOST_EXACT)
    if (~small).any():
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found[~small] = stats.wilcoxon(d[~small], axis=1).pvalue
    if small.any():
        # Zeros are left out: they rank below all others, whose ranks move down by their number.
        zeros = (d[small] == 0).sum(axis=1, keepdims=True)
        ranks = np.where(d[small] == 0, 0.0, stats.rankdata(size[small], axis=1) - zeros)
        signs = np.array(list(product((-1.0, 1.0), repeat=d.shape[1])))
        seen = np.abs((ranks * np.sign(d[small])).sum(axis=1, keepdims=True))
        p = (np.abs(ranks @ signs.T) >= seen - 1e-9).mean(axis=1)
        found[small] = np.where((ranks > 0).any(axis=1), p, NAN)
    return found


def _pairs(labels: Sequence[str], table: Array, ranked: Friedman | None) -> list[Pair]:
    n, k = table.shape
    places = [(i, j) for i in range(k) for j in range(i + 1, k)]
    if not places or n < 2:
        return []
    first, second = (list(side) for side in zip(*places, strict=True))
    differences = (table[:, first] - table[:, second]).T
    t = paired_p_values(differences)
    signed = wilcoxon(differences)

    bonferroni = np.minimum(1.0, t * (~np.isnan(t)).sum())
    columns = (t, np.array(holm(t.tolist())), bonferroni, signed, np.array(holm(signed.tolist())))
    made = []
    for row, (i, j) in enumerate(places):
        a, b = labels[i], labels[j]
        apart = ranked is not None and abs(ranked.mean_ranks[a] - ranked.mean_ranks[b]) >= ranked.critical_difference
        p = [float(column[row]) for column in columns]
        made.append(Pair(a, b, float(differences[row].mean()), p[0], p[1], p[2], p[3], p[4], apart))
    return made
