"""Runs that another study has made already: the same specification is the same run, whatever its study."""

from __future__ import annotations

import os
from pathlib import Path

from hf_optim.core import importing
from hf_optim.experiment import leftovers
from hf_optim.experiment.copying import copy_whole
from hf_optim.experiment.files import LARGEST_RUN, Refused, check_tree, own_folder
from hf_optim.study.folder.locks import Lock
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan.plan import Plan


def collect(plan: Plan, folder: Path, place: Path) -> list[str]:
    """Bring finished runs of the plan, judged as it judges them and made by the code that it names as it stands now, of
    the studies below `place` into `folder`; gives the ids of those that were brought. A study that is a link is left
    alone: nobody has named what it leads to.

    Files are linked where the file system can, else copied; a run is whole or it is not there.
    """
    homes = [home.parent for home in sorted(place.glob("*/runs")) if not home.parent.is_symlink()]
    others = [RecordStore(home) for home in homes if home.resolve() != folder.resolve()]
    for other in others:
        other.belongs_to(plan)
    brought = list[str]()
    leftovers.sweep_folders(own_folder(folder, "runs"))
    for run in plan.runs:
        home = folder / "runs" / run.id
        # what was trained here is gone on with, and what stands in a record's place refused by who would run it
        if home.is_symlink() or os.path.lexists(home / "record.json") or any(home.glob("checkpoint-*")):
            continue
        code = importing.digests(run.spec)
        finished = next((other.folder for other in others if _finished(other, run.id, code)), None)
        if finished is None:
            continue
        if (lock := Lock(folder, run.id)).acquire():  # else another launcher's worker is at it
            try:
                copy_whole(finished, f"runs/{run.id}", folder, "checkpoint-*", linked=True)
                brought.append(run.id)
            finally:
                lock.release()
    return brought


def _finished(study: RecordStore, run_id: str, code: dict[str, str]) -> bool:
    """Whether a study has a record of the run, made by that code, and its history, and nothing in the run's folder
    leads out of it.
    """
    record = study.record(run_id)
    if record is None or record["status"] != "ok" or record.get("code", {}) != code:
        return False
    study.history(run_id)
    if run_id in study.unreadable:
        return False
    try:
        check_tree(study.home(run_id), LARGEST_RUN)
    except Refused:
        return False
    return True
