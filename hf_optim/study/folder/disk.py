"""A study's folder on a disk that is full or read-only: told from a run's own failure, in one line."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from hf_optim.experiment.files import FULL, unwritable

#: what a run must find free before it starts: its record, history and log need less
SPACE = 4 << 20
#: how Python, safetensors and torch say that a file could not be written to its end
_SAID = (*(f"[Errno {number}]" for number in FULL), *(f"(os error {number})" for number in FULL), "unexpected pos ")


def check_space(folder: Path) -> None:
    """Raises UserError if a run that starts now might not be able to leave its record."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise unwritable(folder, error) from None
    if free < SPACE:
        raise unwritable(folder, OSError(errno.ENOSPC, f"{free / 1e6:.1f} MB are free, a run needs {SPACE / 1e6:.0f}"))


def check_disk(folder: Path, error: BaseException | None = None, said: str = "") -> None:
    """Raises UserError if `error`, or the reason that a run has `said`, is the disk's, or if `folder` does not take a
    small file now (which a limit on the size of files lets through).
    """
    if any(words in said for words in _SAID):
        raise unwritable(folder, OSError(errno.EFBIG, said[:200]))
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EROFS, errno.ESTALE):
        raise unwritable(folder, error) from None
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
