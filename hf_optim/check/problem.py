"""The problem that every check trains on, and a training loop over it with the places where a run may differ."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from hf_optim.check.outcome import DoesNotApply, Fails

if TYPE_CHECKING:
    from hf_optim.check.subject import Subject

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


class Walk:
    """A training run of a subject on the problem.

    The attributes are the seams: `model` (a wrapped problem), `share` (this process's samples), `mean` (a loss -> its
    mean over processes), `backward` and `opt` (prepared ones).
    """

    def __init__(
        self,
        subject: Subject,
        dtype: torch.dtype = torch.float32,
        problem: Problem | None = None,
        opt: Any = None,
        groups: Callable[[list[nn.Parameter]], Any] | None = None,
        **extra: Any,
    ) -> None:
        self.subject = subject
        self.problem = problem or Problem(subject.kind, dtype)
        self.start = self.params()
        params: Any = self.problem.params
        self.opt: Any = opt if opt is not None else subject.make(groups(params) if groups else params, **extra)
        self.model: nn.Module = self.problem
        self.share: Callable[[torch.Tensor], torch.Tensor] = lambda batch: batch
        self.mean: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss
        self.backward: Callable[[torch.Tensor], None] = lambda loss: loss.backward()
        self.style = subject.style

    def closure(
        self,
        t: int,
        parts: int = 1,
        twist: Callable[[torch.Tensor], torch.Tensor] | None = None,
        spoil: Callable[[list[nn.Parameter]], None] | None = None,
    ) -> Callable[[], torch.Tensor]:
        """What torch calls a closure, for step t: `parts` micro-batches; `twist` changes the loss before the backward
        pass, `spoil` the gradients after it."""
        data = self.share(self.problem.batch(t))

        def run() -> torch.Tensor:
            self.opt.zero_grad()
            losses = []
            for piece in data.chunk(parts):
                loss = self.model(piece) / parts
                loss = loss if twist is None else twist(loss)
                self.backward(loss)
                losses.append(loss.detach())
            if spoil is not None:
                spoil(self.problem.params)
            return self.mean(torch.stack(losses).sum())

        return run

    def step(self, t: int, **how: Any) -> Any:
        """Step t as the subject wants it; `how` goes to `closure`."""
        torch.default_generator.manual_seed(t)  # rules that draw random numbers draw the same ones in every run
        closure = self.closure(t, **how)
        if self.style == "closure":
            return self.opt.step(closure)
        loss = closure()
        if self.style == "primed":
            return self.opt.step(closure)
        if self.style == "value":
            return self.opt.step(lambda: loss)
        return self.opt.step(loss=loss) if self.style == "loss" else self.opt.step()

    def go(self, start: int = 0, stop: int = STEPS, **how: Any) -> Walk:
        """Steps start, ..., stop - 1."""
        for t in range(start, stop):
            self.step(t, **how)
        return self

    def params(self) -> list[torch.Tensor]:
        """Copies of the parameters as they are."""
        return [p.detach().clone() for p in self.problem.params]

    def loss(self) -> float:
        """The loss on a batch that no step used."""
        with torch.no_grad():
            return float(self.problem(self.problem.batch(-1)))

    def rate(self, factor: float) -> None:
        """Multiply every group's rate, as a scheduler does, where groups have one."""
        for group in self.opt.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] * factor


# --- comparing -------------------------------------------------------------------------------------------------------

Tensors = list[torch.Tensor]


def moved(a: Tensors, b: Tensors) -> bool:
    """Whether any tensor differs in any bit."""
    return any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))


def healthy(tensors: Tensors) -> bool:
    """Whether every number is finite."""
    return all(bool(t.isfinite().all()) for t in tensors)


def same(a: Tensors, b: Tensors, what: str) -> None:
    """Fail unless equal bit for bit."""
    worst = max((float((x - y).abs().max()) for x, y in zip(a, b, strict=True)), default=0.0)
    if moved(a, b):
        raise Fails(f"{what}: parameters differ by up to {worst:.2g}")


def exact(walk: Walk, other: Walk, bound: float, what: str) -> str:
    """`close` for two runs in float64; does not apply to a rule that makes more of rounding than was found."""
    a, b = walk.params(), other.params()
    try:
        return close(a, b, walk.start, bound, what)
    except Fails:
        nudged = Walk(walk.subject, torch.float64)
        with torch.no_grad():
            for p in nudged.problem.params:
                p.mul_(1 + 1e-13)
        plain = Walk(walk.subject, torch.float64).go()
        drift = max(float((x - y).abs().max()) for x, y in zip(plain.params(), nudged.go().params(), strict=True))
        gap = max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
        if gap <= 100 * drift:
            raise DoesNotApply(f"it amplifies rounding: runs that begin 1e-13 apart end {drift:.1g} apart") from None
        raise


def close(a: Tensors, b: Tensors, start: Tensors, bound: float, what: str) -> str:
    """Fail unless the largest difference is within `bound` of the largest distance travelled, plus rounding of the
    parameters themselves (8 units in the last place); returns a note with the difference."""
    gap = max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
    way = max(float((x - y).abs().max()) for x, y in zip(a, start, strict=True))
    size = max(float(x.abs().max()) for x in a)
    if not gap <= bound * way + 8 * torch.finfo(a[0].dtype).eps * size:
        raise Fails(f"{what}: parameters differ by {gap:.2g} after a way of {way:.2g} (allowed {bound:g} of it)")
    return f"within {gap / way if way else 0.0:.1g} of the way"
