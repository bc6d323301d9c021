"""What a reader of a report and a user at a terminal stumbled over: each is told where it is looked for."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from study_fakes import make_study
from tuning_fakes import YAML, even, expand, good_rate, one_in_vain, whole

from hf_optim.core.safe_text import say
from hf_optim.study.findings import naming, protocol, table, verdicts
from hf_optim.study.folder import results as records
from hf_optim.study.report import forest, recipe, sections, tables, views
from hf_optim.study.report import html as report
from hf_optim.study.report.summary import headline, terms
from hf_optim.study.statistics.paired import summarise

LOSS = {"name": "test_loss", "greater_is_better": False}


def loaded(folder: Path) -> tuple[records.Results, list[table.TaskTable]]:
    results = records.load(folder)
    return results, table.build(results)


def recorded(folder: Path, **parts: dict) -> None:
    """Every record says this, too; a list gives the runs their values by turns."""
    for turn, file in enumerate(sorted(folder.glob("runs/*/record.json"))):
        record = json.loads(file.read_text())
        for place, values in parts.items():
            mine = {
                key: value[turn % len(value)] if isinstance(value, list) else value for key, value in values.items()
            }
            record[place] = {**(record.get(place) or {}), **mine}
        file.write_text(json.dumps(record))


def shown(results_tables: list[table.TaskTable], width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    tables.show(results_tables, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_line_tells_how_a_task_was_trained(tmp_path: Path) -> None:
    make_study(tmp_path)
    results = records.load(tmp_path)
    task = results.plan.tasks[0]
    # Runs of before did not write it down: nothing is made up.
    assert recipe.line(results, task) == "Images, vision/mlp, size small · 1,000 parameters · real digits · 40 steps"
    recorded(
        tmp_path,
        execution={"batch_size": 64, "schedule": "cosine, warmup 0.1", "max_grad_norm": 1.0, "precision": "bf16"},
        time={"epochs": 2.5},
        data={"train_samples": 3500, "validation_samples": 500, "test_samples": 1000},
    )
    assert recipe.line(records.load(tmp_path), task).split(" · ")[3:] == [
        "samples: 3,500 train, 500 validation, 1,000 test", "batch size 64", "40 steps (2.5 epochs)",
        "schedule cosine, warmup 0.1", "gradients clipped to a norm of 1", "bf16",
    ]  # fmt: skip
    # Where runs differ, all that they had is told.
    steps, norms = [100, 200, 400, 300], [0.0, 1.0]
    recorded(tmp_path, execution={"batch_size": [64, 32], "max_grad_norm": norms}, time={"steps": steps, "epochs": 1})
    told = recipe.line(records.load(tmp_path), task)
    assert "batch size 32 or 64 · 100 to 400 steps (1 epochs)" in told and "a norm of 0 or 1" in told
    recorded(tmp_path, execution={"max_grad_norm": 0.0})
    page = report.render(*loaded(tmp_path))
    assert "no clipping" in page and "schedule cosine, warmup 0.1" in page


def test_the_direction_stands_behind_every_metric(tmp_path: Path) -> None:
    _, task_tables = loaded(make_study(tmp_path))
    assert "test_accuracy ↑" in shown(task_tables, 100) and "| test_accuracy ↑ |" in tables.markdown(task_tables, "x")
    page = unescape(re.sub(r"<[^>]+>", " ", report.render(*loaded(tmp_path))))
    assert "test accuracy ↑" in page and "train loss ↓" in page and "loss gap ↓" in page
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["tasks"][0]["primary"] = LOSS
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "test_loss ↓" in (said := shown(loaded(tmp_path)[1], 100)) and "↓: lower is better" in said


def test_the_terminals_legend_explains_what_is_shown_and_nothing_else(tmp_path: Path) -> None:
    _, task_tables = loaded(make_study(tmp_path, ("adamw", "smaran", "a rule with a rather long name"), seeds=5))
    wide, middle, narrow = (shown(task_tables, width) for width in (200, 92, 78))
    assert "place: where it can stand" in wide and wide.count("place") == 2
    assert "place" not in middle and "p: after correction" in middle
    assert "place" not in narrow and "p: after correction" not in narrow
    _, (alone,) = loaded(make_study(tmp_path / "one", ("adamw",), seeds=1))
    said = shown([alone], 100)
    assert "p:" not in said and "place" not in said and "standard deviation" not in said


def test_sentences_are_wrapped_at_a_terminals_width_and_nowhere_else(tmp_path: Path) -> None:
    results, task_tables = loaded(make_study(tmp_path, seeds=5))
    sentence = verdicts.sentences(results, task_tables)[0]
    assert len(sentence) > 200
    for terminal, lines in ((True, range(3, 9)), (False, [1])):
        console = Console(width=80, file=io.StringIO(), force_terminal=terminal)
        say(console, sentence)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        assert " ".join(printed.split()) == sentence and len(printed.splitlines()) in lines
        assert not terminal or max(map(len, printed.splitlines())) <= 80
        assert all(line.startswith("  ") for line in printed.splitlines()[1:]), "the next sentence begins further left"


@pytest.mark.parametrize("repeated", [False, True])
def test_a_table_of_tuning_speaks_of_repetitions_where_there_are_any(tmp_path: Path, repeated: bool) -> None:
    text = YAML.replace("trials: 6", "trials: 2")
    if repeated:
        text = text.replace("  trials: 2\n", "  trials: 2\n  repetitions: [2, 3]\n").replace("seeds: 3\n", "")
    results = records.load(whole(expand(text), tmp_path))
    findings = protocol.build(results)
    assert {choice.repetition for choice in findings.chosen} == ({1, 2, 3} if repeated else {0})
    html = sections.tuning(findings, {label: "k0" for label in ("adamw", "SMARAN", "tlr(sgd)")})
    assert (">repetition<" in html) == repeated
    written = protocol.markdown(findings, results.plan)
    assert ("| repetition |" in written) == repeated and "stopped" not in written, "nothing was to be pruned"


def test_a_verdict_warns_where_tuning_was_unequal(tmp_path: Path) -> None:
    results, task_tables = loaded(whole(expand(YAML), tmp_path))
    said = {sentence.split()[0]: sentence for sentence in verdicts.sentences(results, task_tables)}
    of = "was tuned with 6 trials over"
    expected = f"Not tuned alike: SMARAN {of} 1 hyper-parameter, adamw {of} 2 hyper-parameters."
    assert said["SMARAN"].endswith(f". {expected}")
    assert expected in unescape(report.render(results, task_tables))


def test_trials_that_ended_early_left_steps_for_more_and_that_is_said(tmp_path: Path) -> None:
    """Bounded by steps, an optimizer of which trials fail has more of them."""
    text = YAML.replace("trials: 6", "trials: 9\n  steps: 400").replace("    SMARAN: {lr: [0.003, 1.0, log]}\n",
        "    SMARAN: {lr: [0.003, 1.0, log], eps: [1e-8, 1e-4, log]}\n")  # fmt: skip
    planned = expand(text)
    assert "4 trials over lr" in naming.named(planned, "adamw"), "nine points, of which four have room"
    failing = {"SMARAN"}
    outcome = lambda run: None if run.optimizer in failing and run.seed >= 1000 else good_rate(run)  # noqa: E731
    results, task_tables = loaded(whole(planned, tmp_path / "a", outcome))
    said = {sentence.split()[0]: sentence for sentence in verdicts.sentences(results, task_tables)}
    assert said["SMARAN"].endswith("Not tuned alike: for the same steps SMARAN had 8 trials in all, adamw had 4.")
    failing.clear()
    results, task_tables = loaded(whole(planned, tmp_path / "b", outcome))
    assert not any("SMARAN" in s and "Not tuned alike" in s for s in verdicts.sentences(results, task_tables))


def test_runs_that_finished_for_nothing_are_told_apart_from_those_that_broke(tmp_path: Path) -> None:
    """ "30 finished" above "failed runs: SMARAN (1 of 3)" left readers to guess."""
    planned = one_in_vain(tmp_path)
    found, built = loaded(tmp_path)
    assert "9 finished (1 of them no better than untrained, which counts as failed)" in headline(found)
    assert "no better on validation than the untrained model" in terms(found, built)["failed runs"]
    whole(planned, tmp_path / "even", even)
    found, built = loaded(tmp_path / "even")
    assert "(" not in headline(found) and "failed runs" not in terms(found, built)


def test_many_tasks_are_counted_before_they_are_told_one_by_one(tmp_path: Path) -> None:
    more = "".join(
        f"  - {{task: vision, model: mlp, size: small, label: T{i}, overrides: {{steps: {100 + i}}}}}\n"
        for i in range(3)
    )
    plain = YAML[: YAML.index("tuning:")]
    few, many = (plain, plain.replace("optimizers:", f"{more}optimizers:", 1) + "family: tasks\n")
    for text, tasks in ((few, 1), (many, 4)):
        said = verdicts.sentences(*loaded(whole(expand(text), tmp_path / str(tasks), even)))
        assert said
        for sentence in said:
            assert ("over 4 tasks: " in sentence and "on 4. One by one, on MLP" in sentence) == (tasks == 4)


def test_where_nobody_knows_what_an_untrained_model_has_the_page_says_so(tmp_path: Path) -> None:
    """A run that learned nothing would stand there as one that finished."""
    one_in_vain(tmp_path)
    assert "untrained" not in terms(*loaded(tmp_path))
    ends = {file: file.read_text() for file in tmp_path.glob("runs/*/record.json")}
    for file, text in ends.items():
        file.write_text(text.replace('"validation_', '"other_'))
    assert "and at its end" in terms(*loaded(tmp_path))["untrained"]  # a beginning alone says nothing of a gain
    for file, text in ends.items():
        file.write_text(text)
    for history in tmp_path.glob("runs/*/history.jsonl"):
        kept = [line for line in history.read_text().splitlines() if json.loads(line)["step"] > 0]
        history.write_text("".join(f"{line}\n" for line in kept))
    results, task_tables = loaded(tmp_path)
    assert f"Not known of {task_tables[0].task}: no run has" in terms(results, task_tables)["untrained"]


def test_what_planned_beforehand_means_is_said_where_more_runs_are_spoken_of(tmp_path: Path) -> None:
    text = YAML[: YAML.index("tuning:")]
    assert "as seeds: [3, 6]." in terms(*loaded(whole(expand(text), tmp_path / "a", even)))["if planned beforehand"]
    text = YAML.replace("seeds: 3\n", "").replace("trials: 6", "trials: 2\n  repetitions: 2")
    told = terms(*loaded(whole(expand(text), tmp_path / "b", even)))["if planned beforehand"]
    assert told.startswith("More repetitions that are added") and "as repetitions: [2, 4]." in told


def test_who_does_it_again_is_told_which_code_they_need(tmp_path: Path) -> None:
    results, _ = loaded(whole(expand(YAML[: YAML.index("tuning:")]), tmp_path, even))
    assert "needs code" not in report._again(results)
    optimizers = [*results.plan.optimizers, {"name": "mine.py:Mine", "label": "mine"}]
    theirs = replace(results, plan=replace(results.plan, optimizers=optimizers))
    assert "It needs code that is not in it: <code>mine.py:Mine</code>." in report._again(theirs)


def test_a_share_with_a_tie_and_an_axis_that_is_not_even_say_so():
    plan = SimpleNamespace(repetitions=None)
    said = [
        verdicts._odds(plan, SimpleNamespace(better=wins / 10, pairs=10, better_low=0.2, better_high=0.9))
        for wins in (6, 5.5)
    ]
    assert said == ["ahead in 60% of 10 seeds [20%, 90%]", "ahead in 55% of 10 seeds, a tie as half [20%, 90%]"]
    for high, plain in ((0.5, True), (0.99, False)):
        row = forest.ForestRow("a", [high - 0.02, high], summarise([high - 0.02, high]), None, "")
        panel = forest.means([row], "test accuracy", "seeds", share=True)
        assert panel is not None and plain != ("(log error)" in panel.head)


def test_a_study_of_two_tasks_with_a_bound_on_its_trials_steps_has_views(tmp_path: Path) -> None:
    """Each view is of one task, whose plan does not say how long a trial on the other is: no report was made."""
    more = "  - {task: vision, model: mlp, size: small, label: Other, overrides: {steps: 50}}\n"
    text = YAML.replace("optimizers:", f"{more}optimizers:", 1).replace("trials: 6", "trials: 3\n  steps: 200")
    folder = whole(expand(text), tmp_path, even)
    found, task_tables = loaded(folder)
    for task, shown in zip(found.plan.tasks, task_tables, strict=True):
        seen = [view for _, view in views.variants(found, task, shown, ["test_accuracy", "train_loss"])]
        assert len(seen) == 6 and {row.named for view in seen for row in view.rows} == {r.named for r in shown.rows}
