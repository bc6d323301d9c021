"""A study.yaml that somebody wrote by hand is kept under another name before ours takes its place."""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

from hf_optim.experiment.files import read_bytes, read_json, set_aside

STUDY, PLAN = "study.yaml", "plan.json"
#: in plan.json: of the study.yaml that was written beside it
DIGEST = "study_sha256"


def digest(text: str) -> str:
    """SHA-256 of a YAML, or of a path, which may be of no encoding."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def edited(folder: Path, text: str) -> bool:
    """Whether the study.yaml that stands in `folder` is neither `text` nor what was written beside its plan: what
    cannot be read, or was written by a version that kept no digest, is somebody's, too.
    """
    if not os.path.lexists(folder / STUDY):
        return False
    try:
        standing = read_bytes(folder, STUDY)
    except OSError:
        return True
    return standing != text.encode() and hashlib.sha256(standing).hexdigest() != _written(folder)


def keep(folder: Path) -> str:
    """Gives the study.yaml of `folder` a name that no other YAML there has, which is returned."""
    return set_aside(folder, STUDY, (f"study-{number}.yaml" for number in itertools.count(1)))


def _written(folder: Path) -> object:
    try:
        plan = read_json(folder, PLAN)
    except (OSError, ValueError):
        return None
    return plan.get(DIGEST) if isinstance(plan, dict) else None
