"""AGR, adaptive gradient regularization: psi(g) = g - alpha g with alpha = |g| / sum|g|, a tensor at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.core.reduce import l1
from hf_optim.core.rule import Transform
from hf_optim.core.vocabulary import maximum
from hf_optim.errors import UserError

#: the smallest normal number of float32
TINY = torch.finfo(torch.float32).tiny


class AGR(Transform):
    """psi(g) = g - (|g| / sum|g|) g over all elements of one tensor (AGR, Equations 1 and 2).

    psi keeps every sign, never enlarges an element, and leaves a zero gradient as it is. On average alpha is
    1/numel: on large layers psi is near the identity but for dominant entries; a one-element tensor is stopped for
    ever (alpha = 1), which is why vectors are left out by default.

    Args:
        scope: "matrix" transforms tensors of two dimensions and more, without those of groups that carry
            `agr=False` (embeddings, when the groups were made from a model); "all" every tensor of groups without it.
        steps: number of a parameter's first updates that are transformed (Tables 7 and 8); None for all.
        moments: which moments see it; see `Transform`. "first" is the text of Section 3.3, "all" the published code.
    """

    name = "agr"
    opt_out = "agr"
    everywhere = {"scope": "all"}
    measures = ("S",)
    sums = ("S", "per_S")

    def __init__(self, scope: str = "matrix", steps: int | None = None, moments: str = "first") -> None:
        if scope not in ("matrix", "all"):
            raise UserError(f"agr: scope must be 'matrix' or 'all', got {scope!r}")
        if moments not in ("first", "all", "m"):
            raise UserError(f"agr: moments must be 'first', 'all' or 'm', got {moments!r}")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
            raise UserError(f"agr: steps must be None or a whole number of at least 0, got {steps!r}")
        self.scope, self.steps, self.moments = scope, steps, moments

    def covers(self, p: torch.Tensor) -> bool:
        return self.scope == "all" or p.dim() >= 2

    def active(self, t: int) -> bool:
        return self.steps is None or t <= self.steps

    @staticmethod
    def measure(g: Any, c: SimpleNamespace) -> tuple[Any, ...]:
        return (l1(g),)

    @staticmethod
    def derive(own: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:
        S = maximum(own["S"], TINY)  # sum|g| = 0: every element is 0 and stays 0
        return {"S": S, "per_S": -1 / S}

    @staticmethod
    def apply(g: Any, c: SimpleNamespace) -> Any:
        # (S - |g|) / S rather than 1 - |g| / S: exactly 0 for one element, where rounding noise would be an update
        return g.abs().sub_(c.S).mul_(c.per_S).mul_(g)


TRANSFORM = AGR


def from_hyper(hyper: dict[str, Any]) -> AGR:
    """The AGR of an optimizer's `agr_*` hyper-parameters."""
    return AGR(scope=hyper["agr_scope"], steps=hyper["agr_steps"], moments=hyper["agr_moments"])
