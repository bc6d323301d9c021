"""A disk that is full or read-only: told from a run's own failure, in one line."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_optim.errors import OF_MEMORY, DamagedCheckpoint, UserError, one_line
from hf_optim.experiment.files import Refused

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK = (*FULL, errno.EROFS, errno.ESTALE)
#: what is not there, or is no file. All else is of a disk or a network that does not answer, another user's file, too
#: many that are open; libraries raise what has no number for what a file holds
_NO_FILE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
    *(errno.EEXIST, errno.ENOTEMPTY, None),
)
#: in the reason of a run that says nothing about its optimizer: memory that there is not, a device that is lost
MACHINE = ("MemoryError", *OF_MEMORY, "CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS")
#: what a run must find free before it starts: its record, history and log need less
SPACE = 4 << 20
#: how Python, safetensors and torch say that a file could not be written to its end
_SAID = (*(f"[Errno {number}]" for number in FULL), *(f"(os error {number})" for number in FULL), "unexpected pos ")


class NotNow(DamagedCheckpoint):
    """A checkpoint with which this machine cannot go on as it is now; whether it is damaged nobody knows."""


class Unwritable(UserError):
    """A folder takes no more files, which says nothing about what was to be written."""


def unwritable(folder: Path, error: OSError) -> Unwritable:
    """One line for a folder that takes no more files."""
    if isinstance(error, Refused):
        return Unwritable(f"{folder}: {error}: {error.mend}, or choose another place")
    why = error.strerror or str(error)
    if error.errno in FULL:
        again = "make space and give the same command again; what is finished is kept"
        return Unwritable(f"{folder}: the disk is full ({why}): {again}")
    return Unwritable(f"{folder}: cannot be written ({why}): make it writable or choose another --output")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """An error of the disk within the block is `unwritable`'s line."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from None


def check_space(folder: Path) -> None:
    """Raises Unwritable if a run that starts now might not be able to leave its record."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unwritable(folder, error) from None
    if free < SPACE:
        raise unwritable(folder, OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB are free, a run needs {SPACE / 1e6:.0f}"))


def check_error(folder: Path, error: BaseException | str) -> None:
    """Raises Unwritable if an error, or what a record says of one, is the disk's, or of what stands in our files'
    place.
    """
    if isinstance(error, Unwritable):
        raise error
    if isinstance(error, Refused):
        raise unwritable(folder, error) from None
    if isinstance(error, OSError) and error.errno in _DISK:
        name = error.filename if isinstance(error.filename, str) and os.path.isabs(error.filename) else ""
        elsewhere = name and not Path(name).is_relative_to(os.path.abspath(folder))  # a cache, a file of their own
        raise unwritable(Path(name) if elsewhere else folder, error) from None
    said = error if isinstance(error, str) else one_line(error)
    if any(words in said for words in _SAID):
        raise unwritable(folder, OSError(errno.EFBIG, said[:200])) from None


def check_given(checkpoint: Path | str, error: BaseException) -> None:
    """Raises `NotNow` (Unwritable for a disk's) unless an error that came of reading a checkpoint is of what it holds:
    one that is damaged is begun anew, and taken away.
    """
    cause: BaseException | None = error
    while cause is not None:
        away = isinstance(cause, OSError) and not isinstance(cause, Refused) and cause.errno not in _NO_FILE
        if away or any(word in one_line(cause) for word in MACHINE):
            kind = Unwritable if away else NotNow
            raise kind(
                f"resume: {checkpoint} cannot be read now ({one_line(cause)[:200]}): give the same command again; "
                "nothing was removed"
            ) from error
        cause = cause.__cause__ or cause.__context__


def check_disk(folder: Path) -> None:
    """Raises Unwritable if `folder` takes no small file now (which a limit on the size of files lets through)."""
    probe = folder / f".probe.{uuid.uuid4().hex}"
    try:
        with open(probe, "xb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as problem:
        raise unwritable(folder, problem) from None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
