"""The statistics against scipy, printed values, and simulation."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from hf_optim.study import statistics as s

A = [0.912, 0.905, 0.921, 0.899, 0.917]
B = [0.901, 0.903, 0.908, 0.895, 0.911]


def test_summary_is_the_t_interval() -> None:
    got = s.summarise(A)
    low, high = stats.t.interval(0.95, 4, loc=sum(A) / 5, scale=stats.sem(A))
    assert (got.n, got.mean, got.sd) == (5, pytest.approx(sum(A) / 5), pytest.approx(stats.tstd(A)))
    assert (got.low, got.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one, none = s.summarise([0.5]), s.summarise([])
    assert one.mean == 0.5 and math.isnan(one.sd) and math.isnan(one.low)
    assert none.n == 0 and math.isnan(none.mean)


def test_paired_p_is_scipys() -> None:
    assert s.paired_p([a - b for a, b in zip(A, B, strict=True)]) == pytest.approx(stats.ttest_rel(A, B).pvalue)


def test_no_variance_is_no_certainty() -> None:
    assert s.paired_p([0.0, 0.0, 0.0]) == 1.0
    # Equal in decimals, not in bits: 0.93 - 0.92 and 0.97 - 0.96 differ at 1e-17.
    assert math.isnan(s.paired_p([0.93 - 0.92, 0.97 - 0.96, 0.95 - 0.94]))
    assert math.isnan(s.paired_p([0.1]))


def test_holm_against_values_worked_by_hand() -> None:
    # Ordered .01 x4, .02 x3, .03 x2 (raised to .06 of before), .04 x1 (the same).
    assert s.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert s.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = s.holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.02)


def test_power_and_seeds_against_printed_values() -> None:
    assert s.power(1.0, 10) == pytest.approx(0.803, abs=0.001)
    assert s.power(0.5, 34) == pytest.approx(0.808, abs=0.001)
    assert (s.seeds_needed(1.0), s.seeds_needed(2.0), s.seeds_needed(0.5)) == (10, 5, 34)
    assert s.seeds_needed(0.001) is None and s.seeds_needed(0.0) is None
    assert s.power(50.0, 30) == 1.0 and s.power(0.0, 10) == pytest.approx(0.05, abs=1e-6)


def test_detectable_difference_has_the_power_it_says() -> None:
    assert s.power(s.detectable(7, 0.3) / 0.3, 7) == pytest.approx(0.8, abs=1e-6)
    assert math.isnan(s.detectable(1, 0.3))


def test_win_rate_is_clopper_pearson() -> None:
    rate, low, high = s.win_rate([0.1, 0.2, -0.1, 0.3])
    reference = stats.binomtest(3, 4).proportion_ci(method="exact")
    assert (rate, low, high) == (0.75, pytest.approx(reference.low), pytest.approx(reference.high))
    assert s.win_rate([0.0, 0.1])[0] == 0.75
    assert s.win_rate([1.0, 1.0, 1.0])[2] == 1.0


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    clear = [(0.9 + 0.001 * i, 0.5 + 0.0011 * i) for i in range(5)]
    assert [c.verdict for c in s.compare([clear, clear], [True, False])] == ["better", "worse"]
    assert s.compare([clear], [False])[0].better == 0.0


def test_few_seeds_give_no_verdict() -> None:
    assert s.compare([[(0.9, 0.1)]], [True])[0].verdict == "one seed: no verdict"
    assert s.compare([[]], [True])[0].verdict == "no verdict"


def test_undecided_says_how_many_seeds_would_decide() -> None:
    pairs = [(a, b) for a, b in zip([1.0, 2.1, 2.9], [0.8, 2.2, 2.5], strict=True)]
    one = s.compare([pairs], [True])[0]
    effect = one.difference.mean / one.difference.sd
    assert one.verdict == "undecided" and one.seeds_needed == s.seeds_needed(effect)
    assert s.power(effect, one.seeds_needed) >= 0.8 > s.power(effect, one.seeds_needed - 1)
    # Among more comparisons the level is stricter, so more seeds are needed.
    assert s.compare([pairs] * 10, [True] * 10)[0].seeds_needed > one.seeds_needed


def test_when_nothing_differs_a_study_rarely_has_a_verdict() -> None:
    """Nine comparisons of identical optimizers, three seeds: at most about 5 % of studies may name a winner."""
    draw = random.Random(0)
    studies = 300
    alarms = 0
    for _ in range(studies):
        p = [s.paired_p([draw.gauss(0, 1) for _ in range(3)]) for _ in range(9)]
        alarms += min(s.holm(p)) < s.ALPHA
    assert alarms / studies < 0.09
