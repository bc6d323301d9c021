"""Folders of runs, copied as they are opened: whoever changes one meanwhile leads nowhere else."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO

from hf_optim.experiment.files import FARTHEST_DOWN, LARGEST_RUN, Refused, open_below, remove, whole_folder

_PART = 1 << 20


def copy_whole(root: Path, name: str, path: Path, *left_out: str, linked: bool = False) -> None:
    """Copies the folder `name` ("runs/ID") below `root` in the place of `path`, whole or not at all, without names like
    those `left_out`. Of the files their content and time are taken: one of a stranger's may say that it is to be run
    as its owner, who would be you.

    Args:
        linked: files are linked where the file system can.

    Raises:
        OSError: `Refused` for a link, what is no plain file, or more than `LARGEST_RUN` bytes, which were refused
            before and have come meanwhile.
    """
    with whole_folder(path) as copied:
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in name.split("/"):
                below = open_below(name, part, at, os.O_DIRECTORY)
                os.close(at)
                at = below
            _Copy(left_out, linked).folder(name, at, copied, 0)
        finally:
            os.close(at)
        remove(path)  # what an interrupted writer left


class _Copy:
    def __init__(self, left_out: tuple[str, ...], linked: bool) -> None:
        self.left_out, self.linked, self.room = left_out, linked, LARGEST_RUN

    def folder(self, name: str, at: int, target: Path, depth: int) -> None:
        if depth > FARTHEST_DOWN:
            raise Refused(name, f"holds folders more than {FARTHEST_DOWN} deep")
        for entry in os.listdir(at):
            if any(fnmatch(entry, pattern) for pattern in self.left_out):
                continue
            label = f"{name}/{entry}"
            if stat.S_ISDIR(os.stat(entry, dir_fd=at, follow_symlinks=False).st_mode):
                below = open_below(label, entry, at, os.O_DIRECTORY)
                try:
                    (target / entry).mkdir()
                    self.folder(label, below, target / entry, depth + 1)
                finally:
                    os.close(below)
            elif not (self.linked and _link(entry, at, target / entry)):
                with os.fdopen(open_below(label, entry, at, os.O_NONBLOCK), "rb") as opened:
                    self.file(label, opened, target / entry)

    def file(self, label: str, opened: BinaryIO, target: Path) -> None:
        told = os.fstat(opened.fileno())
        if not stat.S_ISREG(told.st_mode):
            raise Refused(label, "is no plain file")
        with target.open("xb") as copy:
            while part := opened.read(_PART):
                self.room -= len(part)
                if self.room < 0:
                    raise Refused(label, f"grows beyond the {LARGEST_RUN >> 20} MB of a run")
                copy.write(part)
        os.utime(target, ns=(told.st_atime_ns, told.st_mtime_ns))


def _link(entry: str, at: int, target: Path) -> bool:
    """Whether `target` is now the plain file `entry`, not what a link there leads to."""
    with suppress(OSError):
        os.link(entry, target, src_dir_fd=at, follow_symlinks=False)
        if stat.S_ISREG(target.lstat().st_mode):
            return True
        target.unlink()
    return False
