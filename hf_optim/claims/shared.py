"""Runs that another claim's study has made already: the same specification is the same run, whatever its table."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

from hf_optim.study.plan.plan import Run


def collect(runs: Iterable[Run], folder: Path, place: Path) -> list[str]:
    """Bring finished runs of the studies below `place` into `folder`; gives the ids of those that were brought.

    Files are linked where the file system can, else copied; a run is whole or it is not there.
    """
    others = [home for home in sorted(place.glob("*/runs")) if home.parent.resolve() != folder.resolve()]
    brought = []
    for run in runs:
        home = folder / "runs" / run.id
        if (home / "record.json").is_file():
            continue
        finished = next((other / run.id for other in others if _finished(other / run.id, run.id)), None)
        if finished is None:
            continue
        part = folder / "runs" / f".{run.id}.{uuid.uuid4().hex}.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(finished, part, copy_function=_link, ignore=shutil.ignore_patterns("checkpoint-*"))
        shutil.rmtree(home, ignore_errors=True)  # what an interrupted run left
        os.replace(part, home)
        brought.append(run.id)
    return brought


def _finished(home: Path, run_id: str) -> bool:
    try:
        record = json.loads((home / "record.json").read_text(encoding="utf-8"))
        return bool(record["id"] == run_id and record["status"] == "ok")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
