"""Whether two runs are equal up to rounding, by what rounding makes of the optimizer under test.

A rule may amplify rounding (a line search, an eigenbasis) or round more coarsely than its tensors (a step in bf16). So
how far apart two honest runs of it end is measured: every gradient of the same run gets elementwise noise of one
rounding, in the coarsest precision that the rule rounds to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import DoesNotApply, Fails
from hf_optim.check.problem import close, distance
from hf_optim.engine.fallback import limits

#: two runs may differ by as much as this many roundings make
ROUNDINGS = 10
#: noise that moves the end by more than this part of the way leaves nothing to compare
CHAOTIC = 0.1
SEEDS = 3


class _Rounds(TorchDispatchMode):
    """Notes the coarsest precision that an operator rounds a wider tensor to; single numbers are left out."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.coarsest = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = _precisions((args, kwargs))  # before the call, which may write into what it takes
        given = func(*args, **(kwargs or {}))
        for dtype in _precisions(given):
            eps = torch.finfo(dtype).eps
            if eps > torch.finfo(self.coarsest).eps and any(torch.finfo(d).eps < eps for d in taken):
                self.coarsest = dtype
        return given


def _precisions(tree: Any) -> set[torch.dtype]:
    return {
        leaf.dtype
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.numel() > 1
    }


def precision(candidate: Candidate, dtype: torch.dtype) -> torch.dtype:
    """The coarsest precision that the rule rounds to with parameters of `dtype`; `dtype` itself for most."""
    walk = TrainingRun(candidate, dtype)
    with limits(kernels=False), _Rounds(dtype) as seen:
        walk.go(0, 3 + candidate.idle)
    return seen.coarsest


def response(candidate: Candidate, dtype: torch.dtype, size: float) -> float:
    """How far elementwise relative noise within +-`size` on every gradient moves the end of a run, at most; the loss
    is as noisy as `dtype` rounds."""
    plain = TrainingRun(candidate, dtype).go().params()
    half = torch.finfo(dtype).eps / 2
    furthest = 0.0
    for seed in range(SEEDS):
        draw = torch.Generator().manual_seed(seed)

        def spoil(params: list[nn.Parameter], draw: torch.Generator = draw) -> None:
            for p in params:
                if p.grad is not None:
                    values = p.grad._values() if p.grad.is_sparse else p.grad
                    noise = torch.rand(values.shape, generator=draw, dtype=torch.float64) * 2 - 1
                    # what is added rounds to the nearest number, so less than half a unit in the last place is none
                    values.add_((values * noise * size).to(values.dtype))

        def twist(loss: torch.Tensor, draw: torch.Generator = draw) -> torch.Tensor:
            return loss * (1 + 2 * half * float(torch.randint(-1, 2, (), generator=draw)))

        noisy = TrainingRun(candidate, dtype).go(spoil=spoil, twist=twist)
        furthest = max(furthest, distance(plain, noisy.params()))
    return furthest


def alike(walk: TrainingRun, other: TrainingRun, bound: float, what: str) -> str:
    """Fail unless two runs of the whole length end within `bound` of the way, or within `ROUNDINGS` times what noise of
    one rounding makes; returns a note.

    Raises:
        Fails: they differ by more.
        DoesNotApply: they are within the noise, and the noise is `CHAOTIC`.
    """
    a, b = walk.params(), other.params()
    try:
        return close(a, b, walk.start, bound, what)
    except Fails as reason:
        dtype = a[0].dtype
        rounded = precision(walk.candidate, dtype)
        # noise of half a unit is lost where the gradient itself is rounded to the same precision: a whole one is not
        size = torch.finfo(rounded).eps / (1 if rounded is dtype else 2)
        noise, gap, way = response(walk.candidate, dtype, size), distance(a, b), distance(a, walk.start)
        moves = f"noise of one rounding to {_called(rounded)} of its gradients moves it by {noise:.1g}"
        if not gap <= ROUNDINGS * noise:
            raise Fails(f"{reason}; {moves}") from None
        if not noise <= CHAOTIC * way:
            raise DoesNotApply(f"chaotic under rounding: {moves} after a way of {way:.2g}") from None
        return f"{what}: equal to {gap:.1g} after a way of {way:.2g}; {moves}"


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
