"""Tables and report from records alone: right, complete, and the same bytes every time."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console
from scipy import stats
from study_fakes import accuracy, make_study, replan

from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.study.findings import analysis, cells, table, verdicts
from hf_optim.study.findings.curves import POINTS, Histories
from hf_optim.study.folder import results as records
from hf_optim.study.report import charts, run_pages, sections
from hf_optim.study.report import html as report
from hf_optim.study.report import tables as output
from hf_optim.study.statistics.paired import Summary


def load(folder: Path) -> tuple[records.Results, list[table.TaskTable]]:
    results = records.load(folder)
    return results, table.build(results)


def test_no_rounding_hides_on_which_side_a_verdict_lies() -> None:
    """p was 0.050 and an end of the interval +0.0000 on both sides."""
    assert [cells.p_text(p) for p in (0.0496, 0.0499996, 0.05, 0.0502, 0.0314, 0.0009, 1.0, math.nan)] == [
        "0.0496", "0.0499996", "0.050", "0.0502", "0.031", "<0.001", "1.000", "–"
    ]  # fmt: skip
    better, open_, zero = (Summary(9, 0.005, 0.01, low, 0.01) for low in (0.000004, -0.00003, 0.0))
    assert cells.interval(better, 4, sign=True) == "[+0.000004, +0.010000]"
    assert cells.interval(open_, 4, sign=True) == "[-0.00003, +0.01000]"
    assert cells.interval(zero, 4, sign=True) == "[+0.0000, +0.0100]"


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e9, 3e6])
def test_ticks_of_any_size_stand_at_what_they_say(size: float) -> None:
    """Steps of 1.5e6 and 2e6 had the label 2e6, and losses of 1e-12 had none but 0."""
    for low, high in ((0.0, 1.0), (-0.04, 0.03), (0.97, 1.02), (0.992, 1.006)):
        scale = charts.choose([low * size, high * size], 0.0, 400.0)
        ticks = scale.ticks()
        said = [charts.tick_text(tick) for tick in ticks]
        assert len(ticks) >= 3 and len(set(said)) == len(said)
        assert [float(text) for text in said] == pytest.approx(ticks, rel=1e-8)
    assert [charts.tick_text(t) for t in (0.95, 1e-5, 2000, 1.5e6, 5e5, -2e7)] == [
        "0.95", "1e-5", "2000", "1.5e6", "5e5", "-2e7"
    ]  # fmt: skip


def test_a_small_curve_begins_at_the_step_that_it_names() -> None:
    """It was drawn from step 0 on, above the number of its first step; 2345678 was written 2.34568e+06."""
    (drawn,) = run_pages._curves([{"step": 1_345_678 + i * 500_000, "loss": 3.0 - i} for i in range(3)])
    assert 'd="M0 8.0L125 50.0L250 92.0"' in drawn
    assert ">step 1345678<" in drawn and ">2345678<" in drawn


def test_a_p_below_what_is_shown_is_no_tag_of_the_page(tmp_path: Path) -> None:
    folder = make_study(tmp_path, seeds=9, value=lambda label, seed: 0.1 * accuracy(label, seed) - 0.01 * len(label))
    results, tables = load(folder)
    said = sections.statistics(analysis.analyse(results, tables), {})
    assert "ANOVA p &lt;0.001, Friedman p &lt;0.001" in said


def test_other_metrics_are_over_units_too_and_with_decimals_of_their_own(tmp_path: Path) -> None:
    """Below the tables stands that ± is over units; it was over runs. An accuracy beside large losses was "0.0"."""

    def average(plan: dict) -> None:
        plan["per_unit"] = 2
        plan["looks"] = [4]

    folder = make_study(tmp_path, seeds=8)
    replan(folder, average)
    results, (task_table,) = load(folder)
    for row in task_table.rows:
        losses = [1 - accuracy(row.optimizer, s) for s in range(8)]
        units = [(a + b) / 2 for a, b in zip(losses[::2], losses[1::2], strict=True)]
        assert (row.others["test_loss"].n, row.mean.n) == (4, 4)
        assert row.others["test_loss"].sd == pytest.approx(stats.tstd(units))
    large = dataclasses.replace(
        task_table,
        rows=tuple(dataclasses.replace(r, values={s: 1e9 * v for s, v in r.values.items()}) for r in task_table.rows),
    )
    assert large.decimals == 1 and large.decimals_of("accuracy_gap") == 5
    assert "0.03000" in output.markdown([large], results.plan.title)


def test_numbers_are_those_of_the_records(tmp_path: Path) -> None:
    _, (task_table,) = load(make_study(tmp_path, seeds=5))
    assert [r.optimizer for r in task_table.rows] == sorted(
        ("adamw", "smaran", "adan"), key=lambda x: -sum(accuracy(x, s) for s in range(5))
    )
    row = next(r for r in task_table.rows if r.optimizer == "adan")
    mine, base = [accuracy("adan", s) for s in range(5)], [accuracy("adamw", s) for s in range(5)]
    assert row.mean.mean == pytest.approx(sum(mine) / 5)
    assert row.comparison is not None
    assert row.comparison.difference.mean == pytest.approx((sum(mine) - sum(base)) / 5)
    assert row.comparison.p == pytest.approx(stats.ttest_rel(mine, base).pvalue)
    assert next(r for r in task_table.rows if r.optimizer == "adamw").comparison is None


def test_lower_is_better_sorts_and_judges_the_other_way(tmp_path: Path) -> None:
    folder = make_study(tmp_path, ("a", "b"), value=lambda x, s: 2 + 0.01 * s if x == "a" else 1 + s * s / 500)
    for file in (folder / "plan.json", *folder.glob("runs/*/record.json")):
        file.write_text(file.read_text().replace('"greater_is_better": true', '"greater_is_better": false'))
    _, (task_table,) = load(folder)
    assert [r.optimizer for r in task_table.rows] == ["b", "a"]
    assert task_table.rows[0].verdict == "better"


def test_a_failed_run_is_an_outcome_and_is_shown(tmp_path: Path) -> None:
    results, (task_table,) = load(make_study(tmp_path, failed={("smaran", 1)}))
    row = task_table.rows[-1]
    assert (row.optimizer, row.state, row.mean.n) == ("smaran", "1/3 runs failed", 2)
    # In the comparison it has the worst finished value of the two arms.
    c, base = row.comparison, {s: accuracy("adamw", s) for s in range(3)}
    mine = {s: accuracy("smaran", s) for s in (0, 2)}
    mine[1] = min(*base.values(), *mine.values())
    assert c is not None and c.difference.mean == pytest.approx(sum(mine[s] - base[s] for s in range(3)) / 3)
    assert c.failures is not None and (c.failures[0].count, c.failures[1].count) == (1, 0)
    said = verdicts.sentences(results, [task_table])[0]
    assert "failures 1 of 3, at most 91 % (the baseline's 0 of 3, at most 71 %)" in said
    assert "1/3 runs failed" in output.markdown([task_table], "x")
    line = next(csv.DictReader(io.StringIO(output.result_csv([task_table]))), None)
    assert line is not None
    html = report.render(results, [task_table])
    assert "1/3 runs failed" in html and "the loss became NaN at step 13" in html and 'class="cross"' in html


def test_a_failed_baseline_keeps_its_comparisons(tmp_path: Path) -> None:
    _, (task_table,) = load(make_study(tmp_path, failed={("adamw", 0)}))
    compared = [r.comparison for r in task_table.rows if not r.baseline]
    assert all(c is not None and c.pairs == 3 and c.failures[1].count == 1 for c in compared)


def test_every_arm_failing_everywhere_leaves_nothing_to_compare(tmp_path: Path) -> None:
    lost = {(label, seed) for label in ("a", "b") for seed in range(3)}
    results, tables = load(make_study(tmp_path, ("a", "b"), failed=lost))
    assert tables[0].rows[0].mean.n == 0 and "no verdict" in verdicts.sentences(results, tables)[0]


def test_an_unfinished_study_says_what_is_missing_and_gives_no_verdict(tmp_path: Path) -> None:
    results, (task_table,) = load(make_study(tmp_path, missing={("adan", 2)}))
    row = next(r for r in task_table.rows if r.optimizer == "adan")
    assert row.comparison is None and row.missing == 1 and row.verdict == "not yet"
    assert verdicts.sentences(results, [task_table]) == []
    text = report.render(results, [task_table])
    assert "the study is not finished" in text and "1 run left before the look after 3 seeds" in text


def test_one_seed_says_so(tmp_path: Path) -> None:
    results, tables = load(make_study(tmp_path, seeds=1))
    assert tables[0].rows[0].verdict in ("", "no verdict")
    assert "<b>one seed</b>" in report.render(results, tables)


def test_what_ties_on_every_seed_has_no_interval_and_says_so_by_none(tmp_path: Path) -> None:
    """The sentence had "+0.0000 [–, –]"."""
    results, tables = load(make_study(tmp_path, value=lambda _, seed: 0.9 + seed / 100))
    for sentence in verdicts.sentences(results, tables):
        assert "undecided; test accuracy +0.0000, p = 1.000" in sentence


def test_holm_counts_every_task(tmp_path: Path) -> None:
    first, _ = load(make_study(tmp_path / "1", tasks=("A",)))
    second, _ = load(make_study(tmp_path / "2", tasks=("A", "B")))
    assert [sum(x.standing.judgement.families) for x in (first, second)] == [2, 4]


def test_times_do_not_touch_the_result_files(tmp_path: Path) -> None:
    a, fast = load(make_study(tmp_path / "a", milliseconds=1.0))
    b, slow = load(make_study(tmp_path / "b", milliseconds=99.0))
    assert output.result_csv(fast) == output.result_csv(slow)
    assert output.markdown(fast, "x") == output.markdown(slow, "x")
    assert output.runs_csv(a) == output.runs_csv(b)
    assert output.costs_csv(fast) != output.costs_csv(slow)


def test_csv_reads_back(tmp_path: Path) -> None:
    _, tables = load(make_study(tmp_path, ('a,"b"', "c"), failed={("c", 0)}))
    lines = {line["optimizer"]: line for line in csv.DictReader(io.StringIO(output.result_csv(tables)))}
    assert float(lines['a,"b"']["mean"]) == pytest.approx(tables[0].rows[0].mean.mean)
    assert (lines["c"]["failed"], lines["c"]["finished"], lines["c"]["failed_units"]) == ("1", "2", "1")


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits(tmp_path: Path, width: int) -> None:
    _, tables = load(make_study(tmp_path, ("tlr(adamw)", "adamw_agr", "smaran"), failed={("smaran", 0)}))
    console = Console(width=width, file=io.StringIO())
    output.show(tables, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert "verdict" in text and "tlr(adamw)" in text


def test_the_report_is_the_same_twice_and_alone(tmp_path: Path) -> None:
    folder = make_study(tmp_path, failed={("adan", 0)})
    assert main(["report", str(folder)]) == 0
    first = (folder / "report.html").read_bytes()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first
    text = first.decode().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|src=|@import|url\(|<link", text)
    assert str(tmp_path) not in text
    assert "nan" not in re.sub(r"<(script|style)>.*?</\1>", "", text, flags=re.S).lower().replace("became nan", "")


def test_labels_and_reasons_cannot_inject(tmp_path: Path) -> None:
    folder = make_study(tmp_path, ("<script>alert(1)</script>", "b|c"), tasks=("<img src=x>",))
    results, tables = load(folder)
    html = report.render(results, tables)
    assert "<script>alert" not in html and "<img" not in html
    assert "b\\|c" in output.markdown(tables, "x")


def test_five_hundred_runs_stay_small(tmp_path: Path) -> None:
    labels = [f"optimizer_{i:02d}" for i in range(20)]
    results, tables = load(make_study(tmp_path, labels, tasks=[f"T{i}" for i in range(5)], seeds=5, steps=70))
    assert len(results.records) == 500
    assert len(report.render(results, tables).encode()) < 2_000_000


def test_curves_hold_the_mean_and_the_range_over_seeds(tmp_path: Path) -> None:
    results, _ = load(make_study(tmp_path, ("a", "b"), failed={("b", 2)}, steps=200, spent=True))
    histories = Histories(results, results.plan.tasks[0])
    a, b, broken = histories.curves("validation_accuracy")[:3]
    last = [accuracy("a", s) for s in range(3)]
    assert (a.mean[-1], a.low[-1], a.high[-1]) == pytest.approx((sum(last) / 3, min(last), max(last)))
    assert (b.runs, b.failed, broken.failed) == (2, False, True)
    assert len(histories.curves("train_loss")[0].steps) == POINTS
    assert histories.spent("seconds")["a"].mean[-1] == pytest.approx(
        20
    )  # the end of training, not of a last bucket's middle
    assert histories.curves("no_such_value") == []


def test_an_optimizer_alone_is_compared_with_nothing(tmp_path: Path) -> None:
    page = report.render(*load(make_study(tmp_path, ("adamw",))))
    assert "adamw alone was run, to a test accuracy of" in page and "paired difference to" not in page
    assert page.count("<code>tuning: {trials: 8, repetitions: 5}</code>") == 2 and "`tuning" not in page


def test_scales_and_labels() -> None:
    share = charts.choose([0.5, 0.98, 1.0], 0, 300, share=True)
    assert share.kind == "accuracy" and 0.9 in share.ticks()
    assert share(0.98) - share(0.9) > 0.5 * (share(0.9) - share(0.5))
    assert charts.choose([0.001, 1.0], 0, 300).kind == "log"
    assert charts.choose([-1.0, 1.0], 0, 300).kind == "linear"
    for values in ([0.5], [0.0], [1.0, 1.0], [1e-7, 1e3]):
        for options in ({}, {"share": True}, {"log": True}):
            scale = charts.choose(values, 0, 300, **options)
            assert all(math.isfinite(scale(v)) for v in values) and scale.low < scale.high
    placed = charts._dodge([(0.0, 100.0 + i, 0.0, f"x{i}") for i in range(20)])
    at = sorted(y for _, _, y, _ in placed)
    assert all(b - a >= charts.LABEL_HEIGHT - 1e-9 for a, b in zip(at, at[1:], strict=False))
    assert at[0] >= charts.TOP - 1 and at[-1] <= charts.HEIGHT - charts.BOTTOM + 8


def test_damaged_records_count_as_missing(tmp_path: Path) -> None:
    folder = make_study(tmp_path)
    victim = next((folder / "runs").iterdir())
    (victim / "record.json").write_text('{"id": "something else", "status": "ok"}')
    assert len(records.load(folder).records) == 8
    (victim / "record.json").write_text("{half")
    assert len(records.load(folder).records) == 8


def test_a_folder_without_a_study_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study"):
        records.load(tmp_path)
    (tmp_path / "plan.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        records.load(tmp_path)


def test_definitions_of_our_own_are_printed_where_a_result_used_them():
    from hf_optim.study.findings.table import TaskTable
    from hf_optim.study.report import tables as output

    plain = TaskTable("t", "t", "accuracy", True, "amvt", ())
    assert "our own" not in output.markdown([plain], "study")
    own = TaskTable("t", "t", "accuracy", True, "amvt", (), ("mine: what it does",))
    assert "our own" in output.markdown([own], "study") and "- mine: what it does" in output.markdown([own], "study")


# --- statistics.md, ties, margins and targets ---


def stated_study(folder: Path, **keys: object) -> tuple[records.Results, list[table.TaskTable]]:
    make_study(folder, seeds=5, tasks=("A", "B"))
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, **keys}))
    return load(folder)


def test_a_stated_margin_gives_equivalent_in_table_and_words(tmp_path: Path) -> None:
    results, tables = stated_study(tmp_path, margin={"A": 0.05})
    first, second = ({r.optimizer: r for r in task_table.rows} for task_table in tables)
    assert first["smaran"].verdict == "equivalent" and second["smaran"].verdict == "undecided"
    line = list(csv.DictReader(io.StringIO(output.result_csv(tables))))
    by = {(row["task"], row["optimizer"]): row for row in line}
    assert by["A", "smaran"]["margin"] == "0.05" and float(by["A", "smaran"]["p_equivalent_corrected"]) < 0.05
    assert by["B", "smaran"]["margin"] == "" and by["A", "adamw"]["first_place"] == "1"
    said = verdicts.sentences(results, tables)
    assert len(said) == 2 and all(" with these settings (lr 0.1, untuned) against adamw with" in s for s in said)
    assert any("on A at size small: equivalent where it trains, within the stated margin of 0.05" in s for s in said)
    assert all("of 5 seeds [" in s and "Holm over 4" in s for s in said)
    assert any("failures 0 of 5, at most 52 % (the baseline's 0 of 5, at most 52 %)" in s for s in said)
    undecided = [s for s in said if "undecided" in s]
    assert undecided and all(" worse and " in s and "this design finds" in s for s in undecided)
    assert all("10 seeds would find" in s and "for 30 more runs" in s for s in undecided)
    assert "size small only" in verdicts.scope(tables) and "nothing about size paper" in verdicts.scope(tables)


def test_no_share_is_said_to_differ_by_more_than_one(tmp_path: Path) -> None:
    def value(label: str, seed: int) -> float:
        return 0.1 + 0.8 * (seed % 2) if label == "a" else 0.9 - 0.8 * (seed % 2)

    folder = make_study(tmp_path, ("a", "b"), seeds=3, value=value)
    plan = json.loads((folder / "plan.json").read_text())
    plan["tasks"][0]["metrics"] = {"accuracy": [True, "share"]}
    (folder / "plan.json").write_text(json.dumps(plan))
    results, tables = load(folder)
    (sentence,) = verdicts.sentences(results, tables)
    assert "undecided" in sentence
    assert "this design finds no difference that there can be with 80 %" in sentence


def test_ties_are_marked_where_there_are_seeds(tmp_path: Path) -> None:
    def value(label: str, seed: int) -> float:
        return 0.9 * (label != "b") + 0.01 * seed**2 + 0.001 * seed * (label == "a")

    _, (task_table,) = load(make_study(tmp_path / "5", ("a", "b", "c"), seeds=5, value=value))
    rows = {row.optimizer: cells.result_cells(task_table, row) for row in task_table.rows}
    assert (rows["a"]["place"], rows["b"]["place"]) == ("1 ●", "2 to 3")
    _, (alone,) = load(make_study(tmp_path / "1", seeds=1))
    assert "place" not in cells.result_cells(alone, alone.rows[0])


def test_statistics_files_hold_everything_and_are_the_same_twice(tmp_path: Path) -> None:
    targets = {"A": {"metric": "validation_accuracy", "value": 0.5, "better": "higher"}}
    stated_study(tmp_path, targets=targets, margin={"A": 0.05})
    assert main(["report", str(tmp_path)]) == 0
    text, data = (tmp_path / "statistics.md").read_text(), (tmp_path / "statistics.json").read_text()
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "statistics.md").read_text() == text and (tmp_path / "statistics.json").read_text() == data
    whole = json.loads(data)
    task = whole["tasks"][0]
    assert set(task["descriptions"]["adamw"]) == {"n", "mean", "median", "iqm"}
    assert len(task["pairs"]) == 3 and task["omnibus"]["anova"]["p"] > 0 and len(task["places"]["adan"]) == 2
    assert 20 < whole["targets"][0]["rows"][0]["time"] < 30 and whole["profile"]["scores"]["adan"] > 0.9
    assert whole["over_tasks"]["friedman"] is not None and "question" in whole
    for word in ("Verdicts", "ANOVA: F(2, 8)", "Friedman over 5 units", "Question not registered", "Time to target"):
        assert word in text, word


@pytest.mark.parametrize("labels, seeds", [(("a",), 3), (("a", "b"), 1), (("a", "b"), 2), (("a", "b", "c"), 2)])
def test_small_and_broken_studies_have_statistics_too(tmp_path: Path, labels: tuple[str, ...], seeds: int) -> None:
    for name, lost in (("fine", []), ("lost", [(label, 0) for label in labels])):
        results, tables = load(make_study(tmp_path / name, labels, seeds=seeds, failed=lost))
        analysed = analysis.analyse(results, tables)
        json.loads(analysis.to_json(analysed))
        assert len(analysed.verdicts) == len(labels) - 1 and "question not registered" in analysed.looked.lower()
        assert "nan" not in analysis.markdown(analysed, "x", {}).lower()


def test_a_run_that_never_reaches_its_target_takes_forever(tmp_path: Path) -> None:
    targets = {"A": {"metric": "validation_accuracy", "value": 2.0, "better": "higher"}}
    results, tables = stated_study(tmp_path, targets=targets)
    analysed = analysis.analyse(results, tables)
    assert all(row.time == math.inf and row.count == 0 for row in analysed.targets[0].rows)
    assert analysed.profile is not None and set(analysed.profile.scores.values()) == {0.0}
    assert '"never"' in analysis.to_json(analysed) and "| never |" in analysis.markdown(analysed, "x", {})


def test_the_report_names_the_split(tmp_path: Path) -> None:
    """Which parameters decayed, as the records have it, for every optimizer of a study."""
    folder = make_study(tmp_path)
    for file in folder.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        groups = [{"parameters": 1200, "weight_decay": 0.25}, {"parameters": 34, "weight_decay": 0.0}]
        file.write_text(json.dumps({**record, "groups": groups}))
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("1,200 parameters with weight_decay 0.25; 34 parameters with weight_decay 0") == 3
