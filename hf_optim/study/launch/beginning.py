"""Begins a study's folder, or goes on with one: its file, its plan and its question, by one launcher at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hf_optim.errors import UserError
from hf_optim.experiment.disk import unwritable
from hf_optim.experiment.files import own_folder, read_text, remove, write_atomically, write_json
from hf_optim.experiment.leftovers import is_left, sweep
from hf_optim.experiment.record import RECORD
from hf_optim.study.folder import aside, begun, changes, questions
from hf_optim.study.folder.aside import PLAN, STUDY
from hf_optim.study.folder.locks import LOCK_FILE, alone
from hf_optim.study.folder.standing import known, standing
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan.plan import Plan, Run


def prepare(
    plan: Plan,
    source_text: str,
    folder: Path,
    *,
    retry_failed: bool = False,
    ready: Callable[[], None] = lambda: None,
    accept_change: bool = False,
    begun_from: str = "",
) -> str:
    """Writes study.yaml, plan.json and the question; `retry_failed` removes the records of runs that failed, where
    `ready` does not raise that none could be run again. Gives the name under which a study.yaml of other content is
    kept that was not written here; empty where none was. `begun_from` says what the study comes from (`begun.mark`).

    Raises UserError if the folder holds a plan with runs that are not in this one, unless `accept_change`; if it
    holds anything else, or cannot be written; and if the plan could not be read back.
    """
    Plan.from_dict(json.loads(json.dumps(plan.to_dict())), plan.name)  # else it would be found after hours of runs
    try:
        _check_place(folder, source_text)
        with alone(folder, PLAN):
            kept = _write(plan, source_text, folder, accept_change, begun_from)
            if retry_failed and (failed := _failed(plan, folder)):
                ready()
                for run in failed:
                    remove(folder, f"runs/{run.id}/{RECORD}")
            return kept
    except OSError as error:
        raise unwritable(folder, error) from None


def _check_place(folder: Path, source_text: str) -> None:
    """Raise UserError where something else than this study stands. A launcher that is at it, or was killed at it,
    writes the study's file and the plan before all else, which is therefore looked for last.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another --output")
    names = {entry.name for entry in folder.iterdir() if not is_left(entry.name)} if folder.exists() else set()
    with suppress(OSError, ValueError):  # another one's, of whatever kind
        names -= {STUDY} if read_text(folder, STUDY) == source_text else set()
    if names - {LOCK_FILE} and not (folder / PLAN).exists():
        raise UserError(f"{folder} is not empty and holds no study: choose another --output")


def _write(plan: Plan, source_text: str, folder: Path, accept_change: bool, begun_from: str) -> str:
    """What `prepare` writes, of a folder where nobody else does."""
    change = changes.since(folder, plan)
    if change is not None and change.gone and not accept_change:
        raise UserError(
            f"{change.sentence()}; `hf-optim study` with --accept-change goes on, another --output starts anew"
        )
    sweep(folder)
    judged = _judged_records(folder) if change is not None else 0
    kept = aside.keep(folder) if aside.edited(folder, source_text) else ""
    write_atomically(folder, STUDY, source_text)
    written = {aside.DIGEST: aside.digest(source_text), begun.BEGUN: begun_from}
    write_json(folder, PLAN, {**plan.to_dict(), **written})
    own_folder(folder, "runs")
    questions.register(folder, plan, judged)
    return kept


def _failed(plan: Plan, folder: Path) -> list[Run]:
    """Those that failed; a trial that was stopped early was not unlucky."""
    reader = RecordStore(folder)
    records = [(run, reader.record(run.id) or {"status": "ok"}) for run in known(plan, reader)]
    return [run for run, record in records if record.get("status") != "ok" and not record.get("pruned")]


def _judged_records(folder: Path) -> int:
    """How many judged runs of the plan that stands in the folder have a record."""
    store = RecordStore(folder)
    runs = standing(changes.read_plan(folder), store).state.runs
    return sum(store.record(run.id) is not None for run in runs)
