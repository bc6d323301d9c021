"""The commands `hf-optim study` and `hf-optim report`: plan, run, tables, report, one after the other."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hf_optim import registry
from hf_optim.errors import UserError
from hf_optim.study import output as texts
from hf_optim.study import plan as planning
from hf_optim.study import records, run, shipped, table
from hf_optim.study.progress import Display, describe, duration
from hf_optim.study.worker import write_atomically


def study(
    name: str,
    *,
    output: str | None = None,
    jobs: int | None = None,
    seeds: int | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
) -> int:
    """Runs what is missing of a study, writes tables and report, shows the table. Gives 1 if a run failed, else 0.

    Args:
        name: a YAML file, a study's folder, or a shipped study's name.
        output: the study's folder; default studies/NAME below the current one, or the folder given as `name`.
        jobs: runs at a time; default one on each core, or on each GPU.
        seeds: take this many seeds (0, 1, ...) instead of the file's.
        dry_run: show the plan and write nothing.
        retry_failed: run those again that failed before.

    Raises:
        UserError: for anything wrong with the YAML, the arguments or the folder, before a run starts.
    """
    from rich.console import Console

    console = Console()
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    source, origin = shipped.find(name)
    plan = planning.expand(source, seeds=seeds, origin=Path(origin).name)
    folder = _folder(name, output, plan)
    jobs = jobs or run.default_jobs()
    if dry_run:
        _show_plan(plan, folder, console)
        return 0
    _check_values(plan)
    todo = run.prepare(plan, source.text, folder, retry_failed=retry_failed)
    done = len(plan.runs) - len(todo)
    console.print(
        f"{plan.title}: {len(plan.runs)} runs, {done} finished before, {min(jobs, max(1, len(todo)))} at a time, "
        f"in {folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    start = time.monotonic()
    try:
        with Display(console, len(plan.runs), done, jobs) as display:
            run.execute(todo, folder, jobs=jobs, on_finish=display.finished, watch=display.watch)
    except KeyboardInterrupt:
        console.print(
            f"interrupted: {display.done} of {len(plan.runs)} runs are finished and kept; the same command goes on",
            highlight=False,
            soft_wrap=True,
        )
        raise
    if todo:
        console.print(f"{len(todo)} runs in {duration(time.monotonic() - start)}", highlight=False)
    return finish(folder)


def _check_values(plan: planning.Plan) -> None:
    """A value out of range ends the study here, with one line, and not each of its runs."""
    for text in sorted({json.dumps(r.spec["optimizer"], sort_keys=True) for r in plan.runs}):
        registry.check_values(json.loads(text))


def finish(folder: Path) -> int:
    """Writes tables and report from the records in `folder`, and shows the table. Gives 1 if a run failed, else 0."""
    from rich.console import Console

    from hf_optim.study import report

    console = Console()
    results = records.load(folder)
    tables = table.build(results)
    title = results.plan.title
    for name, text in (
        ("table.md", texts.markdown(tables, title)),
        ("table.csv", texts.result_csv(tables)),
        ("runs.csv", texts.runs_csv(results)),
        ("costs.md", texts.costs_markdown(tables, title)),
        ("costs.csv", texts.costs_csv(tables)),
        ("report.html", report.render(results, tables)),
    ):
        write_atomically(folder / name, text)
    texts.show(tables, console)
    failures = results.failures()
    for failed, why in failures:
        console.print(f"failed: {describe(failed)}: {why}", markup=False, highlight=False, soft_wrap=True)
    missing = len(results.plan.runs) - len(results.records)
    if missing:
        console.print(f"{missing} of {len(results.plan.runs)} runs have no record yet", highlight=False)
    console.print(f"Report: {folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def remake(folder: str) -> int:
    """`hf-optim report`: makes tables and report again from the records alone."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no folder {folder!r}: give the folder of a study, such as studies/quickstart")
    finish(path)
    return 0


def _folder(name: str, output: str | None, plan: planning.Plan) -> Path:
    if output:
        return Path(output)
    return Path(name) if (Path(name) / "study.yaml").is_file() else Path("studies") / plan.name


def _show_plan(plan: planning.Plan, folder: Path, console: object) -> None:
    from rich.console import Console

    assert isinstance(console, Console)
    lines = [f"{plan.title}: {len(plan.runs)} runs, seeds {_shown(plan.seeds)}, baseline {plan.baseline}, in {folder}"]
    per_task = Counter(r.task for r in plan.runs)
    for task in plan.tasks:
        lines.append(f"  {task['label']}: {per_task[task['label']]} runs")
    for optimizer in plan.optimizers:
        given = planning.flatten({k: v for k, v in optimizer["spec"].items() if k != "name"})
        lines.append(
            f"  {optimizer['label']}: {optimizer['spec']['name']} " + ", ".join(f"{k}={v}" for k, v in given.items())
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _shown(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) if len(seeds) <= 8 else f"{seeds[0]} to {seeds[-1]} ({len(seeds)})"
