"""A study under load: the disk fills at any write, the folder moves, the clock goes back."""

from __future__ import annotations

import errno
import os
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from study_fakes import make_study
from tuning_fakes import expand, whole

import hf_optim.experiment.training as training
from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.experiment import leftovers
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.folder import merge
from hf_optim.study.folder.results import load
from hf_optim.study.folder.store import read_status
from hf_optim.study.launch import launcher, worker
from hf_optim.study.launch.messages import Request

WRITES = ("report", "merge")


def failing(monkeypatch: pytest.MonkeyPatch, number: int, error: int) -> Iterator[int]:
    """From now on the `number`-th file that is put in its place is not: as on a disk that is full just then."""
    replace, count = os.replace, 0

    def full(source: Any, target: Any, **more: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise OSError(error, os.strerror(error))
        replace(source, target, **more)

    monkeypatch.setattr(os, "replace", full)
    yield count
    monkeypatch.setattr(os, "replace", replace)


@pytest.mark.parametrize("command", WRITES)
def test_the_disk_fills_at_any_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "smaran"), seeds=1, steps=10)
    for number in range(1, 30):
        into = tmp_path / f"into {number}"
        arguments = ["report", str(study)] if command == "report" else ["results", str(study), "--merge", str(into)]
        disk = failing(monkeypatch, number, errno.ENOSPC)
        next(disk)
        code = main(arguments)
        next(disk, None)
        out, err = capsys.readouterr()
        if code == 0:
            break
        assert code == 2 and err.count("\n") == 1 and "the disk is full" in err
        hidden = [p.name for p in tmp_path.rglob(".*") if p.name != ".lock"]
        assert hidden == []
        assert main(arguments) == 0  # and the same command goes on
        capsys.readouterr()
    assert 5 < number < 29, "every write was tried"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 202880 vs 202768")],
    ids=str,
)
def test_a_checkpoint_that_the_disk_does_not_take_leaves_no_record(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run was a failed one, and finished, so that it could not be gone on with."""
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda *_, **__: (_ for _ in ()).throw(error))
    run = ["train", "--task", "vision", "--model", "mlp", "--size", "smoke", "--optimizer", "adamw", "--steps", "2"]
    run += ["--checkpoint-every", "1", "--output", str(tmp_path / "run")]
    assert main(run) == 2 and "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "run" / "record.json").exists()
    monkeypatch.setattr(torch, "save", real)
    assert main([*run, "--resume"]) == 0


def test_a_folder_that_is_moved_gets_no_second_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": "adamw"}, overrides={"steps": 2})
    old, new = tmp_path / "old", tmp_path / "new"
    real = training.final_metrics

    def moved(*arguments: Any) -> dict[str, float]:
        old.rename(new)
        return real(*arguments)

    monkeypatch.setattr(training, "final_metrics", moved)
    with pytest.raises(UserError, match="old.*cannot be written"):
        worker.execute(Request(old, spec.id, spec.to_dict()))
    assert not old.exists() and read_status(new / "runs" / spec.id) is None
    monkeypatch.undo()
    assert worker.execute(Request(new, spec.id, spec.to_dict())) == "ok"
    with pytest.raises(UserError, match="was moved or removed: the same command goes on, given its new place"):
        launcher.execute([launcher.Run(spec.id, "t", "adamw", 0, spec.to_dict())], old, launcher.Execution())
    assert not old.exists()


def test_a_clock_that_goes_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(2_000_000_000, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    planned = expand()
    folder = whole(planned, tmp_path / "study")
    (folder / "study.yaml").write_text("name: tuned\n")
    for place in (folder / "runs").iterdir():
        os.utime(place / "record.json", (0, 0))
    assert main(["report", str(folder)]) == 0
    first = (folder / "table.md").read_bytes()
    leftovers.sweep(folder)
    assert main(["report", str(folder)]) == 0 and (folder / "table.md").read_bytes() == first


def test_a_merge_that_was_killed_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, into = make_study(tmp_path / "study", ("adamw", "smaran"), seeds=1, steps=10), tmp_path / "into"
    real = merge.copy_whole

    def killed(*arguments: object) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(merge, "copy_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        merge.merge([study], into)
    assert not into.exists()
    monkeypatch.undo()
    merge.merge([study], into)
    assert len(load(into).records) == 2 and not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match="is not empty: choose a new folder"):
        merge.merge([study], tmp_path)


def test_what_many_runs_take_is_measured_to_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script asked for a function that was no more."""
    script = Path(__file__).resolve().parents[1] / "scripts" / "benchmark_report.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--runs", "100"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code and "100 records: " in capsys.readouterr().out
