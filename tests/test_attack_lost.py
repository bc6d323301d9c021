"""What is somebody's, stands where a run, a claim or a table comes to lie, and is not removed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import ANY

import pytest
import yaml
from attack_parts import CLAIM, SPEC, claim, command
from study_fakes import make_study

from hf_optim.commands import reproduction
from hf_optim.commands.main import main
from hf_optim.errors import UserError, of_memory
from hf_optim.experiment import files as files_room
from hf_optim.experiment.checkpoint import is_cut_short
from hf_optim.experiment.disk import NotNow, Unwritable, check_given
from hf_optim.experiment.files import Refused
from hf_optim.study.folder import shared
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.launch import worker
from hf_optim.study.launch.messages import Request

#: a run with checkpoints
WORDS = ["train", "--task", "logistic", "--size", "smoke", "--optimizer", "sgd", "--steps", "4", "--quiet"]
WORDS += ["--checkpoint-every", "2"]
#: what is in a checkpoint, as it is written
WRITTEN = ("config.json", "model.safetensors", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
WRITTEN += ("trainer_state.json",)
#: a process that is at a run
HELD = (
    "from pathlib import Path; from hf_optim.study.folder.locks import Lock; import time\n"
    "print('held' if Lock(Path({!r}), {!r}).acquire() else 'not', flush=True); time.sleep(600)"
)


@pytest.mark.parametrize("wrong", ["mark", "nan", "huge", "half", "link"])
def test_a_record_that_cannot_be_read_is_not_made_anew(tmp_path: Path, wrong: str) -> None:
    """It may be of a finished run: an editor's mark before it, and all of the run's folder was removed."""
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    run = json.loads((study / "plan.json").read_text())["runs"][0]
    file = study / "runs" / run["id"] / "record.json"
    text = file.read_text()
    if wrong == "link":
        file.rename(tmp_path / "kept.json")
        file.symlink_to(tmp_path / "kept.json")
    else:
        more = {"nan": "NaN", "huge": str(2**70)}.get(wrong, "1")
        whole = f'{{"more": {more}, {text[1:]}'
        file.write_text({"mark": f"\ufeff{text}", "half": text[:99]}.get(wrong, whole))
    before = file.read_bytes()
    with pytest.raises(UserError, match="record.json: cannot be read as a record.*nothing was removed"):
        worker.execute(Request(study, run["id"], run["spec"]))
    assert file.read_bytes() == before
    file.unlink()
    file.touch()  # what a crash of the machine leaves
    assert worker.execute(Request(study, SPEC.id, SPEC.to_dict())) == "ok"


def test_what_a_checkpoints_reader_says_of_the_machine_says_nothing_of_the_checkpoint() -> None:
    """ "Cannot allocate memory", or a network's file system that is away in other words, was damage, and removed."""
    said = RuntimeError("unable to mmap 381604899 bytes from file <optimizer.pt>: Cannot allocate memory (12)")
    assert of_memory(said)
    with pytest.raises(NotNow):
        check_given("checkpoint-1", said)
    for number in (errno.ESHUTDOWN, errno.ECONNRESET, errno.EIO, errno.ENOMEM, errno.EPERM):
        with pytest.raises(Unwritable, match="nothing was removed"):
            check_given("checkpoint-1", OSError(number, "away"))
    for error in (OSError("no file of weights"), FileNotFoundError(errno.ENOENT, "gone"), Refused("x", "is a link")):
        check_given("checkpoint-1", error)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `WORDS` with checkpoints of steps 2 and 4, and no record."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*WORDS, "--output", str(folder)]) == 0
    (folder / "record.json").unlink()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def strip(checkpoint: Path, hours: int = 0) -> None:
    """Take out what a run goes on from, so long after it was written."""
    for path in checkpoint.iterdir():
        os.utime(path, (path.stat().st_mtime - 3600 * hours,) * 2)
    for name in WRITTEN[3:]:
        (checkpoint / name).unlink()


def strip_all(run: Path) -> None:
    for saved in run.glob("checkpoint-*"):
        strip(saved)


def strip_one_long_after(run: Path) -> None:
    shutil.rmtree(run / "checkpoint-2")
    strip(run / "checkpoint-4", hours=1)


def weights_alone(run: Path) -> None:
    kept = run / "checkpoint-2" / "model.safetensors"
    (run / "checkpoint-3").mkdir()
    kept.rename(run / "checkpoint-3" / kept.name)
    for step in (2, 4):
        shutil.rmtree(run / f"checkpoint-{step}")
    (run / "samples").mkdir()
    (run / "samples" / "my.txt").write_text("mine")


def file_alone(run: Path) -> None:
    for saved in run.glob("checkpoint-*"):
        shutil.rmtree(saved)
    (run / "checkpoint-9").write_text("mine")


def later_without_its_state(run: Path) -> None:
    (run / "checkpoint-4" / "optimizer.pt").unlink()


def notes_by_a_number(run: Path) -> None:
    for saved in run.glob("checkpoint-*"):
        shutil.rmtree(saved)
    (run / "checkpoint-notes-3").mkdir()
    (run / "checkpoint-notes-3" / "README.md").write_text("mine")


def note_alone(run: Path) -> None:
    shutil.rmtree(run / "checkpoint-4")
    (run / "checkpoint-4").mkdir()
    (run / "checkpoint-4" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (strip_all, 2),
        (strip_one_long_after, 4),
        (weights_alone, 3),
        (file_alone, 9),
        (note_alone, 4),
        (notes_by_a_number, "notes-3"),
        (later_without_its_state, 4),
    ],
)
def test_what_no_killed_run_leaves_is_not_removed(
    change: Callable[[Path], None], named: int | str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A --resume took away whole models whose optimizers had been deleted, and what somebody calls a checkpoint."""
    change(run)
    before = files(run)
    code, _, error = command(capsys, *WORDS, "--output", run, "--resume")
    assert code == 2 and f"holds checkpoint-{named}, which the run cannot go on from and would remove" in error
    assert files(run) == before


@pytest.mark.parametrize("kept", range(len(WRITTEN)))
def test_what_a_killed_run_leaves_is_gone_on_with(kept: int, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever it had written of its first checkpoint, and however long ago."""
    shutil.rmtree(run / "checkpoint-4")
    first = run / "checkpoint-2"
    (first / "hf_optim.json").unlink()
    for name in WRITTEN[kept:]:
        (first / name).unlink()
    for path in (*first.iterdir(), first):
        os.utime(path, (1e9, 1e9))
    assert is_cut_short(first)
    if kept == 3:  # all but what the run goes on from
        assert command(capsys, *WORDS, "--output", run, "--resume")[0] == 0
        assert (run / "checkpoint-4" / "trainer_state.json").exists()


@pytest.mark.parametrize("kept", ["the first", "none"])
def test_what_looks_like_a_killed_runs_checkpoint_is_set_aside(
    kept: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that was copied has new times, and somebody's model without its states was taken for one and removed."""
    if kept == "none":
        shutil.rmtree(run / "checkpoint-2")
    last = run / "checkpoint-4"
    for name in WRITTEN[3:]:
        (last / name).unlink()
    (last / "NOTES.md").write_text("mine")
    (run / "unfinished-4").mkdir()
    before = files(last)
    assert command(capsys, *WORDS, "--output", run, "--resume") == (
        0,
        ANY,
        f"{last} was not written whole: it is called unfinished-4-2 now\n",
    )
    assert files(run / "unfinished-4-2") == before and (last / "trainer_state.json").exists()


def test_a_state_that_was_being_written_is_no_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoint-4" / "trainer_state.json").write_text("")
    assert command(capsys, *WORDS, "--output", run, "--resume")[0] == 0
    assert (run / "unfinished-4" / "optimizer.pt").exists() and (run / "record.json").exists()


def test_a_run_that_is_killed_as_it_clears_another_says_whose_checkpoints_are_left(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """spec.json went first: --resume went on from another run's checkpoint, and the record was false."""

    class Killed(BaseException):
        pass

    def killed(folder: Path, name: str) -> None:
        if name.startswith("checkpoint-"):
            raise Killed
        files_room.remove(folder, name)

    words = (*WORDS, "--seed", 7, "--output", run)
    with monkeypatch.context() as here, pytest.raises(Killed):
        here.setattr("hf_optim.experiment.preparation.remove", killed)
        command(capsys, *words, "--overwrite")
    code, _, error = command(capsys, *words, "--resume")
    assert code == 2 and "holds checkpoints of another run (see its spec.json)" in error
    (run / f".record.json.{'0' * 32}.tmp").write_text("half")
    assert command(capsys, *words, "--overwrite")[0] == 0 and not list(run.glob(".*"))


@pytest.mark.parametrize("name", ["samples/holiday.png", "history.jsonl", "checkpoint-9/model.safetensors"])
def test_what_lies_beside_another_runs_specification_is_not_removed(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken for what an own run had left, whatever run it was."""
    (mine := tmp_path / "mine" / name).parent.mkdir(parents=True)
    mine.write_text("mine")
    shutil.copy(run / "spec.json", tmp_path / "mine" / "spec.json")
    words = (*WORDS, "--seed", 7, "--output", tmp_path / "mine")
    for more in ((), ("--resume",)):
        code, _, error = command(capsys, *words, *more)
        assert code == 2 and " of another run (see its spec.json)" in error and mine.read_text() == "mine"
    assert (tmp_path / "mine" / "spec.json").read_bytes() == (run / "spec.json").read_bytes()
    mine.unlink()
    if name == "history.jsonl":  # another run that had left nothing yet
        assert command(capsys, *words)[0] == 0


@pytest.mark.parametrize("there", ["checkpoint-best", "checkpoint-notes.txt", "checkpoint-2"])
def test_checkpoints_with_which_a_run_cannot_go_on_are_not_removed(
    there: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--resume began anew, and took away whatever was called so, unsaid."""
    words = (*WORDS, "--output", run)
    if there != "checkpoint-2":  # then one as it is while it is written
        shutil.rmtree(run / "checkpoint-2")
        (run / "checkpoint-4" / "trainer_state.json").unlink()
    for saved in run.glob("checkpoint-*"):
        (saved / "optimizer.pt").unlink()
    if there.endswith(".txt"):
        (run / there).write_text("mine")
    else:
        (run / there).mkdir(exist_ok=True)
    code, _, error = command(capsys, *words, "--resume")
    assert code == 2 and f"holds {there}, which the run cannot go on from and would remove" in error
    assert (run / there).exists()
    shutil.rmtree(run / there) if there != "checkpoint-notes.txt" else (run / there).unlink()
    if there != "checkpoint-2":
        assert command(capsys, *words, "--resume")[0] == 0


def test_a_claim_of_the_same_study_takes_no_page_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its statement stood where the own one had been judged."""
    monkeypatch.chdir(tmp_path)
    study = {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}
    said = {"says": "it is", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}
    for name, says in (("mine.yaml", "it is"), ("theirs/x.yaml", "a fraud")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        told = {**CLAIM, "claims": [{**said, "says": says}], "small": {"study": study}}
        (tmp_path / name).write_text(yaml.safe_dump({key: told[key] for key in told if key != "paper_size"}))
    out = tmp_path / "reproductions" / f"{CLAIM['name']}-small"
    make_study(out, ("adamw", "sgd"), seeds=2)
    (out / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setattr("hf_optim.study.folder.begun.check", lambda *_: None)
    assert command(capsys, "reproduce", "mine.yaml", "--page")[0] == 0
    page = (out / "reproduction.md").read_text()
    code, _, error = command(capsys, "reproduce", "theirs/x.yaml", "--page")
    assert code == 2 and f"of a claim that is called {CLAIM['name']}, too" in error
    assert (out / "reproduction.md").read_text() == page
    text = (tmp_path / "mine.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("it is", "it was"))  # changed where it lies
    assert command(capsys, "reproduce", "mine.yaml", "--page")[0] == 0
    (tmp_path / "mine.yaml").rename(tmp_path / "moved.yaml")
    assert command(capsys, "reproduce", "moved.yaml", "--page")[0] == 0
    assert command(capsys, "reproduce", "theirs/x.yaml", "--page", "--output", out)[0] == 0


@pytest.mark.parametrize("name", ["Notes.JSON", "tool.PY", "conf.Yaml", "book.ipynb"])
def test_no_table_takes_the_place_of_what_is_none(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study")
    (tmp_path / name).write_text("mine")
    assert command(capsys, "export", study, "--table", "csv", "--output", tmp_path / name)[0] == 2
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("there", ["a link to nothing", "a folder", "a link in the run's place", "busy"])
def test_what_stands_in_a_runs_place_is_not_replaced_by_one_of_the_studies_beside(there: str, tmp_path: Path) -> None:
    """Its folder was removed with what else was in it, and a worker that was at it wrote into another one."""
    for name in ("mine", "beside"):
        make_study(tmp_path / name, ("adamw", "sgd"), seeds=2)
    plan = read_plan(tmp_path / "mine")
    home = tmp_path / "mine" / "runs" / plan.runs[0].id
    (home / "record.json").unlink()
    if there == "a folder":
        (home / "record.json").mkdir()
    elif there == "a link to nothing":
        (home / "record.json").symlink_to(tmp_path / "away" / "record.json")
    elif there == "a link in the run's place":
        home.rename(tmp_path / "elsewhere")
        home.symlink_to(tmp_path / "elsewhere")
    (home / "notes.txt").write_text("mine")
    if there != "busy":
        assert shared.collect(plan, tmp_path / "mine", tmp_path) == []
        assert (home / "notes.txt").read_text() == "mine"
        return
    held = subprocess.Popen(
        [sys.executable, "-c", HELD.format(str(tmp_path / "mine"), plan.runs[0].id)], stdout=subprocess.PIPE
    )
    assert held.stdout is not None and held.stdout.readline() == b"held\n"
    assert shared.collect(plan, tmp_path / "mine", tmp_path) == [] and (home / "notes.txt").exists()
    held.kill()
    held.wait()
    assert shared.collect(plan, tmp_path / "mine", tmp_path) == [plan.runs[0].id]


def test_no_name_is_read_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger's `runs` led to the reader's own: what lies there was listed in a merge."""
    theirs, mine = (make_study(tmp_path / name, ("adamw", "sgd"), seeds=2) for name in ("theirs", "mine"))
    (tmp_path / "outside" / "secret-name").mkdir(parents=True)
    shutil.copy(next(mine.glob("runs/*/record.json")), tmp_path / "outside" / "secret-name")
    shutil.rmtree(theirs / "runs")
    (theirs / "runs").symlink_to(tmp_path / "outside")
    for words in (["publish", theirs, tmp_path / "copy"], ["results", theirs], ["report", theirs]):
        assert "secret-name" not in "".join(map(str, command(capsys, *words)))
    assert "secret-name" not in "".join(map(str, command(capsys, "results", theirs, mine, "--merge", tmp_path / "all")))
    assert "secret-name" not in (tmp_path / "all" / "merged.json").read_text()


@pytest.mark.parametrize("text", ['{"claim": "agr', "[1]", None])
def test_a_page_of_no_reproduction_is_not_replaced(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever's notes are called so, and where reproduction.json was damaged that of another claim."""
    out = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=2)
    study = {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}
    said = [{"says": "it is", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}]
    words = ("reproduce", claim(tmp_path, claims=said, small={"study": study}), "--page", "--output", out)
    (out / reproduction.PAGE[0]).write_text("mine")
    if text is not None:
        (out / "reproduction.json").write_text(text)
    code, _, error = command(capsys, *words)
    assert code == 2 and "not empty and holds no reproduction" in error
    assert (out / reproduction.PAGE[0]).read_text() == "mine"
    (out / reproduction.PAGE[0]).unlink()
    (out / "reproduction.json").unlink(missing_ok=True)
    assert command(capsys, *words)[0] == 0


@pytest.mark.parametrize("name", ["my.py", "my.py/", "notes.yaml/.", "notes.YAML"])
def test_no_table_takes_the_place_of_what_studies_are_made_of(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a slash behind it the file was none that is there."""
    study, file = make_study(tmp_path / "study", seeds=2), tmp_path / Path(name)
    file.write_text("mine")
    code, _, error = command(capsys, "export", study, "--table", "csv", "--output", f"{tmp_path}/{name}")
    assert code == 2 and "is no table, and none takes its place" in error and file.read_text() == "mine"
