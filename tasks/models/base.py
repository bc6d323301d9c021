"""A small language model to fine-tune without a network: trained once on the embedded text, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hf_optim.errors import UserError
from hf_optim.tasks.data import cache

FORMAT = 1  # changes when the same settings would give another model
OPTIMIZER = {"name": "adamw", "lr": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
#: what Trainer leaves beside the model, which nobody fine-tunes
LEFT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin")


def specification(size: str, parameters: int, vocabulary: int, block: int, steps: int) -> Any:
    """The run that makes it: a size of the task `lm` says how much of the text it sees."""
    from hf_optim.experiment.spec import RunSpec

    return RunSpec(
        task="lm",
        model="gpt2",
        size=size,
        optimizer=dict(OPTIMIZER),
        schedule={"name": "wsd", "warmup": 0.1, "decay": 0.3},
        overrides={"steps": steps, "batch_size": 16, "eval_every": steps, "max_grad_norm": 1.0},
        options={"parameters": parameters, "vocabulary": vocabulary, "block": block, "held_out": 64},
    )


def checkpoint(size: str, parameters: int, vocabulary: int, block: int, steps: int) -> Path:
    """The folder of GPT-2 with about so many parameters after so many steps on the embedded text, with its tokenizer.

    It is trained where the cache has none with these settings (a minute at 120 thousand parameters), and is there as a
    whole or not at all: processes that make it at the same time each make their own, and one of them is kept.

    Raises:
        UserError: the training failed, or the cache cannot be written.
    """
    spec = specification(size, parameters, vocabulary, block, steps)
    key = hashlib.sha256(json.dumps([FORMAT, spec.to_dict()], sort_keys=True).encode()).hexdigest()[:32]
    home = cache.folder() / f"checkpoint-{key}"
    if (home / "config.json").is_file():
        return home
    from hf_optim.experiment.training import train

    try:
        cache.make(home.parent)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="making-") as making:
            record = train(spec, Path(making) / "run", progress=False, checkpoint_every=steps)
            if record["status"] != "ok":
                raise UserError(f"checkpoint: the model to fine-tune could not be trained: {record['error']}")
            trained = Path(making) / "run" / f"checkpoint-{steps}"
            for name in LEFT:
                (trained / name).unlink(missing_ok=True)
            try:
                os.replace(trained, home)
            except OSError:
                if not (home / "config.json").is_file():  # else another process was done first
                    raise
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"checkpoint: the model to fine-tune cannot be kept in {home.parent}: {why}") from error
    return home
