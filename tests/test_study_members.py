"""A run that several processes train together: one record, and nobody goes on when the worker is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hf_optim.errors import DamagedCheckpoint
from hf_optim.experiment import training
from hf_optim.experiment.disk import NotNow, Unwritable
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.launch import member, worker
from hf_optim.study.launch.messages import Request

ROOT = Path(__file__).resolve().parents[1]
SPEC = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": "adamw", "lr": 0.001})


def members(folder: Path) -> list[int]:
    """The processes that train the run in `folder`."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode().split("\0")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if "hf_optim.study.launch.member" in command and any(str(folder) in part for part in command) and state != "Z":
            pids.append(int(process.name))
    return pids


@pytest.mark.skipif(sys.platform != "linux", reason="a process that ends with its parent is Linux's")
def test_two_processes_leave_one_record_and_end_with_their_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    how = {"folder": str(tmp_path / "killed"), "id": SPEC.id, "spec": SPEC.to_dict()}
    started = subprocess.Popen(
        [sys.executable, "-P", "-m", "hf_optim.study.launch.worker"],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert started.stdin is not None
    started.stdin.write(json.dumps({**how, "checkpoint_every": None, "processes": 2, "trust": False}) + "\n")
    started.stdin.flush()
    deadline = time.monotonic() + 600  # hangs, and no verdict on speed
    while len(members(tmp_path)) < 3:  # torchrun and its two
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    while members(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)

    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "torch.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit(1)")
    monkeypatch.chdir(tmp_path / "theirs")  # a file in the current folder is nobody's torch
    assert worker.execute(Request(tmp_path / "s", SPEC.id, SPEC.to_dict(), processes=2)) == "ok"
    assert not (tmp_path / "ran").exists()
    record = json.loads((tmp_path / "s" / "runs" / SPEC.id / "record.json").read_text())
    assert record["id"] == SPEC.id and record["environment"]["processes"] == 2
    assert 0 < record["metrics"]["test_accuracy"] <= 1


def test_processes_that_fail_are_the_runs_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    assert worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), processes=2)) == "failed"
    record = json.loads((tmp_path / "runs" / SPEC.id / "record.json").read_text())
    assert "the run's 2 processes ended with exit code 1" in record["error"]


def test_a_disk_that_is_full_is_no_failure_of_a_run_of_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a process had said there was an exit code, and that was the optimizer's failure."""

    def full(*_: object, **__: object) -> None:
        raise Unwritable("s: the disk is full (File too large)")

    def as_one_of_them(home: Path, request: Request) -> None:
        how = {"home": str(home), "worker": os.getpid(), "request": request.to_dict()}
        monkeypatch.setattr(sys, "argv", ["member", json.dumps(how)])
        with pytest.raises(Unwritable):
            member.main()

    monkeypatch.setattr(member, "end_with_parent", lambda: None)
    monkeypatch.setattr(member, "_parent", lambda _: os.getpid())
    monkeypatch.setattr(training, "train", full)
    monkeypatch.setattr(worker, "_train", as_one_of_them)
    with pytest.raises(Unwritable, match="the disk is full"):
        worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), processes=2))
    assert not (tmp_path / "runs" / SPEC.id / "record.json").exists()


@pytest.mark.parametrize("now", [False, True])
def test_a_damaged_checkpoint_is_no_failure_of_a_run_of_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: bool
) -> None:
    """It was one, and whatever checkpoints there were had gone; without the memory for them they stay."""
    (left := tmp_path / "runs" / SPEC.id / "checkpoint-7").mkdir(parents=True)

    def train(spec: RunSpec, home: Path, **_: object) -> None:
        if left.exists():
            raise NotNow("resume: MemoryError") if now else DamagedCheckpoint("resume: it is damaged")
        worker.write_failure(home, spec.id, spec.to_dict(), "begun anew", 0.0)

    def as_one_of_them(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["member", command[-1]])
        with suppress(DamagedCheckpoint):
            member.main()
        return subprocess.CompletedProcess([], 1)

    monkeypatch.setattr(member, "end_with_parent", lambda: None)
    monkeypatch.setattr(member, "_parent", lambda _: os.getpid())
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(subprocess, "run", as_one_of_them)
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = worker.execute(Request(tmp_path, SPEC.id, SPEC.to_dict(), checkpoint_every=1, processes=2, last=False))
    assert (ended, left.exists()) == (("fault", True) if now else ("failed", False))
    if not now:
        assert json.loads((left.parent / "record.json").read_text())["error"] == "begun anew"
