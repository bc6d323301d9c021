"""No plan and no record shows numbers under a name that is not theirs; what contradicts itself is said."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack_parts import command
from study_fakes import make_study, replan
from tuning_fakes import YAML, expand, whole

from hf_optim.core.definitions import own_definitions
from hf_optim.errors import UserError
from hf_optim.experiment import files
from hf_optim.experiment.spec import id_of
from hf_optim.study.api import load
from hf_optim.study.findings import ladder_laws
from hf_optim.study.findings.ladder_laws import Point
from hf_optim.study.folder import merge
from hf_optim.study.launch.follow import follow
from hf_optim.study.plan.plan import make_run

Plan = dict[str, Any]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)


# --- plans ---


def of_another_optimizer(plan: Plan) -> None:
    for run in plan["runs"]:
        run["spec"]["optimizer"] = {"name": "lion", "lr": 9.0}


def of_another_budget(plan: Plan) -> None:
    plan["runs"][0]["spec"]["overrides"] = {"epochs": 100}


def of_a_seed_that_is_none(plan: Plan) -> None:
    plan["runs"][0]["seed"] = plan["runs"][0]["spec"]["seed"] = 7


def planned_twice(plan: Plan) -> None:
    plan["runs"].append(plan["runs"][0])


def where_its_task_has_it_not(plan: Plan) -> None:
    plan["tasks"][0]["only"] = ["adamw"]


LIES = (of_another_optimizer, of_another_budget, of_a_seed_that_is_none, planned_twice, where_its_task_has_it_not)


@pytest.mark.parametrize("lie", LIES)
def test_a_run_is_what_its_labels_say(study: Path, lie: Callable[[Plan], None], capsys: Any) -> None:
    plan = json.loads((study / "plan.json").read_text())
    lie(plan)
    for run in plan["runs"]:
        run["id"] = id_of(run["spec"])
    (study / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "report", study)
    assert code == 2 and "plan.json: 'adamw' on 'MLP', seed " in said or "'sgd' on 'MLP'" in said
    assert "is planned with other settings" in said or "is not planned, or planned twice" in said


def test_a_label_means_one_thing_for_all_seeds_of_a_merge(tmp_path: Path) -> None:
    """The settings of a task are its own in each study; with seeds of its own, no run contradicts another."""
    a, b = make_study(tmp_path / "a", seeds=2), make_study(tmp_path / "b", seeds=2)

    def other(plan: Plan) -> None:
        plan["seeds"] = [5, 6]
        plan["tasks"][0]["hyper"] = {"smaran": {"lr": 0.3}}
        for run in plan["runs"]:
            run["seed"] += 5

    replan(b, other)
    with pytest.raises(UserError, match="merge: 'smaran' on 'MLP', seed ., is planned with other settings"):
        merge.merge([a, b], tmp_path / "ab")
    assert not (tmp_path / "ab").exists()


def test_a_batch_size_in_words_is_refused_before_it_is_divided_by() -> None:
    task = {"task": "vision", "label": "T", "model": "mlp", "size": "small", "data": None, "steps": 8, "batch": 4}
    with pytest.raises(UserError, match=r"run.batch_size must be a whole number above 0, got 'x'"):
        make_run(task, "a", {"name": "adamw", "run": {"batch_size": "x"}}, 0)


def test_a_name_that_no_file_system_takes_declares_nothing() -> None:
    assert own_definitions({"name": "a" * 400, "base": "b" * 300}) == []


# --- records ---


@pytest.mark.parametrize("other", [{"name": "test_loss"}, {"greater_is_better": False}])
def test_a_record_judged_otherwise_than_the_plan_says_is_unreadable(study: Path, other: Any, capsys: Any) -> None:
    """The plan's direction alone would turn every verdict round."""
    file = sorted(study.glob("runs/*/record.json"))[0]
    record = json.loads(file.read_text())
    record["primary"] |= other
    file.write_text(json.dumps(record))
    said = command(capsys, "report", study)[1]
    assert "1 run" in said and "was judged by" in (study / "report.html").read_text()


@pytest.mark.parametrize("key", ["model", "size"])
def test_a_record_in_no_plan_of_what_is_no_name_is_unreadable(
    key: str, study: Path, tmp_path: Path, capsys: Any
) -> None:
    record = json.loads(next(study.glob("runs/*/record.json")).read_text())
    record["spec"][key] = [["mlp"]]
    home = study / "runs" / id_of(record["spec"])
    home.mkdir()
    (home / "record.json").write_text(json.dumps({**record, "id": home.name}))
    assert command(capsys, "report", study)[0] == 0 and command(capsys, "results", study)[0] == 0
    code, said, _ = command(capsys, "results", study, "--merge", tmp_path / "merged")
    assert code == 0 and f"the record.spec.{key}: expected a text" in said


@pytest.mark.parametrize("samples", ["x", "1e5", True, -5, 1e30, None, 2.5])
def test_a_number_of_samples_that_is_none_is_not_counted_on(study: Path, samples: Any, capsys: Any) -> None:
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["data"]["test_samples"] = samples
        file.write_text(json.dumps(record))
    assert command(capsys, "report", study)[0] == 0


@pytest.mark.parametrize("count", [None, "x", True, 1.5])
def test_a_group_of_no_number_of_parameters_is_shown(study: Path, count: Any, capsys: Any) -> None:
    for file in study.glob("runs/*/record.json"):
        record = {**json.loads(file.read_text()), "groups": [{"parameters": count, "weight_decay": 0.1}]}
        file.write_text(json.dumps(record))
    assert command(capsys, "report", study)[0] == 0


@pytest.mark.parametrize("spent", [(1.0, float("nan"), float("inf")), (1e15, 1e15 + 0.125, 1e15 + 0.25)])
@pytest.mark.filterwarnings("error")
def test_no_line_is_laid_through_what_was_not_spent(spent: tuple[float, ...]) -> None:
    rung = {"parameters": 10, "tokens": 10, "steps": 1, "batch_size": 1, "multiple": 1.0}
    points = [
        Point({**rung, "parameters": n}, "adamw", {0: 2.0, 1: 2.1}, 10.0, cost, cost)
        for n, cost in zip((10, 20, 30), spent, strict=True)
    ]
    assert not [line for line in ladder_laws.lines(points) if line.axis in ("flops", "seconds")]


def test_what_a_merge_could_not_read_is_said(study: Path, tmp_path: Path, capsys: Any) -> None:
    file = sorted(study.glob("runs/*/record.json"))[0]
    file.write_text("{")
    said = command(capsys, "results", study, "--merge", tmp_path / "into")[1]
    assert said.startswith(f"left out: study: runs/{file.parent.name}/record.json: ")


def test_what_may_not_be_read_is_refused_before_anything_is_copied(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's file: it is the source that is at fault, and not the folder that is written to."""
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, *how: Path(path).name != "history.jsonl" and may(path, *how))
    with pytest.raises(UserError, match="study: .*history.jsonl: cannot be read; nothing was written"):
        merge.merge([study], tmp_path / "into")
    assert not (tmp_path / "into").exists()


# --- what is written ---


def test_a_device_is_not_replaced_by_a_file(study: Path, tmp_path: Path, capsys: Any) -> None:
    """By root, --output /dev/null would take it from every program of the machine."""
    (study / "report.html").mkdir()  # and a folder is named
    assert "report.html: is no plain file, and is not replaced" in command(capsys, "report", study)[2]
    os.mkfifo(tmp_path / "pipe.csv")
    for arguments in (
        ("export", study, "--table", "csv", "--output", tmp_path / "pipe.csv"),
        ("results", study, "--export", tmp_path / "pipe.csv"),
    ):
        code, _, said = command(capsys, *arguments)
        assert code == 2 and "pipe.csv: is no plain file, and is not replaced" in said
        assert (tmp_path / "pipe.csv").is_fifo()


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="there is no link to the output")
def test_a_link_of_the_machines_own_is_not_replaced() -> None:
    with pytest.raises(files.Refused), files.whole(Path("/dev"), "stdout"):
        raise AssertionError("nothing may be written beside it")


def test_one_record_of_many_names_makes_no_table_of_millions_of_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten thousand planned runs and one record of 4,900 figures were a report of minutes and gigabytes."""
    study = make_study(tmp_path / "study", ("adamw",), seeds=6000, missing=[("adamw", i) for i in range(2, 6000)])
    (first, second) = sorted(study.glob("runs/*/record.json"))
    record = json.loads(first.read_text())
    record["metrics"] |= {f"m{i}": 0.5 for i in range(4900)}
    first.write_text(json.dumps(record))
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and "more than 833 names of figures" in out
    assert (study / "runs.csv").stat().st_size < 1_000_000
    code, out, _ = command(capsys, "results", study, "--export", study / "all.csv")
    assert code == 0 and (study / "all.csv").stat().st_size < 2_000_000


TASK = "{task: vision, model: mlp, size: smoke"
MANY = [*range(2000, 2500)]
BOMBS = {
    "tasks": f"seeds: 10000\ntasks: [{', '.join(f'{TASK}, label: t{i}}}' for i in range(50))}]\n",
    "variance": f"seeds: 2\ntasks: [{TASK}}}]\nvariance: {{seeds: 1000000000}}\n",
    "sensitivity": f"seeds: 500\ntasks: [{TASK}}}]\nsensitivity: {{seeds: 500, values: {MANY}}}\n",
    "tuning": f"tasks: [{TASK}}}]\ntuning: {{trials: 10000, repetitions: 900}}\n",
    "ladder": f"ladder: {{model: gpt2, size: smoke, tokens: {MANY}, parameters: {MANY}}}\nseeds: 2\n",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_short_file_asks_for_no_runs_without_end(
    tmp_path: Path, bomb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a hundred lines multiply was made, run by run, before anything was said."""
    (tmp_path / "study.yaml").write_text(f"name: b\noptimizers: [adamw, sgd, lion]\n{BOMBS[bomb]}")
    code, _, said = command(capsys, "study", tmp_path / "study.yaml", "--dry-run")
    assert code == 2 and "and a study has at most" in said and "line" in said


@pytest.mark.parametrize(
    ("count", "only", "asked", "most"),
    [(700, "", "244,650 pairs of optimizers", "200,000"), (1001, ", only: [o1]", "1,001 optimizers", "1,000")],
)
def test_a_study_has_no_optimizers_without_end(
    count: int, only: str, asked: str, most: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every pair is a test and a line: 600 optimizers took a gigabyte, and it grows with their square. A report asks of
    each by which name it is known among all: 10,000 of them, most of which ran nowhere, took minutes.
    """
    labels = [f"o{number}" for number in range(count)]
    make_study(tmp_path / "s", labels, seeds=1, missing=[(label, 0) for label in labels])
    code, _, said = command(capsys, "report", tmp_path / "s")
    assert code == 2 and f"asks for {asked}, and a study has at most {most}" in said
    listed = ", ".join(f"{{name: sgd, lr: {number}, label: {label}}}" for number, label in enumerate(labels, 1))
    (tmp_path / "b.yaml").write_text(f"name: b\nseeds: 2\ntasks: [{TASK}{only}}}]\noptimizers: [{listed}]\n")
    code, _, said = command(capsys, "study", tmp_path / "b.yaml", "--dry-run")
    assert code == 2 and f"asks for {asked}" in said


def test_a_plan_asks_for_no_runs_without_end(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    varied = {"seeds": 10**7, "sources": ["init"], "optimizers": ["adamw"], "seed": 0, "tuning_seed": 0}
    plan = json.loads((study / "plan.json").read_text())
    (study / "plan.json").write_text(json.dumps({**plan, "variance": varied}))
    code, _, said = command(capsys, "report", study)
    assert code == 2 and "asks for 20,000,004 runs" in said


def test_a_history_of_holes_is_not_looked_through(study: Path, capsys: Any) -> None:
    """Of 120 runs with 60 MB of holes each, 1.5 MB on the disk, a report took many minutes."""
    file = next(study.glob("runs/*/history.jsonl"))
    os.truncate(file, 8 << 20)
    assert command(capsys, "report", study)[0] == 0
    assert "holds NUL characters" in (study / "report.html").read_text()


def test_a_row_of_a_history_is_its_own_runs(study: Path) -> None:
    """What it called itself stood in the frame: one optimizer's curve as another one's."""
    run = json.loads((study / "plan.json").read_text())["runs"][0]
    told = {"step": 7, "train_loss": 0.1, "optimizer": "sgd", "seed": 99, "task": "x", "id": "y"}
    (study / "runs" / run["id"] / "history.jsonl").write_text(json.dumps(told) + "\n")
    (row,) = load(study).curves.query("step == 7 and train_loss == 0.1").to_dict("records")
    assert {key: row[key] for key in ("optimizer", "seed", "task", "id")} == {k: run[k] for k in row if k in run}


def test_a_grid_may_have_a_zero_and_is_drawn_all_the_same(tmp_path: Path, capsys: Any) -> None:
    """The grid of a weight decay was run, and its report ended in the logarithm of 0."""
    text = YAML[: YAML.index("tuning:")] + "sensitivity: {key: weight_decay, values: [0, 0.01, 0.1]}\n"
    reached = {"validation_accuracy": 0.5, "validation_loss": 1.0}
    folder = whole(expand(text), tmp_path / "study", lambda run: {**reached, "test_accuracy": 0.8 + run.seed / 100})
    assert command(capsys, "report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    assert "Sensitivity: MLP" in page and "log10 of" not in page and ">weight_decay</text>" in page


def test_a_setting_that_is_nested_is_shown_as_it_stands(study: Path, capsys: Any) -> None:
    """It was taken for a schedule, which has a name."""
    replan(study, lambda plan: plan["optimizers"][1]["spec"].update(betas=[{"a": "<b>"}, 2]))
    assert command(capsys, "report", study)[0] == 0
    assert "({&quot;a&quot;: &quot;&lt;b&gt;&quot;}, 2)" in (study / "report.html").read_text()


def test_an_accuracy_that_rounds_to_one_is_drawn_beside_a_perfect_one(tmp_path: Path, capsys: Any) -> None:
    """The mean of perfect batches may lack the last bit, and half of that is nothing."""
    study = make_study(tmp_path / "study", ("adamw", "sgd"), value=lambda _, seed: (1.0, 1 - 2**-53, 0.95)[seed])
    replan(study, lambda plan: plan["tasks"][0].update(metrics={"accuracy": [True, "share"]}))
    assert command(capsys, "report", study)[0] == 0


def test_one_run_beyond_all_others_leaves_a_score(tmp_path: Path, capsys: Any) -> None:
    """A perplexity of 1e86, as a diverged run has it, was squared twice."""
    far = {("sgd", 1): 1e86}
    tasks = ("A", "B", "C")
    study = make_study(tmp_path / "study", ("adamw", "sgd"), tasks, value=lambda o, s: far.get((o, s), 1 + s / 10))

    def scored(plan: Plan) -> None:
        plan.update(family="score", margin=dict.fromkeys(tasks, 0.01))
        for number, task in enumerate(plan["tasks"]):
            task["seed_shift"] = 100_000 * number

    replan(study, scored)
    assert command(capsys, "report", study)[0] == 0
    assert "over all tasks" in (study / "report.html").read_text()


def test_a_trial_without_what_it_is_chosen_by_is_one_that_failed(tmp_path: Path, capsys: Any) -> None:
    """One record of a study kept its report from being made, also where the others failed; who goes on with a study
    whose task records none of it is still told.
    """
    folder = whole(expand(), tmp_path / "study")
    trials = [f for f in folder.glob("runs/*/record.json") if json.loads(f.read_text())["spec"]["seed"] == 1000]
    for file in trials:
        record = json.loads(file.read_text())
        name = record["spec"]["optimizer"]["name"]
        if name == "adamw" and record["metrics"].pop("validation_accuracy"):
            file.write_text(json.dumps(record))
            break
    code, _, said = command(capsys, "report", folder)
    assert code in (0, 1) and not said
    assert "1 of 6 trials failed" in (folder / "tuning.md").read_text()
    for file in trials:
        record = json.loads(file.read_text())
        record["metrics"].pop("validation_accuracy", None)
        file.write_text(json.dumps(record))
    code, _, said = command(capsys, "report", folder)
    assert code in (0, 1) and not said
    assert "every trial failed" in (folder / "tuning.md").read_text()
    with pytest.raises(UserError, match="records no validation_accuracy"):
        next(follow(expand(), folder))


def test_a_figure_takes_no_other_columns_name(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times named as the metric stood in its place, beside a report that said otherwise; a metric called `seed` was a
    second column of seeds, the one that readers of CSV take.
    """
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["metrics"] |= {"test_accuracy": 0.5, "seed": 77.0, "optimizer": 78.0}
        record["time"] |= {"test_accuracy": 99.0, "test_loss": 99.0}
        file.write_text(json.dumps(record))
    assert command(capsys, "report", study)[0] == 0
    assert command(capsys, "results", study, "--export", study / "all.csv")[0] == 0
    for name in ("runs.csv", "all.csv"):
        with open(study / name, newline="") as lines:
            reader = csv.DictReader(lines)
            rows = list(reader)
        assert len(set(reader.fieldnames or ())) == len(reader.fieldnames or ()), name
        assert {(row["optimizer"], row["seed"]) for row in rows} == {(o, s) for o in ("adamw", "sgd") for s in "01"}
        assert {row["test_accuracy"] for row in rows} == {"0.5"} and "99" not in {row["test_loss"] for row in rows}


def test_a_record_that_says_two_things_is_unreadable(study: Path, capsys: Any) -> None:
    """The last was taken here, and another program takes the first."""
    file = next(study.glob("runs/*/record.json"))
    file.write_text(file.read_text().replace('"test_accuracy": ', '"test_accuracy": 0.1, "test_accuracy": ', 1))
    assert command(capsys, "report", study)[0] == 0
    assert "&#x27;test_accuracy&#x27; is there twice" in (study / "report.html").read_text()


@pytest.mark.parametrize("name", ["seed", "spec.seed", "started", "data.note"])
def test_a_metric_that_is_called_as_a_column_is_shown_by_its_value(name: str, study: Path, capsys: Any) -> None:
    """A table of results gave the mean of the seeds for that of the metric, beside a report that said otherwise."""
    primary = {"name": name, "greater_is_better": True}
    replan(study, lambda plan: [task.update(primary=primary) for task in plan["tasks"]])
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["metrics"][name] = 100.0
        file.write_text(json.dumps({**record, "primary": primary}))
    capsys.readouterr()
    for asked in ([], ["--by", "optimizer"]):
        out = command(capsys, "results", study, *asked)[1].splitlines()
        assert "value" in out[0] and len(out) > 1 and all(" 100 " in f"{line} " for line in out[1:])


def test_what_else_a_plan_says_of_a_target_is_let_be(study: Path, capsys: Any) -> None:
    """As of all its blocks; here it was a traceback of the report."""
    plan = json.loads((study / "plan.json").read_text())
    target = {"metric": "validation_accuracy", "value": 0.5, "better": "higher", "kind": "step", "of": "theirs"}
    (study / "plan.json").write_text(json.dumps({**plan, "targets": {"MLP": target}}))
    assert command(capsys, "report", study)[0] == 0
    assert "0.5" in (study / "statistics.md").read_text()
