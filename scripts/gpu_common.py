"""What the sections of the GPU's report share."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hf_optim
from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.problem import Problem
from hf_optim.engine import launch_triton
from hf_optim.errors import one_line


def arguments(description: str) -> tuple[torch.device, list[str], Path]:
    """--device, --names (all by default), --output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    return torch.device(args.device), args.names or hf_optim.list_optimizers(), args.output


def rows(output: Path, names: list[str], row: Callable[[str], dict[str, Any]], **more: Any) -> None:
    """Write {"rows": {name: row(name)}}, after every name; what a name raises is its row."""
    results: dict[str, Any] = {}
    for name in names:
        try:
            results[name] = row(name)
        except Exception as e:
            results[name] = {"error": one_line(e)}
        print(f"{name:24s} {results[name]}", flush=True)
        output.write_text(json.dumps({**more, "rows": results}))


def walk(candidate: Candidate, device: torch.device, dtype: torch.dtype, **extra: Any) -> TrainingRun:
    """A training run of a candidate on a device."""
    problem = Problem(candidate.kind, dtype).to(device)
    problem.curvature = problem.curvature.to(device)
    run = TrainingRun(candidate, dtype, problem, **extra)
    run.share = lambda batch: batch.to(device)
    return run


def waits(f: Callable[[], Any], device: torch.device) -> int | None:
    """How often f waits for the device; None on a CPU, of which nobody counts it."""
    if device.type != "cuda":
        f()
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            f()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(w.message) for w in said)


class Launches:
    """Counts kernels that are launched within a `with` statement."""

    def __enter__(self) -> Launches:
        self.count, self._launch = 0, launch_triton._launch

        def counted(*work: Any) -> None:
            self.count += 1
            self._launch(*work)

        launch_triton._launch = counted
        return self

    def __exit__(self, *_: Any) -> None:
        launch_triton._launch = self._launch


def distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """||a - b|| / ||b|| over all tensors, in float64 on the CPU."""
    mine, theirs = (torch.cat([t.detach().cpu().double().flatten() for t in ts]) for ts in (a, b))
    return float((mine - theirs).norm() / theirs.norm())
