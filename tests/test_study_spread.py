"""Spreading a study over jobs: several launchers share a folder, and a job that is requeued takes up what is left."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from hf_optim.commands.main import main
from hf_optim.core import extras
from hf_optim.errors import UserError
from hf_optim.experiment.files import write_atomically
from hf_optim.study.folder.store import read_status
from hf_optim.study.launch import beginning, launcher
from hf_optim.study.launch import jobs as spread
from hf_optim.study.launch.jobs import Launch, Share
from hf_optim.study.launch.launcher import Execution
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan.plan import Plan, Run
from hf_optim.study.plan.source import parse

submitit = pytest.importorskip("submitit")
YAML = """name: s
seeds: {seeds}
tasks: [{task}]
optimizers: [{{name: adamw, lr: 1e-3}}]
"""
#: without the imports of a Trainer
WAITS = f"{Path(__file__).with_name('study_troubled_task.py')}:waits"


def prepared(folder: Path, seeds: int, task: str = "{task: vision, model: mlp, size: smoke}") -> Plan:
    text = YAML.format(seeds=seeds, task=task)
    plan = planning.expand(parse(text, "s.yaml"))
    beginning.prepare(plan, text, folder)
    return plan


def finish(folder: Path, ended: Run) -> None:
    record = {"id": ended.id, "spec": dict(ended.spec), "status": "ok", "metrics": {"test_accuracy": 0.5}}
    write_atomically(folder, f"runs/{ended.id}/record.json", json.dumps(record))


def test_debug_jobs_run_here_and_the_rest_of_the_array_finds_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = prepared(tmp_path / "s", 3)
    calls = []

    def execute(todo: list[Run], folder: Path, how: Execution, **_: object) -> None:
        calls.append((len(todo), how.jobs, how.processes))
        for ended in todo:
            finish(folder, ended)

    monkeypatch.setattr(launcher, "execute", execute)
    how = Launch("debug", array=2)
    assert spread.launch(tmp_path / "s", plan, how, Execution(), Console(width=200))
    assert calls == [(3, 1, 1), (0, 1, 1)]
    out = capsys.readouterr().out
    assert "3 runs for 2 debug jobs" in out and "[3/3] ok" in out
    # Nothing is submitted for a study that is finished.
    assert spread.launch(tmp_path / "s", plan, how, Execution(), Console()) and len(calls) == 2


def test_a_problem_of_the_folder_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepared(tmp_path / "s", 2)

    def execute(*_: object, **__: object) -> None:
        raise UserError("the disk is full: make space")

    monkeypatch.setattr(launcher, "execute", execute)
    # submitit's debug jobs write no result file, so the job is asked itself.
    monkeypatch.setattr(spread, "_problem", lambda job: job.results()[0]["problem"])
    with pytest.raises(UserError, match="the disk is full"):
        spread.launch(tmp_path / "s", plan, Launch("debug"), Execution(), Console())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the job's task through /proc")
def test_two_jobs_share_a_folder_and_an_interrupted_one_is_requeued(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    (gate := tmp_path / "gate").touch()
    plan = prepared(folder, 4, f"{{task: '{WAITS}', options: {{gate: '{gate}'}}}}")
    share = Share(str(folder), Execution(checkpoint_every=5, trust=True))
    how = Launch("local", array=2, minutes=10)
    jobs = spread._submit(folder, how, share, 2)
    homes = [folder / "runs" / ended.id for ended in plan.runs]
    try:
        deadline = time.monotonic() + 600  # hangs, and no verdict on speed
        # Each in the middle of a run: it is begun and has no record.
        while [read_status(home) or (home / "log.txt").exists() for home in homes] != ["ok", "ok", True, True]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        done = {home: (home / "record.json").stat().st_mtime_ns for home in homes if read_status(home)}
        # The signal that SLURM sends before it takes the node back goes to the task, a child of submitit's controller.
        for job in jobs:
            controller = Path(f"/proc/{job.job_id}/task/{job.job_id}/children")
            os.kill(int(controller.read_text().split()[0]), signal.SIGUSR2)
        while not all((job.stdout() or "").count("Starting with") == 2 for job in jobs):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        gate.unlink()
        while not all(job.done() for job in jobs):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.cancel()
    assert [spread._problem(job) for job in jobs] == ["", ""]
    assert [read_status(home) for home in homes] == ["ok"] * 4
    assert all((home / "record.json").stat().st_mtime_ns == when for home, when in done.items())
    told = [line for job in jobs for line in job.stdout().splitlines() if line.startswith("ok ")]
    assert len({line.split("(")[0] for line in told}) == 4
    for job in jobs:
        assert job.stdout().count("Starting with") == 2 and "Requeued job" in job.stdout()


def test_slurm_is_asked_for_what_a_run_needs() -> None:
    how = Launch("slurm", array=50, minutes=60, cpus_per_run=4, partition="gpu", sbatch={"account": "me"})
    given = spread.parameters(how, Execution(2, gpus_per_run=1))
    assert given["gpus_per_node"] == 2 and given["cpus_per_task"] == 8 and given["timeout_min"] == 60
    assert given["slurm_partition"] == "gpu" and given["slurm_array_parallelism"] == 50
    assert given["slurm_additional_parameters"] == {"requeue": True, "account": "me"}
    assert not any("CUDA" in line for line in given["slurm_setup"])
    # A job that asked for no GPU must not take one that it sees.
    none = spread.parameters(how, Execution(2))
    assert "gpus_per_node" not in none and "export CUDA_VISIBLE_DEVICES=" in none["slurm_setup"]
    executor = submitit.AutoExecutor("/nowhere", cluster="debug")
    executor.update_parameters(**given)  # its names, checked by submitit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--array", "4"), "--array belongs to jobs"),
        (("--no-wait",), "--no-wait belongs to jobs"),
        (("--launch", "local", "--array", "0"), "--array must be at least 1"),
        (("--launch", "local", "--time", "-1"), "--time must be at least 1"),
        (("--launch", "slurm", "--sbatch", "account"), "write KEY=VALUE"),
        (("--launch", "pbs"), "invalid choice"),
        (("--gpus-per-run", "0"), "--gpus-per-run must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    try:
        code = main(("study", "smoke", "--output", str(tmp_path / "s"), *arguments))
    except SystemExit as end:
        code = int(end.code or 0)
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and message in err and not (tmp_path / "s").exists()


def test_without_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepared(tmp_path / "s", 1)
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UserError, match="there is no sbatch here"):
        spread.launch(tmp_path / "s", plan, Launch("slurm"), Execution(), Console())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--launch", "slurm"), "there is no sbatch here"),
        (("--launch", "local"), "--launch needs submitit"),
        (("--gpus-per-run", "2"), "2 asked for, and 1 can be seen"),
    ],
)
def test_failed_runs_keep_their_records_where_none_can_be_run_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    """They were removed, and then nothing was run."""
    plan = prepared(tmp_path / "s", 2)
    finish(tmp_path / "s", plan.runs[0])
    file = tmp_path / "s" / "runs" / plan.runs[1].id / "record.json"
    finish(tmp_path / "s", plan.runs[1])
    file.write_text(failed := file.read_text().replace('"ok"', '"failed"'))
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(launcher, "gpus", lambda: ["0"])
    if "submitit" in message:
        monkeypatch.setattr(extras, "find_spec", lambda module: module != "submitit" or None)
    (tmp_path / "s.yaml").write_text(YAML.format(seeds=2, task="{task: vision, model: mlp, size: smoke}"))
    again = ("study", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "s"), "--retry-failed", *words)
    assert main(again) == 2 and message in capsys.readouterr().err
    assert file.read_text() == failed
    file.write_text(failed.replace('"failed"', '"ok"'))  # nothing to run: nothing is asked for
    assert main(again) == 0
