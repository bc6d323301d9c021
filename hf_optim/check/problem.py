"""The problem that every check trains on, and how two runs over it are compared."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional

from hf_optim.check.outcome import Fails

#: the tensors of a model, in the order in which an optimizer is offered them
KINDS: dict[str, tuple[tuple[int, ...], ...]] = {
    "mixed": ((8, 6), (6,), (4, 3, 2), (1,)),
    "matrices": ((8, 6), (4, 6), (6, 4)),
    "sparse": ((8, 6), (4, 6)),
}
#: a run of this many steps, cut where no period of 2 or 5 steps ends
STEPS, CUT = 12, 7


@cache
def _noise(t: int, samples: int, size: int) -> torch.Tensor:
    return torch.randn(samples, size, generator=torch.Generator().manual_seed(1000 + t), dtype=torch.float64)


class Problem(nn.Module):
    """Convex least squares over tensors of several shapes: the mean over samples of sum_i c_i mean((p_i - y_i)^2).

    forward(batch): batch (samples, all elements) -> the mean loss, 0-d, in at least float32.
    """

    def __init__(self, kind: str = "mixed", dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.kind = kind
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in KINDS[kind]]
        )
        self.centre = torch.randn(sum(p.numel() for p in self.weights), generator=g, dtype=torch.float64)
        self.curvature = torch.cat(
            [
                torch.full((p.numel(),), (1 + 0.1 * i) / p.numel(), dtype=torch.float64)
                for i, p in enumerate(self.weights)
            ]
        )

    @property
    def params(self) -> list[nn.Parameter]:
        """The parameters, in order."""
        return list(self.weights)

    def batch(self, t: int, samples: int = 4) -> torch.Tensor:
        """The samples of step t, always the same."""
        return (self.centre + 0.3 * _noise(t, samples, len(self.centre))).to(self.weights[0].dtype)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(batch.dtype, torch.float32)
        weights = list(self.weights)
        if self.kind == "sparse":
            weights = [functional.embedding(torch.arange(len(p)), p, sparse=True) for p in weights]  # type: ignore[misc]
        flat = torch.cat([p.reshape(-1) for p in weights]).to(wide)
        return ((flat - batch.to(wide)).square() @ self.curvature.to(wide)).mean()


# --- comparing -------------------------------------------------------------------------------------------------------

Tensors = list[torch.Tensor]


def moved(a: Tensors, b: Tensors) -> bool:
    """Whether any tensor differs in any bit."""
    return any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def healthy(tensors: Tensors) -> bool:
    """Whether every number is finite."""
    return all(bool(t.isfinite().all()) for t in tensors)


def distance(a: Tensors, b: Tensors) -> float:
    """The largest difference of two numbers in the same place."""
    return max((float((x - y).abs().max()) for x, y in zip(a, b, strict=True)), default=0.0)


def same(a: Tensors, b: Tensors, label: str) -> None:
    """Fail unless equal bit for bit."""
    if moved(a, b):
        raise Fails(f"{label}: parameters differ by up to {distance(a, b):.2g}")


def close(a: Tensors, b: Tensors, start: Tensors, bound: float, label: str) -> str:
    """Fail unless the largest difference is within `bound` of the largest distance travelled, plus rounding of the
    parameters themselves (8 units in the last place); returns a note with the difference."""
    gap, way = distance(a, b), distance(a, start)
    size = max(float(x.abs().max()) for x in a)
    if not gap <= bound * way + 8 * torch.finfo(a[0].dtype).eps * size:
        raise Fails(f"{label}: parameters differ by {gap:.2g} after a way of {way:.2g} (allowed {bound:g} of it)")
    return f"within {gap / way if way else 0.0:.1g} of the way"
