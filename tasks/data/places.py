"""Where data lie: a file or a folder of yours."""

from __future__ import annotations

from pathlib import Path

from hf_optim.errors import UserError


def check(path: Path) -> None:
    """Raise a `UserError` for what is neither a file nor a folder: it would be waited for, or never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"data: {path} is a pipe, a socket or a device: give a file or a folder")
