"""What a killed run leaves beside its last checkpoint (`checkpoint.py`): files that were being written."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path

#: names of temporary files and probes of `files.py`
_LEFT = re.compile(r"\.(.+\.[0-9a-f]{32}\.tmp|probe\.[0-9a-f]{32})")


def sweep(folder: Path) -> None:
    """Takes away what writers in `folder` left behind that were killed; what somebody is writing stays."""
    for entry in os.scandir(folder):
        if _LEFT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with suppress(OSError):
                held = os.open(entry.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                finally:
                    os.close(held)
