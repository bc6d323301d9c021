"""Simulated studies in which the truth is known: how often does each rule say something false?

A study is an array of metrics: row 0 the baseline, the other rows optimizers, the columns paired seeds. The rules are
those that give verdicts, called as a study calls them, and others for contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_optim.study.statistics import omnibus
from hf_optim.study.statistics.paired import ALPHA, NAN, decide, win_rate
from hf_optim.study.statistics.ties import tied_with_best

Array = NDArray[np.float64]
Rule = Callable[[Array], bool]
#: how surely a rule that keeps 5 % stays within the bound on its false alarms
SURE = 0.999
MARGIN = 2.0  # of the simulated equivalence tests, in standard deviations of the metric

#: metric -> (draws values of a given shape, its standard deviation)
METRICS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, ...]], Array], float]] = {
    "Gaussian": (lambda rng, shape: rng.normal(size=shape), 1.0),
    "lognormal": (lambda rng, shape: rng.lognormal(size=shape), math.sqrt((math.e - 1) * math.e)),
    "beta(98, 2)": (lambda rng, shape: rng.beta(98, 2, size=shape), math.sqrt(98 * 2 / (100**2 * 101))),
    "t with 3 degrees": (lambda rng, shape: rng.standard_t(3, size=shape), math.sqrt(3)),
    "95 % of 500 counted": (lambda rng, shape: rng.binomial(500, 0.95, size=shape) / 500, math.sqrt(0.95 * 0.05 / 500)),
}


@dataclass(frozen=True)
class Rate:
    """How many of so many simulated studies had at least one false statement."""

    rule: str
    metric: str
    seeds: int
    comparisons: int
    false: int
    studies: int

    @property
    def share(self) -> float:
        """The rate of false alarms."""
        return self.false / self.studies

    @property
    def kept(self) -> bool:
        """Whether the rate is within the binomial bound."""
        return self.false <= bound(self.studies)


def bound(studies: int, level: float = ALPHA) -> int:
    """How many false alarms a rule of exactly this level stays below or at, in 999 of 1,000 calibrations."""
    return int(stats.binom.ppf(SURE, studies, level))


def simulate(metric: str, seeds: int, comparisons: int, studies: int, *, shifts: Array | None = None) -> Array:
    """(studies, 1 + comparisons, seeds) metrics, all optimizers alike but for `shifts`, one a comparison, in standard
    deviations. The same arguments give the same studies.
    """
    draw, sd = METRICS[metric]
    rng = np.random.default_rng([list(METRICS).index(metric), seeds, comparisons])
    values = draw(rng, (studies, 1 + comparisons, seeds))
    if shifts is not None:
        values[:, 1:] += shifts[:, None] * sd
    return values


def measure(rule: str, metric: str, seeds: int, comparisons: int, studies: int) -> Rate:
    """The false alarms of one of RULES over simulated studies."""
    found, shifts = RULES[rule]
    moved = shifts(comparisons)
    values = simulate(metric, seeds, comparisons, studies, shifts=moved)
    _, sd = METRICS[metric]
    false = sum(found(study, moved, MARGIN * sd) for study in values)
    return Rate(rule, metric, seeds, comparisons, int(false), studies)


# --- the rules: a study, the true shifts and the margin -> whether something false was said ---


def verdicts(study: Array, margin: float = NAN) -> list[str]:
    """The verdicts of a study whose metric is better when greater."""
    differences = (study[1:] - study[0]).tolist()
    many = len(differences)
    return [one.verdict for one in decide(differences, [True] * many, [margin] * many)]


def _difference(study: Array, shifts: Array, margin: float) -> bool:
    return any(word in ("better", "worse") for word in verdicts(study))


def _with_margin(study: Array, shifts: Array, margin: float) -> bool:
    # Of a shift as large as the margin "equivalent" is false, of none "better" and "worse".
    false = [("equivalent",) if shift else ("better", "worse") for shift in shifts]
    return any(word in wrong for word, wrong in zip(verdicts(study, margin), false, strict=True))


def _ties(study: Array, shifts: Array, margin: float) -> bool:
    values = {str(i): dict(enumerate(row.tolist())) for i, row in enumerate(study)}
    return len(tied_with_best([(values, True)])[0]) < len(values)


def _wilcoxon(study: Array, shifts: Array, margin: float) -> bool:
    p = omnibus.wilcoxon(study[1:] - study[0])
    return bool(np.nanmin(np.append(p, 1.0)) < ALPHA / len(p))


def _anova(study: Array, shifts: Array, margin: float) -> bool:
    found = omnibus.anova(study.T)
    return found is not None and found.p < ALPHA


def _anova_corrected(study: Array, shifts: Array, margin: float) -> bool:
    found = omnibus.anova(study.T)
    return found is not None and found.p_corrected < ALPHA


def _friedman(study: Array, shifts: Array, margin: float) -> bool:
    found = omnibus.friedman([str(i) for i in range(len(study))], study.T, True)
    return found is not None and found.p < ALPHA


def _nemenyi(study: Array, shifts: Array, margin: float) -> bool:
    found = omnibus.friedman([str(i) for i in range(len(study))], study.T, True)
    if found is None:
        return False
    ranks = found.mean_ranks.values()
    return max(ranks) - min(ranks) >= found.critical_difference


def _wins(study: Array, shifts: Array, margin: float) -> bool:
    _, low, high = win_rate((study[1] - study[0]).tolist())
    return low > 0.5 or high < 0.5


def _percentile(study: Array, shifts: Array, margin: float) -> bool:
    d = study[1] - study[0]
    ends = np.percentile(d[_resamples(len(d))].mean(axis=1), [2.5, 97.5])
    return bool(ends[0] > 0 or ends[1] < 0)


def _resamples(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(n).integers(0, n, (1000, n))


def _none(comparisons: int) -> Array:
    return np.zeros(comparisons)


def _at_margin(comparisons: int) -> Array:
    return MARGIN * np.where(np.arange(comparisons) % 2, -1.0, 1.0)


def _mixed(comparisons: int) -> Array:
    return np.where(np.arange(comparisons) < comparisons / 2, 0.0, MARGIN)


Found = Callable[[Array, Array, float], bool]
#: the rules that give verdicts, and the truth they are measured under
VERDICTS: dict[str, tuple[Found, Callable[[int], Array]]] = {
    "better or worse, when nothing differs": (_difference, _none),
    "better or worse, when nothing differs and a margin is stated": (_with_margin, _none),
    "equivalent, when all differ by the margin": (_with_margin, _at_margin),
    "either, when half differ by the margin": (_with_margin, _mixed),
    "not tied with the best, when nothing differs": (_ties, _none),
}
#: those that only describe
OTHERS: dict[str, tuple[Found, Callable[[int], Array]]] = {
    "Wilcoxon, Bonferroni": (_wilcoxon, _none),
    "ANOVA": (_anova, _none),
    "ANOVA, corrected": (_anova_corrected, _none),
    "Friedman": (_friedman, _none),
    "Nemenyi after Friedman": (_nemenyi, _none),
}
#: of one comparison alone
SINGLE: dict[str, tuple[Found, Callable[[int], Array]]] = {
    "P(better): its interval leaves 0.5": (_wins, _none),
    "percentile bootstrap of the mean difference": (_percentile, _none),
}
RULES = {**VERDICTS, **OTHERS, **SINGLE}


def power_kept(metric: str, effect: float, seeds: int, studies: int) -> float:
    """The share of simulated studies of one comparison that name the better optimizer, where the true difference is
    `effect` standard deviations of the *difference* (independent arms: the square root of two times the metric's).
    """
    values = simulate(metric, seeds, 1, studies, shifts=np.array([effect * math.sqrt(2)]))
    return sum(verdicts(study) == ["better"] for study in values) / studies
