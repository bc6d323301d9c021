"""Running a study: killed anywhere it goes on, and its table is that of a study that was never killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hf_optim.commands.main import main
from hf_optim.errors import UserError
from hf_optim.experiment.files import write_atomically
from hf_optim.study.folder.locks import Lock
from hf_optim.study.folder.store import read_status
from hf_optim.study.launch import launcher as run
from hf_optim.study.plan.plan import Run

ROOT = Path(__file__).resolve().parents[1]
TROUBLED = Path(__file__).with_name("study_troubled_task.py")
RESULTS = ("table.md", "table.csv", "runs.csv")


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True, scope="module")
def nothing_stays_behind() -> Iterator[None]:
    yield
    for process in _started:
        process.kill()
        process.wait()


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_optim.commands.main", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
        # a shell in the background starts its children with interrupts ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    _started.append(process)
    return process


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def records(folder: Path) -> dict[str, int]:
    """Each finished run's record and the time it was written: a run made twice would have a new one."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}


def begun(folder: Path) -> list[str]:
    """The runs that somebody is at."""
    return [home.name for home in folder.glob("runs/*") if any(home.iterdir()) and read_status(home) is None]


def descendants(process: int) -> Iterator[int]:
    # A child belongs to the thread that started it.
    for thread in Path(f"/proc/{process}/task").iterdir():
        yield from map(int, (thread / "children").read_text().split())


def killed_worker(launcher: int) -> bool:
    """Kills a launcher's worker, if it has one: other children of it come and go."""
    for process in descendants(launcher):
        with contextlib.suppress(OSError):
            if b"launch.worker" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
                return True
    return False


def run_whole(folder: Path) -> Path:
    """The smoke study, run without a disturbance."""
    launcher = start("study", "smoke", "--output", str(folder), "--jobs", "1")
    text, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, text
    assert "[6/6] ok" in text and "Report:" in text
    return folder


def check_what_a_study_leaves(whole: Path) -> None:
    """A record for every planned run, tables and report, and nothing else."""
    assert sorted(p.name for p in whole.iterdir()) == sorted(
        [
            ".lock",
            "study.yaml",
            "pages",
            "plan.json",
            "runs",
            "runs.parquet",
            "questions.jsonl",
            "report.html",
            "costs.md",
            "costs.csv",
            "statistics.md",
            "statistics.json",
            *RESULTS,
        ]
    )
    planned = json.loads((whole / "plan.json").read_text())["runs"]
    assert {r["id"] for r in planned} == {p.name for p in (whole / "runs").iterdir()}
    for planned_run in planned:
        record = json.loads((whole / "runs" / planned_run["id"] / "record.json").read_text())
        assert (record["id"], record["status"]) == (planned_run["id"], "ok")


def check_pairing(whole: Path) -> None:
    """Before its first step every optimizer of a seed has the same model, and other seeds have another."""
    first: dict[int, set[float]] = {}
    for planned in json.loads((whole / "plan.json").read_text())["runs"]:
        rows = [json.loads(x) for x in (whole / "runs" / planned["id"] / "history.jsonl").read_text().splitlines()]
        loss = next(r["train_loss"] for r in rows if "train_loss" in r and r["step"] == 1)
        first.setdefault(planned["seed"], set()).add(loss)
    assert [len(losses) for losses in first.values()] == [1, 1]
    assert first[0] != first[1]


def test_a_study_is_whole(tmp_path: Path) -> None:
    whole = run_whole(tmp_path / "whole")
    check_what_a_study_leaves(whole)
    check_pairing(whole)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker through /proc")
def test_one_killed_three_times_gives_the_same_table(tmp_path: Path) -> None:
    """Of runs that import no Trainer, which is most of what a short study takes: scripts/kill_study.py kills others."""
    study = tmp_path / "s.yaml"
    study.write_text(f"name: slow\nseeds: 2\noptimizers: [sgd, adamw, smaran]\ntasks: ['{TROUBLED}:takes_its_time']\n")
    whole, folder = tmp_path / "whole", tmp_path / "study"
    assert main(["study", str(study), "--output", str(whole), "--jobs", "1"]) == 0
    arguments = ("study", str(study), "--output", str(folder), "--jobs", "1")

    # The launcher is killed: its worker must not go on alone.
    launcher = start(*arguments)
    wait_for(lambda: len(records(folder)) >= 1)
    workers = list(descendants(launcher.pid))
    assert len(workers) == 1
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not any(_alive(w) for w in workers))
    kept = records(folder)

    # The launcher is interrupted: says so, leaves with 130, and records nothing for the run it was at.
    launcher = start(*arguments)
    wait_for(lambda: len(records(folder)) > len(kept))
    launcher.send_signal(signal.SIGINT)
    text, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 130 and "interrupted" in text and "Traceback" not in text, text
    assert all(read_status(p.parent) == "ok" for p in folder.glob("runs/*/record.json"))
    after = records(folder)
    assert kept.items() <= after.items()

    # A worker is killed: the same launcher tries the run once more.
    launcher = start(*arguments)
    wait_for(lambda: begun(folder) and killed_worker(launcher.pid))
    text, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, text

    assert after.items() <= records(folder).items(), "a finished run was run again"
    for name in RESULTS:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_failed_and_killed_runs_are_records_and_the_study_goes_on(tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(
        "name: troubled\nseeds: 1\noptimizers: [sgd]\ntasks:\n"
        f"  - {{task: '{TROUBLED}:dies', label: dies}}\n"
        f"  - {{task: '{TROUBLED}:TASK', model: raises, size: smoke, label: raises}}\n"
    )
    folder = tmp_path / "out"
    launcher = start("study", str(study), "--output", str(folder), "--jobs", "1")
    text, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 1, text
    reasons = {}
    for planned in json.loads((folder / "plan.json").read_text())["runs"]:
        record = json.loads((folder / "runs" / planned["id"] / "record.json").read_text())
        assert record["status"] == "failed"
        reasons[planned["task"]] = record["error"]
    assert "killed by signal 9 2 times" in reasons["dies"]
    assert "the disk is on fire" in reasons["raises"]
    assert "1/1 run failed" in text and all("\n" not in r for r in reasons.values())


def test_a_lock_is_exclusive_and_never_stale(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from hf_optim.study.folder.locks import Lock\n"
        "print(Lock(Path(sys.argv[1]), 'one').acquire(), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "True\n"
    mine, another = Lock(tmp_path, "one"), Lock(tmp_path, "two")
    assert not mine.acquire()
    assert another.acquire()
    # Letting go of one run must not let go of another that this process holds.
    third = Lock(tmp_path, "three")
    assert third.acquire()
    third.release()
    other.kill()
    other.communicate()
    assert mine.acquire()
    process = subprocess.run([*command[:2], script.replace("'one'", "'two'").replace("60", "0"), str(tmp_path)],
                         cwd=ROOT, capture_output=True, text=True, check=True)  # fmt: skip
    assert process.stdout == "False\n"
    mine.release()
    another.release()


def test_the_board_postpones_what_another_launcher_holds() -> None:
    runs = [Run(str(i), "t", "o", i, {}) for i in range(2)]
    board = run.RunQueue(runs, 2)
    first = board.take()
    assert first is runs[0]
    began = time.monotonic()
    board.postpone(first, 0.3)
    second = board.take()
    assert second is runs[1]
    board.finish(second, "ok")
    assert board.take() is runs[0] and time.monotonic() - began >= 0.3  # a lower bound: load cannot break it
    board.finish(runs[0], "failed")
    assert board.take() is None and board.finished == {"0": "failed", "1": "ok"}


def test_a_worker_may_die_once_on_a_run() -> None:
    board = run.RunQueue([], 0)
    queued = Run("a", "t", "o", 0, {})
    assert [board.died(queued, -signal.SIGKILL), board.died(queued, -signal.SIGKILL)] == [False, True]
    # A cluster that takes a node back asks politely, and says nothing about the run.
    two = Run("b", "t", "o", 0, {})
    deaths = [board.died(two, -signal.SIGTERM) for _ in range(run.ATTEMPTS_ASKED)]
    assert deaths == [False] * (run.ATTEMPTS_ASKED - 1) + [True]


def test_a_run_that_is_held_elsewhere_is_asked_for_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    board, waits = run.RunQueue([], 0), []
    monkeypatch.setattr(board, "postpone", lambda _, seconds: waits.append(seconds))
    for _ in range(6):
        board.held_elsewhere(Run("a", "t", "o", 0, {}))
    assert waits == [1, 2, 4, 8, 10, 10]


def test_workers_have_one_thread_each_or_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [e["OMP_NUM_THREADS"] for e in run.environments(2)] == ["1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in run.environments(3)] == ["0", "3", "0"]
    assert run.default_jobs() == 2 and run.default_jobs(2) == 1
    assert [e["CUDA_VISIBLE_DEVICES"] for e in run.environments(2, 2)] == ["0,3", "0,3"]
    with pytest.raises(UserError, match="--gpus-per-run: 3 asked for, and 2 can be seen"):
        run.environments(1, 3)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomically(tmp_path, "f", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path, "f", "half \ud800")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["f"]
