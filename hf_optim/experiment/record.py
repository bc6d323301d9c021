"""What a run leaves behind: files written whole or not at all, and the facts about the machine."""

from __future__ import annotations

import json
import math
import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RECORD = "record.json"
HISTORY = "history.jsonl"
SPEC = "spec.json"  # beside the checkpoints of a run: what it is


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; numbers that are not finite become null."""
    _replace(path, json.dumps(_finite(value), indent=1, sort_keys=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically; numbers that are not finite become null."""
    _replace(path, "".join(json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def one_line(error: BaseException) -> str:
    """An error as one line: its kind, unless it is a plain message to the user, and its first sentence or two."""
    from hf_optim.errors import UserError

    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def environment(processes: int, device: str) -> dict[str, Any]:
    """Versions, platform and the shape of the run: processes and threads."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "accelerate": _version("accelerate"),
        "hf_optim": _version("hf-optim"),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "processes": processes,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def reset_peak_memory() -> None:
    """Start a new high-water mark, so that runs in one process do not inherit each other's (Linux only)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory() -> int:
    """The process's highest resident memory in bytes, since `reset_peak_memory` where that works."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tensor_bytes(value: Any) -> int:
    """The bytes of all tensors in nested mappings and sequences, each storage counted where it appears."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(tensor_bytes(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return sum(tensor_bytes(entry) for entry in value)
    return 0
