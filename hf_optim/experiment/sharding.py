"""What is left to do for a task where Accelerate shards its model by FSDP2."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_optim.errors import UserError


def wanted() -> bool:
    """Whether the launcher asks for sharded weights; without GPUs Accelerate copies them all the same."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def adapt(accelerator: Any) -> None:
    """Let an accelerator that shards take any model.

    Accelerate puts embeddings, the last norm and the head into groups of their own. It asks models for embeddings that
    have none, and fails at weights or biases that these share with other layers (BERT, ALBERT). The layers that a model
    names (`_no_split_modules`) are groups of their own in any case, so nothing but a little memory is lost without.

    Raises:
        UserError: FSDP1.
    """
    if accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise UserError("tasks are sharded by FSDP2: set fsdp_version: 2 in the configuration of accelerate")
    accelerator.prepare = _without_embeddings(accelerator.prepare)


def _without_embeddings(prepare: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        with _hidden([arg for arg in args if isinstance(arg, nn.Module)]):
            return prepare(*args, **kwargs)

    return prepared


@contextmanager
def _hidden(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, the models say that they have no embeddings."""
    owners = [(vars(model), name) for model in models for name in ("get_input_embeddings", "get_output_embeddings")]
    before = [own.get(name) for own, name in owners]
    for own, name in owners:
        own[name] = lambda: None
    try:
        yield
    finally:
        for (own, name), kept in zip(owners, before, strict=True):
            if kept is None:
                del own[name]
            else:
                own[name] = kept


def total_norm(tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm of all together, whole or sharded alike."""
    norm: Any = torch.nn.utils.get_total_norm(list(tensors))
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
