"""Optimizers that round more coarsely than their tensors: one that is right up to that, and one that is wrong."""

from __future__ import annotations

from broken_optimizers import Honest


class RoundsInside(Honest):
    """Takes a norm in bf16, whose last digit depends on how a tensor is cut: not broken."""

    def gradient(self, p):
        low = p.grad.bfloat16()
        return low / (1 + low.norm())


class RoundsInsideLocally(Honest):
    """The same with the norm of this process's part: the rounding is no excuse."""

    def gradient(self, p):
        low = p.grad.bfloat16()
        part = low.to_local() if hasattr(low, "to_local") else low
        return low / (1 + part.norm())
