"""The new folder that a merge or a published copy becomes: there when all of it is, in nobody's place."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_optim.errors import UserError
from hf_optim.experiment import leftovers
from hf_optim.experiment.disk import unwritable
from hf_optim.experiment.files import whole_folder


def check_destination(folder: Path) -> None:
    """Raise UserError unless `folder` is missing or an empty folder of its own."""
    if os.path.realpath(folder) == os.getcwd():
        raise UserError(f"{folder} is the current folder, which nothing can take the place of: choose a new folder")
    if folder.is_symlink():
        raise UserError(f"{folder} is a link, which is not written through: choose another folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: choose a new folder")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder beside `folder`, which takes its place if the block ends well, and is taken away if not.

    Raises:
        UserError: `folder` is not empty, before the block or after it; a full disk.
    """
    check_destination(folder)
    try:
        leftovers.sweep_folders(folder.parent, folder.name)
        with whole_folder(folder.parent, folder.name) as (growing, _):
            yield growing
            check_destination(folder)  # again: what somebody put there meanwhile stays
    except OSError as error:
        raise unwritable(folder, error) from None
