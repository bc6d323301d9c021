"""Whether two runs are equal up to rounding, by what rounding makes of the optimizer under test.

A rule may amplify rounding (a line search, an eigenbasis) or round more coarsely than its tensors (a step in bf16). So
how far apart two honest runs of it end is measured: the same run with elementwise noise of one rounding, of its
gradients in the coarsest precision that the rule rounds to and of its parameters in their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import DoesNotApply, Fails
from hf_optim.check.problem import STEPS, close, distance
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


def response(candidate: Candidate, dtype: torch.dtype, rounded: torch.dtype) -> float:
    """How far noise of one rounding moves the end of a run, at most: of every gradient to `rounded`, and of the
    parameters before every step and of every loss to `dtype`, in which a step that is small beside them gets lost."""
    plain = TrainingRun(candidate, dtype).go().params()
    unit = torch.finfo(dtype).eps
    # half a unit in the last place of `dtype` itself would be rounded away where it is added
    size = max(unit, torch.finfo(rounded).eps / 2)
    furthest = 0.0
    for seed in range(SEEDS):
        draw = torch.Generator().manual_seed(seed)

        def noisy(tensor: torch.Tensor, size: float, draw: torch.Generator = draw) -> None:
            values = tensor._values() if tensor.is_sparse else tensor
            noise = torch.rand(values.shape, generator=draw, dtype=torch.float64) * 2 - 1
            values.add_((values * noise * size).to(values.dtype))

        def spoil(params: list[nn.Parameter], noisy: Callable[..., None] = noisy) -> None:
            for p in params:
                if p.grad is not None:
                    noisy(p.grad, size)

        def twist(loss: torch.Tensor, draw: torch.Generator = draw) -> torch.Tensor:
            return loss * (1 + unit * float(torch.randint(-1, 2, (), generator=draw)))

        walk = TrainingRun(candidate, dtype)
        for t in range(STEPS):
            with torch.no_grad():
                for p in walk.problem.params:
                    noisy(p, unit)
            walk.step(t, spoil=spoil, twist=twist)
        furthest = max(furthest, distance(plain, walk.params()))
    return furthest


def alike(walk: TrainingRun, other: TrainingRun, bound: float, label: str) -> str:
    """Fail unless two runs of the whole length end within `bound` of the way, or within `ROUNDINGS` times what noise of
    one rounding makes; returns a note.

    Raises:
        Fails: they differ by more.
        DoesNotApply: they are within the noise, and the noise is `CHAOTIC`.
    """
    a, b = walk.params(), other.params()
    try:
        return close(a, b, walk.start, bound, label)
    except Fails as reason:
        dtype = a[0].dtype
        rounded = precision(walk.candidate, dtype)
        noise, gap, way = response(walk.candidate, dtype, rounded), distance(a, b), distance(a, walk.start)
        moves = (
            f"noise of one rounding of its gradients ({_called(rounded)}) and parameters ({_called(dtype)}) "
            f"moves it by {noise:.1g}"
        )
        if not gap <= ROUNDINGS * noise:
            raise Fails(f"{reason}; {moves}") from None
        if not noise <= CHAOTIC * way:
            raise DoesNotApply(f"chaotic under rounding: {moves} after a way of {way:.2g}") from None
        return f"{label}: equal to {gap:.1g} after a way of {way:.2g}; {moves}"


def _called(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
