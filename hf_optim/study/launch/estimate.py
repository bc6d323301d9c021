"""How long a ladder will take, timed on a few steps of the baseline on each of its rungs before anything is run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_optim.core import importing
from hf_optim.experiment.files import own_folder, write_json
from hf_optim.study.folder import stages
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.launch import launcher
from hf_optim.study.launch.progress import duration
from hf_optim.study.plan.plan import Plan, Run, cell_spec, make_run

STEPS = 4  # of each timed run; the median leaves the first one out, in which kernels are built


def lines(plan: Plan, jobs: int, gpus_per_run: int = 1) -> list[str]:
    """The estimate, a line a rung and one for all; empty for a study without a ladder. Runs in a folder of its own.

    A run takes what the timed one took beyond its steps (loading, evaluations), and its own steps at the median time.
    Other optimizers than the baseline cost more or less, and a look may decide the study earlier.
    """
    if plan.ladder is None:
        return []
    spec = next(o for o in plan.optimizers if o["label"] == plan.baseline)
    if code := importing.paths([spec["spec"], *plan.tasks]):
        return [f"not timed: {', '.join(code)} is code of your own, which is run when the study is"]
    rungs = plan.ladder["rungs"]
    tasks = {task["label"]: task for task in plan.tasks}
    seed = 2**32 - 1  # no judged seed and no tuning seed
    runs = [_timed(tasks[rung["task"]], spec, seed) for rung in rungs]
    took: dict[str, float] = {}

    def finished(run: Run, status: str, seconds: float) -> None:
        took[run.id] = seconds

    counts, said, total = stages.planned_on(plan), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        own_folder(Path(folder), "runs")
        write_json(Path(folder) / "plan.json", plan.to_dict())  # the launcher runs in a study's folder alone
        first = _timed(tasks[rungs[0]["task"]], spec, seed - 1)
        # The first run also imports libraries and makes the data, which the others find in the cache.
        # Rungs of one size differ in nothing that is timed: each size is run once.
        todo = list({run.id: run for run in (first, *runs)}.values())
        launcher.execute(todo, Path(folder), jobs=1, gpus_per_run=gpus_per_run, on_finish=finished)
        store = RecordStore(Path(folder))
        for rung, run in zip(rungs, runs, strict=True):
            record = store.record(run.id)
            if record is None or record["status"] != "ok":
                why = "no record" if record is None else str(record["error"])
                return [f"not timed: {plan.baseline} on {rung['task']}: {why}"]
            step = number(record["time"]["step_ms_median"]) / 1000
            each = max(0.0, took[run.id] - STEPS * step) + rung["steps"] * step
            total += each * counts[rung["task"]]
            said.append(
                f"timed: {rung['task']}: {rung['steps']} steps of {1000 * step:.3g} ms, {each:.1f} s a run, "
                f"{counts[rung['task']]} runs"
            )
    least = max(1, jobs)
    said.append(
        f"about {duration(total / least)} in all, {least} at a time, if every optimizer costs what {plan.baseline} does"
    )
    return said


def _timed(task: Mapping[str, Any], optimizer: Mapping[str, Any], seed: int) -> Run:
    return make_run(task, optimizer["label"], cell_spec(task, optimizer), seed, {"steps": STEPS, "eval_every": STEPS})
