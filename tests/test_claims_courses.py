"""Rules about the course of a training and about means over tasks, on histories that are written out here."""

import math

import pytest
from claim_worlds import Store

from hf_optim.claims import power, rules
from hf_optim.claims.evidence import Evidence
from hf_optim.claims.statement import Statement, concerns
from hf_optim.study.folder.results import Results
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan.source import parse

STUDY = """name: x
seeds: 6
family: tasks
tasks: [{task: vision, label: one}, {task: vision, label: two, overrides: {batch_size: 32}}]
optimizers: [{name: sgd, label: a}, {name: adam, label: b}]
"""
PLAN = planning.expand(parse(STUDY, "x.yaml"))
WOBBLE = (0.001, -0.002, 0.003, -0.001, 0.002, -0.003)


def evidence(courses, failing=(), metric="validation_loss", ends=None, absent=()) -> Evidence:
    """`courses`: (task, label) -> values; `ends`: (task, label) -> test accuracy; each seed has its own wobble."""
    records, rows = {}, {}
    for run in PLAN.runs:
        cell, wobble = (run.task, run.optimizer), WOBBLE[run.seed]
        status = "failed" if (*cell, run.seed) in failing else "ok"
        metrics = {"test_accuracy": (ends or {}).get(cell, 0.5) + wobble} if status == "ok" else {}
        if (*cell, run.seed) in absent:
            continue
        records[run.id] = {"id": run.id, "status": status, "metrics": metrics, "time": {"steps": 100}}
        rows[run.id] = [
            {"step": 10 * i, metric: value if value is None else value + wobble * i / 10}
            for i, value in enumerate(courses.get(cell, ()), start=1)
        ]
    return Evidence(Results(Store(rows), PLAN, records, None))  # type: ignore[arg-type]


def judged(seen: Evidence, rule: str, **keys):
    return rules.rule(seen, {"rule": rule, "optimizer": "a", "tasks": ["one"], **keys})


def falling(start: float, by: float = 0.05, n: int = 10) -> list[float]:
    return [start - by * i for i in range(n)]


def throughout(a, b, failing=(), **keys):
    return judged(evidence({("one", "a"): a, ("one", "b"): b}, failing), "throughout", baseline="b",
                  metric="validation_loss", **keys)  # fmt: skip


def test_better_throughout_is_better_in_every_part_and_not_at_the_end_alone() -> None:
    assert throughout(falling(1.0), falling(1.2)).verdict == "holds"
    late = [1.5, 1.4, *falling(0.9)[2:]]  # behind at first, far ahead at the end
    crossed = throughout(late, falling(1.2))
    assert crossed.verdict == "contradicted" and "steps 10 to 10" in crossed.words
    assert throughout(late, falling(1.2), start=0.5).verdict == "holds"
    assert len(throughout(falling(1.0), falling(1.2), start=0.5).findings) == 5
    # A part without a difference decides nothing against it.
    same = [*falling(1.0)[:5], *falling(1.2)[5:]]
    assert throughout(same, falling(1.2)).verdict == "partly"


def test_a_long_course_is_ten_comparisons_and_a_short_one_has_fewer() -> None:
    a, b = [1.0 - 0.001 * i for i in range(400)], [1.1 - 0.001 * i for i in range(400)]
    assert len(throughout(a, b).findings) == 10
    assert len(throughout(a[:3], b[:3]).findings) == 3
    assert throughout([], []).verdict == "not tested"


def test_a_run_that_fails_has_the_worst_course_from_there_on() -> None:
    every = {("one", "a", seed) for seed in range(6)}
    stopped = throughout(falling(1.0)[:4], falling(1.2), failing=every)
    assert stopped.verdict == "contradicted" and "4 of 5 comparisons decided in favour, 1 against" in stopped.words
    assert "steps 50 to 100" in stopped.words  # it failed once, and not in each of the parts that it did not see
    assert throughout(falling(1.0), falling(1.2), failing=every).verdict == "contradicted"  # failed after its last row
    assert throughout(falling(1.0), falling(1.2)[:4], failing={("one", "b", s) for s in range(6)}).verdict == "holds"
    # One that ends early in peace, by its patience, is no worse for it.
    assert throughout(falling(1.0), falling(1.2)[:4]).verdict == "holds"
    assert throughout([1.0, None, 0.9], falling(1.2)[:3]).verdict == "contradicted"  # no number is a failure


def test_a_smooth_curve_goes_back_less_however_far_it_falls() -> None:
    def smoother(a, b, failing=()):
        return judged(evidence({("one", "a"): a, ("one", "b"): b}, failing), "smoother", baseline="b",
                      metric="validation_loss")  # fmt: skip

    rough = [1.0, 0.7, 0.9, 0.6, 0.8, 0.5]
    assert smoother(falling(1.0, n=6), rough).verdict == "holds"
    assert smoother(rough, falling(1.0, n=6)).verdict == "contradicted"
    assert smoother(falling(1.0, by=0.15, n=6), falling(1.0, by=0.05, n=6)).verdict == "undecided"  # neither goes back
    (finding,) = smoother(falling(1.0, n=6), rough).findings
    assert finding.difference.mean == pytest.approx(-2 * 0.2 / 5, abs=0.002)  # two moves back in five
    every = {("one", "a", seed) for seed in range(6)}
    assert smoother(falling(1.0, n=6), rough, every).verdict == "contradicted"
    assert smoother([], rough, every).verdict == "contradicted"  # failed before it logged anything


def test_what_was_reached_is_kept_or_lost_again() -> None:
    def keeps(values, margin=0.1, failing=()):
        return judged(evidence({("one", "a"): values}, failing), "keeps", metric="validation_loss", margin=margin)

    overfit = [1.0, 0.6, 0.5, 0.6, 0.75]
    assert keeps(overfit).verdict == "contradicted" and keeps(overfit, 0.5).verdict == "holds"
    assert keeps(falling(1.0)).verdict == "holds"
    assert keeps([1.0, 0.5, 0.56]).verdict == "holds"
    assert keeps([1.0, 0.5, 0.7], 0.2).verdict == "undecided"  # exactly the margin
    assert keeps(falling(1.0), failing={("one", "a", seed) for seed in range(6)}).verdict == "contradicted"
    (finding,) = keeps(overfit).findings
    assert finding.difference.mean == pytest.approx(0.25, abs=0.002)


def average(ends, failing=(), metric="test_accuracy"):
    return judged(
        evidence({}, failing, ends=ends), "better_on_average", baseline="b", metric=metric, tasks=["one", "two"]
    )


def test_a_mean_over_tasks_weighs_a_loss_on_one_against_a_gain_on_another() -> None:
    ends = {("one", "a"): 0.9, ("one", "b"): 0.5, ("two", "a"): 0.4, ("two", "b"): 0.5}
    ruling = average(ends)
    assert ruling.verdict == "holds" and len(ruling.findings) == 1
    assert ruling.findings[0].difference.mean == pytest.approx(0.15)
    assert average({**ends, ("two", "a"): 0.05}).verdict == "contradicted"
    assert average({**ends, ("two", "a"): 0.1}).verdict == "undecided"  # as much lost as gained
    every = {("two", "a", seed) for seed in range(6)}
    assert average(ends, every).verdict == "contradicted"  # it fails on one of the two
    assert average(ends, {("one", "b", seed) for seed in range(6)}).verdict == "holds"


def test_a_seed_that_one_task_lacks_is_in_no_mean() -> None:
    ends = {("one", "a"): 0.9, ("one", "b"): 0.5, ("two", "a"): 0.4, ("two", "b"): 0.5}
    seen = evidence({}, ends=ends, absent={("two", "a", 2)})
    (finding,) = judged(seen, "better_on_average", baseline="b", metric="test_accuracy", tasks=["one", "two"]).findings
    assert finding.pairs == 5


def test_a_mean_is_of_all_its_tasks_or_of_none() -> None:
    keys = {"rule": "better_on_average", "optimizer": "a", "baseline": ["b"], "metric": "test_loss"}
    assert concerns({**keys, "tasks": ["one", "two"]}, {"one", "two"})
    assert not concerns({**keys, "tasks": ["one", "two"]}, {"one"})
    assert concerns({**keys, "rule": "better", "tasks": ["one", "two"]}, {"one"})
    assert not concerns({"rule": "all", "of": [{**keys, "tasks": ["one", "three"]}]}, {"one", "two"})


def test_a_mean_shares_the_five_per_cent_with_no_task() -> None:
    keys = {"rule": "better_on_average", "optimizer": "a", "baseline": ["b"], "tasks": ["one", "two"]}
    assert power._comparisons(keys, PLAN) == 1 and power._comparisons({**keys, "rule": "better"}, PLAN) == 2
    statement = Statement("s", "S", "", {"rule": "throughout", "metric": "test_loss", "tasks": ["one"]})
    assert power._deviation(statement.keys, PLAN, {"test_loss": 0.1}) is None  # of an end, and not of a course


def test_a_seed_without_its_partner_says_nothing() -> None:
    seen = evidence({("one", "a"): falling(1.0), ("one", "b"): falling(1.2)})
    missing = next(run.id for run in PLAN.runs if (run.task, run.optimizer, run.seed) == ("one", "b", 3))
    del seen.results.records[missing]
    ruling = judged(seen, "throughout", baseline="b", metric="validation_loss")
    assert {finding.pairs for finding in ruling.findings} == {5} and not math.isnan(ruling.findings[0].p)


@pytest.mark.parametrize(
    ("rule", "keys"),
    [
        ("sooner", {"baseline": "b", "target": 0.7}),
        ("sooner", {"baseline": "b", "share": 0.9}),
        ("throughout", {"baseline": "b"}),
        ("smoother", {"baseline": "b"}),
        ("keeps", {"optimizer": "b", "margin": 0.1}),
    ],
)
def test_a_run_of_unknown_course_is_left_out(rule, keys) -> None:
    """One whose history could not be read had never arrived, and the rows of one that was cut were its whole course."""
    for lost, pairs in ((1, 5), (6, 0)):
        seen = evidence({("one", "a"): falling(1.0), ("one", "b"): falling(1.0)[:2]})
        gone = {run.id: "cut" for run in PLAN.runs if run.optimizer == "b" and run.seed < lost}
        seen.results.store.unreadable.update(gone)
        ruling = judged(seen, rule, metric="validation_loss", **keys)
        assert {finding.pairs for finding in ruling.findings} <= {pairs} and "of 6 seeds" not in ruling.words
        assert (ruling.verdict == "not tested") == (lost == 6)


def test_a_bound_is_asked_of_whole_courses() -> None:
    from hf_optim.hub.rates import PREFIX

    seen = evidence({("one", "a"): [0.5, 0.6]}, metric=f"{PREFIX}V")
    seen.results.store.unreadable.update({run.id: "cut" for run in PLAN.runs})
    ruling = rules.rule(seen, {"rule": "bounded", "optimizer": "a", "key": "V", "high": 1.0})
    assert ruling.verdict == "not tested"


def test_no_share_of_a_best_value_is_asked_where_one_course_is_unknown() -> None:
    seen = evidence({("one", "a"): falling(1.0), ("one", "b"): falling(1.2)})
    gone = next(run.id for run in PLAN.runs if (run.task, run.optimizer, run.seed) == ("one", "b", 3))
    seen.results.store.unreadable[gone] = "cut"
    assert sorted(seen.best("one", ["a", "b"], "validation_loss", -1)) == [0, 1, 2, 4, 5]
    assert sorted(seen.arrivals("one", "a", "validation_loss", {0: 0.7, 1: 0.7}, -1)) == [0, 1]
