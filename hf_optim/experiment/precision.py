"""In which numbers a model computes: the machine is asked first, and what is set for a run is put back after it.

- `fp32`: float32, also inside matrix products and convolutions (torch's own default lets cuDNN round those to TF32);
- `tf32`: float32, with products of TF32 on the tensor cores of NVIDIA's Ampere and later;
- `bf16`: weights and optimizer in float32, the forward pass under autocast to bfloat16; on a CPU too;
- `fp16`: the same with float16 and a gradient scaler, which leaves out the steps whose gradients overflow; GPUs only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_optim.errors import UserError


def check_precision(name: str) -> None:
    """A `UserError` if the machine does not compute in `name` (one of `spec.PRECISIONS`)."""
    if name == "tf32" and not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)):
        raise UserError("precision: tf32 needs an NVIDIA GPU of Ampere or later, and there is none here: take fp32")
    if name == "fp16" and not torch.cuda.is_available():
        raise UserError("precision: fp16 needs a GPU, for its gradient scaler, and there is none here: take bf16")
    if name == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("precision: this GPU does not compute in bf16: take fp16 or fp32")


def check_launcher(name: str, compiled: bool) -> None:
    """A `UserError` if `accelerate launch` or its configuration asks for what the run would not be, nor record.

    Args:
        name: the run's precision.
        compiled: whether its model is compiled.
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked != "no" and asked != name:
        raise UserError(
            f"precision: accelerate launch asks for {asked}, and the run for {name}: give --precision {asked}, or "
            "leave mixed_precision out of the launcher's options and configuration"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no" and not compiled:
        raise UserError(
            f"compile_model: accelerate launch asks for {backend.lower()}, and the run does not: give --compile-model, "
            "or leave dynamo_backend out of the launcher's options and configuration"
        )


def trainer_arguments(name: str) -> dict[str, Any]:
    """What TrainingArguments is to be told."""
    return {"bf16": name == "bf16", "fp16": name == "fp16"}


def _settings() -> list[tuple[Any, str, Any, Any]]:
    """(where, attribute, its value for exact products, its value for TF32): torch 2.9 has new names for them."""
    if hasattr(torch.backends, "fp32_precision"):
        cudnn: Any = torch.backends.cudnn
        places = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        return [(place, "fp32_precision", "ieee", "tf32") for place in places]
    return [(place, "allow_tf32", False, True) for place in (torch.backends.cuda.matmul, torch.backends.cudnn)]


@contextmanager
def products(name: str) -> Iterator[None]:
    """Inside, a GPU's float32 products are TF32 for `tf32` and exact for everything else."""
    settings = _settings()
    before = [getattr(place, attribute) for place, attribute, _, _ in settings]
    try:
        for place, attribute, exact, rounded in settings:
            setattr(place, attribute, rounded if name == "tf32" else exact)
        yield
    finally:
        for (place, attribute, _, _), value in zip(settings, before, strict=True):
            setattr(place, attribute, value)
