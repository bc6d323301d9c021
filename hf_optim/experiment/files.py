"""The one room that opens and writes what belongs to runs and studies: whole or not at all, and never elsewhere.

A folder may come from a stranger. What the user names is followed wherever it leads; below it nothing is: every name on
the way is a folder and the last one a plain file, never a link, a pipe or a device. The folders are held open meanwhile
(`holding`), so that one that is exchanged for a link leads nowhere. `Refused` is an OSError, so that whoever reads
treats what is refused as what cannot be read.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from hf_optim.errors import UserError
from hf_optim.experiment.plain_json import check_count, parse_json, readable

#: bytes of a file that is read at once; histories of long runs have some MB
LARGEST = 64 << 20
#: folders within folders of a run; ours are two or three
FARTHEST_DOWN = 40
#: bytes of a run's folder that is copied without its checkpoints; ours have some MB
LARGEST_RUN = 1 << 30
CHECKPOINTS = "checkpoint-*"
#: how a folder is opened that is passed through: on Linux one that may not be listed, too
_FOLDER = os.O_DIRECTORY | getattr(os, "O_PATH", 0)
#: what Linux calls a file's access list
_ACCESS = "system.posix_acl_access"


class Refused(OSError):
    """What stands there is no plain file or folder of its own."""

    mend = "remove it"

    def __init__(self, name: str, why: str) -> None:
        super().__init__(errno.EPERM, why)
        self.filename = name

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


class Unreadable(Refused):
    """Another user's file: what it holds nobody here knows."""

    mend = "make it readable"


@contextmanager
def holding(folder: Path, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
    """The descriptor of the folder in which the last part of `name` ("a/b.json") lies below `folder`, and that part.
    Whatever takes the place of a folder on the way meanwhile, the descriptor stays this folder's.

    Args:
        make: folders that are missing below `folder` are made.

    Raises:
        OSError: `Refused` for a link on the way, or what is no name below a folder.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Refused(name, "is no name below its folder")
    at = os.open(folder, _FOLDER | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts[:-1], 1):
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=at)
            try:
                below = open_below(name, part, at, _FOLDER)
            except OSError as error:
                if make and (isinstance(error, Refused) or error.errno == errno.ENOTDIR):
                    place = "/".join(parts[:number])
                    raise Refused(place, "is a link or no folder, and is not written through") from None
                raise
            os.close(at)
            at = below
        yield at, parts[-1]
    finally:
        os.close(at)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_bytes(folder: Path, name: str, most: int = LARGEST) -> bytes:
    """The plain file `name` ("a/b.json") below `folder`.

    Raises:
        OSError: there is none; `Refused` for a link on the way, what is no plain file, or more than `most` bytes.
    """
    with opened(folder, name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise Refused(name, f"is larger than {most} bytes")
    return content


@contextmanager
def opened(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A plain file of any length, as `read_bytes` opens it."""
    with holding(folder, name) as (at, last):
        file = open_below(name, last, at, os.O_NONBLOCK)  # or a pipe would be waited for
    if not stat.S_ISREG(os.fstat(file).st_mode):  # of a folder fdopen would make an error without its name
        os.close(file)
        raise Refused(name, "is no plain file")
    with os.fdopen(file, "rb") as plain:
        yield plain


def open_below(name: str, part: str, at: int, how: int) -> int:
    """The descriptor of the entry `part` of the folder `at`, never of what a link leads to; `name` is for `Refused`."""
    try:
        return os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | how, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(part, at):
            raise Refused(name, "is a link, which is not followed") from None
        if error.errno == errno.ENXIO:  # a socket
            raise Refused(name, "is no plain file") from None
        raise


def _is_link(name: str, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False


def read_text(folder: Path, name: str) -> str:
    """`read_bytes` as UTF-8; a ValueError if it is not."""
    return read_bytes(folder, name).decode("utf-8")


def read_json(folder: Path, name: str) -> Any:
    """The JSON in a file as `parse_json` takes it. Raises OSError or ValueError."""
    return parse_json(read_text(folder, name))


def check_tree(folder: Path, most: int | None = None) -> None:
    """Raise `Refused` unless everything below `folder` is a folder or a plain file that can be read, not too far below.

    `most`: bytes that a copy of it may have, without `CHECKPOINTS`; a file full of holes counts in its full length.
    """
    size = 0
    if folder.is_symlink():
        raise Refused(folder.name, "is a link, which is not followed")
    for place, folders, files in os.walk(folder):
        if len(Path(place).parts) - len(folder.parts) > FARTHEST_DOWN:
            raise Refused(folder.name, f"holds folders more than {FARTHEST_DOWN} deep")
        for name in (*folders, *files):
            path = Path(place) / name
            standing = path.lstat()
            mode = standing.st_mode
            if stat.S_ISLNK(mode):
                raise Refused(str(path.relative_to(folder.parent)), "is a link, which is not followed")
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Refused(str(path.relative_to(folder.parent)), "is no plain file")
            if not os.access(path, os.R_OK | os.X_OK if stat.S_ISDIR(mode) else os.R_OK):
                raise Unreadable(str(path.relative_to(folder.parent)), "cannot be read")
            if stat.S_ISREG(mode) and not fnmatch(path.relative_to(folder).parts[0], CHECKPOINTS):
                size += standing.st_size
    if most is not None and size > most:
        raise Refused(folder.name, f"holds more than {most >> 20} MB beside checkpoints")


def below(folder: Path, kind: str) -> Iterator[Path]:
    """Everything below a folder, without following links; a `UserError`, of a `kind`, where it has no end."""
    for place, folders, names in os.walk(folder):
        if len(Path(place).parts) - len(folder.parts) > FARTHEST_DOWN:
            raise UserError(f"{kind}: {folder} holds folders more than {FARTHEST_DOWN} deep")
        yield from (Path(place, name) for name in (*folders, *names))


def is_hollow(size: int, written: int) -> bool:
    """Whether most of so many bytes was never written: it costs nothing to send, and its whole length in memory."""
    return size > 1 << 30 and 4 * written < size


# --- writing ---------------------------------------------------------------------------------------------------------


def own_folder(folder: Path, *names: str) -> Path:
    """The folder `folder`/names, made where it is missing; `Refused` if a link stands on the way below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder, "/".join((*names, "any")), make=True):
        return folder.joinpath(*names)


def by_default(*names: str) -> Path:
    """The folder `names` of the current one, which a command takes where the user names none: a stranger may have put a
    link there, or on the way, and what it leads to would be written over, or taken away.
    """
    folder = Path(*names)
    for place in (folder, *folder.parents):
        if place.is_symlink():
            raise UserError(f"{place} is a link, which is not followed unasked: remove it, or give --output {folder}")
    return folder


def set_aside(folder: Path, name: str, names: Iterable[str]) -> str:
    """Gives `name` in `folder` the first of `names` that nothing there has, which is returned."""
    new = next(free for free in names if not os.path.lexists(folder / free))
    with holding(folder, name) as (at, last):
        os.rename(last, new, src_dir_fd=at, dst_dir_fd=at)
    return new


def numbered(stem: str, suffix: str = "") -> Iterator[str]:
    """Names to set something aside by: the first plain, the others numbered."""
    yield f"{stem}{suffix}"
    yield from (f"{stem}-{number}{suffix}" for number in itertools.count(2))


def remove(folder: Path, name: str) -> None:
    """Takes away a file, a link (not what it points to) or a folder with all that is in it; nothing is fine too."""
    with suppress(FileNotFoundError), holding(folder, name) as (at, last):
        remove_at(at, last)


def remove_at(at: int, name: str) -> None:
    """`remove` of an entry of the folder that is open as `at`."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=at)
        return
    held = open_below(name, name, at, os.O_DIRECTORY)
    try:
        while entries := os.listdir(held):
            for entry in entries:
                if not stat.S_ISDIR(os.stat(entry, dir_fd=held, follow_symlinks=False).st_mode):
                    os.unlink(entry, dir_fd=held)
                    continue
                below = open_below(entry, entry, held, os.O_DIRECTORY)
                try:  # What is in it comes up here: the deepest tree has then no more levels than descriptors.
                    for inner in os.listdir(below):
                        os.rename(inner, f".{uuid.uuid4().hex}.old", src_dir_fd=below, dst_dir_fd=held)
                finally:
                    os.close(below)
                os.rmdir(entry, dir_fd=held)
    finally:
        os.close(held)
    os.rmdir(name, dir_fd=at)


@contextmanager
def whole(folder: Path, name: str) -> Iterator[BinaryIO]:
    """Gives an empty file to write to, which becomes `name` ("a/b.json") below `folder` if the block ends well, and is
    taken away if not. It is as open to others as a file that stands there, of another user's at the most. A link that
    is called so is replaced, and not followed; `Refused` for a link on the way, for a folder, and for a pipe or a
    device, of which there may be one alone (/dev/null).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder, name, make=True) as (at, last):
        mode, there = 0o666, None
        with suppress(FileNotFoundError):
            there = os.stat(last, dir_fd=at, follow_symlinks=False)
            plain = stat.S_ISREG(there.st_mode)
            if os.path.samestat(os.fstat(at), os.stat("/dev")) or not (plain or stat.S_ISLNK(there.st_mode)):
                raise Refused(last, "is no plain file, and is not replaced")
            mode, there = (there.st_mode & 0o777, there) if plain else (mode, None)
        temporary, held = _begin(at, last, mode & 0o666 | 0o600)
        try:
            if there:
                own = there.st_uid == os.geteuid()
                _open_as(held, there, mode if own else stat.S_IMODE(os.fstat(held).st_mode), _access(at, last), own)
            with open(held, "w+b", closefd=False) as file:  # libraries close what they are given
                yield file
            os.fsync(held)
            os.replace(temporary, last, src_dir_fd=at, dst_dir_fd=at)
        finally:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=at)
            os.close(held)


def _access(at: int, name: str) -> bytes | None:
    """The access list of an entry of the folder that is open as `at`: where there is one, the mode's bits of the group
    are what anybody named in it has at the most, and not the group's.
    """
    with suppress(OSError, AttributeError):  # none, a file system without any, a system other than Linux
        return os.getxattr(f"/proc/self/fd/{at}/{name}", _ACCESS, follow_symlinks=False)
    return None


def _open_as(held: int, there: os.stat_result, mode: int, access: bytes | None, own: bool) -> None:
    """Gives `held` this mode, the group and, of an `own` one, the access list of what it takes the place of. Where
    these cannot be kept, the group has no rights, and others have none that it had not.
    """
    with suppress(OSError):  # a group that is not this user's, a file system without any
        if os.fstat(held).st_gid != there.st_gid:
            os.fchown(held, -1, there.st_gid)
    kept = os.fstat(held).st_gid == there.st_gid and (own or access is None)
    with suppress(OSError, AttributeError):  # what the folder gives to each new file
        os.removexattr(held, _ACCESS)
    try:
        if kept and access is not None:
            os.setxattr(held, _ACCESS, access)
    except OSError:
        kept = False
    with suppress(OSError):
        os.fchmod(held, mode if kept else mode & (0o700 | mode >> 3 & 0o007))


def _begin(at: int, name: str, mode: int) -> tuple[str, int]:
    """A new file beside `name`, and its descriptor, whose lock tells `leftovers.sweep` that somebody is at it."""
    while True:
        # A process's number would not do: two machines may share the folder.
        temporary = f".{name}.{uuid.uuid4().hex}.tmp"
        held = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=at)
        with suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(held, fcntl.LOCK_EX)
        if os.fstat(held).st_nlink:  # else it was swept before it was locked
            return temporary, held
        os.close(held)


@contextmanager
def whole_folder(folder: Path, name: str) -> Iterator[tuple[Path, int]]:
    """Gives an empty folder to write to, by name and open, which becomes `name` (missing by then, or an empty folder)
    below `folder` if the block ends well, and is taken away if not: by `leftovers.sweep_folders`, where the process is
    killed meanwhile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder, name, make=True) as (at, last):
        temporary, held = _begin_folder(at, last)
        try:
            yield (folder / name).with_name(temporary), held
            with suppress(FileNotFoundError):  # an empty folder of the user's stays as open to others as it was
                there = os.stat(last, dir_fd=at, follow_symlinks=False)
                _open_as(held, there, stat.S_IMODE(there.st_mode), _access(at, last), there.st_uid == os.geteuid())
            os.rename(temporary, last, src_dir_fd=at, dst_dir_fd=at)
        finally:
            with suppress(OSError):
                remove_at(at, temporary)
            os.close(held)


def _begin_folder(at: int, name: str) -> tuple[str, int]:
    """A new folder beside `name`, and its descriptor, whose lock tells that somebody is at it."""
    mode = 0o777
    with suppress(FileNotFoundError):  # what is there may be nobody else's, and so is what takes its place meanwhile
        os.stat(name, dir_fd=at, follow_symlinks=False)
        mode = 0o700
    while True:
        temporary = f".{name}.{uuid.uuid4().hex}.tmp"
        os.mkdir(temporary, mode, dir_fd=at)
        with suppress(FileNotFoundError):  # taken away before it was locked
            held = open_below(temporary, temporary, at, os.O_DIRECTORY)
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                os.stat(temporary, dir_fd=at)
                return temporary, held
            os.close(held)


def write_atomically(folder: Path, name: str, text: str) -> None:
    """Writes `text` so that the file holds either the old or the new content, whenever the process is killed."""
    content = text.encode()
    with whole(folder, name) as file:
        file.write(content)


def write_json(folder: Path, name: str, value: Any) -> None:
    """Write `value` as JSON, atomically. What readers do not take is changed: numbers that are not finite, or beyond
    any, become null, and half a character, as a file's name holds it that is not UTF-8, what Python calls it.
    `Refused` for what is more than they take: as others write it, it has less room.
    """
    text = json.dumps(readable(value), indent=1, sort_keys=False, allow_nan=False) + "\n"
    check_text(name, text)
    write_atomically(folder, name, text)


def check_text(name: str, text: str) -> None:
    """Raise `Refused` unless a file of this JSON, which is ASCII, could be read again."""
    try:
        check_count(text)
    except ValueError as error:
        raise Refused(name, f"would be {error}, which are not read") from None
    if len(text) > LARGEST:
        raise Refused(name, f"would have more than {LARGEST >> 20} MB, which are not read")


def write_rows(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, as `write_json` does."""
    write_atomically(folder, name, "".join(json.dumps(readable(row), allow_nan=False) + "\n" for row in rows))
