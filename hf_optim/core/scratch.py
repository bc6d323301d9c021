"""Memory that is kept from call to call."""

from __future__ import annotations

import threading
from typing import Any

import torch


class _Kept(threading.local):
    def __init__(self) -> None:
        self.blocks: dict[Any, torch.Tensor] = {}


_kept = _Kept()


def scratch(use: str, dtype: torch.dtype, size: int) -> torch.Tensor:
    """`size` elements on the CPU, warm in the cache: one piece of memory a use, dtype and thread.

    For blocks only: it is kept for ever.
    """
    key = use, dtype
    block = _kept.blocks.get(key)
    if block is None or block.numel() < size:
        block = _kept.blocks[key] = torch.empty(size, dtype=dtype)
    return block[:size]
