"""The rules behind verdicts, each against scipy, values worked by hand, or what it promises."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from hf_optim.study.statistics import comparisons, failures, intervals, looks, omnibus, places, scores, speedup
from hf_optim.study.statistics import paired as s

NAN = math.nan


def means(values, sizes, least=0.0):
    return [s.mean_difference(values[:n], least) for n in sizes]


def drawn(seed: int, n: int, shift: float = 0.0) -> list[float]:
    return (np.random.default_rng(seed).normal(size=n) + shift).tolist()


# --- looks ---


def test_shares_are_those_of_new_units() -> None:
    assert looks.shares([5, 10, 20]) == [0.25, 0.25, 0.5]
    assert looks.shares([7]) == [1.0]


def test_the_p_after_looks_is_the_smallest_over_its_share() -> None:
    d = drawn(0, 20, 1.0)
    (decision,) = looks.decide([looks.Claim(means(d, (5, 10, 20)))], (5, 10, 20))
    p = [stats.ttest_1samp(d[:n], 0).pvalue / w for n, w in ((5, 0.25), (10, 0.25), (20, 0.5))]
    first = next((k for k, _ in enumerate(p) if min(p[: k + 1]) < 0.05), None)
    assert first is not None and decision.look == first and decision.adjusted == pytest.approx(min(p[: first + 1]))
    assert decision.verdict == "better"


def test_a_single_look_is_the_paired_t_test() -> None:
    d = drawn(1, 8, 0.4)
    (decision,) = looks.decide([looks.Claim(means(d, (8,)))], (8,))
    reference = stats.ttest_1samp(d, 0)
    assert decision.p == decision.adjusted == pytest.approx(reference.pvalue)
    assert (decision.low, decision.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_what_is_decided_stays_decided_whatever_comes() -> None:
    sure = [1.0, 1.1, 0.9, 1.05, 0.95]
    later = [-9.0, -8.0, -7.5, -9.5, -8.5]
    claim = looks.Claim(means(sure + later, (5, 10)))
    (before,) = looks.decide([looks.Claim(claim.means[:1])], (5, 10))
    (after,) = looks.decide([claim], (5, 10))
    assert repr(before) == repr(after) and after.verdict == "better" and after.look == 0


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("margin", [NAN, 0.8])
def test_an_interval_leaves_zero_exactly_when_the_verdict_is_given(seed: int, margin: float) -> None:
    sizes = (4, 8, 16)
    claims = [looks.Claim(means(drawn(100 * seed + i, 16, i / 4), sizes), margin) for i in range(5)]
    for decision in looks.decide(claims, sizes):
        assert (decision.verdict in ("better", "worse")) == (
            not decision.low <= 0 <= decision.high
        ) or decision.verdict == "equivalent"
        if not math.isnan(margin):
            assert (decision.verdict == "equivalent") == (
                -margin < decision.low and decision.high < margin
            ) or decision.verdict != "undecided"
            assert decision.verdict != "equivalent" or (-margin < decision.low and decision.high < margin)


def test_equivalence_is_withheld_where_an_arm_failed() -> None:
    d = [0.01, -0.02, 0.015, 0.0, -0.01, 0.02]
    (fine,), (withheld,) = (looks.decide([looks.Claim(means(d, (6,)), 0.5, unfailed)], (6,)) for unfailed in (1, 0))
    assert (fine.verdict, withheld.verdict) == ("equivalent", "undecided")


def test_the_detectable_effect_has_the_power_it_says_and_the_designs_of_the_defaults() -> None:
    for n in (3, 5, 10):
        assert s.power(s.detectable(n), n) == pytest.approx(0.8, abs=1e-6)
    # Worked out once by bisection over scipy's noncentral t: one comparison, and the severest of four.
    assert looks.detectable_effect((10,), 1) == pytest.approx(1.0, abs=0.01)
    assert looks.detectable_effect((5,), 4) == pytest.approx(2.5, abs=0.05)
    assert math.isnan(looks.detectable_effect((1,), 1))
    assert looks.detectable_effect((5, 10), 1) > looks.detectable_effect((10,), 1)


# --- grain ---


def test_equal_differences_of_a_counted_metric_are_rounded_not_certain() -> None:
    grain = 1 / 500
    difference = s.mean_difference([grain] * 5, grain / 2)
    assert s.difference_p(difference) == pytest.approx(0.011, abs=0.001)
    assert s.difference_p(s.mean_difference([grain] * 3, grain / 2)) == pytest.approx(0.074, abs=0.001)
    assert math.isnan(s.difference_p(s.mean_difference([0.3] * 5)))
    assert s.difference_p(s.mean_difference([0.0] * 5)) == 1.0


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e9])
def test_verdicts_do_not_depend_on_the_unit_of_the_metric(size: float) -> None:
    """Losses of 1e-12 were taken to be equal but for rounding, and equal differences of 1e9 to be sure to a bit."""
    rng = np.random.default_rng(4)
    base = (1 + 0.01 * rng.normal(size=8)).tolist()
    better = [b - 0.03 + 0.01 * x for b, x in zip(base, rng.normal(size=8), strict=True)]
    wanted = stats.ttest_rel(better, base).pvalue
    (c,) = comparisons.compare([[(a * size, b * size) for a, b in zip(better, base, strict=True)]], [False])
    assert (c.verdict, c.p) == ("better", pytest.approx(wanted))
    (same,) = comparisons.compare([[((b - 1e-6) * size, b * size) for b in base]], [False])
    assert same.verdict == "no verdict" and "the same difference" in same.reason
    effect = intervals.effect([(a * size, b * size) for a, b in zip(better, base, strict=True)], False)
    d = np.array(base) - np.array(better)
    assert effect.d_z == pytest.approx(d.mean() / d.std(ddof=1))
    table = np.array([base, better, drawn(5, 8, 1.0)]).T
    assert omnibus.anova(table * size).f == pytest.approx(omnibus.anova(table).f)  # type: ignore[union-attr]


def test_units_of_equal_sum_are_a_tie_and_equal_values_have_no_deviation() -> None:
    """Two seeds of a counted metric averaged differ in the last bit in one tie of five, which was a win."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        a, b, c = rng.integers(440, 480, 3).tolist()
        mine, other = ([x / 500 for x in counted] for counted in ((a, b), (c, a + b - c)))
        first, second = failures.with_worst([mine], [other], True)
        assert first == second and s.win_rate([x - y for x, y in zip(first, second, strict=True)])[0] == 0.5
    assert all(s.summarise([k / 1000] * n).sd == 0 for k in range(1, 1000, 7) for n in range(2, 12))


# --- failures ---


@pytest.mark.parametrize("counts", [(4, 5, 0, 5), (3, 10, 1, 8), (0, 5, 0, 5), (5, 5, 0, 7), (2, 3, 2, 9)])
def test_fisher_is_scipys(counts: tuple[int, int, int, int]) -> None:
    a, n, b, m = counts
    p, least = failures.fisher(*counts)
    assert p == pytest.approx(stats.fisher_exact([[a, n - a], [b, m - b]]).pvalue)
    everything = [
        stats.fisher_exact([[k, n - k], [a + b - k, m - a - b + k]]).pvalue
        for k in range(max(0, a + b - m), min(n, a + b) + 1)
    ]
    assert least == pytest.approx(min(everything))


def test_fishers_p_of_ten_thousand_units_is_no_matter_of_minutes() -> None:
    """Each count was weighed anew by numbers of thousands of digits, and each against each, for every pair and look."""
    start = time.monotonic()
    p, _ = failures.fisher(5000, 10_000, 4667, 10_000)
    assert p == pytest.approx(stats.fisher_exact([[5000, 5000], [4667, 5333]]).pvalue)
    assert time.monotonic() - start < 10


def test_four_failures_of_five_against_none_are_told_apart_and_three_are_not() -> None:
    (four,) = failures.compare([[(4, 5, 0, 5)]], (5,))
    (three,) = failures.compare([[(3, 5, 0, 5)]], (5,))
    assert four.sure and four.adjusted == pytest.approx(0.0476, abs=1e-4) and not three.sure


def test_pairs_that_cannot_reach_significance_do_not_dilute() -> None:
    hopeless = [[(0, 5, 0, 5)]] * 8 + [[(1, 5, 0, 5)]]
    tests = failures.compare([[(5, 5, 0, 5)], *hopeless], (5,))
    assert tests[0].adjusted == pytest.approx(failures.fisher(5, 5, 0, 5)[0]) and tests[0].sure
    assert all(test.adjusted == 1.0 for test in tests[1:])
    twice = failures.compare([[(5, 5, 0, 5)], [(5, 5, 0, 5)]], (5,))
    assert [test.adjusted for test in twice] == pytest.approx([2 * failures.fisher(5, 5, 0, 5)[0]] * 2, rel=1.0)


def test_a_failed_run_counts_as_the_worst_finished_of_both_arms() -> None:
    a, b = [(0.9,), (NAN,), (0.8,)], [(0.7,), (0.95,), (NAN,)]
    assert failures.with_worst(a, b, True) == ([0.9, 0.7, 0.8], [0.7, 0.95, 0.7])
    assert failures.with_worst(a, b, False) == ([0.9, 0.95, 0.8], [0.7, 0.95, 0.95])
    two = failures.with_worst([(0.9, NAN)], [(0.6, 0.8)], True)
    assert two == ([0.75], [0.7])
    assert failures.with_worst([(NAN,)], [(NAN,)], True) == ([], [])


def test_failure_rates_are_clopper_pearson_over_units() -> None:
    rate = failures.rate([(0.9, NAN), (NAN, NAN), (0.8, 0.7), (0.5, 0.5)])
    reference = stats.binomtest(2, 4).proportion_ci(method="exact")
    assert (rate.count, rate.n, rate.low, rate.high) == (
        2,
        4,
        pytest.approx(reference.low),
        pytest.approx(reference.high),
    )
    assert failures.rate([(0.9,)] * 10).high == pytest.approx(0.308, abs=1e-3)


# --- scores ---


def test_the_score_of_one_task_is_its_t_test_in_other_units() -> None:
    difference = s.mean_difference(drawn(3, 6, 0.5))
    scored = scores.score([difference], [0.01])
    assert scored.freedom == pytest.approx(5) and s.difference_p(scored) == pytest.approx(s.difference_p(difference))
    assert scored.value == pytest.approx(difference.value / 0.01)


def test_the_score_of_two_tasks_is_welchs_test_with_fewer_degrees() -> None:
    # The sum of two independent means is the difference of one and the other's negative: Welch's test.
    x, y = drawn(4, 9, 0.4), [3 * v for v in drawn(5, 9, 0.1)]
    scored = scores.score([s.mean_difference(x), s.mean_difference(y)], [1.0, 1.0])
    welch = stats.ttest_ind(x, [-v for v in y], equal_var=False)
    assert scored.value / scored.error == pytest.approx(welch.statistic)
    assert scored.freedom == pytest.approx(max(8, welch.df * 8 / 10))
    assert math.isnan(scores.score([s.mean_difference([0.1])], [1.0]).error)


@pytest.mark.parametrize("spread", [(1.0, 1.0, 1.0), (0.1, 0.1, 1.0), (0.1, 0.3, 1.0)])
def test_the_score_keeps_its_level_at_three_units_also_at_the_levels_of_a_large_family(spread: Sequence[float]) -> None:
    """Satterthwaite's own degrees give 6 % for 5 and .7 for .25 here."""
    studies = np.random.default_rng(7).normal(size=(8000, 3, 3)) * np.array(spread)[None, :, None]
    p = np.array(
        [
            s.difference_p(scores.score([s.mean_difference(d) for d in differences], [1.0] * 3))
            for differences in studies
        ]
    )
    for level in (0.05, 0.0025):
        assert (p < level).sum() <= stats.binom.ppf(0.9995, len(p), level)


# --- speed-up ---


def test_the_factor_is_where_the_interpolated_baseline_is_as_good() -> None:
    budgets = (0.5, 1.0, 2.0, 4.0)
    curve = np.log2(budgets)
    noise = np.random.default_rng(0).normal(0, 0.02, 8)
    baseline = np.array([curve + e for e in noise])
    other = [math.log2(1.4) + e + 0.1 * (-1) ** i for i, e in enumerate(noise)]
    factor = speedup.invert(baseline, other, budgets)
    assert factor.value == pytest.approx(1.4, rel=0.01) and factor.low < 1.4 < factor.high
    for s_, inside in ((factor.low * 1.02, True), (factor.low * 0.98, False)):
        d = [o - np.interp(math.log(s_), np.log(budgets), row) for o, row in zip(other, baseline, strict=True)]
        assert (stats.ttest_1samp(d, 0).pvalue >= 0.05) == inside


def test_open_ends_are_open() -> None:
    baseline = np.array([[0.0, 1.0], [0.1, 1.05], [0.0, 0.97]])
    factor = speedup.invert(baseline, [2.0, 2.5, 1.2], (1.0, 2.0))
    assert math.isnan(factor.high) and not math.isnan(factor.low) and factor.most == 2.0
    # The ends are where the test begins to reject, not the nearest of the factors that were tried.
    d = np.array(drawn(6, 8, 1.0)) * 0.2 + 0.5
    logs = np.log([0.5, 1.0, 8.0])
    ends = d.mean() + np.array([-1, 1]) * stats.t.ppf(0.975, 7) * stats.sem(d)
    exact = speedup.invert(np.tile(logs, (8, 1)), d.tolist(), (0.5, 1.0, 8.0))
    assert [exact.low, exact.high] == pytest.approx(np.exp(ends), rel=1e-9)
    far = speedup.invert(baseline, [9.0, 9.1, 9.05], (1.0, 2.0))
    assert (far.low, math.isnan(far.high)) == (2.0, True)
    assert speedup.invert(baseline, [-9.0, -9.1, -9.05], (1.0, 2.0)).high == 1.0


# --- places ---


def test_places_follow_from_pairs_that_are_told_apart() -> None:
    base = drawn(7, 10)
    arms = {"a": [v + 9 for v in base], "b": [v + 0.2 * e for v, e in zip(base, drawn(8, 10), strict=True)], "c": base}
    pairs = {
        (x, y): means([p - q + 1e-3 * e for p, q, e in zip(arms[x], arms[y], drawn(9, 10), strict=True)], (10,))
        for x, y in (("a", "b"), ("a", "c"), ("b", "c"))
    }
    (placed,) = places.places([pairs], (10,))
    assert placed.sets == {"a": (1, 1), "b": (2, 3), "c": (2, 3)} and placed.tied_with_best() == {"a"}
    assert [places.place_text(placed.sets[x]) for x in "ab"] == ["1", "2 to 3"]


# --- two statements ---


@pytest.mark.parametrize(
    ("verdict", "mine", "other", "said"),
    [
        ("better", 2, 0, "better where it trains"),
        ("worse", 0, 2, "worse where it trains"),
        ("better", 0, 2, "better, failures counted as the worst finished run"),
        ("worse", 2, 0, "worse, failures counted as the worst finished run"),
        ("better", 0, 0, "better"),
    ],
)
def test_where_it_trains_is_said_only_where_failures_count_against_the_verdict(
    verdict: str, mine: int, other: int, said: str
) -> None:
    from hf_optim.study.findings.verdicts import word
    from hf_optim.study.statistics.comparisons import Comparison

    rates = tuple(failures.FailureRate(count, 5, 0.0, 1.0) for count in (mine, other))
    c = Comparison(5, s.summarise([1.0, 2.0]), 0.01, 0.01, 1.0, 0.5, 1.0, 0.1, verdict, failures=rates)
    assert word(c) == said
    sure = Comparison(
        10, s.summarise([1.0, 2.0]), 0.01, 0.01, 1.0, 0.5, 1.0, 0.1, "better",
        failures=(failures.FailureRate(7, 10, 0.3, 0.9), failures.FailureRate(0, 10, 0.0, 0.3)),
        failure_test=failures.FailureTest(0.003, 0.003, 0),
    )  # fmt: skip
    assert word(sure) == "better where it trains; fails more often (7 of 10 against 0 of 10, p = 0.003)"
