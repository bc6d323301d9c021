"""What a run leaves behind: files written whole or not at all, and the facts about the machine."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_optim.experiment.disk import writing
from hf_optim.experiment.files import write_json, write_rows

RECORD = "record.json"
HISTORY = "history.jsonl"
SAMPLES = "samples"  # what was generated
SPEC = "spec.json"  # beside the checkpoints of a run: what it is

#: rows of a history that are read; a run that logs a hundred thousand steps has as many
MOST_ROWS = 500_000
#: names of figures that a run leaves, of 5,000 that are read of a study
MOST_NAMES = 4_000

#: the environment's word for how many runs share a GPU, said by whoever starts them
SHARERS = "HF_OPTIM_RUNS_PER_GPU"


def step_of(checkpoint: str) -> int:
    """The step that a checkpoint is called by; -1 for what Trainer would not call so, and leaves alone."""
    called = re.fullmatch(r"checkpoint-([0-9]{1,19})", checkpoint)
    return int(called[1]) if called else -1


def after(checkpoints: Iterable[str], step: int) -> list[str]:
    """Those that are called by a later step, in its order."""
    return sorted((name for name in checkpoints if step_of(name) > step), key=step_of)


def leave(folder: Path, history: Iterable[Mapping[str, Any]], record: Mapping[str, Any]) -> None:
    """Writes what a run ends with, the record last of all. Raises Unwritable."""
    with writing(folder):
        write_rows(folder, HISTORY, history)
        write_json(folder, RECORD, record)


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
        "cpu": cpu(),
        "cpu_count": os.cpu_count(),
        "device": device,
        **card(),
        "processes": processes,
        "threads": torch.get_num_threads(),
    }


def cpu() -> str:
    """The processor's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def card() -> dict[str, Any]:
    """`card`, the GPU's name, and `card_bytes`, its memory; None without one."""
    import torch

    if not torch.cuda.is_available():
        return {"card": None, "card_bytes": None}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {"card": properties.name, "card_bytes": properties.total_memory}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def reset_peak_memory() -> None:
    """Start new high-water marks, so that runs in one process do not inherit each other's (of the CPU: Linux only)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
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


def peak_card_memory() -> int | None:
    """The most bytes of the GPU that tensors took at a time, since `reset_peak_memory`; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


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
