"""Who is at which run: locks that the kernel drops with their process, on this machine or another."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_optim.errors import UserError

LOCK_FILE = ".lock"
#: lock files that this process holds open: closing one would let go of every lock that the process has in it
_lock_files: dict[Path, int] = {}


class Lock:
    """An exclusive lock on the run `run_id` of the study in `folder`, for this process. `acquire` never waits.

    One byte of the file `.lock`, at the run's own place. The file is never removed: a lock on a file that somebody
    else removes and makes anew is no lock, least of all on a network file system, which remembers names for a while.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.file = folder / LOCK_FILE
        self.place = int(hashlib.sha256(run_id.encode()).hexdigest()[:12], 16)
        self._held = False

    def acquire(self) -> bool:
        """True if this process now holds the lock. UserError where the file system has no locks."""
        import fcntl

        if not self._open():
            self.file.parent.mkdir(parents=True, exist_ok=True)
            _lock_files[self.file] = _open_lock(self.file)
        try:
            fcntl.lockf(_lock_files[self.file], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self.place)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise UserError(
                f"{self.file.parent}: this file system gives no locks ({error.strerror}), which keep two workers from "
                "one run: use another folder, or have it mounted with locks"
            ) from None
        self._held = True
        return True

    def _open(self) -> bool:
        """Whether this process has the file open, and not one of a folder that was removed meanwhile."""
        try:
            there = os.lstat(self.file)
        except FileNotFoundError:
            return False
        return self.file in _lock_files and os.path.samestat(there, os.fstat(_lock_files[self.file]))

    def release(self) -> None:
        """Lets go."""
        import fcntl

        if self._held:
            fcntl.lockf(_lock_files[self.file], fcntl.LOCK_UN, 1, self.place)
            self._held = False


@contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """What must not be done by two at once in a folder, under a name: waits until nobody else is at it."""
    lock = Lock(folder, name)
    while not lock.acquire():
        time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def _open_lock(file: Path) -> int:
    try:
        opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{file}: is a link, which is not followed: remove it") from None
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise UserError(f"{file}: is no plain file: remove it")
    return opened


def check_shared(folder: Path, mounts: str | None = None) -> None:
    """Raises UserError if `folder` lies on a network file system that was mounted so that other machines do not see
    its locks.

    Args:
        folder: an existing folder.
        mounts: the text of /proc/self/mountinfo; default this machine's (nothing is checked without one).
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8")
        except OSError:
            return
    path = folder.resolve()
    depth, kind, options = -1, "", list[str]()
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= depth:
            depth, kind = len(point.parts), right.split()[0]
            options = [*left.split()[5].split(","), *right.split()[2].split(",")]
    deaf = {"nolock", "local_lock=all", "local_lock=posix"} if kind.startswith("nfs") else set()
    if kind == "lustre" and "flock" not in options:
        deaf = {"localflock", "noflock"}
        options = [*options, *({"noflock"} - {*options})]
    local_only = sorted(deaf & {*options})
    if local_only:
        raise UserError(
            f"{folder}: mounted as {kind} with {local_only[0]}, so that machines do not see each other's locks and "
            "would run the same runs: have it mounted with locks, or use another --output"
        )
