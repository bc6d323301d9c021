"""A plan that contradicts itself is refused, and what it declares twice has one meaning on all of a page."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attack_parts import command
from study_fakes import make_study, replan
from tuning_fakes import YAML, expand, whole

from hf_optim.experiment.spec import id_of
from hf_optim.study.folder import questions, shared
from hf_optim.study.folder.changes import read_plan

Plan = dict[str, Any]
PLAIN = YAML[: YAML.index("tuning")]


@pytest.mark.parametrize("name", ["test_accuracy", "time.accuracy"])
def test_a_metric_has_one_direction_on_all_of_a_page(name: str, tmp_path: Path, capsys: Any) -> None:
    """What a plan declared beside its primary metric turned the verdicts that the page shows in place."""
    study = make_study(tmp_path / "study", seeds=6, value=lambda label, seed: len(label) + 0.1 * random.random())

    def both(plan: Plan) -> None:
        for task in plan["tasks"]:
            task |= {"primary": {**task["primary"], "name": name}, "metrics": {"accuracy": [False, "share"]}}

    replan(study, both)
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["primary"]["name"] = name
        record["metrics"][name] = record["metrics"]["test_accuracy"]
        file.write_text(json.dumps(record))
    assert command(capsys, "report", study)[0] == 0
    data = re.search('id="data">(.*?)</script>', (study / "report.html").read_text())
    assert data is not None
    (shown,) = json.loads(data[1])["tasks"].values()
    for base in shown["metrics"][0]["bases"]:
        for verdict, _, difference in (map(lambda cell: cell[0], row[:3]) for row in base["rows"]):
            assert verdict.split()[0] == {"+": "better", "-": "worse"}.get(difference[0], "–"), base


@pytest.mark.parametrize("way", [{"greater_is_better": False}, {"name": "test_loss"}])
def test_a_task_is_judged_in_one_way_under_all_labels(way: Plan, tmp_path: Path, capsys: Any) -> None:
    """A second entry of the task hid that the first one's direction was not its records': a verdict was turned. Merged
    into a study, such an entry made all records there unreadable.
    """
    mine, theirs, turned = (make_study(tmp_path / name) for name in ("mine", "theirs", "turned"))
    plan = json.loads((mine / "plan.json").read_text())
    (task,) = plan["tasks"]
    lie = {**task, "primary": {**task["primary"], **way}}
    other = {"label": "other", "data": "digits"}
    (turned / "plan.json").write_text(json.dumps({**plan, "tasks": [lie, {**task, **other}]}))
    code, _, said = command(capsys, "report", turned)
    assert code == 2 and "'other' is judged otherwise than another 'vision' of the plan" in said

    def renamed(plan: Plan) -> None:
        plan |= {"tasks": [{**lie, **other}], "runs": [{**run, "task": "other"} for run in plan["runs"]]}

    replan(theirs, renamed)
    code, _, said = command(capsys, "results", mine, theirs, "--merge", tmp_path / "both")
    assert code == 2 and "'other' is judged otherwise" in said and not (tmp_path / "both").exists()


def test_a_rung_is_what_its_runs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "name: l\nseeds: 2\noptimizers: [adamw]\n"
        "ladder: {model: gpt2, size: smoke, parameters: [2000], tokens: [4], options: {held_out: 8}}\n"
    )
    plan = expand(text).to_dict()
    for key in ("steps", "batch_size", "size", ""):
        rung = {**plan["ladder"]["rungs"][0], **({key: 7} if key else {})}
        (tmp_path / "plan.json").write_text(json.dumps({**plan, "ladder": {"rates": "tuned", "rungs": [rung]}}))
        code, _, said = command(capsys, "report", tmp_path)
        assert (code, "than its runs" in said) == ((2, True) if key else (0, False)), said


def of_two_rungs(change: Callable[[list[Plan]], None]) -> Callable[[Plan], None]:
    return lambda plan: change(plan["ladder"]["rungs"])


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (of_two_rungs(lambda rungs: rungs.append(rungs[0])), "each once"),
        (of_two_rungs(lambda rungs: rungs[1].update(tokens=2**40)), "other tokens than its steps"),
        (of_two_rungs(lambda rungs: rungs[1].update(multiple=40.0)), "other tokens than its budget asks for"),
        (of_two_rungs(lambda rungs: rungs[1].update(parameters=10**9)), "other tokens than its budget asks for"),
        (of_two_rungs(lambda rungs: rungs[1].update(smallest=rungs[1]["task"])), "is not the smallest rung"),
        (lambda plan: plan["ladder"].update(rates="both"), "has no tuning that chooses them"),
        (lambda plan: plan["sensitivity"].update(values=[0.1, 0.1, 1.0]), "the values of sensitivity ascend"),
        (lambda plan: plan["sensitivity"].update(values=[0.1]), "two at least"),
        (lambda plan: plan["sensitivity"].update(seeds=0), "seeds of sensitivity"),
        (lambda plan: plan["variance"].update(seeds=1), "two seeds at least"),
        (lambda plan: plan["variance"].update(sources=["init", "init"]), "named once"),
        (lambda plan: None, ""),
    ],
)
def test_what_is_drawn_of_a_plan_is_in_it_once(
    lie: Callable[[Plan], None], said: str, tmp_path: Path, capsys: Any
) -> None:
    """A rung or a rate that was there twice counted twice in a law or a mean, and a rung lay at any tokens."""
    text = (
        "name: l\nseeds: 2\noptimizers: [adamw]\nsensitivity: {values: [0.1, 1.0]}\nvariance: {seeds: 2}\n"
        "ladder: {model: gpt2, size: smoke, parameters: [2000, 8000], tokens: [4], options: {held_out: 8}}\n"
    )
    plan = json.loads(json.dumps(expand(text).to_dict()))
    lie(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, err = command(capsys, "report", tmp_path)
    assert (code, said in err) == (2 if said else 0, True), err


def test_what_is_called_almost_alike_keeps_its_place(tmp_path: Path, capsys: Any) -> None:
    """Of two rates, or two pairs of labels, that were written alike the last was shown."""
    text = YAML.replace("trials: 6", "trials: 1") + "sensitivity: {values: [0.1, 0.10000001, 1.0]}\n"
    study = whole(expand(text), tmp_path / "grid")
    assert command(capsys, "report", study)[0] == 0
    assert "| 0.1 | 0.10000001 | 1 |" in (study / "tuning.md").read_text()
    labels = ("adamw", "x", "y − z", "x − y", "z")
    study = make_study(tmp_path / "pairs", labels, seeds=3)
    assert command(capsys, "report", study)[0] == 0
    pairs = json.loads((study / "statistics.json").read_text())["tasks"][0]["pairs"]
    assert len(pairs) == 10 and {"x − “y − z”", "“x − y” − z"} <= {*pairs}


def test_no_merge_writes_a_plan_that_cannot_be_read(tmp_path: Path, capsys: Any) -> None:
    """Units of two seeds made one of a study that no command read any more, in place of its plan."""

    def in_pairs(first: int) -> Callable[[Plan], None]:
        def change(plan: Plan) -> None:
            plan |= {"seeds": [first, first + 1], "per_unit": 2, "looks": [1]}
            for run in plan["runs"]:
                run["seed"] += first

        return change

    mine, theirs = (make_study(tmp_path / name, seeds=2) for name in ("mine", "theirs"))
    replan(mine, in_pairs(0))
    replan(theirs, in_pairs(2))
    single = make_study(tmp_path / "single", seeds=2)
    for other, said in ((theirs, "merge: looks ascend"), (single, "differ in per_unit")):
        assert command(capsys, "report", other)[0] == 0
        code, _, err = command(capsys, "results", mine, other, "--merge", tmp_path / "both")
        assert code == 2 and said in err and not (tmp_path / "both").exists()


def with_a_judged_tuning_seed(plan: Plan) -> None:
    plan["tuning"]["cells"][0]["seed"] = plan["seeds"][1]


def with_an_optimizer_twice(plan: Plan) -> None:
    plan["tasks"][0]["only"].append("SMARAN")


def with_a_task_twice(plan: Plan) -> None:
    del plan["tuning"]
    plan["tasks"].append({**plan["tasks"][0], "label": "again"})
    plan["runs"] = [{**run, "task": task["label"]} for task in plan["tasks"] for run in expand(PLAIN).to_dict()["runs"]]


def with_a_score_of_the_same_seeds(plan: Plan) -> None:
    plan["family"] = "score"
    plan["tasks"].append({**plan["tasks"][0], "label": "again", "model": "mnist_cnn"})


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (with_a_judged_tuning_seed, "seeds of judging or tuning belong to two"),
        (with_an_optimizer_twice, "'MLP' has an optimizer twice"),
        (with_a_task_twice, "'adamw' on 'again', seed 0, is the same run as 'adamw' on 'MLP'"),
        (with_a_score_of_the_same_seeds, "to two tasks of a score"),
    ],
)
def test_nothing_counts_twice(lie: Callable[[Plan], None], why: str, tmp_path: Path, capsys: Any) -> None:
    """What no YAML may say stood in a plan.json: settings were chosen on the seeds that judged them, one task counted
    as two independent ones, and an optimizer was compared with itself.
    """
    plan = json.loads(json.dumps(expand().to_dict()))
    lie(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "report", tmp_path)
    assert code == 2 and why in said


def test_a_merge_of_scores_is_judged_by_tasks(tmp_path: Path, capsys: Any) -> None:
    """Each study keeps its own tasks' seeds apart: a score of all added up tasks of the same seeds as independent."""

    def scored(plan: Plan) -> None:
        plan["family"] = "score"
        for number, task in enumerate(plan["tasks"]):
            task["seed_shift"] = 100_000 * number

    named = ("mine", ("A", "B")), ("theirs", ("C", "D"))
    mine, theirs = (make_study(tmp_path / name, tasks=tasks) for name, tasks in named)
    for study in (mine, theirs):
        replan(study, scored)
    assert command(capsys, "results", mine, theirs, "--merge", tmp_path / "both")[0] == 0
    assert (read_plan(mine).family, read_plan(tmp_path / "both").family) == ("score", "tasks")


def test_seeds_that_a_plan_has_left_out_are_told(tmp_path: Path, capsys: Any) -> None:
    """Without the runs of bad seeds, of which nothing else in a plan speaks, the report said that all had been run."""
    study = make_study(tmp_path / "study", seeds=4)
    questions.register(study, read_plan(study), 0)
    assert "fewer than" not in command(capsys, "report", study)[1]
    plan = json.loads((study / "plan.json").read_text())
    plan["runs"] = [run for run in plan["runs"] if run["optimizer"] != "smaran" or run["seed"] > 1]
    (study / "plan.json").write_text(json.dumps(plan))
    said = "The plan has runs of fewer than 4 seeds: smaran on MLP 2."
    assert said in command(capsys, "report", study)[1]
    assert said in (study / "report.html").read_text() and said in (study / "statistics.md").read_text()


def test_pairs_of_other_data_are_told(tmp_path: Path, capsys: Any) -> None:
    """The records said that one optimizer had been given other data than all others, and the report compared them."""
    study = make_study(tmp_path / "study", seeds=4)
    assert "same data" not in command(capsys, "report", study)[1]
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        if record["spec"]["optimizer"]["name"] == "adan":
            record["data"]["fingerprint"] = "<b>" + 20 * "c"
        file.write_text(json.dumps(record))
    out = " ".join(command(capsys, "report", study)[1].split())
    said = "On MLP not all runs of a seed had the same data: 8 digits (sha256 abababababab) and 4 digits (sha256 "
    assert f"{said}<b>ccccccccc)." in out
    assert f"{said}&lt;b&gt;ccccccccc)." in (study / "report.html").read_text()


@pytest.mark.parametrize("part", ["betas", "options", "label"])
def test_what_every_run_repeats_is_short(part: str, tmp_path: Path, capsys: Any) -> None:
    """A list of 300 KB stood in each sentence of the report, and in each run that followed from the plan: gigabytes."""
    long = [0.5] * 2000
    plan = json.loads(json.dumps(expand(PLAIN).to_dict()))
    plan |= {"runs": [], **({"title": 300 * "y"} if part == "label" else {})}
    plan["optimizers"][0]["spec"] |= {"betas": long} if part == "betas" else {}
    plan["tasks"][0]["options"] = {"sizes": long} if part == "options" else {}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code, _, said = command(capsys, "report", tmp_path)
    assert code == 2 and ("longer than 200" in said if part == "label" else "are longer than 5,000 char" in said)


def test_tasks_and_optimizers_are_not_crossed_without_end(tmp_path: Path, capsys: Any) -> None:
    """Ten thousand of both, each task with two of them, are a plan of 4 MB without a run and a report of hours."""
    plan = expand(PLAIN).to_dict()
    (task,), (optimizer, *_) = plan["tasks"], plan["optimizers"]
    labels = [plan["baseline"], *(f"o{i}" for i in range(110))]
    plan["optimizers"] = [{**optimizer, "label": label} for label in labels]
    plan["tasks"] = [{**task, "label": f"t {label}", "only": [labels[0], label]} for label in labels[1:]]
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "runs": []}))
    code, _, said = command(capsys, "report", tmp_path)
    assert code == 2 and "asks for 12,210 pairs of a task and an optimizer" in said
    tasks = "".join(f"  - {{task: vision, label: {x}, only: [{labels[0]}, {x}]}}\n" for x in labels[1:])
    optimizers = "".join(f"  - {{name: adamw, label: {x}, lr: {0.1 + i}}}\n" for i, x in enumerate(labels))
    (tmp_path / "s.yaml").write_text(f"name: s\nseeds: 1\ntasks:\n{tasks}optimizers:\n{optimizers}")
    code, _, said = command(capsys, "study", tmp_path / "s.yaml", "--dry-run")
    assert code == 2 and "12,210 pairs of a task and an optimizer" in said


def test_a_question_that_nobody_registered_is_a_change(tmp_path: Path, capsys: Any) -> None:
    """Another baseline in plan.json alone was said to be the question that the folder had kept from the beginning."""
    study, other = (make_study(tmp_path / name, seeds=3) for name in ("study", "other"))
    plan = json.loads((study / "plan.json").read_text())
    questions.register(study, read_plan(study), 0)
    assert "became" not in command(capsys, "report", study)[1]
    (study / "plan.json").write_text(json.dumps({**plan, "baseline": "smaran"}))
    code, said, _ = command(capsys, "report", study)
    assert code == 0 and "baseline: adamw became smaran" in said
    assert "baseline: adamw became smaran" in (study / "report.html").read_text()
    assert command(capsys, "publish", study, tmp_path / "copy")[0] == 0
    assert "baseline: adamw became smaran" in (tmp_path / "copy" / "report.html").read_text()
    (other / "plan.json").write_text((study / "plan.json").read_text())
    assert command(capsys, "results", study, other, "--merge", tmp_path / "both")[0] == 0
    assert "study: baseline: adamw became smaran" in (tmp_path / "both" / "report.html").read_text()


def test_a_run_with_checkpoints_is_not_taken_from_a_study_beside_it(tmp_path: Path, capsys: Any) -> None:
    """Whose record a stranger's study had, however it came by it, was replaced with all that was trained of it."""
    theirs, mine = make_study(tmp_path / "theirs"), make_study(tmp_path / "mine", missing=[("adan", 1)])
    missing = next(run["id"] for run in read_plan(mine).to_dict()["runs"] if not (mine / "runs" / run["id"]).exists())
    kept = mine / "runs" / missing / "checkpoint-7" / "model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("days")
    assert command(capsys, "results", mine, theirs, "--merge", tmp_path / "both")[0] == 0
    assert shared.collect(read_plan(mine), mine, tmp_path) == [] and kept.read_text() == "days"


@pytest.mark.parametrize("key", ["base", "grad_transform"])
@pytest.mark.parametrize("part", [5, [], True, {"name": ["adamw"]}, {"name": "tlr", "base": []}])
def test_what_an_optimizer_wraps_is_named(key: str, part: Any, tmp_path: Path, capsys: Any) -> None:
    """Of a wrapper's wrapper, or a record that is in no plan, it was a traceback of every command."""
    wrapped = {"name": "lookahead", "base": {"name": "tlr", "base": "sgd", key: part}}
    study, planned = (make_study(tmp_path / name, seeds=2) for name in ("study", "planned"))
    record = json.loads(next(study.glob("runs/*/record.json")).read_text())
    record["spec"]["optimizer"] = wrapped
    home = study / "runs" / id_of(record["spec"])
    home.mkdir()
    (home / "record.json").write_text(json.dumps({**record, "id": home.name}))
    plan = json.loads((planned / "plan.json").read_text())
    plan["optimizers"].append({"label": "more", "spec": wrapped, "defaults": {}})
    (planned / "plan.json").write_text(json.dumps(plan))
    for words in (["report"], ["results"], ["export", "--table", "csv"], ["publish"]):
        for folder, refused in ((study, False), (planned, True)):
            into = [tmp_path / f"{folder.name}, public"] if words == ["publish"] else []
            code, _, said = command(capsys, words[0], folder, *words[1:], *into)
            assert (code, "is a name or a mapping with a name" in said) == ((2, True) if refused else (0, False)), said


def test_changes_without_end_are_one_that_touches_all(tmp_path: Path, capsys: Any) -> None:
    """Each comparison asked all of them, and a merge compared each with each, in a file of 6 MB."""
    mine, theirs = (make_study(tmp_path / name) for name in ("mine", "theirs"))
    first, last = (questions.question(read_plan(mine)) for _ in range(2))
    first["tasks"] |= {f"task {i}": {} for i in range(3000)}
    lines = [{"sha256": questions.digest(q), "time": "", "records": 9, "question": q} for q in (first, last)]
    brought = [{"words": f"change {i}", "task": "none", "optimizer": None, "added": None} for i in range(5000)]
    for rows in (lines, [{"changed": brought}], [*lines, {"changed": brought}]):
        (theirs / questions.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders = [mine, theirs]
        for name in (f"{len(rows)} {len(rows[0])}", f"{len(rows)} {len(rows[0])}, again"):
            assert command(capsys, "results", *folders, "--merge", into := tmp_path / name)[0] == 0
            asked = questions.read(into, read_plan(into))
            assert len(asked.changes) == questions.MOST + 1 and "further changes" in asked.changes[-1].words
            assert asked.exploratory("MLP", "adan")
            assert (into / questions.FILE).stat().st_size < 1_000_000
            folders = [into, theirs]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"greater_is_better": False}, "do not agree whether more of test_accuracy on MLP is better"),
        ({"name": "test_loss"}, "on MLP are judged by test_accuracy and test_loss: narrow it"),
    ],
)
def test_studies_that_judge_a_task_otherwise_are_not_compared(
    other: Plan, why: str, tmp_path: Path, capsys: Any
) -> None:
    """The direction of the last one turned the verdict; seeds judged by two metrics were one side."""
    mine, theirs = (make_study(tmp_path / name, ("adamw", "sgd"), seeds=3) for name in ("mine", "theirs"))

    def judged(plan: Plan) -> None:
        plan["tasks"][0]["primary"] |= other
        plan["seeds"] = [seed + 3 for seed in plan["seeds"]]
        for run in plan["runs"]:
            run["seed"] += 3

    replan(theirs, judged)
    for file in theirs.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "primary": {**record["primary"], **other}}))
    code, _, said = command(capsys, "results", mine, theirs, "--compare", "adamw", "sgd")
    assert code == 2 and why in said
    if "name" in other:
        assert command(capsys, "results", mine, theirs, "--where", "seed<3", "--compare", "adamw", "sgd")[0] == 0


@pytest.mark.parametrize("labels", [("adamw", "sgd"), ("adamw",)])
def test_looks_without_end_are_refused(labels: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    """A look after each of some hundred seeds took a report of two optimizers hours."""
    study = make_study(tmp_path / "study", labels, seeds=400, missing=[(labels[-1], 0)])
    plan = json.loads((study / "plan.json").read_text())
    (study / "plan.json").write_text(json.dumps({**plan, "looks": list(range(1, 401))}))
    code, _, said = command(capsys, "report", study)
    assert code == 2 and "64,000,000 units at looks" in said
    (tmp_path / "s.yaml").write_text(PLAIN.replace("seeds: 3", f"seeds: {list(range(2, 401))}"))
    code, _, said = command(capsys, "study", tmp_path / "s.yaml", "--dry-run")
    assert code == 2 and "units at looks" in said


@pytest.mark.parametrize(
    "said, entries",
    [
        ("line 3: run must be a mapping", "optimizers: [adamw, {name: sgd, run: 1.5}]\ntasks: [vision]"),
        ("run must be a mapping", "optimizers: [adamw, sgd]\ntasks: [{task: vision, hyper: {sgd: {run: [1]}}}]"),
        ("must be an optimizer's label, got a list [1]", "optimizers: [adamw]\ntasks: [{task: vision, only: [[1]]}]"),
        ("line 4: 'a\\x00b' holds a NUL character", 'optimizers: [adamw]\ntasks: [{task: vision, data: "a\\0b"}]'),
        ("'a\\x00.py:X' holds a NUL character", 'optimizers: [adamw]\ntasks: ["a\\0.py:X"]'),
        ("must be an optimizer's label, got a mapping", "optimizers: [adamw]\ntasks: [{task: vision, only: [{a: 1}]}]"),
    ],
)
def test_what_stands_for_a_mapping_or_a_label_is_one_line(
    said: str, entries: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were tracebacks."""
    (tmp_path / "s.yaml").write_text(f"name: s\nseeds: 2\n{entries}\n")
    code, _, error = command(capsys, "study", tmp_path / "s.yaml", "--dry-run")
    assert code == 2 and said in error and error.count("\n") == 1
