"""Executes the runs of a plan that have no record yet, in worker processes, each with one thread.

Killed anywhere and started again, a study loses no finished run and repeats none: a record is written last and
atomically, half a run is thrown away, and a run belongs to whoever holds its lock (see `worker`). A run that raises or
diverges is a record with its reason. A worker process that dies is replaced and its run tried once more, as is a run
that ended for want of memory; if that recurs, the record says that the machine could not run it, which is not the
optimizer's failure. An interrupt records nothing.
"""

from __future__ import annotations

import glob
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from hf_optim.errors import UserError
from hf_optim.experiment.disk import check_disk, unwritable
from hf_optim.experiment.files import own_folder
from hf_optim.experiment.record import SHARERS
from hf_optim.experiment.trackers import Tracked
from hf_optim.study.folder import changes
from hf_optim.study.folder.locks import Lock
from hf_optim.study.launch.messages import Answer, Request
from hf_optim.study.launch.worker import write_failure
from hf_optim.study.plan.plan import Run

ATTEMPTS = 2  # a worker may die this often on one run before that is the run's result
#: so often if it was asked to end, which says more about the machine (a cluster that wants a node back) than the run
ATTEMPTS_ASKED = 10
_ASKED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGUSR1, -signal.SIGUSR2)
# How long to leave a run alone that another launcher holds: doubled each time, as it may be a long one.
_RETRY_SECONDS, _LONGEST_RETRY = 1.0, 10.0


def gpus() -> list[str]:
    """The GPUs that workers are spread over, as CUDA_VISIBLE_DEVICES names them; empty without one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [g for g in visible.split(",") if g.strip() and g.strip() != "-1"]
    return [str(i) for i in range(len(glob.glob("/dev/nvidia[0-9]*")))]


def default_jobs(gpus_per_run: int = 1, jobs_per_gpu: int = 1) -> int:
    """So many runs at a time on each GPU, or one on so many GPUs, or on each CPU core that this process may use."""
    if devices := gpus():
        return max(1, len(devices) // gpus_per_run) * jobs_per_gpu
    return max(1, len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else "1") // gpus_per_run)


@dataclass(frozen=True)
class Execution:
    """How runs are executed, whatever they are.

    Args:
        jobs: runs at a time.
        gpus_per_run: GPUs, each with a process, that train one model together (without GPUs, so many processes); None:
            one where there are any, and none for jobs of SLURM.
        jobs_per_gpu: runs that share a GPU.
        checkpoint_every: steps between checkpoints, from which an interrupted run goes on; None: it restarts.
        trust: let the workers run the code that the plan names (see `core.importing`).
        report_to: trackers that are fed as well.
    """

    jobs: int = 1
    gpus_per_run: int | None = None
    jobs_per_gpu: int = 1
    checkpoint_every: int | None = None
    trust: bool = False
    report_to: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        """That train one model together."""
        return self.gpus_per_run or 1

    @property
    def gpus(self) -> int:
        """That all the runs at a time need."""
        return math.ceil(self.jobs / self.jobs_per_gpu) * self.processes


@dataclass
class RunQueue:
    """What is waiting, running and finished; the slots' threads share it."""

    todo: Iterable[Run]
    total: int
    on_finish: Callable[[Run, str, float], None] | None = None
    running: dict[str, tuple[Run, float]] = field(default_factory=dict)
    finished: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    stopped: bool = False

    def __post_init__(self) -> None:
        self._waiting: deque[tuple[Run, float]] = deque((run, 0.0) for run in self.todo)
        self._deaths: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._busy: Counter[str] = Counter()
        self._seconds: dict[str, list[float]] = {}
        self._lock = threading.Condition()

    def take(self) -> Run | None:
        """The next run; waits while the only ones left are held elsewhere; None when nothing is left or all must
        stop.
        """
        with self._lock:
            while not self.stopped:
                now = time.monotonic()
                for _ in range(len(self._waiting)):
                    run, earliest = self._waiting.popleft()
                    if earliest <= now:
                        self.running[run.id] = run, now
                        return run
                    self._waiting.append((run, earliest))
                # A running one may come back (its worker can die), so the slots stay until all are finished.
                if not self._waiting and not self.running:
                    return None
                self._lock.wait(timeout=0.2)
            return None

    def finish(self, run: Run, status: str) -> None:
        """`run` has a record now."""
        with self._lock:
            _, started = self.running.pop(run.id)
            seconds = time.monotonic() - started
            self._seconds.setdefault(run.task, []).append(seconds)
            self.finished[run.id] = status
            self._lock.notify_all()
            if self.on_finish and not self.stopped:
                self.on_finish(run, status, seconds)

    def postpone(self, run: Run, seconds: float) -> None:
        """`run` goes to the end of the queue, not to be taken for so many seconds."""
        with self._lock:
            self.running.pop(run.id, None)
            self._waiting.append((run, time.monotonic() + seconds))
            self._lock.notify_all()

    def held_elsewhere(self, run: Run) -> None:
        """Another launcher is at `run`: it is postponed, each time for longer."""
        self._busy[run.id] += 1
        self.postpone(run, min(_LONGEST_RETRY, _RETRY_SECONDS * 2.0 ** (self._busy[run.id] - 1)))

    def died(self, run: Run, code: int) -> bool:
        """Counts a death of `run`'s worker with exit code `code`; True if that was one too many."""
        with self._lock:
            deaths = self._asked if code in _ASKED else self._deaths
            deaths[run.id] += 1
            return deaths[run.id] >= (ATTEMPTS_ASKED if code in _ASKED else ATTEMPTS)

    def last_attempt(self, run: Run) -> bool:
        """Whether another death of `run`'s worker, or want of memory, is its result."""
        return self._deaths[run.id] + 1 >= ATTEMPTS

    def stop(self, problem: str | None = None) -> None:
        """No further run is taken."""
        with self._lock:
            self.stopped = True
            self.problem = self.problem or problem
            self._lock.notify_all()

    def remaining_seconds(self, jobs: int) -> float | None:
        """An estimate from the runs finished so far; None before the first."""
        with self._lock:
            every = [s for times in self._seconds.values() for s in times]
            if not every:
                return None
            mean = {task: sum(s) / len(s) for task, s in self._seconds.items()}
            usual, now = sum(every) / len(every), time.monotonic()
            left = sum(mean.get(run.task, usual) for run, _ in self._waiting)
            left += sum(max(0.0, mean.get(run.task, usual) - (now - t)) for run, t in self.running.values())
            return left / jobs


class WorkerThread(threading.Thread):
    """One worker process and the thread that feeds it; a process serves many runs, so imports are paid once."""

    def __init__(
        self,
        board: RunQueue,
        folder: Path,
        environment: dict[str, str],
        how: Execution,
        asks: Mapping[str, str],
    ) -> None:
        super().__init__(daemon=True)
        self.board, self.folder, self.environment, self.how, self.asks = board, folder, environment, how, asks
        self.group = changes.read_plan(folder).name if how.report_to else ""
        self.process: subprocess.Popen[str] | None = None

    def run(self) -> None:
        """Serves runs until none is left."""
        try:
            while (run := self.board.take()) is not None:
                self._serve(run)
        except UserError as error:
            self.board.stop(str(error))
        except OSError as error:
            self.board.stop(str(unwritable(self.folder, error)))
        except Exception as error:  # a thread's error would otherwise vanish and leave the launcher waiting
            self.board.stop(f"the launcher failed: {type(error).__name__}: {error}")
        finally:
            self.close()

    def close(self) -> None:
        """Ends the worker."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _serve(self, run: Run) -> None:
        if not (self.folder / "plan.json").is_file():
            raise UserError(f"{self.folder}: was moved or removed: the same command goes on, given its new place")
        answer = self._ask(self._request(run))
        if answer is None:
            if not self.board.stopped:
                self._died(run)
            return
        match answer.status:
            case "busy":
                self.board.held_elsewhere(run)
            case "fault":
                self.board.died(run, 0)
                self.board.postpone(run, 0.0)
            case "broken":
                self.board.stop(answer.reason)
            case status:
                self.board.finish(run, status)

    def _request(self, run: Run) -> Request:
        how, trackers = self.how, self.how.report_to
        study = str(self.folder), self.group
        return Request(
            self.folder,
            run.id,
            dict(run.spec),
            last=self.board.last_attempt(run),
            asks=self.asks.get(run.task),
            checkpoint_every=how.checkpoint_every,
            processes=how.processes,
            trust=how.trust,
            tracked=Tracked(trackers, *study, run.task, run.optimizer, run.seed, run.id) if trackers else None,
        )

    def _died(self, run: Run) -> None:
        assert self.process is not None
        code = self.process.wait()
        if not self.board.died(run, code):
            self.board.postpone(run, 0.0)
        elif self._record_death(run, code):
            self.board.finish(run, "failed")
        else:
            self.board.held_elsewhere(run)

    def _ask(self, request: Request) -> Answer | None:
        """The worker's answer; None if it died."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                # -P: a file in the current folder must not shadow a package of the worker.
                [sys.executable, "-P", "-m", "hf_optim.study.launch.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                env=self.environment,
                # The terminal's Ctrl-C is for the launcher, which then ends the workers.
                start_new_session=True,
            )
        stdin, stdout = _pipes(self.process)
        try:
            stdin.write(json.dumps(request.to_dict()) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:
            return None
        return Answer(**json.loads(line)) if line.endswith("\n") else None

    def _record_death(self, run: Run, code: int) -> bool:
        lock = Lock(self.folder, run.id)
        if not lock.acquire():
            return False
        try:
            check_disk(self.folder)
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = " (out of memory?)" if code == -9 else ""
            often = ATTEMPTS_ASKED if code in _ASKED else ATTEMPTS
            why = f"the worker process {how} {often} times{hint}"
            home = own_folder(self.folder, "runs", run.id)
            write_failure(home, run.id, dict(run.spec), why, time.time(), "machine")
        finally:
            lock.release()
        return True


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _beside_program() -> str:
    """The folder of the script that Python was started with, where it looks for what the script imports: a task's file
    that imports its neighbours there does so in a worker, too. Empty after `-m` and in a notebook.
    """
    program = sys.modules.get("__main__")
    file = getattr(program, "__file__", None)
    if file is None or getattr(program, "__spec__", None) is not None or sys.flags.safe_path:
        return ""
    folder = str(Path(file).resolve().parent)
    return folder if folder in sys.path else ""


def environments(jobs: int, gpus_per_run: int = 1) -> list[dict[str, str]]:
    """The environment of each worker: one thread each on CPU, GPUs dealt out in turn, `gpus_per_run` to each; where
    there are more workers than that, several share a GPU and know it (`record.SHARERS`).
    """
    package_home = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(p for p in (package_home, _beside_program(), os.environ.get("PYTHONPATH", "")) if p)
    common = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    devices = gpus()
    if devices:
        shares = len(devices) // gpus_per_run
        if shares < 1:
            raise UserError(f"--gpus-per-run: {gpus_per_run} asked for, and {len(devices)} can be seen here")
        dealt = [",".join(devices[i * gpus_per_run : (i + 1) * gpus_per_run]) for i in range(shares)]
        sharers = {SHARERS: str(math.ceil(jobs / shares))}
        return [{**common, **sharers, "CUDA_VISIBLE_DEVICES": dealt[i % shares]} for i in range(jobs)]
    # Two threads in each of two workers on two cores run nearly ten times slower than one each.
    return [{**common, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} for _ in range(jobs)]


def execute(
    todo: list[Run],
    folder: Path,
    how: Execution,
    *,
    asks: Mapping[str, str] | None = None,
    on_finish: Callable[[Run, str, float], None] | None = None,
    watch: Callable[[RunQueue], None] | None = None,
) -> dict[str, str]:
    """Executes `todo` in `how.jobs` worker processes and gives each run's status ("ok" or "failed") by id.

    `asks` names the figure by which runs are chosen, by their task's label. `on_finish` is called (from a worker's
    thread) with run, status and seconds; `watch` five times a second with the board. On KeyboardInterrupt the workers
    are ended, nothing is recorded for what they were at, and the interrupt goes on. Raises UserError when the folder
    takes no more files: finished runs are kept.
    """
    board = RunQueue(todo, len(todo), on_finish)
    each = environments(min(how.jobs, len(todo)), how.processes) if todo else []
    slots = [WorkerThread(board, folder, environment, how, asks or {}) for environment in each]
    for slot in slots:
        slot.start()
    try:
        while any(slot.is_alive() for slot in slots):
            if watch:
                watch(board)
            time.sleep(0.2)
    except BaseException:
        board.stop()
        for slot in slots:
            slot.close()
        raise
    if watch:
        watch(board)
    if board.problem:
        raise UserError(board.problem)
    return dict(board.finished)
