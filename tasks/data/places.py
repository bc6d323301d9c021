"""Where data lie: a file or a folder of yours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hf_optim.errors import UserError
from hf_optim.experiment import files


def check(path: Path) -> None:
    """Raise a `UserError` for what is neither a file nor a folder: it would be waited for, or never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"data: {path} is a pipe, a socket or a device: give a file or a folder")


def check_file(file: Path) -> None:
    """Raise a `UserError` for a file that is mostly holes: it is read as a whole."""
    told = file.stat()
    if files.is_hollow(told.st_size, 512 * told.st_blocks):
        raise UserError(f"data: {file} says to have {told.st_size >> 30} GB and is mostly holes")


def below(folder: Path, *suffixes: str) -> Iterator[Path]:
    """The files below a folder that end so; a `UserError` where it has no end."""
    return (file for file in files.below(folder, "data") if file.suffix in suffixes and file.is_file())
