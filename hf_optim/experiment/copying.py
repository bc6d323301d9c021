"""Folders of runs, copied as they are opened: whoever changes one meanwhile, there or here, leads nowhere else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from hf_optim.experiment.files import FARTHEST_DOWN, LARGEST_RUN, Refused, holding, open_below, remove, whole_folder

_PART = 1 << 20


def copy_whole(root: Path, name: str, into: Path, *left_out: str, linked: bool = False) -> None:
    """Copies the folder `name` ("runs/ID") below `root` in the place of that below `into`, whole or not at all, without
    names like those `left_out`. Of the files their content and time are taken: one of a stranger's may say that it is
    to be run as its owner, who would be you.

    Args:
        linked: files are linked where the file system can.

    Raises:
        OSError: `Refused` for a link, what is no plain file, or more than `LARGEST_RUN` bytes, which were refused
            before and have come meanwhile.
    """
    with whole_folder(into, name) as (_, copied):
        with holding(root, name) as (at, last):
            below = open_below(name, last, at, os.O_DIRECTORY)
        try:
            _Copy(left_out, linked).folder(name, below, copied, 0)
        finally:
            os.close(below)
        remove(into, name)  # what an interrupted writer left


class _Copy:
    def __init__(self, left_out: tuple[str, ...], linked: bool) -> None:
        self.left_out, self.linked, self.room = left_out, linked, LARGEST_RUN

    def folder(self, name: str, at: int, target: int, depth: int) -> None:
        """What the folder open as `at` holds, into the one open as `target`."""
        if depth > FARTHEST_DOWN:
            raise Refused(name, f"holds folders more than {FARTHEST_DOWN} deep")
        for entry in os.listdir(at):
            if any(fnmatch(entry, pattern) for pattern in self.left_out):
                continue
            label = f"{name}/{entry}"
            if stat.S_ISDIR(os.stat(entry, dir_fd=at, follow_symlinks=False).st_mode):
                os.mkdir(entry, dir_fd=target)
                below, copied = (open_below(label, entry, where, os.O_DIRECTORY) for where in (at, target))
                try:
                    self.folder(label, below, copied, depth + 1)
                finally:
                    os.close(below)
                    os.close(copied)
            elif not (self.linked and _link(entry, at, target)):
                with os.fdopen(open_below(label, entry, at, os.O_NONBLOCK), "rb") as opened:
                    self.file(label, opened, entry, target)

    def file(self, label: str, opened: BinaryIO, entry: str, target: int) -> None:
        told = os.fstat(opened.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise Refused(label, "is no plain file")
        new = os.open(entry, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=target)
        with os.fdopen(new, "wb") as copy:
            while part := opened.read(_PART):
                self.room -= len(part)
                if self.room < 0:
                    raise Refused(label, f"grows beyond the {LARGEST_RUN >> 20} MB of a run")
                copy.write(part)
            copy.flush()
            os.utime(new, ns=(told.st_atime_ns, told.st_mtime_ns))


def _link(entry: str, at: int, target: int) -> bool:
    """Whether `target` holds the plain file `entry` now, not what a link there leads to."""
    with suppress(OSError):
        os.link(entry, entry, src_dir_fd=at, dst_dir_fd=target, follow_symlinks=False)
        if stat.S_ISREG(os.stat(entry, dir_fd=target, follow_symlinks=False).st_mode):
            return True
        os.unlink(entry, dir_fd=target)
    return False
