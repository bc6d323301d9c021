"""What is made once and kept: files below `$XDG_CACHE_HOME/hf_optim` (default ~/.cache), named by their content."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def folder() -> Path:
    """The cache folder; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_optim"


def read(name: str) -> bytes | None:
    """The file `name`, None if it is not there or cannot be read."""
    try:
        return (folder() / name).read_bytes()
    except OSError:
        return None


def keep(name: str, content: bytes) -> None:
    """Write the file whole or not at all. A cache that cannot be written costs time and nothing else."""
    with suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=folder(), delete=False) as stream:
            stream.write(content)
        os.replace(stream.name, folder() / name)
