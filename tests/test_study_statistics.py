"""The statistics against scipy, printed values, and simulation."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.integrate import trapezoid
from statsmodels.stats.anova import AnovaRM
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.nonparametric import rank_compare_2indep
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from hf_optim.errors import UserError
from hf_optim.study.findings import profiles
from hf_optim.study.plan import criteria as stated
from hf_optim.study.plan import plan
from hf_optim.study.plan.source import parse
from hf_optim.study.statistics import holm as corrections
from hf_optim.study.statistics import intervals, omnibus
from hf_optim.study.statistics import paired as s
from hf_optim.study.statistics.comparisons import compare


def paired_p(d: list[float]) -> float:
    return s.difference_p(s.mean_difference(d))


def equivalence_p(d: list[float], margin: float) -> float:
    return s.equivalence_p(s.mean_difference(d), margin)


A = [0.912, 0.905, 0.921, 0.899, 0.917]
B = [0.901, 0.903, 0.908, 0.895, 0.911]


def test_summary_is_the_t_interval() -> None:
    summary = s.summarise(A)
    low, high = stats.t.interval(0.95, 4, loc=sum(A) / 5, scale=stats.sem(A))
    assert (summary.n, summary.mean, summary.sd) == (5, pytest.approx(sum(A) / 5), pytest.approx(stats.tstd(A)))
    assert (summary.low, summary.high) == (pytest.approx(low), pytest.approx(high))


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    single, none = s.summarise([0.5]), s.summarise([])
    assert single.mean == 0.5 and math.isnan(single.sd) and math.isnan(single.low)
    assert none.n == 0 and math.isnan(none.mean)


def test_paired_p_is_scipys() -> None:
    assert paired_p([a - b for a, b in zip(A, B, strict=True)]) == pytest.approx(stats.ttest_rel(A, B).pvalue)


def test_holm_against_values_worked_by_hand() -> None:
    # Ordered .01 x4, .02 x3, .03 x2 (raised to .06 of before), .04 x1 (the same).
    assert corrections.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert corrections.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = corrections.holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02) and math.isnan(adjusted[1]) and adjusted[2] == pytest.approx(0.02)


def test_power_against_printed_values() -> None:
    assert s.power(1.0, 10) == pytest.approx(0.803, abs=0.001)
    assert s.power(0.5, 34) == pytest.approx(0.808, abs=0.001)
    assert s.power(50.0, 30) == 1.0 and s.power(0.0, 10) == pytest.approx(0.05, abs=1e-6)


def test_win_rate_is_clopper_pearson() -> None:
    rate, low, high = s.win_rate([0.1, 0.2, -0.1, 0.3])
    reference = stats.binomtest(3, 4).proportion_ci(method="exact")
    assert (rate, low, high) == (0.75, pytest.approx(reference.low), pytest.approx(reference.high))
    assert s.win_rate([0.0, 0.1])[0] == 0.75
    assert s.win_rate([1.0, 1.0, 1.0])[2] == 1.0


def test_verdicts_follow_the_direction_of_the_metric() -> None:
    clear = [(0.9 + 0.001 * i, 0.5 + 0.0011 * i) for i in range(5)]
    assert [c.verdict for c in compare([clear, clear], [True, False])] == ["better", "worse"]
    assert compare([clear], [False])[0].better == 0.0


def test_few_seeds_give_no_verdict() -> None:
    single, none = compare([[(0.9, 0.1)]], [True])[0], compare([[]], [True])[0]
    assert (single.verdict, single.reason) == ("no verdict", "one unit shows no spread")
    assert (none.verdict, none.reason) == ("no verdict", "there is nothing to compare")


# --- against the libraries ---


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_own_formulas_are_the_libraries_to_ten_digits(n: int) -> None:
    a, b = draw(n, n), draw(n + 100, n) + 0.3
    d = (a - b).tolist()
    assert paired_p(d) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-10)
    _, lower, upper = ttost_paired(a, b, -0.5, 0.5)
    assert equivalence_p(d, 0.5) == pytest.approx(min(1.0, 2 * max(lower[1], upper[1])), rel=1e-10)
    for effect in (0.3, 1.0, 2.5):
        theirs = TTestPower().power(effect, n, 0.05)
        assert s.power(effect, n) == pytest.approx(theirs, abs=1e-8)


def test_holm_is_statsmodels_to_ten_digits() -> None:
    for seed in range(0, 20, 4):
        p = np.random.default_rng(seed).random(1 + seed) ** 2
        assert corrections.holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-10)


def test_equivalence_asks_for_the_whole_interval_within_the_margin() -> None:
    d = (0.1 * draw(1, 8) + 0.02).tolist()
    interval = s.summarise(d)
    edge = max(abs(interval.low), abs(interval.high))
    assert equivalence_p(d, edge * 1.001) < 0.05 < equivalence_p(d, edge * 0.999)
    assert math.isnan(equivalence_p([0.0, 0.0, 0.0], 0.1)) and math.isnan(equivalence_p([0.1], 1.0))


def test_shaffers_form_by_hand() -> None:
    # Two comparisons with a margin each: at most two of the four hypotheses can be true, then one, once a pair is done.
    differences, equivalences = corrections.adjust([0.01, 0.60], [0.02, 0.03])
    # .01 x2; .02 x2 (the other half of the pair of .01 may still be true); .03 x1, raised to .04; .60 x1.
    assert differences == pytest.approx([0.02, 0.60]) and equivalences == pytest.approx([0.04, 0.04])


def test_words_of_a_margin() -> None:
    base = [0.9, 0.8, 0.7, 0.85, 0.75]
    near = [(b + 0.001 * e, b) for b, e in zip(base, (1, -1, 2, -2, 1), strict=True)]
    small = [(b + 0.01 + 0.001 * e, b) for b, e in zip(base, (1, -1, 2, -2, 1), strict=True)]
    words = [c.verdict for c in compare([near, small, small], [True] * 3, [0.05, 0.05, math.nan])]
    assert words == ["equivalent", "equivalent", "better"]
    compared = compare([near], [True], [0.0005])[0]
    assert compared.verdict == "undecided" and compared.margin == 0.0005


# --- describing ---


def test_descriptions_are_numpys_and_scipys() -> None:
    values = [0.91, 0.95, 0.93, 0.97, 0.90, 0.92]
    description, none = intervals.describe(values), intervals.describe([])
    assert (description.median, description.iqm) == (pytest.approx(0.925), pytest.approx(stats.trim_mean(values, 0.25)))
    assert description.mean == s.summarise(values) and none.n == 0 and math.isnan(none.median)


def test_effects_by_hand() -> None:
    effect = intervals.effect([(3.0, 1.0), (4.0, 3.0), (5.0, 2.0)], True)
    assert effect.d_z == pytest.approx(2.0) and effect.d_av == pytest.approx(2.0)
    assert effect.wins.value == 1.0
    assert effect.improvement.value == pytest.approx(stats.mannwhitneyu([3, 4, 5], [1, 3, 2]).statistic / 9)
    turned = intervals.effect([(3.0, 1.0), (4.0, 3.0), (5.0, 2.0)], False)
    assert turned.d_z == pytest.approx(-2.0) and turned.wins.value == 0.0
    assert math.isnan(intervals.effect([], True).d_z)


def test_improvement_takes_no_room_for_all_combinations() -> None:
    """Of ten thousand units a side it was a gigabyte, of the fifty thousand that a plan may have thirty."""
    a, b = np.arange(4000.0), np.arange(4000.0) + 0.5
    tracemalloc.start()
    shown = intervals.improvement(a, b)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4e6 and shown.value == pytest.approx(0.5, abs=1e-3) and shown.low < 0.5 < shown.high


@pytest.mark.parametrize("n", [3, 5, 20])
def test_improvement_is_statsmodels(n: int) -> None:
    a, b = np.round(draw(n, n), 1), np.round(draw(n + 50, n + 1), 1)
    ours, theirs = intervals.improvement(a, b), rank_compare_2indep(a, b)
    low, high = theirs.conf_int()
    assert ours.value == pytest.approx(theirs.prob1, rel=1e-10)
    assert (ours.low, ours.high) == pytest.approx((max(0.0, low), min(1.0, high)), rel=1e-10)


def test_anova_is_statsmodels() -> None:
    table = draw(4, 6, 4) + np.array([0, 0, 0.5, 1])
    rows = [(i, j, table[i, j]) for i in range(6) for j in range(4)]
    theirs = AnovaRM(pd.DataFrame(rows, columns=["seed", "name", "v"]), "v", "seed", ["name"]).fit().anova_table
    ours = omnibus.anova(table)
    assert ours is not None
    assert (ours.f, ours.p) == (pytest.approx(theirs["F Value"].iloc[0]), pytest.approx(theirs["Pr > F"].iloc[0]))
    assert 1 / 3 <= ours.epsilon <= 1 and ours.p_corrected >= ours.p
    assert omnibus.anova(np.ones((3, 3))) is None
    with np.errstate(all="raise"):  # of the largest numbers that a record may hold: it was NaN, with a warning
        large = omnibus.anova(table * 2.0**490)
    assert large == ours


def test_friedman_is_scipys() -> None:
    table = draw(5, 8, 4) + np.array([0, 0, 0, 2])
    values = {f"o{j}": {s_: float(table[s_, j]) for s_ in range(8)} for j in range(4)}
    tested = omnibus.compare_all(values, True)
    assert tested.friedman is not None and tested.friedman.p == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    assert tested.friedman.mean_ranks["o3"] == min(tested.friedman.mean_ranks.values())
    # Lower is better turns the ranks round.
    turned = omnibus.compare_all(values, False).friedman
    assert turned is not None and turned.mean_ranks["o3"] == max(turned.mean_ranks.values())


# --- time to target ---


def test_time_to_target_is_interpolated_between_evaluations() -> None:
    rows = [{"step": 10, "v": 0.5}, {"step": 20, "train_loss": 1.0}, {"step": 30, "v": 0.8}, {"step": 40, "v": 0.7}]
    assert profiles.time_to_target(rows, "v", 0.8, "higher") == pytest.approx(30)
    assert profiles.time_to_target(rows, "v", 0.6, "higher") == pytest.approx(10 + 20 / 3)
    assert profiles.time_to_target(rows, "v", 0.5, "higher") == 10
    assert profiles.time_to_target(rows, "v", 0.6, "lower") == 10
    assert profiles.time_to_target(rows, "v", 0.9, "higher") == math.inf


def test_time_to_target_is_told_in_passes_operations_and_seconds_too() -> None:
    rows = [
        {"step": 10, "v": 0.5, "forward_passes": 10, "backward_passes": 10, "seconds": 1.0, "flops": 4e9},
        {"step": 30, "v": 0.8, "forward_passes": 50, "backward_passes": 30, "seconds": 4.0, "flops": 1e10},
    ]
    expected = {"step": 20, "passes": 20 + 60 / 2, "seconds": 2.5, "flops": 7e9}
    for kind, amount in expected.items():
        assert profiles.time_to_target(rows, "v", 0.65, "higher", kind) == pytest.approx(amount)
    assert profiles.time_to_target([{"step": 1, "v": 1.0}], "v", 0.65, "higher", "flops") == math.inf
    row = profiles.Reached("a", {0: 20.0, 1: math.inf}, math.inf, {"passes": math.inf})
    table = profiles.TargetTable(
        "t", "v", 0.65, "higher", (row, profiles.Reached("b", {0: 5.0}, 5.0, {"passes": 12.5}))
    )
    assert profiles.cells(table)[1] == {
        "optimizer": "b", "reached": "1/1", "median steps": "5", "median passes": "12.5"
    }  # fmt: skip
    assert profiles.cells(table)[0]["median passes"] == "never"


def test_profile_and_score_by_hand() -> None:
    inf = math.inf
    times = np.array([[10.0, 10.0, inf], [20.0, inf, inf], [10.0, 45.0, math.nan]])
    assert profiles.shares(times, np.array([1.0, 2.0, 4.5])).tolist() == pytest.approx(
        np.array([[2, 2, 2], [0, 1, 1], [1, 1, 2]]) / 3
    )
    # Exact integrals: two tasks at once; one at twice the time; one at once and one beyond tau.
    assert profiles.score(times) == pytest.approx([2 / 3, (4 - 2) / 3 / 3, 1 / 3], abs=0.006)
    taus = np.linspace(1, 4, 100)
    assert profiles.score(times) == pytest.approx(trapezoid(profiles.shares(times, taus), taus, axis=-1) / 3)


def test_the_yaml_states_margin_and_targets() -> None:
    tasks = [
        {"label": "A", "primary": {"name": "test_accuracy", "greater_is_better": True}},
        {"label": "B", "primary": {"name": "test_perplexity", "greater_is_better": False}},
    ]
    source = parse("margin: 0.01\ntargets:\n  B: {metric: validation_perplexity, value: 30}\n", "x.yaml")
    assert stated.margins(source, 0.01, tasks) == {"A": 0.01, "B": 0.01}
    assert stated.margins(source, {"B": 2}, tasks) == {"B": 2.0}
    assert stated.targets(source, source.value["targets"], tasks) == {
        "B": {"metric": "validation_perplexity", "value": 30.0, "better": "lower"}
    }
    loss = {"A": {"metric": "validation_loss", "value": 0.1}}
    assert stated.targets(source, loss, tasks)["A"]["better"] == "lower"
    for bad, why in (
        (-1, "positive number"),
        (True, "must be a positive number"),
        ({"C": 1}, "no task has the label 'C'; labels: A, B"),
        ({"A": "x"}, "must be a positive number"),
    ):
        with pytest.raises(UserError, match=why):
            stated.margins(source, bad, tasks)
    for worse, why in (
        ({"A": {"metric": "score", "value": 1}}, "declares no metric 'score'"),
        ({"A": {"metric": "score", "value": 1, "better": "up"}}, "better: higher or lower"),
        ({"A": {"metric": "score"}}, "key 'value' is missing"),
        ({"C": {}}, "no task has the label"),
        ([], "must be a mapping"),
    ):
        with pytest.raises(UserError, match=f"x.yaml, line .*{why}"):
            stated.targets(source, worse, tasks)


def test_margin_and_targets_reach_the_plan_and_leave_the_runs_alone() -> None:
    text = "name: x\nseeds: 2\ntasks:\n  - {task: vision, label: A, size: smoke}\noptimizers: [adamw, sgd]\n"
    more = "margin: 0.005\ntargets:\n  A: {metric: validation_accuracy, value: 0.9}\n"
    bare, full = plan.expand(parse(text, "x.yaml")), plan.expand(parse(text + more, "x.yaml"))
    assert [r.id for r in bare.runs] == [r.id for r in full.runs] and bare.margin is None
    again = plan.Plan.from_dict(json.loads(json.dumps(full.to_dict())), "plan.json")
    assert again.margin == {"A": 0.005} and again.targets is not None and again.targets["A"]["better"] == "higher"
    with pytest.raises(UserError, match="x.yaml, line 6: .*margin"):
        plan.expand(parse(text + "margin: none\n", "x.yaml"))
