"""A stranger's study and one's own: what a merge makes of it, what is read beside it, what is passed on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from attack_parts import command
from study_fakes import make_study, replan
from tuning_fakes import YAML, expand, whole

from hf_optim.core import private
from hf_optim.errors import UserError
from hf_optim.experiment import files, plain_json
from hf_optim.study.folder import publish, questions, shared, store
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.folder.results import load
from hf_optim.study.launch import beginning


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: Any, theirs: Path, mine: Path, said: str) -> None:
    """A merge with one's own study that is one line, of which nothing is there."""
    before = everything(mine)
    code, _, err = command(capsys, "results", mine, theirs, "--merge", both := mine.with_name("both"))
    assert code == 2 and said in err and "nothing was written" in err and err.count("\n") == 1, err
    assert everything(mine) == before and not both.exists() and not list(mine.parent.glob(".*"))


# --- what is read as others write it, and would not be as it is written here ---


def test_no_merge_makes_a_plan_of_more_values_than_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Of a stranger's, written without lines, a merge made one with a line a value: one's own study was lost."""
    monkeypatch.setattr(plain_json, "MOST_VALUES", 5000)
    monkeypatch.setattr(plain_json.check_count, "__defaults__", (5000,))
    monkeypatch.setattr(plain_json.parse_json, "__defaults__", (False, 5000))
    mine, theirs = make_study(tmp_path / "mine", seeds=1), make_study(tmp_path / "theirs", ("adamw", "lion"), seeds=1)
    plan = json.loads((theirs / "plan.json").read_text())
    plan["optimizers"][1]["defaults"] = {"lr": [1] * 4000}
    (theirs / "plan.json").write_text(json.dumps(plan, separators=(",", ":")))
    assert command(capsys, "report", theirs)[0] == 0
    refused(capsys, theirs, mine, "plan.json: would be more than 5,000 values, which are not read")
    with pytest.raises(UserError, match=r"more than 5,000 values"):
        beginning.prepare(read_plan(theirs), "name: fake\n", tmp_path / "new")
    assert not (tmp_path / "new" / "plan.json").exists()


def test_a_label_with_two_defaults_is_two_optimizers(tmp_path: Path, capsys: Any) -> None:
    """Of other seeds, so that no run is in both: the report said of all of them what the first plan says."""
    mine, theirs = make_study(tmp_path / "mine"), make_study(tmp_path / "theirs", seeds=6)

    def later(plan: dict) -> None:
        plan["seeds"] = [3, 4, 5]
        plan["runs"] = [run for run in plan["runs"] if run["seed"] > 2]
        plan["optimizers"][1]["defaults"] = {"lr": 0.5, "new": True}

    replan(theirs, later)
    replan(mine, lambda plan: plan["optimizers"][1].update(defaults={"lr": 0.1, "gone": 1}))
    asked = ("results", mine, theirs, "--merge", tmp_path / "both")
    code, _, error = command(capsys, *asked)
    assert code == 2 and "'smaran' by default differs (lr: 0.1 in mine, 0.5 in theirs): give one of them" in error
    assert not (tmp_path / "both").exists()
    replan(theirs, lambda plan: plan["optimizers"][1]["defaults"].update(lr=0.1))
    assert command(capsys, *asked)[0] == 0


def test_no_merge_makes_a_register_that_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every setting stands in it for each task: with one line too many none of them was read any more."""
    none = [(label, 0) for label in ("adamw", "smaran", "adan", "lion")]  # a question is registered before any result
    mine = make_study(tmp_path / "mine", seeds=1, missing=none)
    tasks = [f"MLP{n}" for n in range(40)]
    theirs = make_study(tmp_path / "theirs", ("adamw", "lion"), tasks, seeds=1, missing=none)
    replan(theirs, lambda plan: plan["optimizers"][1]["spec"].update(betas=[0.5] * 100))
    # a question has the settings once a task, the plan also once a run
    monkeypatch.setattr(questions, "check_text", lambda name, text: files.check_text(name, text * 2000))
    refused(capsys, theirs, mine, "questions.jsonl: would be more than 4,000,000 values, which are not read")


def test_no_merge_takes_the_room_of_figures_that_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A plan of a hundred thousand runs has room for fewer names: one's own records were unreadable beside it."""
    monkeypatch.setattr(store, "most_names", lambda runs: 100 if runs > 9 else 5000)
    mine, theirs = make_study(tmp_path / "mine"), make_study(tmp_path / "theirs", ("adamw", "lion", "sgd"))
    for file in mine.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["metrics"] |= {f"of_class_{n}": 0.5 for n in range(100)}
        file.write_text(json.dumps(record))
    assert len(load(mine).records) == 9
    refused(capsys, theirs, mine, "with it the study's records have more than 100 names of figures")


def test_no_merge_takes_the_room_of_curves_that_are_known(tmp_path: Path, capsys: Any) -> None:
    """Figures of a stranger's history, read before one's own of another task, made these unreadable."""
    mine = make_study(tmp_path / "mine", tasks=("MLP", "CNN"), seeds=2)
    theirs = make_study(tmp_path / "theirs", ("lion",), seeds=2)
    for study, count in ((mine, 60), (theirs, 4960)):
        for file in study.glob("runs/*/history.jsonl"):
            with file.open("a") as history:
                figures = {f"{study.name} {n}": 1.0 for n in range(count)}
                history.write(json.dumps({"step": 1000, **figures}) + "\n")
    assert command(capsys, "report", theirs)[0] == 0
    refused(capsys, theirs, mine, "with it the study's histories have more than 5,000 names")


def test_no_merge_brings_what_is_never_tuned(tmp_path: Path, capsys: Any) -> None:
    """A task without a search was read until those of others were over: in one's own study they were."""
    mine, theirs = whole(expand(YAML.replace("trials: 6", "trials: 2")), tmp_path / "mine"), tmp_path / "theirs"
    plan = json.loads((mine / "plan.json").read_text())
    plan["tasks"].append({**plan["tasks"][0], "label": "more"})
    theirs.mkdir()
    (theirs / "plan.json").write_text(json.dumps(plan))
    before = everything(mine)
    code, _, err = command(capsys, "results", mine, theirs, "--merge", tmp_path / "both")
    assert code == 2 and "the cell of 'adamw' on 'more' with seed 1000 is missing" in err
    assert everything(mine) == before and command(capsys, "report", mine)[0] == 0


def test_no_merge_turns_a_metric_round(tmp_path: Path, capsys: Any) -> None:
    """Of a task's other metrics the first folder's directions were taken, unsaid, for the runs of all."""
    studies = [make_study(tmp_path / name, ("adamw", label)) for name, label in (("mine", "sgd"), ("theirs", "lion"))]
    for higher, study in zip((False, True), studies, strict=True):
        replan(study, lambda plan, way=higher: plan["tasks"][0].update(metrics={"test_loss": [way, "nats"]}))
    for way in (studies, studies[::-1]):
        code, _, err = command(capsys, "results", *way, "--merge", tmp_path / "both")
        assert code == 2 and "the task 'MLP' differs (test_loss: [" in err and not (tmp_path / "both").exists()


# --- what lies there before ---


def test_a_merge_changes_no_study_that_is_there(tmp_path: Path, capsys: Any) -> None:
    """Into one's own it brought what made it unreadable, another's results, and an end of its checkpoints."""
    mine, theirs = make_study(tmp_path / "mine"), make_study(tmp_path / "theirs", ("adamw", "lion"))
    before = everything(mine)
    for words in ([theirs], [mine, theirs]):
        code, _, err = command(capsys, "results", *words, "--merge", mine)
        assert code == 2 and "is not empty: choose a new folder" in err and everything(mine) == before


def test_a_study_beside_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    """What a stranger's folder leads to was brought into what is passed on."""
    (tmp_path / "all").mkdir()
    private = make_study(tmp_path / "private", ("adamw", "sgd"), seeds=1)
    (tmp_path / "all" / "theirs").symlink_to(private)
    assert shared.collect(read_plan(private), tmp_path / "all" / "mine", tmp_path / "all") == []


def test_a_register_that_the_disk_does_not_give_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It was taken for none: what had been asked before was lost, and a report said nothing of what was changed."""
    mine, theirs = make_study(tmp_path / "mine"), make_study(tmp_path / "theirs", ("adamw", "lion"))
    questions.register(mine, read_plan(mine), 0)
    opened = os.open

    def broken(path: Any, *how: Any, **where: Any) -> int:
        if path == questions.FILE:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return opened(path, *how, **where)

    before = everything(mine)
    monkeypatch.setattr(os, "open", broken)
    for words in (
        ["results", theirs, mine, "--merge", tmp_path / "both"],
        ["report", mine],
        ["publish", mine, tmp_path / "public"],
    ):
        code, _, err = command(capsys, *words)
        assert code == 2 and "Input/output error" in err and err.count("\n") == 1, err
    assert everything(mine) == before and {path.name for path in tmp_path.iterdir()} == {"mine", "theirs"}


# --- what is passed on ---


@pytest.mark.parametrize("place", ["a sample", "the register"])
def test_a_user_is_known_wherever_his_home_is_named(place: str, tmp_path: Path, capsys: Any) -> None:
    """Of a folder named in what was generated, or asked before, the owner stayed in every other text."""
    study = make_study(tmp_path / "study", seeds=1)
    file = sorted(study.glob("runs/*/record.json"))[0]
    record = {
        **json.loads(file.read_text()),
        "status": "failed",
        "error": "as wilhelmina said",
        "samples": ["samples/x.txt"],
    }
    file.write_text(json.dumps(record))
    (file.parent / "samples").mkdir()
    (file.parent / "samples" / "x.txt").write_text("/home/wilhelmina/x" if place == "a sample" else "x")
    changed = [{"words": "data: /home/wilhelmina/x", "task": None, "optimizer": None, "added": None}]
    (study / questions.FILE).write_text(json.dumps({"changed": changed if place == "the register" else []}) + "\n")
    assert command(capsys, "publish", study, tmp_path / "public")[0] == 0
    published = everything(tmp_path / "public")
    assert not [name for name, content in published.items() if b"wilhelmina" in content]
    assert b"as USER said" in published[f"runs/{file.parent.name}/record.json"]


def test_a_sample_that_a_record_names_a_thousand_times_is_copied_once(tmp_path: Path, capsys: Any) -> None:
    """Each time it was read, and looked through for what is private: a small record cost hours."""
    study = make_study(tmp_path / "study", seeds=1)
    file = sorted(study.glob("runs/*/record.json"))[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "samples": ["samples/x.txt"] * 1000}))
    (file.parent / "samples").mkdir()
    (file.parent / "samples" / "x.txt").write_text("drawn")
    code, out, _ = command(capsys, "publish", study, tmp_path / "public")
    assert code == 0 and "left out" not in out
    assert [path.read_text() for path in (tmp_path / "public").rglob("x.txt")] == ["drawn"]


def test_samples_that_take_no_disk_are_not_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Files of holes, and thousands of them: a folder of some kB took a copy of it hours."""
    monkeypatch.setattr(files, "LARGEST_RUN", 3000)
    looked: list[str] = []
    monkeypatch.setattr(publish, "Scrubber", lambda texts, words: private.Scrubber(looked.extend(texts) or (), words))
    study = make_study(tmp_path / "study", seeds=1)
    file = sorted(study.glob("runs/*/record.json"))[0]
    names = [f"samples/{name}.txt" for name in ("a", "b", "c", "d")]
    file.write_text(json.dumps({**json.loads(file.read_text()), "samples": names}))
    (file.parent / "samples").mkdir()
    for name, content in zip(names, (b"drawn", bytes(2000), b"x" * 2000, b"y"), strict=True):
        (file.parent / name).write_bytes(content)
    code, out, _ = command(capsys, "publish", study, tmp_path / "public")
    assert code == 0 and "b.txt: is neither a text nor a PNG" in out and "c.txt: is larger than 995 bytes" in out
    assert sorted(path.name for path in (tmp_path / "public").rglob("*.txt")) == ["a.txt", "d.txt"]
    assert "drawn" in looked and not [text for text in looked if "\0" in text or "xx" in text]


# --- one run in two studies ---


def _learned(folder: Path, *labels: str) -> Path:
    """A study of one seed whose runs say what they reached on validation."""
    study = make_study(folder, labels, seeds=1)
    for record in study.glob("runs/*/record.json"):
        record.write_text(record.read_text().replace('"metrics": {', '"metrics": {"validation_accuracy": 0.9, '))
    return study


def _changed(study: Path, file: str, change: Any) -> None:
    """Changes a file of the first run of the baseline."""
    place = study / "runs" / read_plan(study).runs[0].id / file
    place.write_text(change(place.read_text()))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("record.json", lambda text: text.replace('"accuracy_gap": 0.03', '"accuracy_gap": 0.5'), "accuracy_gap 0."),
        ("history.jsonl", lambda text: text.replace('"validation_loss": ', '"validation_loss": 1'), "of step 10 "),
        ("history.jsonl", lambda text: '{"step": 0, "validation_accuracy": 1}\n' + text, "failed and ok"),
        ("history.jsonl", lambda text: text[: text.index('{"step": 30, "validation')], "of step 30 in one alone"),
        ("history.jsonl", lambda text: text.replace("validation_loss", "loss"), "validation_loss of step 10 in one"),
        ("record.json", lambda text: text.replace('"error": null', '"fault": "machine"'), "fault "),
        ("record.json", lambda text: text.replace('"error": null', '"pruned": true'), "pruned "),
        ("record.json", lambda text: text.replace('"steps": 40', '"steps": 4'), "steps 4 and 40"),
    ],
)
def test_no_merge_takes_another_story_of_a_run_in_silence(
    file: str, change: Any, said: str, tmp_path: Path, capsys: Any
) -> None:
    """Only the judged figure was compared: of one's own run the curve, the gaps, whether it learned at all, how far it
    came and what became of it were those of whoever was named first; a target that it reached was never reached.
    """
    mine, theirs = _learned(tmp_path / "mine", "adamw", "adan"), _learned(tmp_path / "theirs", "adamw", "lion")
    _changed(theirs, file, change)
    refused(capsys, mine, theirs, said)
    assert command(capsys, "results", theirs, mine, "--merge", tmp_path / "both", "--keep-first")[0] == 0


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: ""])
def test_a_merge_takes_the_history_that_can_be_read(damage: Any, tmp_path: Path, capsys: Any) -> None:
    """An empty one says of no target that it was reached."""
    mine, theirs = _learned(tmp_path / "mine", "adamw", "adan"), _learned(tmp_path / "theirs", "adamw", "lion")
    _changed(theirs, "history.jsonl", damage)
    code, out, _ = command(capsys, "results", theirs, mine, "--merge", tmp_path / "both")
    assert code == 0 and ("left out: theirs: " in out) == bool(damage("x" * 10)) and "unreadable: " not in out
    run = f"runs/{read_plan(mine).runs[0].id}/history.jsonl"
    assert (tmp_path / "both" / run).read_bytes() == (mine / run).read_bytes()


def test_a_run_that_a_merge_takes_is_not_told_as_left_out(tmp_path: Path, capsys: Any) -> None:
    """Its record is there, and what can be read of its history."""
    mine, theirs = _learned(tmp_path / "mine", "adamw", "adan"), _learned(tmp_path / "theirs", "adamw", "lion")
    for study in (mine, theirs):
        _changed(study, "history.jsonl", lambda text: text[:-9])
    place = f"runs/{read_plan(mine).runs[0].id}/history.jsonl"
    code, out, _ = command(capsys, "results", mine, theirs, "--merge", tmp_path / "both")
    assert code == 0 and f"left out: mine: {place}" not in out and f"left out: theirs: {place}" in out
    assert [line for line in out.splitlines() if line.startswith("unreadable: ") and place in line]
    assert (tmp_path / "both" / place).read_bytes() == (mine / place).read_bytes()


def test_a_study_and_what_there_was_of_it_before_its_trials_were_over_are_one(tmp_path: Path, capsys: Any) -> None:
    """Its judged runs are not planned there; of records that say no metric they had another result: none."""
    study, half = whole(expand(YAML.replace("trials: 6", "trials: 2")), tmp_path / "study"), tmp_path / "half"
    shutil.copytree(study, half)
    trials = {trial.run.id for search in load(study).standing.state.searches for trial in search.trials}
    shutil.rmtree(half / "runs" / min(trials))
    assert command(capsys, "report", study)[0] == 0
    for order in ((study, half), (half, study)):
        both = tmp_path / f"{order[0].name} first"
        code, _, err = command(capsys, "results", *order, "--merge", both)
        assert (code, err) == (0, "")
        assert (both / "table.csv").read_text() == (study / "table.csv").read_text()


def test_no_run_fails_by_the_beginning_that_another_one_tells(tmp_path: Path, capsys: Any) -> None:
    """What the first run of a task and a seed measured before training judged all others, one's own in a merge too."""
    mine, theirs = _learned(tmp_path / "mine", "adamw", "adan"), _learned(tmp_path / "theirs", "lion")
    _changed(mine, "history.jsonl", lambda text: '{"step": 0, "validation_accuracy": 0.1}\n' + text)
    _changed(theirs, "history.jsonl", lambda text: '{"step": 0, "validation_accuracy": 1}\n' + text)
    assert command(capsys, "results", theirs, mine, "--merge", tmp_path / "both")[0] == 0
    results = load(tmp_path / "both")
    assert results.in_vain == {run.id for run in results.plan.runs if run.optimizer == "lion"}


def test_a_run_beside_whose_history_is_damaged_is_not_taken(tmp_path: Path) -> None:
    beside = make_study(tmp_path / "beside", ("adamw",), seeds=2)
    _changed(beside, "history.jsonl", lambda text: text[:-9])
    plan = read_plan(beside)
    assert shared.collect(plan, tmp_path / "mine", tmp_path) == [plan.runs[1].id]


def test_a_merge_says_of_no_study_whose_home_folder_it_lay_in(tmp_path: Path, capsys: Any) -> None:
    """Two of one name were told apart by the folders above, of which a published copy knows no home folder."""
    homes = [tmp_path / "home" / name for name in ("bobsmith", "annajones")]
    for number, home in enumerate(homes):
        make_study(home / "ours", seeds=2, value=lambda label, seed, more=number: 0.5 + 0.1 * seed + 0.01 * more)
    make_study(tmp_path / "ours (2)", labels=("adamw", "lion"), seeds=2, missing=[("adamw", 0), ("adamw", 1)])
    words = ("results", homes[0] / "ours", tmp_path / "ours (2)", homes[1] / "ours", "--merge", tmp_path / "both")
    assert command(capsys, *words, "--keep-first")[0] == 0
    assert command(capsys, "publish", tmp_path / "both", tmp_path / "public")[0] == 0
    for folder in ("both", "public"):
        written = b"".join(everything(tmp_path / folder).values())
        assert b"bobsmith" not in written and b"annajones" not in written
    told = json.loads((tmp_path / "both" / "merged.json").read_text())
    assert told["studies"] == ["ours", "ours (2)", "ours (3)"]
