"""What a killed process leaves: files that were being written, as beside a run's last checkpoint, and folders."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

from hf_optim.experiment.files import remove

#: names of temporary files and probes of `files.py`
_LEFT = re.compile(r"\.(.+\.[0-9a-f]{32}\.tmp|probe\.[0-9a-f]{32})")


def is_left(name: str) -> bool:
    """Whether a file is called as one that is being written, or was."""
    return _LEFT.fullmatch(name) is not None


def sweep(folder: Path, name: str = "") -> None:
    """Takes away what writers in `folder` left behind that were killed; what somebody is writing stays. With a `name`,
    as in a folder that is not ours alone, what was to be called so.
    """
    for entry in _entries(folder, _named(name) if name else _LEFT):
        if entry.is_file(follow_symlinks=False):
            _take_away(entry.path, os.O_RDWR)


def sweep_folders(folder: Path, name: str = "") -> None:
    """The same for folders (`files.whole_folder`); with a `name`, those alone that were to be called so."""
    for entry in _entries(folder, _named(name)):
        if entry.is_dir(follow_symlinks=False):
            _take_away(entry.path, os.O_RDONLY | os.O_DIRECTORY)


def _entries(folder: Path, called: re.Pattern[str]) -> list[os.DirEntry[str]]:
    return [entry for entry in os.scandir(folder) if called.fullmatch(entry.name)] if folder.is_dir() else []


def _named(name: str) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(name) or '.+'}\.[0-9a-f]{{32}}\.tmp")


def _take_away(path: str, how: int) -> None:
    """Remove what nobody holds a lock on; `how` it is opened for that."""
    with suppress(OSError):
        held = os.open(path, how | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(Path(path).parent, Path(path).name)
        finally:
            os.close(held)
