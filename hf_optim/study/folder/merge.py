"""Several study folders become one: the union of their plans and records, unless they contradict each other."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_optim.core import shape
from hf_optim.core.shape import Each
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment import leftovers
from hf_optim.experiment.copying import copy_whole
from hf_optim.experiment.disk import unwritable
from hf_optim.experiment.files import (
    LARGEST_RUN,
    Refused,
    check_tree,
    json_text,
    own_folder,
    read_bytes,
    read_json,
    read_text,
    write_atomically,
    write_json,
)
from hf_optim.experiment.record import RECORD
from hf_optim.study.folder import questions
from hf_optim.study.folder.aside import free
from hf_optim.study.folder.changes import difference
from hf_optim.study.folder.locks import LOCK_FILE, Lock
from hf_optim.study.folder.outcomes import IN_VAIN
from hf_optim.study.folder.questions import Change
from hf_optim.study.folder.results import load
from hf_optim.study.folder.rows import of
from hf_optim.study.folder.store import RecordStore, read_status, room
from hf_optim.study.plan.plan import BLOCKS, MOST_NAMES, Plan, Run

#: how a merged folder says what came from where
ORIGIN = "merged.json"
SHAPE = {"studies": [str], "runs": Each(str), "set_aside": [Each(str)], "left_out": [str]}


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


def _differs(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Empty if two rows of one run tell the same result, else the first thing that differs. Times always do."""
    ended, otherwise = ("ok" if row["error"] == IN_VAIN else row["status"] for row in (a, b))  # judged by a plan
    if ended != otherwise:
        return f"{ended} and {otherwise}"
    results = ("value", *sorted(key for key in {*a, *b} if key.startswith(("test_", "validation_", "train_l"))))
    for name in (*results, "data.fingerprint"):
        if a.get(name) != b.get(name):
            return f"{a['metric'] if name == 'value' else name} {a.get(name)} and {b.get(name)}"
    return ""


def merge(sources: Sequence[Path], into: Path, *, keep_first: bool = False) -> Plan:
    """Merges studies into the folder `into`, which may be one of them or an earlier merge; sources stay as they are.

    Every run's folder is copied whole. Two records of one run with different numbers are a contradiction: they come
    from other versions, machines or data, and one study must not mix them; `keep_first` takes the record of the
    folder that is named first (`into` before all) and writes down which, as a change after results were known.
    study.yaml is kept where all have the same; where not, that of `into`, which may be the only one of its text, gets
    another name.

    Raises UserError in one line, before anything is written, for contradictions; and for a disk that is full.
    """
    while (plan := _merge(sources, into, keep_first)) is None:
        pass  # another merge has ended in this folder meanwhile: its studies count too
    return plan


def _merge(sources: Sequence[Path], into: Path, keep_first: bool) -> Plan | None:
    """See `merge`; None, with nothing written, where the plan in `into` is another one by the time of writing."""
    stood = _text(into, "plan.json")
    begun = (into / "plan.json").is_file()
    merging = _is_merge(into)
    theirs = into.exists() and (not into.is_dir() or not all(leftovers.is_left(path.name) for path in into.iterdir()))
    if not begun and not merging and theirs:
        raise UserError(f"{into} is not empty and holds no study: choose another folder to merge into")
    folders = list(dict.fromkeys(([into.resolve()] if begun else []) + [s.resolve() for s in sources]))
    loaded = [(name, load(folder)) for name, folder in zip(_names(folders), folders, strict=True)]
    plan = plans([(name, results.plan) for name, results in loaded])
    if plan.tuning is not None and any(results.plan.optimizers != plan.optimizers for _, results in loaded):
        raise UserError("merge: a tuned study can only be merged with one of the same tasks and optimizers")
    taken: dict[str, tuple[str, Path, dict[str, Any]]] = {}
    set_aside: list[dict[str, str]] = []
    changed: list[Change] = []
    for name, results in loaded:
        # Not the judged runs alone: trials, and runs that are no longer planned, are records too.
        for row in of(results):
            if row["status"] == "missing":
                continue
            there, _, other = taken.setdefault(row["id"], (name, results.folder, row))
            if differs := _differs(other, row):
                run = f"{row['optimizer']} on {row['task']}, seed {row['seed']}"
                if not keep_first:
                    raise UserError(
                        f"merge: {run} ({row['id']}) has two results, in {there} and in {name}: {differs}; nothing was "
                        f"written; --keep-first takes {there}'s and notes it"
                    )
                set_aside.append({"id": row["id"], "kept": there, "set_aside": name, "difference": differs})
                whose = None if row["optimizer"] == plan.baseline else row["optimizer"]
                words = f"{run}: {name}'s result was set aside for {there}'s ({differs})"
                changed.append(Change(words, row["task"], whose))
        if results.folder != into.resolve():
            known = results.standing.register.changes
            changed += [dataclasses.replace(change, words=f"{name}: {change.words}") for change in known]
    count = sum(len(results.records) for _, results in loaded)
    _check_room(plan, [results.store for _, results in loaded], {key: there for key, (_, there, _) in taken.items()})
    try:
        json_text("plan.json", plan.to_dict())
        questions.together(into, plan, count, changed)
    except Refused as error:
        raise UserError(f"merge: {error}; nothing was written") from None
    copied = {run_id: folder for run_id, (_, folder, _) in taken.items() if folder != into.resolve()}
    for run_id, folder in copied.items():
        try:
            check_tree(folder / "runs" / run_id, LARGEST_RUN)
        except Refused as error:
            raise UserError(f"merge: {folder}: {error}; nothing was written") from None
        home = into / "runs" / run_id
        if read_status(home) is None and (left := next(home.glob("checkpoint-*"), None)):
            raise UserError(
                f"merge: {left} is of a run that is not finished, and another study's record would take its place: "
                "finish it first, or merge into a new folder; nothing was written"
            )
        if begun and _under_way(into, run_id):
            raise UserError(
                f"merge: {home} is written by a launcher now, and another study's record would take its place: wait "
                "for it, or merge into a new folder; nothing was written"
            )
    yamls = {_text(folder) for folder in folders}
    common = yamls.pop() if len(yamls) == 1 else ""
    # What stands there and cannot be read as text is somebody's too.
    aside = free(into) if os.path.lexists(into / "study.yaml") and not (common and common == _text(into)) else ""
    told = [f"study.yaml, which not all have: {into.name}'s own is {aside} now"] if aside else []
    try:
        with _alone(into):
            if _text(into, "plan.json") != stood:
                return None
            if not begun and (others := {path.name for path in _runs(into)} - taken.keys()):
                raise UserError(
                    f"merge: {into}/runs holds {counted(len(others), 'run')} of other studies, which an interrupted "
                    "merge has left: choose another folder to merge into; nothing was written"
                )
            # First: what an interrupted merge leaves is known by it.
            origin = {
                "studies": [name for name, _ in loaded],
                "runs": {run_id: name for run_id, (name, _, _) in taken.items()},
                "set_aside": set_aside,
                "left_out": [f"{name}: {why}" for name, results in loaded for why in results.store.unreadable.values()]
                + told,
            }
            write_json(into, ORIGIN, origin)
            leftovers.sweep(into)
            leftovers.sweep_folders(own_folder(into, "runs"))
            for run_id, folder in copied.items():
                home = into / "runs" / run_id
                # What an interrupted merge has copied may be of other studies than these.
                if read_status(home) is None or not (begun or _record(into, run_id) == _record(folder, run_id)):
                    copy_whole(folder, f"runs/{run_id}", into, "checkpoint-*", ".*")
            if aside:
                os.rename(into / "study.yaml", into / aside)
            if common:
                write_atomically(into, "study.yaml", common)
            # Last: without a plan the folder is no study yet, and the merge may be started again.
            write_json(into, "plan.json", plan.to_dict())
            if text := questions.together(into, plan, count, changed):
                write_atomically(into, questions.FILE, text)
    except OSError as error:
        raise unwritable(into, error) from None
    return plan


def _check_room(plan: Plan, stores: Sequence[RecordStore], taken: Mapping[str, Path]) -> None:
    """Raise UserError where records and histories that can be read now would be too many names of figures together;
    `taken` says of which folder each run is.
    """
    others = {folder: RecordStore(folder) for folder in taken.values()}  # what these cannot read is nobody's fault here
    for run_id, folder in taken.items():
        others[folder].history(run_id)
    records = set[str]().union(*(store.names("records") for store in stores))
    logged = set[str]().union(*(store.names("histories") for store in others.values()))
    for what, names, most in (("records", records, room(plan)), ("histories", logged, MOST_NAMES)):
        if len(names) > most:
            raise UserError(
                f"merge: the {what} of all have {len(names):,} names of figures, and a study of so many runs has room "
                f"for {most:,}; nothing was written"
            )


def _under_way(folder: Path, run_id: str) -> bool:
    """Whether somebody is at a run, as far as the file system has locks."""
    if not (folder / LOCK_FILE).exists():
        return False
    lock = Lock(folder, run_id)
    try:
        free = lock.acquire()
    except UserError:
        return False
    lock.release()
    return not free


def _runs(folder: Path) -> list[Path]:
    """The folders of runs of a folder where a merge was begun."""
    place = folder / "runs"
    return [path for path in place.iterdir() if not leftovers.is_left(path.name)] if place.is_dir() else []


def _names(folders: Sequence[Path]) -> list[str]:
    """What the folders are called, with as many of those above as tell them apart."""
    every = (["/".join(folder.parts[-parts:]) for folder in folders] for parts in itertools.count(1))
    return next(names for names in every if len(set(names)) == len(folders))


def _record(folder: Path, run_id: str) -> bytes:
    return read_bytes(folder, f"runs/{run_id}/{RECORD}")


@contextmanager
def _alone(into: Path) -> Iterator[None]:
    """Waits until no other merge writes into the folder; one that is killed lets go of it."""
    into.mkdir(parents=True, exist_ok=True)
    held = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _is_merge(into: Path) -> bool:
    """Whether a merge was begun there: others call files so, too."""
    try:
        return shape.fits(read_json(into, ORIGIN), SHAPE)
    except (OSError, ValueError):
        return False


def left_out(into: Path) -> list[str]:
    """A line for each record or history that the merge into `into` could not read (its run is missing there), and for
    its own study.yaml.
    """
    return list(read_json(into, ORIGIN)["left_out"])


def _text(folder: Path, name: str = "study.yaml") -> str:
    try:
        return read_text(folder, name)
    except (OSError, ValueError):
        return ""
