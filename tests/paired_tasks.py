"""Runs of tasks that two processes train, for a test: `torchrun paired_tasks.py FOLDER`, on the CPU with gloo.

One pair of processes trains them all: most of what such a test costs is what the processes import.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

STEPS, RATE = 4, 0.1
SGD: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": RATE}}
#: the text tasks; a rule that reads the loss; a model that computes in bf16
RUNS: dict[str, dict[str, Any]] = {
    "albert": {"task": "albert", **SGD},
    "lm": {"task": "lm", **SGD},
    "translation": {"task": "translation", **SGD},
    "loss-aware": {"task": "vision", "model": "mlp", "optimizer": {"name": "smaran"}},
    "bf16": {"task": "vision", "model": "mlp", "optimizer": {"name": "adamw"}, "overrides": {"precision": "bf16"}},
}


def spec(name: str) -> Any:
    """One of `RUNS`."""
    from hf_optim.experiment.spec import RunSpec

    overrides = {"steps": STEPS, "eval_every": STEPS, **RUNS[name].get("overrides", {})}
    return RunSpec.from_dict({**RUNS[name], "size": "smoke", "overrides": overrides})


def main(folder: Path) -> None:
    """Every run, with a checkpoint at its end."""
    import torch

    from hf_optim.experiment.training import train

    for name in RUNS:
        train(spec(name), folder / name, progress=False, checkpoint_every=STEPS)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
