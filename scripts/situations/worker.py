"""Runs scripts for every kind of rule, in this process, which may be one of several.

    python scripts/situations/worker.py PHASE FOLDER SCRIPT ...

PHASE is "first": the whole run, the same in plain torch, and one with dropout that leaves a checkpoint; "two": started
twice by torchrun; "last": the checkpoint gone on with, and what it and two processes saw in plain torch. Weights,
batches and outcomes go to FOLDER/SCRIPT. Most of the time is that of imports, so scripts share a process.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

import hf_optim

sys.path.insert(0, str(Path(__file__).parent))
import plain  # noqa: E402
from table import KINDS, SITUATIONS, STEPS, Situation  # noqa: E402


def arguments(script: Situation, kind: str, mode: str, folder: Path, world: int) -> list[str]:
    """The command line of one run: 8 samples a step on any number of processes."""
    dropout = "0.1" if mode in ("straight", "resumed") and not script.draws else "0"
    given = ["--optimizer", json.dumps(KINDS[kind]), "--dropout", dropout, "--output_dir", str(folder / mode)]
    checkpoint = folder / "straight" / script.checkpoint
    if mode == "resumed":
        given += ["--resume_from_checkpoint", str(checkpoint)]
    if script.door == "Session":
        given += ["--batch_size", str(8 // world), "--seed", "7"]
        return given + (["--checkpointing_steps", "3"] if mode == "straight" else [])
    samples = 8 // world // script.accumulation
    return [
        *given, "--use_cpu", "True", "--report_to", "none", "--max_steps", str(STEPS), "--logging_steps", "1",
        "--per_device_train_batch_size", str(samples), "--gradient_accumulation_steps", str(script.accumulation),
        "--save_strategy", "steps" if mode == "straight" else "no", "--save_steps", "3", "--disable_tqdm", "True",
        "--seed", "7", "--max_grad_norm", "0" if kind == "line search" else "1", *script.more,
    ]  # fmt: skip


def run(script: Situation, kind: str, mode: str, folder: Path, inside: Any = None) -> bool:
    """One run; what became of it goes to MODE.json. Whether it went through."""
    from accelerate.state import AcceleratorState, GradientState

    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _many() else (0, 1)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    (folder / mode).mkdir(parents=True, exist_ok=True)
    outcome: dict[str, Any] = {}
    try:
        with inside or contextlib.nullcontext():
            importlib.import_module(script.name).main(arguments(script, kind, mode, folder, world))
    except hf_optim.UserError as error:
        outcome["refused"] = str(error)
    except Exception:
        outcome["failed"] = traceback.format_exc()
    (folder / (f"{mode}-{rank}.json" if rank else f"{mode}.json")).write_text(json.dumps(outcome))
    return not outcome


def _many() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _windows(flat: list[Any], accumulation: int) -> list[list[Any]]:
    return [flat[i : i + accumulation] for i in range(0, len(flat), accumulation)]


def first(script: Situation, kind: str, folder: Path) -> None:
    """The whole run against plain torch, and the run that is interrupted later."""
    flat: list[Any] = []
    if script.door == "Session":
        if run(script, kind, "whole", folder):
            run(script, kind, "plain", folder, plain.by_hand(folder / "start"))
    else:
        if run(script, kind, "whole", folder, plain.written_down(flat)):
            windows = _windows(flat, script.accumulation)
            run(script, kind, "plain", folder, plain.repeated(windows, script.by_labels, folder / "start"))
    if script.checkpoint:
        flat = []
        run(script, kind, "straight", folder, plain.written_down(flat) if script.draws else None)
        torch.save(flat[: STEPS // 2 * script.accumulation], folder / "batches-before.pt")


def two(script: Situation, kind: str, folder: Path) -> None:
    """A part of every step in each process."""
    flat: list[Any] = []
    if run(script, kind, "two", folder, plain.written_down(flat) if script.door == "attach" else None):
        torch.save(flat, folder / f"batches-{torch.distributed.get_rank()}.pt")
        if script.local:
            run(script, kind, "plain_two", folder, plain.by_hand())


def last(script: Situation, kind: str, folder: Path) -> None:
    """The checkpoint gone on with in a new process, and the batches of two processes in one."""
    if script.checkpoint and not json.loads((folder / "straight.json").read_text()):
        flat: list[Any] = []
        if run(script, kind, "resumed", folder, plain.written_down(flat) if script.draws else None) and script.draws:
            before = torch.load(folder / "batches-before.pt", weights_only=False)
            windows = _windows(before + flat, script.accumulation)
            run(script, kind, "plain_resumed", folder, plain.repeated(windows, script.by_labels))
    if script.door == "attach" and not json.loads((folder / "two.json").read_text()):
        ranks = [torch.load(folder / f"batches-{r}.pt", weights_only=False) for r in (0, 1)]
        windows = [a + b for a, b in zip(*(_windows(flat, script.accumulation) for flat in ranks), strict=True)]
        run(script, kind, "plain_two", folder, plain.repeated(windows, script.by_labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["first", "two", "last"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("scripts", nargs="+", choices=list(SITUATIONS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.phase == "two":
        from accelerate import PartialState

        assert PartialState(cpu=True).num_processes == 2
    phase = {"first": first, "two": two, "last": last}[given.phase]
    for name in given.scripts:
        script = SITUATIONS[name]
        for kind in KINDS:
            phase(script, kind, given.folder / name / kind.replace(" ", "_"))
    if _many():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
