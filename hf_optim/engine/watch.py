"""Whether what a step saw last time is still there: the same objects, in the same memory, of the same form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import is_
from typing import Any

import torch

# C++ of torch that compares hundreds of tensors in microseconds; private, so what it says no to is looked at again
try:
    from torch._C._dynamo import guards as _guards
except ImportError:
    _guards = None  # type: ignore[assignment]


def same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def form(t: torch.Tensor) -> tuple[Any, ...]:
    """All of a tensor that a kernel cannot see, but relies on."""
    if t.layout is not torch.strided:
        return type(t), t.layout
    return type(t), t.layout, t.dtype, t.device, t.shape, t.stride(), t.is_neg()


def _quick(tensors: Sequence[torch.Tensor]) -> Callable[..., bool] | None:
    guards: Any = getattr(_guards, "TensorGuards", None)
    if guards is None or any(t.layout is not torch.strided for t in tensors):
        return None
    shapes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
    try:
        return guards(*tensors, dynamic_dims_sizes=shapes, dynamic_dims_strides=strides).check  # type: ignore[no-any-return]
    except (TypeError, SystemError, RuntimeError):
        return None


class Watch:
    """The forms of some tensors."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._forms = list(map(form, tensors))
        self._check = _quick(tensors)

    def holds(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether these have the same forms."""
        if len(tensors) != len(self._forms):
            return False
        if self._check is not None and self._check(*tensors):
            return True
        if list(map(form, tensors)) != self._forms:
            return False
        self._check = _quick(tensors)  # made in another mode (autocast, inference)
        return True


def hollow(t: torch.Tensor) -> bool:
    """Whether a tensor's memory was taken from it (`untyped_storage().resize_(0)`, as sharding does between steps)."""
    if not t.numel() or t.layout is not torch.strided or t.is_meta:
        return False
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return bool((t.storage_offset() + last + 1) * t.element_size() > t.untyped_storage().nbytes())


def overlapping(ranges: Iterable[tuple[int, int]]) -> set[int]:
    """Starts of those ranges of addresses (start, end) that meet another one."""
    overlaps, last = set(), (0, 0)
    for start, end in sorted(r for r in ranges if r[1] > r[0]):
        if start < last[1]:
            overlaps |= {start, last[0]}
        last = max(last, (start, end), key=lambda r: r[1])
    return overlaps
