"""The report's "What differs": values, spaces, trials, budgets, groups and what a step costs, side by side."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from study_fakes import make_study
from tuning_fakes import YAML, expand, whole

from hf_optim.study.findings import naming
from hf_optim.study.findings.curves import Histories
from hf_optim.study.findings.table import build
from hf_optim.study.folder import results as records
from hf_optim.study.report import views
from hf_optim.study.report.differs import configurations, on_task
from hf_optim.study.report.html import render

STUDY = """\
name: differs
seeds: 2
tasks:
  - {task: vision, model: mlp, size: smoke, label: MLP, overrides: {steps: 100}, hyper: {B: {eps: 1e-6}}}
optimizers:
  - {name: adamw, label: A}
  - {name: adamw, label: B, betas: [0.9, 0.95], weight_decay: 0.1}
  - {name: tlr, base: sgd}
  - {name: sgd, lr: 0.3, label: fixed}
tuning:
  trials: 4
  steps: 500
  space: {A: {lr: [1e-4, 0.1, log]}, B: {lr: {choices: [0.01, 0.1]}}, fixed: {}}
"""


def tables(html: str) -> list[dict[str, list[str]]]:
    """The cells of each table's rows, by the row's first cell; the heads stand under ""."""
    listed = []
    for table in re.findall(r"<table[^>]*>(.*?)</table>", html, re.DOTALL):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
        cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
        plain = [[unescape(re.sub(r"<[^>]+>", " | ", cell)).strip(" |") for cell in row] for row in cells]
        listed.append({"": plain[0], **{row[0]: row[1:] for row in plain[1:]}})
    return listed


def shown(text: str, folder: Path) -> str:
    planned = expand(text)
    whole(planned, folder, lambda run: {"validation_accuracy": 0.5, "validation_loss": 0.5, "test_accuracy": 0.8})
    for file in sorted(folder.glob("runs/*/record.json")):
        record = json.loads(file.read_text())
        decay = record["spec"]["optimizer"].get("weight_decay", 0.0)
        groups = [{"parameters": 1000, "route": "muon", "weight_decay": decay}, {"parameters": 10, "weight_decay": 0.0}]
        settled = [f"weight_decay={decay} from TrainingArguments.weight_decay"]
        file.write_text(json.dumps({**record, "groups": groups, "settled": settled}))
    results = records.load(folder)
    return configurations(results) + on_task(results, results.plan.tasks[0])


def test_values_spaces_trials_budgets_and_groups_stand_side_by_side(tmp_path: Path) -> None:
    html = shown(STUDY, tmp_path)
    values, tuning, on_mlp, groups, settled = tables(html)
    # Only what is not the same for all: a value that was given, a default, or a dot where there is none.
    assert values[""][:2] == ["optimizer", "name"]
    column = {name: i - 1 for i, name in enumerate(values[""])}
    assert [values[label][column["betas"]] for label in "AB"] == ["(0.9, 0.999)", "(0.9, 0.95)"]
    assert values["tlr(sgd)"][column["betas"]] == "·" and values["fixed"][column["lr"]] == "0.3"
    assert '<td class="default">(0.9, 0.999)</td>' in html and "<td>(0.9, 0.95)</td>" in html
    # Of what was searched, the value that was judged stands before its range, and no default.
    chosen = {label: values[label][column["lr"]] for label in "AB"}
    judged = {run.optimizer: run.spec["optimizer"] for run in records.load(tmp_path).plan.runs}
    assert chosen["A"] == f"{judged['A']['lr']:g} (searched 0.0001 to 0.1, log)"
    assert chosen["B"] == f"{judged['B']['lr']:g} (searched in (0.01, 0.1))" and "before the range" in html
    assert values["tlr(sgd)"][column["base.lr"]].startswith(f"{judged['tlr(sgd)']['base']['lr']:g} (searched ")
    # How each was tuned: the trials, the budget of steps, and the space; nothing of repetitions where there are none.
    assert tuning[""] == ["optimizer", "trials", "steps of the trials at most", "space"]
    assert tuning["A"] == ["4", "500", "lr 0.0001 to 0.1 (log)"]
    assert tuning["B"] == ["4 (2 distinct)", "500", "lr in (0.01, 0.1)"]
    assert tuning["fixed"] == ["0", "500", "untuned"]
    assert {"gamma", "base.lr"} <= set(re.findall(r"[a-z.]+(?= \d)", tuning["tlr(sgd)"][2]))
    assert "Not tuned alike: fixed was not tuned, A was tuned with 4 trials over 1 hyper-parameter." in html
    # What they trained with: which way it went, decay on some parameters and none on the others.
    both = "1,000 parameters with route muon, weight_decay {}; 10 parameters with weight_decay 0"
    assert groups["A"] == [both.format(0)] and groups["B"] == [both.format(0.1)]
    assert settled["B"] == ["weight_decay=0.1 from TrainingArguments.weight_decay"]
    # A value that a task has of its own stands with the task, too.
    own = {name: i - 1 for i, name in enumerate(on_mlp[""])}
    assert values["B"][column["eps"]] == on_mlp["B"][own["eps"]] == "1e-06"


def test_what_a_script_of_ones_own_settled_stands_in_place_of_the_rules_default(tmp_path: Path) -> None:
    """A Trainer's 5e-5 is in force there, and a default of 0.001 that no run used would mislead."""
    shown(STUDY, tmp_path)
    for file in tmp_path.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        home = "base." if "base" in record["spec"]["optimizer"] else ""
        values = {"lr": 5e-05, "betas": [0.9, 0.98], "momentum": 0.5}
        file.write_text(json.dumps({**record, "in_force": [{f"{home}{key}": v for key, v in values.items()}]}))
    values, *_ = tables(configurations(records.load(tmp_path)))
    column = {name: i - 1 for i, name in enumerate(values[""])}
    assert values["A"][column["betas"]] == "(0.9, 0.98)" and values["B"][column["betas"]] == "(0.9, 0.95)"
    assert values["fixed"][column["lr"]] == "0.3" and values["fixed"][column["momentum"]] == "0.5"
    assert "searched" in values["tlr(sgd)"][column["base.lr"]] and values["tlr(sgd)"][column["base.momentum"]] == "0.5"


def test_what_nobody_knows_of_ones_own_code_is_not_said_to_be_missing(tmp_path: Path) -> None:
    """A class by its path has hyper-parameters of which a report that runs no code knows those that were given."""
    text = STUDY.replace("label: fixed}", "label: fixed}\n  - {name: 'torch.optim:NAdam', lr: 0.1, label: own}")
    html = shown(text.replace("fixed: {}", "fixed: {}, own: {}"), tmp_path)
    values, *_ = tables(html)
    column = {name: i - 1 for i, name in enumerate(values[""])}
    assert values["own"][column["betas"]] == "not given" and values["fixed"][column["betas"]] == "·"
    assert "is left to that code" in html


def test_a_space_that_differs_between_tasks_is_shown_for_each(tmp_path: Path) -> None:
    other = "  - {task: vision, model: mlp, size: smoke, label: Fixed, hyper: {A: {weight_decay: 0.01}}"
    other += ", overrides: {steps: 90}}\n"
    both = "A: {lr: [1e-4, 0.1, log]}, "
    text = (
        STUDY.replace("optimizers:", f"{other}optimizers:", 1)
        .replace(both, "")
        .replace(", hyper: {B: {eps: 1e-6}}", "")
    )
    _, tuning, *_ = tables(shown(text, tmp_path))
    on = dict(part.split(": ", 1) for part in tuning["A"][-1].split("; "))
    assert set(on) == {"MLP", "Fixed"} and "weight_decay" in on["MLP"] and "weight_decay" not in on["Fixed"]


def test_equal_tuning_and_none_say_so(tmp_path: Path) -> None:
    equal = shown(
        YAML.replace("  trials: 6\n", "  trials: 2\n  repetitions: [2, 3]\n").replace("seeds: 3\n", ""), tmp_path / "a"
    )
    values, tuning, *_ = tables(equal)
    assert tuning[""] == ["optimizer", "trials", "repetitions at most", "space"]
    assert {tuple(row[:2]) for label, row in tuning.items() if label} == {("2", "3")}
    rates = {
        f"{run.spec['optimizer']['lr']:g}" for run in records.load(tmp_path / "a").plan.runs if run.optimizer == "adamw"
    }
    cell = values["adamw"][values[""].index("lr") - 1]
    assert set(cell.partition(" (searched")[0].split(", ")) == rates and len(rates) > 1, "each repetition's own"
    untuned = shown(YAML[: YAML.index("tuning:")], tmp_path / "b")
    assert "Nothing was tuned: every value is as given, or a default." in untuned


def test_the_loss_is_drawn_over_what_was_spent(tmp_path: Path) -> None:
    """Passes are forward and backward ones; operations stand there where the histories know them."""
    folder = make_study(tmp_path, labels=("adamw", "smaran"), seeds=2)
    results = records.load(folder)
    task = results.plan.tasks[0]
    assert Histories(results, task).spent("flops") == {}  # folders of before say nothing
    for run in results.plan.runs:
        file = folder / "runs" / run.id / "history.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        a_step = 3 if run.optimizer == "smaran" else 1
        for row in rows:
            step = row["step"]
            spent = {"forward_passes": a_step * step, "backward_passes": step, "seconds": 0.01 * step}
            row |= {**spent, "flops": 1e6 * (a_step + 2) * step}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    histories = Histories(records.load(folder), task)
    flops = histories.spent("flops")["smaran"]
    assert flops.mean == pytest.approx([5e6 * s for s in flops.steps])
    passes = {label: curve.mean[-1] for label, curve in histories.spent("passes").items()}
    assert passes == {"adamw": pytest.approx(2 * 40), "smaran": pytest.approx(4 * 40)}


def test_the_page_says_how_many_metrics_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = records.load(make_study(tmp_path, seeds=4))
    tables_ = build(results)
    metrics, dropped = views.fitting(results, tables_)["MLP"]
    assert len(metrics) > 1 and dropped == 0 and "cannot be chosen here" not in render(results, tables_)
    monkeypatch.setattr(views, "MOST_BYTES", 9 * views.ROW_BYTES)  # three optimizers, one metric
    assert views.fitting(results, tables_)["MLP"] == (metrics[:1], len(metrics) - 1)
    assert f"{len(metrics) - 1} further metric" in render(results, tables_)


def test_values_that_tasks_give_stand_where_an_optimizer_is_named(tmp_path: Path) -> None:
    planned = expand("""
name: by_task
seeds: 3
baseline: A
tasks:
  - {task: vision, model: mlp, size: smoke, label: one, hyper: {A: {lr: 0.1}, B: {gamma: 0.5}}}
  - {task: vision, model: mlp, size: smoke, label: two, hyper: {A: {lr: 0.01}}}
optimizers:
  - {name: sgd, lr: 0.5, momentum: 0.9, label: A}
  - {name: smaran, label: B}
""")
    whole(planned, tmp_path, lambda run: {"validation_accuracy": 0.5, "validation_loss": 0.5, "test_accuracy": 0.8})
    results = records.load(tmp_path)
    assert naming.settings(results.plan, "A") == {"lr": "0.1 / 0.01 by task", "momentum": "0.9"}
    assert naming.named(results.plan, "A").endswith("(sgd, lr 0.1 / 0.01 by task, momentum 0.9, untuned)")
    assert naming.named(results.plan, "B").endswith("(smaran, gamma 0.5 / default by task, untuned)")
    everywhere = tables(configurations(results))[0]
    assert everywhere["A"][everywhere[""].index("lr") - 1] == "0.1 / 0.01 by task"


def test_what_differs_on_a_task_is_not_asked_of_the_runs_of_all(tmp_path: Path) -> None:
    """Each optimizer on each task went through every run of the study: minutes for a thousand tasks."""
    gone_through = []

    class Runs(tuple):
        def __iter__(self):
            gone_through.append(len(self))
            return super().__iter__()

    results = records.load(make_study(tmp_path, ["adamw", "sgd", "lion"], ["A", "B", "C"], seeds=1))
    results = replace(results, plan=replace(results.plan, runs=Runs(results.plan.runs)))
    assert all("What differs on" in on_task(results, task) for task in results.plan.tasks)
    assert len(gone_through) <= 1
