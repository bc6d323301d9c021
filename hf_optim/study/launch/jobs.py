"""Spreads a study's runs over jobs: of a SLURM cluster, or processes of this machine. submitit submits them.

Each job is a launcher like `hf-optim study`: it takes runs from the shared folder until none is left, so jobs may come,
go and be as many as one likes, and nothing has to be dealt out. A job that is preempted, requeued or out of time leaves
finished runs finished; the run it was at is taken up by the next job that comes by, from its last checkpoint where
there are checkpoints. All the machines must see the folder, and each other's locks on it.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_optim.core import extras, importing
from hf_optim.core import safe_text as safe
from hf_optim.core.safe_text import terminal
from hf_optim.core.validate import closest
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.files import own_folder
from hf_optim.study.folder import stages
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.folder.locks import check_shared
from hf_optim.study.folder.results import describe
from hf_optim.study.folder.standing import known, pending
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.launch import launcher as run
from hf_optim.study.launch.follow import follow
from hf_optim.study.launch.launcher import Execution
from hf_optim.study.launch.progress import duration
from hf_optim.study.plan.plan import Plan, Run

if TYPE_CHECKING:
    from rich.console import Console

Where = Literal["slurm", "local", "debug"]
WHERE: tuple[Where, ...] = ("slurm", "local", "debug")
#: submitit's files: logs, and what it hands to jobs
JOBS = "jobs"
#: where a job finds this package; PYTHONSAFEPATH beside it: no file in the current folder shadows another
HOME = str(Path(__file__).resolve().parents[3])
REQUEUES = 1000  # submitit counts the times that a job ran out of time; a study ends when its runs do
_LOOK_SECONDS = 1.0
#: in a path: what a number takes the place of, what ends that, and what begins a line of its own in a job's script
_READ = re.compile(r"%[%\w]|\\|[\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True)
class Launch:
    """How many jobs, where, and what each of them is given.

    Args:
        where: "slurm", "local" (processes of this machine) or "debug" (one after the other in this process).
        array: most jobs at a time; there are never more than runs to do.
        minutes: a job's limit; a job that reaches it is requeued.
        cpus_per_run: cores for each run at a time (with SLURM).
        partition: SLURM's; default the cluster's own.
        sbatch: more of sbatch's options, by name without dashes: {"account": "x", "mem": "32G"}.
        wait: stay until the jobs have ended, and then make the report.
    """

    where: Where
    array: int = 1
    minutes: int = 240
    cpus_per_run: int = 1
    partition: str | None = None
    sbatch: Mapping[str, str] = field(default_factory=dict)
    wait: bool = True

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            near = closest(str(self.where), WHERE)
            raise UserError(f"--launch: choose from {', '.join(WHERE)}, got {self.where!r}{near}")
        for option, number in (("array", self.array), ("time", self.minutes), ("cpus-per-run", self.cpus_per_run)):
            if number < 1:
                raise UserError(f"--{option} must be at least 1, got {number}")


@dataclass(frozen=True)
class Share:
    """What a job does: take runs from `folder` until none is left. submitit pickles it."""

    folder: str
    how: Execution

    def __call__(self) -> dict[str, Any]:
        """How many runs this job saw to their end, and the problem that stopped it ("" if none)."""
        importing.ignore_current_folder()
        folder, count = Path(self.folder), 0

        def finished(ended: Run, status: str, seconds: float) -> None:
            nonlocal count
            count += 1
            print(terminal(f"{status:6s} {describe(ended)} ({seconds:.1f} s)"), flush=True)

        problem = ""
        try:
            for stage in follow(read_plan(folder), folder):
                run.execute(list(stage.todo), folder, self.how, asks=stage.asks, on_finish=finished)
        except UserError as error:
            problem = str(error)
        return {"runs": count, "problem": problem}

    def checkpoint(self) -> Any:
        """What a requeued job does: the same, for the folder itself says what is left."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check(folder: Path, how: Launch | None, execution: Execution) -> None:
    """Raise UserError, before anything is written, where no run could be started so (None: by this process): too few
    GPUs, no SLURM, no submitit, a folder that cannot be shared or named in a job's script.
    """
    slurm = how is not None and how.where == "slurm"
    if not slurm:
        run.environments(execution.jobs, execution.processes)
    if how is not None:
        extras.installed("--launch", "slurm")
        check_shared(folder)
    if slurm and shutil.which("sbatch") is None:
        raise UserError("--launch slurm: there is no sbatch here: run this on a machine that submits to the cluster")
    if how is not None and (found := _READ.search(path := str(folder.resolve()))):
        raise UserError(
            f"--launch: the path {path} has {found[0]!r} in it, which submitit or SLURM would read as "
            "something else: rename the folder"
        )


def launch(folder: Path, plan: Plan, how: Launch, execution: Execution, console: Console) -> bool:
    """Submits jobs for what is left of the study in `folder`, each of which executes it so, and waits for them unless
    told not to.

    Gives whether it stayed until they ended. Raises UserError as `check` does, where sbatch refuses, and if jobs were
    stopped by a problem of the folder.
    """
    reader = RecordStore(folder)
    left = stages.run_count(plan) - sum(reader.record(planned.id) is not None for planned in known(plan, reader))
    if not pending(plan, reader):
        return True
    check(folder, how, execution)
    count = min(how.array, math.ceil(left / execution.jobs))
    submitted = _submit(folder, how, Share(str(folder.resolve()), execution), count)
    names = f"{submitted[0].job_id}{f' to {submitted[-1].job_id}' if count > 1 else ''}"
    safe.say(
        console, f"{counted(left, 'run')} for {counted(count, f'{how.where} job')} ({names}), logs in {folder / JOBS}"
    )
    if not how.wait:
        report = shlex.join(["hf-optim", "report", str(folder)])
        safe.say(console, f"the jobs go on alone; this makes the report of what is finished: {report}")
        return False
    try:
        problems = _wait(folder, plan, how, submitted, console)
    except KeyboardInterrupt:
        if how.where == "slurm":
            safe.say(console, f"the jobs go on; scancel {submitted[0].job_id.split('_')[0]} ends them")
        else:
            for job in submitted:
                job.cancel(check=False)
        raise
    if problems:
        raise UserError(problems[0])
    return True


def _submit(folder: Path, how: Launch, share: Share, count: int) -> list[Any]:
    import submitit

    more = {} if how.where == "debug" else {f"{how.where}_max_num_timeout": REQUEUES}
    try:
        # A name that nobody knows: submitit hands pickles over in it, and reads back whatever bears a job's number.
        own = own_folder(folder.resolve(), JOBS, uuid.uuid4().hex[:12])
        executor = submitit.AutoExecutor(own, cluster=how.where, **more)
        executor.update_parameters(**parameters(how, share.how))
        if how.where == "local":
            # Each process gets GPUs of its own, as far as there are any.
            return [_submit_local(executor, share, number) for number in range(count)]
        with executor.batch():
            return [executor.submit(share) for _ in range(count)]
    except (subprocess.CalledProcessError, submitit.core.utils.FailedJobError, RuntimeError) as error:
        text = getattr(error, "stderr", None) or str(error)
        lines = [line for line in str(text).splitlines() if line.strip()]
        raise UserError(f"--launch {how.where}: not submitted: {lines[-1].strip() if lines else error}") from None


def _submit_local(executor: Any, share: Share, number: int) -> Any:
    devices = [int(g) for g in run.gpus() if g.isdigit()]
    each = share.how.gpus
    mine = [devices[(number * each + k) % len(devices)] for k in range(each)] if len(devices) >= each else devices
    executor.update_parameters(gpus_per_node=len(mine))
    # The one parameter of submitit's local executor that its front does not pass on.
    executor._executor.parameters["visible_gpus"] = tuple(mine)
    before = dict(os.environ)
    os.environ.update(PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join(filter(None, (HOME, before.get("PYTHONPATH")))))
    try:
        return executor.submit(share)
    finally:
        os.environ.clear()
        os.environ.update(before)


def parameters(how: Launch, execution: Execution) -> dict[str, Any]:
    """submitit's parameters for one job."""
    given: dict[str, Any] = {"name": "hf-optim", "timeout_min": how.minutes}
    if how.where != "slurm":
        return given
    setup = [f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(HOME)}${{PYTHONPATH:+:$PYTHONPATH}}"]
    if execution.gpus_per_run is None:
        setup.append("export CUDA_VISIBLE_DEVICES=")  # a node may show GPUs that are not this job's
    given |= {
        "cpus_per_task": how.cpus_per_run * execution.jobs,
        "slurm_array_parallelism": how.array,
        "slurm_setup": setup,
        "slurm_additional_parameters": {"requeue": True, **how.sbatch},
    }
    given |= {"gpus_per_node": execution.gpus} if execution.gpus_per_run else {}
    return given | ({"slurm_partition": how.partition} if how.partition else {})


def _wait(folder: Path, plan: Plan, how: Launch, jobs: Sequence[Any], console: Console) -> list[str]:
    """Waits until every job has ended; tells of each run that is finished; gives the problems that stopped jobs."""
    began, reader, total = time.monotonic(), RecordStore(folder), stages.run_count(plan)
    told = {ended.id for ended in known(plan, reader) if reader.record(ended.id) is not None}
    before, alive, left = len(told), True, True
    while alive:
        if how.where == "debug":
            for job in jobs:
                job.results()
        alive = _alive(how.where, jobs)
        looked = time.monotonic()
        for ended in known(plan, reader):
            record = reader.record(ended.id)
            if record is not None and ended.id not in told:
                told.add(ended.id)
                safe.say(console, f"[{len(told)}/{total}] {record.get('status', 'failed'):6s} {describe(ended)}")
        left = bool(pending(plan, reader))
        if how.where == "slurm" and alive and not left:
            # Those that still wait for a node have nothing to do.
            subprocess.run(["scancel", "--state=PENDING", _array(jobs)], capture_output=True, check=False)
            alive = False
        if alive:  # a large study takes long to look through: not all the time
            time.sleep(max(_LOOK_SECONDS, 10 * (time.monotonic() - looked)))
    safe.say(console, f"{counted(len(told) - before, 'run')} in {duration(time.monotonic() - began)}")
    return [problem for job in jobs if (problem := _problem(job))] if left else []


def _array(jobs: Sequence[Any]) -> str:
    return str(jobs[0].job_id).split("_")[0]


def _alive(where: Where, jobs: Sequence[Any]) -> bool:
    """Whether a job runs or waits to. SLURM's queue is asked: its accounting, which submitit asks, may be off."""
    if where == "debug":
        return False
    if where == "local":
        return any(not job.done() for job in jobs)
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%i", f"--jobs={_array(jobs)}"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        return "Invalid job id" not in asked.stderr  # a controller that does not answer is no reason to leave
    return bool(asked.stdout.strip())


def _problem(job: Any) -> str:
    """Why a job ended before its work was done; empty if it did not."""
    if not job.paths.result_pickle.exists():
        return f"job {job.job_id} ended early and was not requeued: see {job.paths.stderr}"
    try:
        return str(job.result()["problem"])
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"job {job.job_id} failed: {lines[-1].strip() if lines else type(error).__name__}"
