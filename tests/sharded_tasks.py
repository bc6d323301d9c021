"""Runs of tasks whose models FSDP2 shards, for a test: `torchrun sharded_tasks.py FOLDER`, on the CPU with gloo."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

STEPS = 4
#: a model without embeddings, and averaged weights that every evaluation swaps in; tied embeddings and layers that are
#: sharded each for itself, and a rule that reads the loss
RUNS: dict[str, dict[str, Any]] = {
    "vision": {"task": "vision", "model": "mlp", "optimizer": {"name": "schedule_free_adamw", "lr": 1e-2}},
    "lm": {"task": "lm", "model": "gpt2", "optimizer": {"name": "smaran"}},
}


def spec(name: str) -> Any:
    """One of `RUNS`."""
    from hf_optim.experiment.spec import RunSpec

    overrides = {"steps": STEPS, "eval_every": STEPS // 2, "max_grad_norm": 0}
    return RunSpec.from_dict({**RUNS[name], "size": "smoke", "overrides": overrides})


def shard_on_a_cpu() -> None:
    """Accelerate gives up the plugin it is handed where there is no GPU: it keeps it from now on."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    os.environ.update(
        ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
        FSDP_RESHARD_AFTER_FORWARD="true", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT",
    )  # fmt: skip
    inner = AcceleratorState.__init__

    def kept(self: Any, *args: Any, **kwargs: Any) -> None:
        first = not AcceleratorState._shared_state
        inner(self, *args, **kwargs)
        if first:
            self.fsdp_plugin, self.distributed_type = kwargs["fsdp_plugin"], DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = kept  # type: ignore[method-assign]


def main(folder: Path) -> None:
    """Every run whole, and again from its checkpoint in the middle."""
    from hf_optim.experiment.training import train

    shard_on_a_cpu()
    for name in RUNS:
        whole, resumed = folder / name, folder / f"{name}-resumed"
        train(spec(name), whole, progress=False, checkpoint_every=STEPS // 2)
        if os.environ["RANK"] == "0":
            resumed.mkdir()
            shutil.copy(whole / "spec.json", resumed)
            shutil.copytree(whole / f"checkpoint-{STEPS // 2}", resumed / f"checkpoint-{STEPS // 2}")
        torch.distributed.barrier()
        train(spec(name), resumed, progress=False, checkpoint_every=STEPS // 2, resume=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
