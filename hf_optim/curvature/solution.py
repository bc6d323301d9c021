"""A trained model and the batches that its loss is looked at on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from hf_optim.errors import UserError

BATCH = 128


@dataclass
class Solution:
    """A model in evaluation mode and the batches of a split; its loss is their mean, weighted by samples."""

    model: nn.Module
    batches: list[tuple[dict[str, Any], int]]
    averaged: bool = False

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What was trained; where evaluation uses an average of it (`averaged`), the parameters of that."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def follow_the_average(self) -> None:
        """If the loss does not depend on what was trained, turn to the parameters that it does depend on.

        Raises:
            UserError: it depends on no parameter.
        """
        if self._used():
            return
        for p in self.model.parameters():
            p.requires_grad_(p.is_floating_point())
        used = {id(p) for p in self._used()}
        if not used:
            raise UserError("the loss depends on no parameter of the model: there is nothing to look at")
        for p in self.model.parameters():
            p.requires_grad_(id(p) in used)
        self.averaged = True

    def _used(self) -> list[nn.Parameter]:
        """The parameters that the first batch's loss depends on."""
        parameters = self.parameters
        loss, _ = next(iter(self.losses()))
        if not parameters or not loss.requires_grad:
            return []
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return [p for p, g in zip(parameters, gradients, strict=True) if g is not None]

    @property
    def samples(self) -> int:
        """How many samples the loss is the mean of."""
        return sum(count for _, count in self.batches)

    def losses(self) -> Iterator[tuple[Tensor, float]]:
        """Each batch's loss with its weight; differentiable twice."""
        double = next(self.model.parameters()).dtype is torch.float64
        with twice_differentiable():
            for batch, count in self.batches:
                with _InFloat64() if double else nullcontext():
                    loss = self.model(**batch).loss
                yield loss, count / self.samples

    @torch.no_grad()
    def loss(self) -> float:
        """The mean loss, a float64 sum of batches."""
        return sum(float(loss) * weight for loss, weight in self.losses())


class _InFloat64(TorchFunctionMode):
    """Within it what a model asks to be float32 is float64: losses, norms and softmaxes of most models ask so for the
    sake of half precision, and would round.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        func = Tensor.double if func is Tensor.float else func
        named = {key: _widened(value) for key, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """With the only attention kernel that has a second derivative on every device."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def gather(model: nn.Module, dataset: Any, collate: Any, samples: int | None, *, batch: int = BATCH) -> Solution:
    """The first `samples` of `dataset` (None: all) with a model, which is put in evaluation mode."""
    device = next(model.parameters()).device
    model.eval()
    batches: list[tuple[dict[str, Any], int]] = []
    left = len(dataset) if samples is None else min(samples, len(dataset))
    loader = DataLoader(torch.utils.data.Subset(dataset, range(left)), batch_size=batch, collate_fn=collate)
    for given in loader:
        on_device = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in given.items()}
        batches.append((on_device, min(batch, left)))
        left -= batch
    solution = Solution(model, batches)
    solution.follow_the_average()
    return solution


def norms(parameters: Sequence[Tensor]) -> dict[str, float]:
    """The Euclidean and the largest norm of all parameters together."""
    flat = [p.detach() for p in parameters]
    lengths = [float(torch.linalg.vector_norm(p, dtype=torch.float64)) for p in flat]
    return {
        "parameter_norm": math.hypot(*lengths),
        "largest_parameter": max(float(p.abs().max()) for p in flat),
    }
