"""Several study folders become one: the union of their plans and records, unless they contradict each other."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_optim.errors import UserError
from hf_optim.experiment.copying import copy_whole
from hf_optim.experiment.files import (
    LARGEST_RUN,
    Refused,
    check_tree,
    read_json,
    read_text,
    write_atomically,
    write_json,
)
from hf_optim.study.folder import questions
from hf_optim.study.folder.changes import difference, read_plan
from hf_optim.study.folder.destination import check_destination, new_folder
from hf_optim.study.folder.outcomes import IN_VAIN
from hf_optim.study.folder.questions import Change
from hf_optim.study.folder.results import Results, load
from hf_optim.study.folder.rows import Row, folder_names, of
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan import units
from hf_optim.study.plan.plan import BLOCKS, Plan, Run

#: how a merged folder says what came from where
ORIGIN = "merged.json"
#: beside the result, the figures of a record that are the same whoever makes the run
_SAID: dict[str, Callable[[str], bool]] = {
    "metrics": lambda name: (
        not name.endswith("seconds") and (name.startswith(("train_", "best_", "sharpness")) or name.endswith("_gap"))
    ),
    "time": lambda name: name == "steps",
    "memory": lambda name: name == "parameters",
    "data": lambda name: name.endswith("_samples"),
    "code": lambda name: True,
}
Taken = dict[str, tuple[str, Results, Row]]  # of a run: the study that it is taken from, called so, and its row there


def plans(named: Sequence[tuple[str, Plan]]) -> Plan:
    """The union of plans, in their order: name, title and baseline are the first one's.

    Raises UserError where a label means one thing in one plan and another thing in another.
    """
    first = named[0][1]
    tasks: dict[str, tuple[str, dict[str, Any]]] = {}
    optimizers: dict[str, tuple[str, Mapping[str, Any]]] = {}
    cells: dict[tuple[str, str, int], tuple[str, Run]] = {}
    for folder, plan in named:
        for block in (*BLOCKS, "per_unit"):
            if getattr(plan, block) != getattr(first, block):
                raise UserError(
                    f"merge: {named[0][0]} and {folder} differ in {block}: only studies that agree on it can be one"
                )
        for task in plan.tasks:
            _task(tasks, folder, task)
        for optimizer in plan.optimizers:
            there, known = optimizers.setdefault(optimizer["label"], (folder, optimizer))
            if known["spec"] != optimizer["spec"]:
                raise _contradiction(
                    f"the optimizer {optimizer['label']!r}", there, folder, known["spec"], optimizer["spec"]
                )
            ours, theirs = known["defaults"], optimizer["defaults"]  # of releases: a later one may have more of them
            if other := {key: ours[key] for key in ours if theirs.get(key, ours[key]) != ours[key]}:
                place = f"the optimizer {optimizer['label']!r} by default"
                raise _contradiction(place, there, folder, other, {key: theirs[key] for key in other})
        for run in plan.runs:
            there, same = cells.setdefault((run.task, run.optimizer, run.seed), (folder, run))
            if same.id != run.id:
                place = f"{run.optimizer} on {run.task}, seed {run.seed},"
                raise _contradiction(place, there, folder, same.spec, run.spec)
    _unique([run for _, run in cells.values()])
    seeds = tuple(dict.fromkeys(seed for _, plan in named for seed in plan.seeds))
    plan = dataclasses.replace(
        first,
        seeds=seeds,
        # More seeds than were planned: nobody planned when to look at them, so it is once, at all.
        looks=first.looks if seeds == first.seeds else (len(seeds),),
        tasks=tuple(task for _, task in tasks.values()),
        optimizers=tuple(optimizer for _, optimizer in optimizers.values()),
        runs=tuple(run for _, run in cells.values()),
    )
    if plan.family == "score" and not units.apart(plan.to_dict()):  # each study kept its own tasks' seeds apart
        plan = dataclasses.replace(plan, family="tasks")
    return Plan.from_dict(plan.to_dict(), "merge")  # what no later command could read is not written


def _task(tasks: dict[str, tuple[str, dict[str, Any]]], folder: str, task: Mapping[str, Any]) -> None:
    there, known = tasks.setdefault(task["label"], (folder, {**task, "only": [], "hyper": {}}))
    # Plans of before declare no metrics.
    fixed = [{k: v for k, v in entry.items() if k not in ("only", "hyper", "metrics")} for entry in (known, task)]
    if fixed[0] != fixed[1]:
        raise _contradiction(f"the task {task['label']!r}", there, folder, *fixed)
    ways = [task.get("metrics") or {} for task in (known, task)]
    for name in ways[0].keys() & ways[1].keys():
        if ways[0][name][0] != ways[1][name][0]:
            raise _contradiction(f"the task {task['label']!r}", there, folder, *({name: way[name]} for way in ways))
    known["only"] = list(dict.fromkeys([*known["only"], *task["only"]]))
    for label, hyper in (task.get("hyper") or {}).items():
        # Contradicting ones make runs that are not what their labels say, which are refused by name.
        known["hyper"].setdefault(label, hyper)


def _unique(runs: Sequence[Run]) -> None:
    seen: dict[str, Run] = {}
    for run in runs:
        twin = seen.setdefault(run.id, run)
        if twin is not run:
            raise UserError(
                f"merge: {run.optimizer!r} on {run.task!r} is the same run as {twin.optimizer!r} on {twin.task!r}: "
                "give it the same label in both studies"
            )


def _contradiction(place: str, a: str, b: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> UserError:
    changed = difference(old, new).replace(" there", f" in {a}").replace(" here", f" in {b}")
    return UserError(f"merge: {place} differs ({changed}): give one of them another label")


def _differs(a: Row, b: Row) -> str:
    """Empty if two rows of one run tell the same result, else the first thing that differs. Times always do."""
    alike = a["stage"] == b["stage"]  # no trial counts as failed that is no better than untrained
    ended, otherwise = ("ok" if row["error"] == IN_VAIN and not alike else row["status"] for row in (a, b))
    if ended != otherwise:
        return f"{ended} and {otherwise}"
    # A run that one study has not planned yet is judged by what its record says, which may be nothing.
    judged = "value" if a["metric"] and b["metric"] else a["metric"] or b["metric"]
    results = (judged, *sorted(key for key in {*a, *b} if key.startswith(("test_", "validation_", "train_l"))))
    for name in (*results, "data.fingerprint"):
        if a.get(name) != b.get(name):
            return f"{a['metric'] if name == 'value' else name} {a.get(name)} and {b.get(name)}"
    return ""


def _tell_apart(run_id: str, a: RecordStore, b: RecordStore) -> str:
    """What two records of a run with the same result say otherwise, as far as both have it and the report shows it or
    rests on it: empty, or the first thing that differs. A release of before has fewer of them.
    """
    one, other = (store.record(run_id) or {} for store in (a, b))
    for key in ("fault", "pruned"):  # what became of a failed run decides what is said of its optimizer
        if (one.get(key) or None) != (other.get(key) or None):
            return f"{key} {one.get(key)} and {other.get(key)}"
    for place, named in _SAID.items():
        told = [record.get(place) or {} for record in (one, other)]
        for name in sorted(told[0].keys() & told[1].keys()):
            if named(name) and told[0][name] != told[1][name]:
                return f"{name} {told[0][name]} and {told[1][name]}"
    measured = [_measured(store.history(run_id)) for store in (a, b)]
    for (step, name), figure in measured[0].items():
        if (theirs := measured[1].get((step, name), figure)) != figure:
            return f"{name} of step {step:g} {figure} and {theirs}"
    if all(_whole(run_id, store) for store in (a, b)):
        # what was measured before training may be a later release's
        if alone := sorted(key for key in measured[0].keys() ^ measured[1].keys() if key[0] > 0):
            step, name = alone[0]
            return f"{name} of step {step:g} in one alone"
    return ""


def _whole(run_id: str, store: RecordStore) -> bool:
    """Whether a run's history can be read, and says anything of the validation split."""
    return bool(_measured(store.course(run_id) or []))


def _measured(rows: Sequence[Row]) -> dict[tuple[float, str], Any]:
    """What a history says of the validation split, by step and name; of a step that is there twice the first."""
    measured: dict[tuple[float, str], Any] = {}
    for row in rows:
        step = number(row.get("step"))
        for name in row:
            if name.startswith("validation_"):
                measured.setdefault((step, name), row[name])
    return measured


def _together(
    loaded: Sequence[tuple[str, Results]], baseline: str, keep_first: bool
) -> tuple[Taken, list[dict[str, str]], list[Change]]:
    """Of which study each run is taken, which results were set aside for those, and what was changed in the studies."""
    taken: Taken = {}
    set_aside: list[dict[str, str]] = []
    changed: list[Change] = []
    for name, results in loaded:
        # Not the judged runs alone: trials, and runs that are no longer planned, are records too.
        for row in of(results):
            if row["status"] == "missing":
                continue
            there, first, other = taken.setdefault(row["id"], (name, results, row))
            if first is results:
                continue
            differs = _differs(other, row) or _tell_apart(row["id"], first.store, results.store)
            if not differs and not _whole(row["id"], first.store) and _whole(row["id"], results.store):
                taken[row["id"]] = (name, results, row)  # of a history that is damaged or empty in one, the whole one
            if differs:
                run = f"{row['optimizer']} on {row['task']}, seed {row['seed']}"
                if not keep_first:
                    one, another = folder_names([first.folder, results.folder])
                    raise UserError(
                        f"merge: {run} ({row['id']}) has two results, in {one} and in {another}: {differs}; nothing "
                        f"was written; --keep-first takes {one}'s and notes it"
                    )
                set_aside.append({"id": row["id"], "kept": there, "set_aside": name, "difference": differs})
                whose = None if row["optimizer"] == baseline else row["optimizer"]
                words = f"{run}: {name}'s result was set aside for {there}'s ({differs})"
                changed.append(Change(words, row["task"], whose))
        known = results.standing.register.changes
        changed += [dataclasses.replace(change, words=f"{name}: {change.words}") for change in known]
    return taken, set_aside, changed


def merge(
    sources: Sequence[Path],
    into: Path,
    *,
    keep_first: bool = False,
    complete: Callable[[Path], None] | None = None,
) -> Plan:
    """Merges studies into the new folder `into`, which is there when all of it is; the studies stay as they are.
    `complete` writes into it what is made of it (tables, report), before it takes its place.

    Every run's folder is copied whole. Two records of one run with different numbers are a contradiction: they come
    from other versions, machines or data, and one study must not mix them; `keep_first` takes the record of the
    folder that is named first and writes down which, as a change after results were known. study.yaml is kept where all
    have the same.

    Raises UserError in one line, and nothing is there, for contradictions, for a study that could not be read as its
    parts can, and for a disk that is full.
    """
    check_destination(into)
    folders = list(dict.fromkeys(source.resolve() for source in sources))
    loaded = [(name, load(folder)) for name, folder in zip(_kept_names(folders), folders, strict=True)]
    # As they are stored: what was loaded has the runs up to the look that is aimed at alone.
    plan = plans([(name, read_plan(folder)) for name, folder in zip(folder_names(folders), folders, strict=True)])
    if plan.tuning is not None and any(results.plan.optimizers != plan.optimizers for _, results in loaded):
        raise UserError("merge: a tuned study can only be merged with one of the same tasks and optimizers")
    taken, set_aside, changed = _together(loaded, plan.baseline, keep_first)
    for run_id, (_, results, _) in taken.items():
        try:
            check_tree(results.store.home(run_id), LARGEST_RUN)
        except Refused as error:
            raise UserError(f"merge: {results.folder}: {error}; nothing was written") from None
    yamls = {_yaml(folder) for folder in folders}
    origin = {
        "studies": [name for name, _ in loaded],
        "runs": {run_id: name for run_id, (name, _, _) in taken.items()},
        "set_aside": set_aside,
        "left_out": [
            f"{name}: {why}"
            for name, results in loaded
            for run_id, why in results.store.unreadable.items()
            if run_id not in taken or taken[run_id][0] != name  # of one that is taken all is copied
        ],
    }
    registers = [(name, results.standing.register) for name, results in loaded]
    unread = [json.dumps(questions.untold(f"{name}: {r.unread}")) + "\n" for name, r in registers if r.unread]
    count = sum(len(results.records) for _, results in loaded)
    with new_folder(into) as copied:
        try:
            write_json(copied, ORIGIN, origin)
            for run_id, (_, results, _) in taken.items():
                copy_whole(results.folder, f"runs/{run_id}", copied, "checkpoint-*", ".*")
            if len(yamls) == 1 and (common := yamls.pop()):
                write_atomically(copied, "study.yaml", common)
            write_json(copied, "plan.json", plan.to_dict())
            if asked := "".join(unread) + questions.shared(folders, plan):
                write_atomically(copied, questions.FILE, asked)
            if text := questions.together(copied, plan, count, changed):
                write_atomically(copied, questions.FILE, text)
        except Refused as error:
            raise UserError(f"merge: {error}; nothing was written") from None
        _check_readable(copied, taken)
        if complete is not None:
            complete(copied)
    return plan


def _check_readable(copied: Path, taken: Taken) -> None:
    """Raise UserError unless all that can be read in the studies can be read there: together it may be too much."""
    try:
        merged = load(copied).store
    except UserError as error:
        raise UserError(f"merge: {str(error).replace(f'{copied}/', '')}; nothing was written") from None
    for run_id, (name, results, _) in taken.items():
        for store in (merged, results.store):
            store.history(run_id)
        if run_id in merged.unreadable and run_id not in results.store.unreadable:
            raise UserError(f"merge: {name}: {merged.unreadable[run_id]}; nothing was written")


def _kept_names(folders: Sequence[Path]) -> list[str]:
    """What the merge calls the folders in its files; one that is called as another has a number behind it. Whose home
    folder lies above it is not passed on.
    """
    names = list[str]()
    for folder in folders:
        every = (folder.name if number == 1 else f"{folder.name} ({number})" for number in itertools.count(1))
        names.append(next(name for name in every if name not in names))
    return names


def left_out(into: Path) -> list[str]:
    """A line for each record or history that could not be read and that the merge into `into` did not take."""
    return list(read_json(into, ORIGIN)["left_out"])


def _yaml(folder: Path) -> str:
    try:
        return read_text(folder, "study.yaml")
    except (OSError, ValueError):
        return ""
