"""Files of runs and studies: written whole or not at all, also in a folder that several machines share."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that `path` holds either the old or the new content, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process's number would not do: two machines may share the folder.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; numbers that are not finite become null."""
    write_atomically(path, json.dumps(_finite(value), indent=1, sort_keys=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically; numbers that are not finite become null."""
    write_atomically(path, "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
