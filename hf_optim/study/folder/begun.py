"""What a study's folder was begun from. A YAML's own `name` chooses the folder where the user names none, and any file
may bear the name of another one's study: what is finished there would be asked another question, and be told so.
"""

from __future__ import annotations

import os
from pathlib import Path

from hf_optim.errors import UserError
from hf_optim.experiment.files import read_json, read_text
from hf_optim.study.folder.aside import PLAN, STUDY, digest

#: in plan.json: of the name, or of the file as it lies from the folder, so that both may be moved together
BEGUN = "begun_from_sha256"


def mark(folder: Path, named: str | Path, text: str | None = None) -> str:
    """What is to stand under `BEGUN`: of a file its place, of what is no file its name. A folder that goes on as itself
    keeps what stands there, and so does one that goes on with the `text` that it has: a copy of the file is let through
    by that, and no longer once it says something else.
    """
    if isinstance(named, Path) and named.is_dir() or text is not None and _holds(folder, text):
        return standing(folder)
    if isinstance(named, Path) and named.is_file():
        return digest(f"file {os.path.relpath(os.path.realpath(named), os.path.realpath(folder))}")
    return digest(f"name {named}")


def standing(folder: Path) -> str:
    """What stands there; empty in folders of before, in merges and in published copies."""
    try:
        plan = read_json(folder, PLAN)
    except (OSError, ValueError):
        return ""
    return str(plan.get(BEGUN, "")) if isinstance(plan, dict) else ""


def check(folder: Path, named: str | Path, text: str) -> None:
    """Raise a UserError where `folder`, which the user has not named, holds another study than `text`, and does not say
    that it was begun from `named`: no file could know what a merge was made of.
    """
    if not os.path.lexists(folder / PLAN) or standing(folder) == mark(folder, named) or _holds(folder, text):
        return
    told = "was begun from something else than" if standing(folder) else "does not say that it was begun from"
    raise UserError(
        f"{folder} {told} {named}, which bears its name: rename one of them, or give --output {folder} to change that "
        "study, or another --output"
    )


def _holds(folder: Path, text: str) -> bool:
    """Whether the folder's study is this text."""
    try:
        return os.path.lexists(folder / PLAN) and read_text(folder, STUDY) == text
    except (OSError, ValueError):
        return False
