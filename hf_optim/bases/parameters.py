"""What cannot be optimised is refused where it is handed over, with its reason, and not in the middle of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_optim.core.reduce import local
from hf_optim.engine.passes import flat
from hf_optim.errors import UserError


def check_parameters(rule: str, params: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    """Raise a UserError for parameters that no rule here can move; `others` are those of the groups before."""
    params, others = list(params), [p for p in others if p.requires_grad]
    for p in params:
        shown = f"{rule}: a parameter of shape {tuple(p.shape)}"
        if p.is_complex() or (p.requires_grad and not p.is_floating_point()):
            raise UserError(
                f"{rule}: a parameter of dtype {p.dtype} cannot be optimised here; give real floating-point tensors"
            )
        if not p.requires_grad:  # frozen: it is handed over, and never moved
            continue
        if p.dtype.itemsize < 2:
            raise UserError(f"{shown} is {p.dtype}, too coarse to be moved by a step: train it in bfloat16 or float32")
        if p.is_inference():
            raise UserError(f"{shown} was made in inference mode, in which nothing is trained: make it outside")
        if p.layout is torch.strided and p.numel() and flat(local(p)) is None:
            raise UserError(f"{shown} has gaps or overlaps in memory; replace it by p.contiguous()")
    _apart(rule, [*others, *(p for p in params if p.requires_grad)])


def _apart(rule: str, params: list[Tensor]) -> None:
    """Raise a UserError for two parameters that hold the same memory, which a step would move twice."""
    spans = []
    for p in {id(p): p for p in params}.values():
        if type(p) in (Tensor, torch.nn.Parameter) and p.layout is torch.strided and p.numel() and not p.is_meta:
            spans.append((p.device.index or 0, p.data_ptr(), p.numel() * p.element_size(), tuple(p.shape)))
    spans.sort(key=lambda span: span[:3])
    for (device, start, size, shape), (other, after, _, later) in zip(spans, spans[1:], strict=False):
        if device == other and start and after < start + size:
            raise UserError(
                f"{rule}: parameters of shapes {shape} and {later} share memory, which a step would move twice: "
                "give one of them, or clone() the other"
            )


def check_step(rule: str, groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise a UserError for a step that would spoil what it moves: a rate that is not finite, or inference mode."""
    if torch.is_inference_mode_enabled():
        raise UserError(f"{rule}: step() within torch.inference_mode(), whose state no later step could use")
    for i, group in enumerate(groups):
        rate = group.get("lr")
        if isinstance(rate, (int, float)) and not abs(rate) < math.inf:
            raise UserError(
                f"{rule}: lr of parameter group {i} is {rate} (a schedule or a callback sets it): nothing was moved"
            )
