"""The process that executes runs: it reads one request a line, and answers one line. `run` starts and feeds it.

A worker ends at once when its launcher is gone (its standard input closes), so that nothing goes on behind the user's
back. A run belongs to the worker that holds its lock: a POSIX lock, which the kernel drops when the process ends in
any way, so that no lock is ever stale, and which network file systems pass on to other machines. Several launchers may
share a folder.
"""

from __future__ import annotations

import functools
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_optim.core import importing
from hf_optim.core.notes import once
from hf_optim.errors import DamagedCheckpoint, UserError, one_line
from hf_optim.experiment.disk import MACHINE, NotNow, Unwritable, check_disk, check_error, check_space, unwritable
from hf_optim.experiment.files import Refused, check_tree, own_folder, remove, write_json
from hf_optim.experiment.leftovers import sweep
from hf_optim.experiment.own_training import FUNCTION, run_alone
from hf_optim.experiment.record import RECORD
from hf_optim.experiment.trackers import following
from hf_optim.study.folder.locks import Lock
from hf_optim.study.folder.store import read_record, read_status
from hf_optim.study.launch.messages import Answer, Request

STORED = "the study's folder alone says that it is to be run"
#: the `fault` by which one of several processes tells the worker that the disk takes no more, or that a checkpoint is
#: damaged: no record that stands
DISK, CHECKPOINT = "disk", "checkpoint"


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything this process prints, from C libraries too, goes to `path` meanwhile; an empty file is removed."""
    if path.is_dir() and not path.is_symlink():
        raise Refused(path.name, "is a folder, and is not replaced")
    saved = os.dup(1), os.dup(2)
    path.unlink(missing_ok=True)  # what stands there may be a link
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(file, 1), os.dup2(file, 2)
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, old in zip((1, 2), saved, strict=True):
            os.dup2(old, number)
            os.close(old)
        empty = os.fstat(file).st_size == 0
        os.close(file)
        if empty:
            path.unlink(missing_ok=True)


def execute(request: Request) -> str:
    """Executes one run unless it has a record; gives "ok", "failed", or "busy" if another process is at it.

    A run that the machine could not hold in memory gives "fault" and no record, unless this is its last attempt: then
    the record says so, and its checkpoints stay. What the run prints goes to `log.txt` in its folder. Checkpoints are
    removed once there is another record.

    Raises UserError, and leaves no record, where the disk is the problem, or a task of the user's own that cannot be
    imported or does not return what is asked of it: that says nothing about the run.
    """
    folder, run_id = request.folder, request.id
    lock = Lock(folder, run_id)
    if not lock.acquire():
        return "busy"
    try:
        home = own_folder(folder, "runs", run_id)
        status = read_status(home)
        if status is not None:
            if status not in ("ok", "failed"):  # of answers: "busy" would be waited for without end
                raise UserError(f"{home / RECORD}: not a record of a run; remove it")
            return status
        _check_unread(home)
        if not (request.checkpoint_every and any(home.glob("checkpoint-*"))):
            # What an interrupted run left is thrown away: a run is whole or it is not there.
            remove(folder, f"runs/{run_id}")
        home.mkdir(parents=True, exist_ok=True)
        check_tree(home)
        sweep(home)
        check_space(folder)
        started = time.time()
        once.cache_clear()  # each run has a log of its own
        try:
            with output_to(home / "log.txt"):
                _train(home, request)
        except importing.Unimportable as error:  # the task's file; nothing has run
            raise UserError(f"{error}; every run would end so: mend it, and the same command goes on") from error
        except Exception as error:
            check_error(folder, error)
            check_disk(folder)
            if read_status(home) is None:
                write_failure(home, run_id, request.spec, one_line(error), started)
        status = _settled(request, home)
        for left in home.glob("checkpoint-*") if status != "fault" and not _machine_fault(home) else ():
            with suppress(OSError):
                remove(home, left.name)
        return status
    finally:
        lock.release()


def _check_unread(home: Path) -> None:
    """Raise UserError where something stands in a record's place that nobody can read: it may be of a finished run,
    whose folder would be removed.
    """
    try:
        read_record(home)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (Refused, ValueError) as error:
        if isinstance(error, Refused) or (home / RECORD).stat().st_size:  # an empty file is what a crash leaves
            why = f"{home / RECORD}: cannot be read as a record ({one_line(error)})"
            raise UserError(f"{why}: mend or remove it, and give the same command again; nothing was removed") from None


def _settled(request: Request, home: Path) -> str:
    """What a run that has ended gives. A record that says nothing about the run does not stand: it is removed, and this
    is "fault", or raises UserError where every run would end so.
    """
    status = read_status(home) or "failed"
    if status == "failed" and _machine_fault(home):
        if request.last:
            write_json(request.folder, f"runs/{request.id}/{RECORD}", {**_record(home), "fault": "machine"})
        else:
            status = "fault"
    problem = _problem(request, home, status) if status != "fault" else None
    if problem or status == "fault":
        remove(request.folder, f"runs/{request.id}/{RECORD}")
    if problem:
        raise problem
    return status


def _problem(request: Request, home: Path, status: str) -> UserError | None:
    """Why every run would end as this one has; None where not."""
    if status != "ok":
        record = _record(home)
        if record.get("fault") == DISK:
            return Unwritable(str(record["error"]))
        try:
            check_error(request.folder, str(record.get("error")))
            check_disk(request.folder)
        except UserError as error:
            return error
    if (wrong := _unusable(request.folder, home, request.asks)) is not None:
        return UserError(f"{wrong}; every run would end so: mend it, and the same command goes on")
    return None


def _unusable(folder: Path, home: Path, asks: str | None) -> str | None:
    """What is wrong with a training of the user's own of which no run has returned what it should; None: nothing."""
    record = _record(home)
    if record.get("status") == "ok" and asks and asks not in record["metrics"]:
        return (
            f"{record['spec']['task']} returned {', '.join(record['metrics'])}, and no {asks}, by which tuning chooses"
        )
    if record.get("fault") != FUNCTION:
        return None
    others = (_record(other) for other in (folder / "runs").iterdir() if other.name != home.name)
    task = record["spec"]["task"]
    useful = any(other.get("status") == "ok" and other.get("spec", {}).get("task") == task for other in others)
    return None if useful else str(record["error"])


def _machine_fault(home: Path) -> bool:
    """Whether the record's reason is the machine's: memory that it does not have, a device that is lost."""
    return any(word in str(_record(home).get("error")) for word in MACHINE)


def _record(home: Path) -> dict[str, Any]:
    try:
        record = read_record(home)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _train(home: Path, request: Request) -> None:
    if request.processes == 1:
        train_stored(home, request)
        return
    ended = _train_together(home, request)
    if _record(home).get("fault") == CHECKPOINT and not _machine_fault(home):
        _begin_anew(home)
        ended = _train_together(home, request)
    if read_status(home) is None:
        raise RuntimeError(f"the run's {request.processes} processes ended with exit code {ended}: see log.txt")


def _train_together(home: Path, request: Request) -> int:
    """Trains in several processes; their exit code."""
    how = {"home": str(home), "worker": os.getpid(), "request": request.to_dict()}
    run = [sys.executable, "-P", "-m", "hf_optim.core.importing", "torch.distributed.run"]
    launch = [*run, "--standalone", f"--nproc-per-node={request.processes}"]
    return subprocess.run(
        [*launch, "-m", "hf_optim.study.launch.member", json.dumps(how)],
        check=False,
        preexec_fn=end_with_parent,
        # As -P, for the members: torchrun starts them without it, and the current folder may be a stranger's.
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    ).returncode


def _begin_anew(home: Path) -> None:
    for left in (*home.glob("checkpoint-*"), *home.glob(RECORD)):
        remove(home, left.name)


def train_stored(home: Path, request: Request) -> None:
    """Trains, in this process, a run that stands in a study's folder, or this process's part of it."""
    from hf_optim.experiment.spec import RunSpec

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    with importing.refused(STORED, request.trust), following(request.tracked) as tracking:
        spec = RunSpec.from_dict(request.spec)
        if alone and run_alone(spec, home):
            return
        from hf_optim.experiment.training import train  # Trainer: seconds

        run = functools.partial(
            train,
            spec,
            home,
            progress=False,
            checkpoint_every=request.checkpoint_every,
            resume=request.checkpoint_every is not None,
            **tracking,
        )
        try:
            run()
        except DamagedCheckpoint as error:
            if not alone or isinstance(error, NotNow):
                raise
            print(one_line(error), flush=True)  # to the run's log
            _begin_anew(home)
            run()


def end_with_parent() -> None:
    """From now on this process is killed when its parent ends in any way (Linux only)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def write_failure(
    home: Path, run_id: str, spec: dict[str, Any], why: str, started: float, fault: str | None = None
) -> None:
    """Leaves the record of a run that could not write its own; `fault` "machine": it is not the optimizer's."""
    record = {
        "id": run_id,
        "spec": spec,
        "status": "failed",
        "error": why,
        **({"fault": fault} if fault else {}),
        "metrics": {},
        "primary": None,
        "history": None,
        "time": {},
        "memory": {},
        "environment": {},
        "data": None,
        "started": _iso(started),
        "finished": _iso(time.time()),
    }
    write_json(home, RECORD, record)


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))


def _requests() -> queue.Queue[str]:
    lines: queue.Queue[str] = queue.Queue()
    # Not sys.stdin: who waits in it holds its lock, and a process that is forked meanwhile, as to read data ahead,
    # closes its own first of all, and would wait for that lock without end.
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def read() -> None:
        for line in requests:
            lines.put(line)
        # The launcher is gone, or wants no more of us.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return lines


def main() -> None:
    """Serves requests until its input closes."""
    # Answers get a channel of their own: whatever a library prints must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines = _requests()
    while True:
        request = Request.from_dict(json.loads(lines.get()))
        try:
            answer = Answer(request.id, execute(request))
        except OSError as error:
            answer = Answer(request.id, "broken", str(unwritable(request.folder, error)))
        except Exception as error:
            answer = Answer(request.id, "broken", one_line(error))
        answers.write(answer.line())
        answers.flush()


if __name__ in ("__main__", "__mp_main__"):  # the second in processes that multiprocessing starts for this one
    importing.ignore_current_folder()
if __name__ == "__main__":
    main()
