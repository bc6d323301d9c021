"""The commands `hf-optim study` and `hf-optim report`: plan, run, tables, report, one after the other."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core import extras, importing
from hf_optim.core import safe_text as safe
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment import trackers
from hf_optim.experiment.disk import unwritable
from hf_optim.experiment.files import by_default, write_atomically
from hf_optim.experiment.leftovers import sweep
from hf_optim.experiment.task import paths_in
from hf_optim.study.findings import design, naming, table, verdicts
from hf_optim.study.findings import protocol as tuning_report
from hf_optim.study.folder import begun, changes, questions, rows, shared, stages
from hf_optim.study.folder import results as records
from hf_optim.study.folder.standing import known
from hf_optim.study.folder.store import RecordStore, recorded
from hf_optim.study.launch import beginning
from hf_optim.study.launch import jobs as spread
from hf_optim.study.launch import launcher as run
from hf_optim.study.launch.follow import follow
from hf_optim.study.launch.jobs import Launch
from hf_optim.study.launch.launcher import Execution
from hf_optim.study.launch.progress import Display, duration
from hf_optim.study.plan import code, shipped, units, values
from hf_optim.study.plan import plan as planning
from hf_optim.study.plan.plan import Run
from hf_optim.study.report import exports, run_pages
from hf_optim.study.report import tables as texts

if TYPE_CHECKING:
    from rich.console import Console

    from hf_optim.experiment.cards import Card
    from hf_optim.study.findings.analysis import Analysis
    from hf_optim.study.plan.source import Source


def study(
    name: str,
    *,
    output: str | None = None,
    jobs: int | None = None,
    seeds: int | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    accept_change: bool = False,
    gpus_per_run: int | None = None,
    jobs_per_gpu: int = 1,
    checkpoint_every: int | None = None,
    launch: Launch | None = None,
    source: Source | None = None,
    trust: bool = False,
    overrides: Mapping[str, Any] | None = None,
    card: Card | None = None,
    data: str | None = None,
    report_to: Sequence[str] = (),
    sharing: bool = False,
    origin: str | Path | None = None,
) -> int:
    """Runs what is missing of a study, writes tables and report, shows the table. Gives 1 if a run failed, else 0.

    Args:
        name: a YAML file, a study's folder, or a shipped study's name.
        output: the study's folder; default studies/NAME below the current one, or the folder given as `name`.
        jobs: runs at a time; default one on each core, or on each GPU (with `launch`, one in each of its jobs).
        seeds: take this many seeds (0, 1, ...) instead of the file's.
        dry_run: show the plan and write nothing.
        retry_failed: run those again that failed before.
        accept_change: go on although runs of the folder are no longer in the plan; their records stay.
        gpus_per_run: GPUs, each with a process, that train one model together; default one where there are any (with
            SLURM, none: a GPU has to be asked for).
        jobs_per_gpu: runs that share a GPU, for those too small to fill one; not with `gpus_per_run`.
        checkpoint_every: steps between checkpoints, from which an interrupted run goes on; default none: it restarts.
        launch: spread the runs over jobs (see `spread`) instead of running them here.
        trust: run code that only the study's folder names (`name` is the folder), or, with `dry_run`, any code.
        overrides: of every run, in place of the file's, as {"precision": "bf16"}.
        card: the GPU for which a dry run says the costs; default what is here.
        data: of every task, in place of the file's: a name that the task knows, or a path from here.
        report_to: trackers that are fed beside the records, as "tensorboard", "trackio" or "wandb".
        sharing: take finished runs from the studies beside the folder.
        source: the study itself, where it stands in no file of its own; `name` then only says where it comes from.
        origin: the file, or the name of one of ours, that `source` comes from; default `name`.

    Raises:
        UserError: for anything wrong with the YAML, the arguments or the folder, before a run starts.
    """
    console = safe.console()
    for option, number in (("jobs", jobs), ("gpus-per-run", gpus_per_run), ("checkpoint-every", checkpoint_every)):
        if number is not None and number < 1:
            raise UserError(f"--{option} must be at least 1, got {number}")
    if jobs_per_gpu < 1 or (jobs_per_gpu > 1 and (gpus_per_run or 1) > 1):
        raise UserError(f"--jobs-per-gpu must be at least 1, and 1 beside --gpus-per-run, got {jobs_per_gpu}")
    trackers.check(report_to)
    # What a folder holds may be a stranger's: its code is run where the YAML is named, or on a word.
    trust = trust or not (dry_run or Path(name).is_dir())
    why = "a dry run runs none" if dry_run else f"only {name} says that it is to be run: name its YAML file"
    named = name if source is None else None  # what else `name` may be called is no place
    if origin is None:
        origin = name if source is not None or name in shipped.shipped_studies() else Path(name)
    source = source or shipped.find(name)[0]
    with importing.refused(why, trust, read=not Path(name).is_dir()):
        plan = planning.expand(source, seeds=seeds, origin=Path(name).name, overrides=overrides, data=data)
        if not (trust or dry_run) and (paths := code.named(plan)):
            raise importing.Untrusted(f"{', '.join(paths)}: code, and {why}, or look at it and add --trust")
        if not (trust or dry_run) and (outside := [path for task in plan.tasks for path in paths_in(task)]):
            raise importing.Untrusted(f"{', '.join(outside)}: files of this machine, and {why}, or add --trust")
        told = values.check_values(plan, source)
    folder = _folder(named, output, plan)
    if output is None:
        begun.check(folder, origin, source.text)
    trackers.check_settings(report_to, folder / trackers.FOLDER)
    change = changes.since(folder, plan)
    looks = "" if plan.repetitions else units.explained(plan.looks)
    for line in (*told, *([looks] if looks else [])):
        safe.say(console, line)
    jobs = jobs or (run.default_jobs(gpus_per_run or 1, jobs_per_gpu) if launch is None else jobs_per_gpu)
    if dry_run:
        _show_plan(plan, folder, console)
        with importing.refused(why, trust):
            _show_costs(plan, card, console, jobs)
        _show_change(change, console)
        return 0
    extras.installed("a study", "study")
    mark = begun.mark(folder, origin, source.text)
    how = Execution(jobs, gpus_per_run, jobs_per_gpu, checkpoint_every, trust, tuple(report_to))
    kept = beginning.prepare(
        plan,
        source.text,
        folder,
        retry_failed=retry_failed,
        ready=partial(spread.check, folder, launch, how),
        accept_change=accept_change,
        begun_from=mark,
    )
    if kept:
        again = f"to run that one: {shlex.join(['hf-optim', 'study', str(folder / kept)])} --output NEW"
        safe.say(console, f"{folder}: its study.yaml was changed there and is kept as {kept}; {again}")
    if sharing and (brought := shared.collect(plan, folder, folder.parent)):
        console.print(f"{counted(len(brought), 'run')} taken from the studies beside it")
    _show_change(change, console)
    _show_question(folder, console)
    if launch is not None:
        ended = spread.launch(folder, plan, launch, how, console)
        return finish(folder) if ended else 0
    if plan.ladder is not None and not recorded(folder):
        _show_costs(plan, None, console, jobs)  # sizes that were never run before may take days
    _run_here(plan, folder, how, console)
    return finish(folder)


def _run_here(plan: planning.Plan, folder: Path, how: Execution, console: Console) -> None:
    reader = RecordStore(folder)
    total = stages.run_count(plan)
    left = total - sum(reader.record(planned.id) is not None for planned in known(plan, reader))
    at_a_time = min(how.jobs, max(1, left))
    safe.say(
        console,
        f"{plan.title}: {counted(total, 'run')}, {total - left} finished before, {at_a_time} at a time, in {folder}",
    )
    start, count, look = time.monotonic(), 0, 0
    told: set[str] = set()
    try:
        with Display(console, total, total - left, how.jobs) as display:

            def finished(ended: Run, status: str, seconds: float) -> None:
                record = RecordStore(folder).record(ended.id) or {}
                stopped = status == "failed" and record.get("pruned")  # which is no failure
                display.finished(ended, "stopped" if stopped else status, seconds, str(record.get("error")))
                arm = f"{ended.optimizer} on {ended.task}"
                if record.get("settled") and arm not in told:
                    told.add(arm)
                    line = f"{arm} trains with {'; '.join(record['settled'])}"
                    console.print(line, markup=False, highlight=False, soft_wrap=True)

            for stage in follow(plan, folder):
                if plan.tuning is not None:
                    safe.say(console, stage.sentence())
                if len(plan.looks) > 1 and stage.units != look:
                    look = stage.units
                    console.print(
                        f"look after {counted(look, naming.unit(plan, 1))}, of {plan.looks[-1]} at most",
                        highlight=False,
                    )
                count += len(stage.todo)
                run.execute(
                    list(stage.todo),
                    folder,
                    how,
                    asks=stage.asks,
                    on_finish=finished,
                    watch=display.watch,
                )
    except KeyboardInterrupt:
        safe.say(
            console,
            f"interrupted: {display.done} of {counted(total, 'run')} finished and kept; the same command goes on",
        )
        raise
    if count:
        console.print(f"{counted(count, 'run')} in {duration(time.monotonic() - start)}", highlight=False)


def finish(folder: Path, quiet: bool = False) -> int:
    """Writes tables and report from the records in `folder`, and shows the table unless `quiet`. Gives 1 if a run
    failed, else 0. Raises UserError, at the end, for what could not be written.
    """
    written = write(folder)
    if not quiet:
        show(written, folder)
    if written.refused is not None:
        raise unwritable(folder, written.refused)
    return 1 if written.results.failures() else 0


@dataclass(frozen=True)
class Written:
    """What a study's tables and report say, and the first thing in whose place something stands that stays."""

    results: records.Results
    tables: list[table.TaskTable]
    analysed: Analysis
    protocol: tuning_report.Protocol | None
    refused: OSError | None


def write(folder: Path) -> Written:
    """Writes tables and report from the records in `folder`; what cannot be written keeps nothing else from it."""
    from hf_optim.study.findings import analysis
    from hf_optim.study.report import html as report

    results = records.load(folder)
    tables = table.build(results)
    analysed = analysis.analyse(results, tables)
    title = results.plan.title
    protocol = tuning_report.build(results) if tuning_report.asked(results.plan) else None
    files: list[tuple[str, str]] = [
        ("table.md", texts.markdown(tables, title) + tuning_report.notes(protocol)),
        ("table.csv", texts.result_csv(tables)),
        (
            "statistics.md",
            analysis.markdown(analysed, title, {task_table.task: task_table.decimals for task_table in tables}),
        ),
        ("statistics.json", analysis.to_json(analysed)),
        ("runs.csv", texts.runs_csv(results)),
        ("costs.md", texts.costs_markdown(tables, title)),
        ("costs.csv", texts.costs_csv(tables)),
        ("report.html", report.render(results, tables, analysed, protocol)),
    ]
    if protocol is not None:
        files.append(("tuning.md", tuning_report.markdown(protocol, results.plan)))
    refused: list[OSError] = []
    makes: list[Callable[[], object]] = [partial(sweep, folder)]
    makes += [partial(write_atomically, folder, name, text) for name, text in files]
    makes.append(partial(exports.write_parquet, rows.of(results), folder / "runs.parquet"))
    for make in chain(makes, run_pages.parts(results)):
        try:
            make()
        except OSError as error:
            refused.append(error)
    return Written(results, tables, analysed, protocol, refused[0] if refused else None)


def show(written: Written, folder: Path) -> None:
    """Prints the table, what it says, which runs failed, and where the report is: in `folder`."""
    console, results, protocol = safe.console(), written.results, written.protocol
    failures = results.failures()
    texts.show(written.tables, console)
    sentences = (*verdicts.changed(results), *written.analysed.verdicts)
    for text in (*sentences, verdicts.looked(results), verdicts.progress(results)):
        if text:
            safe.say(console, text)
    for note in protocol.notes if protocol is not None else ():
        safe.say(console, note)
    for failed, why in failures:
        safe.say(console, f"failed: {records.describe(failed)}: {why}")
    if failures:
        safe.say(console, "A failed run is a result, and kept: --retry-failed (retry_failed=True) runs it again.")
    for run_, why in results.unreadable():
        safe.say(console, f"unreadable: {records.describe(run_)}: {why}")
    safe.say(console, f"Report: {folder / 'report.html'}")


def remake(folder: str) -> int:
    """`hf-optim report`: makes tables and report again from the records alone."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"no folder {folder!r}: give the folder of a study, such as studies/quickstart")
    finish(path)
    return 0


def _folder(named: str | None, output: str | None, plan: planning.Plan) -> Path:
    if output:
        return Path(output)
    return (shipped.folder_of(named) if named else None) or by_default("studies", plan.name)


def _show_change(change: changes.Change | None, console: Console) -> None:
    if change is not None and (change.new or change.gone):
        for line in (change.sentence(), *change.lines()):
            safe.say(console, line)


def _show_question(folder: Path, console: Console) -> None:
    register = questions.read(folder)
    why = register.unread or "the folder was begun before questions were"
    asked = register.digest[:12]
    safe.say(console, f"question {asked}" if asked else f"question not registered: {why}")


def _show_costs(plan: planning.Plan, card: Card | None, console: Console, jobs: int) -> None:
    """A line a task with all its runs, trials among them, by that of its first optimizer: the others' steps are as
    long, but for what they do more.
    """
    from hf_optim.experiment import forecast

    first: dict[str, Mapping[str, Any]] = {}
    for task, optimizer, spec in plan.cells():
        if task["label"] not in first:
            first[task["label"]] = planning.make_run(task, optimizer, spec, plan.seeds[0]).spec
    counts = stages.planned_on(plan)
    told = forecast.lines([(label, spec, counts[label]) for label, spec in first.items()], card, jobs=jobs)
    for line in told:
        safe.say(console, line)


def _show_plan(plan: planning.Plan, folder: Path, console: Console) -> None:
    seeds = changes.shown(plan.seeds)
    first = sum(stages.planned_to(plan, plan.looks[0]))
    at_most = f" at most ({first} of them before the first look)" if len(plan.looks) > 1 else ""
    trials, judged, further = stages.planned(plan)
    counts = [counted(trials, "trial")] if trials else []
    counts += [counted(judged, "run")] + ([counted(further, "further run")] if further else [])
    lines = [f"{plan.title}: {', '.join(counts)}{at_most}, seeds {seeds}, baseline {plan.baseline}, in {folder}"]
    per_task = Counter(task["label"] for task, _, _ in plan.cells())
    for task in plan.tasks:
        lines.append(f"  {task['label']}: {counted(per_task[task['label']] * len(plan.seeds), 'run')}")
    for optimizer in plan.optimizers:
        given = planning.flatten({k: v for k, v in optimizer["spec"].items() if k != "name"})
        lines.append(
            f"  {optimizer['label']}: {optimizer['spec']['name']} " + ", ".join(f"{k}={v}" for k, v in given.items())
        )
    asked = questions.digest(questions.question(plan))
    for line in [*lines, *(f"  {text}" for text in design.lines(plan)), f"  question {asked[:12]}"]:
        safe.say(console, line)
