"""What is made once and kept: files below `$XDG_CACHE_HOME/hf_optim` (default ~/.cache), named by their content."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

from hf_optim.core.caches import home as folder
from hf_optim.core.caches import make

__all__ = ["folder", "keep", "make", "read"]


def read(name: str) -> bytes | None:
    """The file `name`, None if it is not there or cannot be read."""
    try:
        return (folder() / name).read_bytes()
    except OSError:
        return None


def keep(name: str, content: bytes) -> None:
    """Write the file whole or not at all. A cache that cannot be written costs time and nothing else."""
    with suppress(OSError):
        make(folder())
        with tempfile.NamedTemporaryFile("wb", dir=folder(), delete=False) as stream:
            stream.write(content)
        os.replace(stream.name, folder() / name)
