"""How much memory a training step takes, and in how many parts a batch has to be computed to fit.

A step holds, for every trained number, its weight, its gradient and what the optimizer keeps, and for every sample what
the forward pass keeps for the backward pass, which a pass of a few samples shows: by the allocator's mark on a GPU, by
the size of the kept tensors on a CPU. What is only there for a moment is in neither, hence `SPARE`.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_optim.core.numerals import size_text
from hf_optim.core.rewind import RandomState
from hf_optim.errors import UserError
from hf_optim.experiment.flops import loss_of, of_a_pass, samples_in
from hf_optim.experiment.record import SHARERS

#: the share of the memory that is planned with
SPARE = 0.85
#: tensors of a parameter's size that an optimizer keeps, if it does not say: Adam's
USUAL_SLOTS = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes that a step takes whatever its batch, and bytes more for every sample."""

    fixed: int
    sample: int

    def of(self, samples: int) -> int:
        """Bytes of a step of so many samples at a time."""
        return self.fixed + samples * self.sample

    def parts(self, share: int, available: int) -> int:
        """The fewest equal parts of `share` samples that fit into `available` bytes.

        Raises:
            UserError: not even one sample does.
        """
        for parts in (n for n in range(1, share + 1) if share % n == 0):
            if self.of(share // parts) <= available:
                return parts
        raise UserError(
            f"gradient_accumulation_steps: auto: one sample takes about {size_text(self.of(1))}, and there are "
            f"{size_text(available)} to plan with: take a smaller model or a machine with more memory"
        )


def available() -> int:
    """Bytes to plan with: this process's share of the GPU's memory, or of the machine's."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        sharers = int(os.environ.get(SHARERS, "1"))
    else:
        total, sharers = machine(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(SPARE * total / sharers)


def machine() -> int:
    """Bytes of memory that the machine has, or that its container may take."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            sizes.append(int(Path(place).read_text()))
    return min(sizes)


def measure(model: nn.Module, slots: int, batch: Mapping[str, Any], precision: str) -> Footprint:
    """The footprint of training `model` (left as it is), seen on a pass of `batch` on the device at hand.

    Args:
        slots: tensors of a parameter's size that the optimizer keeps.
    """
    if torch.cuda.is_available():
        return _footprint(model, slots, batch, _allocated(model, batch, precision))
    state = RandomState()
    try:
        kept = _kept(copy.deepcopy(model).train(), batch, precision)
    finally:
        state.restore()
    return _footprint(model, slots, batch, kept)


def estimate(model: nn.Module, slots: int, batch: Mapping[str, Any], precision: str) -> Footprint:
    """The same by the size of the kept tensors, wherever it is; of a large model without computing them."""
    kept = of_a_pass(lambda copied, given: _kept(copied, given, precision), model, batch)
    return _footprint(model, slots, batch, kept)


def _footprint(model: nn.Module, slots: int, batch: Mapping[str, Any], kept: int) -> Footprint:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Footprint(weights + (1 + slots) * trained, max(1, kept // samples_in(batch)))


def slots_of(optimizer: Any) -> int:
    """Tensors of a parameter's size that an optimizer keeps, as far as its class says."""
    return len(getattr(type(optimizer), "slots", range(USUAL_SLOTS)))


def autocast(precision: str, device: str) -> torch.autocast:
    """The context of a forward pass in `precision`."""
    half = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, half, enabled=precision in ("fp16", "bf16"))


def _allocated(model: nn.Module, batch: Mapping[str, Any], precision: str) -> int:
    """Bytes that a forward pass on the GPU keeps for the backward pass."""
    state = RandomState()
    try:
        copied = copy.deepcopy(model).to("cuda").train()
        batch = {key: value.to("cuda") if isinstance(value, Tensor) else value for key, value in batch.items()}
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with autocast(precision, "cuda"):
            loss_of(copied(**batch)).backward()
        gradients = sum(p.grad.numel() * p.grad.element_size() for p in copied.parameters() if p.grad is not None)
        return max(0, torch.cuda.max_memory_allocated() - before - gradients)
    finally:
        state.restore()


def _kept(model: nn.Module, batch: Mapping[str, Any], precision: str) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass."""
    weights = {_storage(p) for p in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with autocast(precision, "cpu"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model(**batch))
    return sum(sizes.values())


def _storage(tensor: Tensor) -> int:
    """Which storage a tensor has, also one without numbers."""
    return int(tensor.untyped_storage()._cdata)
