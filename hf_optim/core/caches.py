"""Where things that are made once are kept; those that are run again, in folders that nobody else may write."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path


def home() -> Path:
    """This user's folder, which need not exist: `$XDG_CACHE_HOME/hf_optim`, default ~/.cache."""
    return (_given("XDG_CACHE_HOME") or user_home() / ".cache") / "hf_optim"


def _given(variable: str) -> Path | None:
    """The folder that the environment names. A relative one counts for none: it would be one of the current folder's,
    which may be a stranger's.
    """
    place = Path(os.environ.get(variable) or ".")
    return place if place.is_absolute() else None


def user_home() -> Path:
    """The user's own folder. RuntimeError where there is none, or $HOME names one of the current folder's."""
    place = Path.home()
    if not place.is_absolute():
        raise RuntimeError(f"HOME is {place}, which is no full path")
    return place


def make(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for this user alone, whatever the umask; one that is there
    is left as it is.
    """
    for place in (*reversed(folder.parents), folder):
        place.mkdir(mode=0o700, exist_ok=True)


def folders(name: str) -> Iterator[Path]:
    """The places for what is run again, best first: below $HF_OPTIM_CACHE; else `home`, then the temporary folder."""
    if given := _given("HF_OPTIM_CACHE"):
        yield given / name
        return
    try:
        yield home() / name
    except RuntimeError:  # no home
        pass
    if not _is_current(temporary := tempfile.gettempdir()):
        yield Path(temporary) / f"hf_optim-{os.getuid()}" / name


def _is_current(folder: str) -> bool:
    """Whether a folder is the current one or lies in it, as Python's temporary one does where no other can be written,
    or $TMPDIR is no full path: what a stranger has sent is this user's own there once it is unpacked.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it is gone
        return False
    return Path(os.path.realpath(folder)).is_relative_to(here) and here != Path(here.anchor)


def unsafe(folder: Path) -> str | None:
    """Makes a folder and the one it lies in; why what is in it may not be run, None if it may: others write
    neither, and not everybody may put something in its place (as /tmp's sticky bit sees to), now or while it is used.
    """
    try:
        for place in (folder.parent, folder):
            make(place)
        for place in (folder, folder.parent):
            link, status = place.lstat(), place.stat()
            if {link.st_uid, status.st_uid} != {os.getuid()}:  # a link of somebody else's may lead elsewhere soon
                return f"{place} belongs to somebody else"
            if status.st_mode & 0o022:
                return f"others may write {place}: chmod go-w it"
        for place in {*folder.parents, *Path(os.path.realpath(folder)).parents} - {folder.parent}:
            if place.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                return f"everybody may write {place}, and take away what is in it: chmod o-w it"
        return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"
    except OSError as error:
        return f"{folder}: {error.strerror}"


def safe(name: str) -> tuple[Path | None, str]:
    """The first of `folders` that is safe, and why not those before it; None where no folder is ours alone."""
    reasons: list[str] = []
    for folder in folders(name):
        reason = unsafe(folder)
        if reason is None:
            return folder, "; ".join(reasons)
        reasons.append(reason)
    return None, "; ".join(reasons)
