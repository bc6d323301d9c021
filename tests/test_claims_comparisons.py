"""The statistics of claims against independent computations, and the figures that rules read from records."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_optim.claims import comparisons, rules, theorems
from hf_optim.claims.comparisons import Comparison

NAN = math.nan


def comparison(pairs, **more) -> Comparison:
    return Comparison("task", "a", "b", "m", tuple(pairs), **more)


def test_a_comparison_is_a_paired_t_test_with_its_slack() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.1, 1, 8), rng.normal(0, 1, 8)
    (finding,) = comparisons.decide([comparison(zip(a, b, strict=True), slack=0.4)])
    assert finding.p == pytest.approx(stats.ttest_1samp(a - b, -0.4).pvalue)
    assert finding.difference.mean == pytest.approx((a - b).mean())  # without the slack
    (lower,) = comparisons.decide([comparison(zip(-a, -b, strict=True), sign=-1)])
    assert lower.difference.mean == pytest.approx((a - b).mean())  # in the metric's own direction


@pytest.mark.parametrize("size", [1e-12, 1e-9, 1e9])
def test_a_p_does_not_depend_on_the_unit_of_the_metric(size: float) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(1.3, 0.1, 8), rng.normal(1, 0.1, 8)
    (finding,) = comparisons.decide([comparison(zip(a * size, b * size, strict=True))])
    assert finding.truth and finding.p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_comparisons_of_a_claim_are_corrected_together() -> None:
    rng = np.random.default_rng(1)
    pairs = [(x, 0.0) for x in rng.normal(0.9, 1, 10)]
    (alone,) = comparisons.decide([comparison(pairs)])
    together = comparisons.decide([comparison(pairs)] * 4)
    assert alone.truth and together[0].adjusted == pytest.approx(4 * alone.p)


def test_a_failed_run_counts_as_the_worst_of_both_arms() -> None:
    pairs = [(0.9, 0.5), (0.8, 0.6), (0.85, NAN), (0.95, 0.55)]
    (finding,) = comparisons.decide([comparison(pairs)])
    assert finding.p == pytest.approx(stats.ttest_1samp([0.4, 0.2, 0.35, 0.4], 0).pvalue)
    assert finding.pairs == 4 and finding.comparison.failures() == (0, 1)
    # Where both failed there is nothing to say.
    (both,) = comparisons.decide([comparison([*pairs[:2], (NAN, NAN)])])
    assert both.pairs == 2


def test_an_arm_that_never_finishes_is_decided_by_its_failures() -> None:
    (finding,) = comparisons.decide([comparison([(0.9 + i / 100, NAN) for i in range(5)])])
    assert finding.truth is True and finding.p == pytest.approx(2 / math.comb(10, 5))
    (turned,) = comparisons.decide([comparison([(NAN, 0.9 + i / 100) for i in range(5)])])
    assert turned.truth is False
    (few,) = comparisons.decide([comparison([(0.9, NAN), (0.91, NAN), (0.92, NAN)])])
    assert few.truth is None  # 3 of 3 against 0 of 3 is p = .1
    (none,) = comparisons.decide([comparison([(NAN, NAN)] * 5)])
    assert none.truth is None and none.pairs == 0


def test_who_never_arrives_needed_the_whole_budget() -> None:
    """On a time the budget is a bound: three seeds against none already decide."""
    times = [(-math.log(20 + i), NAN) for i in range(3)]
    (finding,) = comparisons.decide([comparison(times, worst=-math.log(1000), sign=-1)])
    assert finding.truth is True
    expected = stats.ttest_1samp([math.log(1000 / (20 + i)) for i in range(3)], 0).pvalue
    assert finding.p == pytest.approx(min(expected, stats.fisher_exact([[3, 0], [0, 3]]).pvalue))


def test_a_counted_metric_needs_no_spread() -> None:
    (finding,) = comparisons.decide([comparison([(3.0, 2.0)] * 2, exact=True)])
    (same,) = comparisons.decide([comparison([(2.0, 2.0)] * 2, exact=True)])
    assert finding.truth is True and same.truth is None


def test_false_alarms_of_a_claim_stay_at_five_per_cent() -> None:
    """Seven baselines that are no different, five seeds, one run in eight fails in every arm."""
    rng = np.random.default_rng(2)
    wrong, trials = 0, 400
    for _ in range(trials):
        values = np.where(rng.random((8, 5)) < 1 / 8, NAN, rng.normal(0, 1, (8, 5)))
        findings = comparisons.decide([comparison(zip(values[0], other, strict=True)) for other in values[1:]])
        wrong += any(finding.truth is not None for finding in findings)
    assert wrong / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_rules_that_are_documented_are_those_there_are() -> None:
    from hf_optim.claims import courses, exhibits

    def listed(module) -> set[str]:
        return {line[2:].partition(":")[0] for line in module.__doc__.splitlines() if line.startswith("- ")}

    assert set(courses.RULES) == listed(courses) and set(exhibits.RULES) == listed(exhibits)
    assert set(rules.RULES) - set(courses.RULES) <= listed(rules)
    for more in (courses, exhibits):
        assert ", ".join(more.RULES) + ": of " in rules.__doc__


def test_agrs_second_inequality_is_false_as_printed() -> None:
    """By hand: d psi_i / d g_j = (i == j) (1 - 2 |g_i| / S) + g_i |g_i| sign(g_j) / S^2."""
    g = np.array([1.0, *[0.001] * 9])
    S = np.abs(g).sum()
    jacobian = np.diag(1 - 2 * np.abs(g) / S) + np.outer(g * np.abs(g), np.sign(g)) / S**2
    row = next(row for row in theorems.agr_theorem41() if "unit Hessian" in row["case"])
    assert row["slope"] == pytest.approx(np.linalg.norm(jacobian, 2)) and round(row["slope"], 2) == 3.11
    assert row["slope_bound"] == 1.0 and all(r["norm"] <= r["norm_bound"] for r in theorems.agr_theorem41())


def test_the_other_theorems_tables() -> None:
    for row in theorems.agr_theorem42():
        assert row["limit_error"] < 1e-12 and row["rise"] <= 0 and row["share"] <= 1
    table = theorems.smaran_theorem4(steps=64, seeds=1)
    last = table[-1]
    assert last["T"] == 64 and last["least"] < last["bound"] and 0 < last["tail"] < last["bound"]
