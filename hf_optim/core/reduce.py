"""The only cross-element and cross-parameter reductions, aware of shards.

`dot`, `l1` reduce one block; `combine` adds the blocks of each tensor over all shards in one collective a mesh
dimension. A DTensor's own `.item()` would return the local part, so nothing here relies on DTensor arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_optim.errors import UserError


def dot(a: Any, b: Any) -> Any:
    """<a, b> of two blocks, as a 0-d tensor; of lists one by one."""
    if not isinstance(a, torch.Tensor):
        return a.reduce(dot, torch.mul, b)
    if a.dim() == 1 and a.is_contiguous() and b.is_contiguous():
        return torch.dot(a, b)
    return (a * b).sum(-1)


def local(t: torch.Tensor) -> torch.Tensor:
    """This process's part of a DTensor, sharing its memory; any other tensor as it is."""
    return t.to_local() if hasattr(t, "to_local") else t


def l1(a: Any) -> Any:
    """Sum of absolute values of one block, as `dot`. (On a CPU a 1-norm takes four times as long.)"""
    return a.abs().sum(-1) if isinstance(a, torch.Tensor) else a.reduce(l1, torch.abs)


def count(a: Any) -> Any:
    """The number of elements of one block, as `dot`."""
    return torch.ones_like(a).sum(-1) if isinstance(a, torch.Tensor) else a.reduce(count, torch.ones_like)


def first_element(p: torch.Tensor) -> int:
    """The number of a shard's first element in the whole parameter."""
    if not hasattr(p, "_local_tensor"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    number = 0
    for size, at in zip(p.shape, offset, strict=True):
        number = number * size + at
    return int(number)


def shards(p: torch.Tensor) -> list[tuple[Any, int]]:
    """(mesh, dimension) pairs over which the DTensor p is split; [] for plain and replicated tensors."""
    placements = getattr(p, "placements", None)
    if placements is None:
        return []
    return [(p.device_mesh, i) for i, place in enumerate(placements) if not place.is_replicate()]  # type: ignore[attr-defined]


def distributed() -> bool:
    """Whether there are other processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def combine(table: torch.Tensor, params: Sequence[torch.Tensor]) -> torch.Tensor:
    """Row i of the (rows, sums) table holds the local sums of params[i]; returns the same over all shards.

    Raises:
        UserError: pieces of FSDP1, which do not say what they are pieces of.
    """
    if not distributed():
        return table
    axes: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        if getattr(p, "_fsdp_flattened", False):
            raise UserError(
                "this rule sums over whole tensors, and FullyShardedDataParallel (FSDP1) hands out flat "
                "pieces of them: shard with fully_shard (FSDP2), or use DDP"
            )
        for axis in shards(p):
            axes.setdefault(axis, []).append(i)
    for (mesh, dim), rows in axes.items():
        part = table[rows].contiguous()
        torch.distributed.all_reduce(part, group=mesh.get_group(dim))
        table[rows] = part
    return table
