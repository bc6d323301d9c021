"""How tests make and step any registered optimizer on a small problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hf_optim

#: what a name cannot do without
REQUIRED: dict[str, dict[str, Any]] = {
    "sgd_agr": {"lr": 0.05},
    "hd_sgd": {"lr": 0.05},
    "hd_adam": {"lr": 1e-3},
    "tlr": {"base": {"name": "adamw"}, "interval": 2},
    "tlr_legacy": {"base": {"name": "sgd"}, "interval": 2},
    "tlr_sgd": {"base": {"lr": 0.1}, "interval": 2},
    "tlr_sgdm": {"base": {"lr": 0.01}, "interval": 2},
    "tlr_adam": {"interval": 2},
    "tlr_adamw": {"interval": 2},
    "lookahead": {"base": {"name": "adamw"}, "k": 2},
    "hdk": {"base": {"name": "sgd"}, "eta": 1e-3, "interval": 2},
}
NAMES = hf_optim.list_optimizers()
FAMILY = {name: hf_optim.info(name).family for name in NAMES}
OURS = [n for n in NAMES if FAMILY[n] != "wrapper"]
LOSS_AWARE = [n for n in OURS if hf_optim.info(n).needs]
PLAIN = [n for n in OURS if not hf_optim.info(n).needs]
SHAPES = ((7, 5), (5,), (3, 4, 2), (1,))


class Problem:
    """A convex least-squares loss over tensors of several shapes, deterministic in the step number."""

    def __init__(self, dtype: torch.dtype = torch.float32, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
        g = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]
        self.targets = [torch.randn(s, generator=g).to(dtype) for s in shapes]

    def loss(self, t: int = 0) -> torch.Tensor:
        terms = [
            ((p - y) ** 2 * (1 + 0.1 * ((t + i) % 3))).mean()
            for i, (p, y) in enumerate(zip(self.params, self.targets, strict=True))
        ]
        return torch.stack([x.float() if x.dtype is torch.bfloat16 else x for x in terms]).sum()

    def copy(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.params]


def make(name: str, params: Any, **hyper: Any) -> torch.optim.Optimizer:
    """`create` with what the name requires."""
    return hf_optim.create(name, params, **{**REQUIRED.get(name, {}), **hyper})


def step(opt: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Any:
    """One step by the means the optimizer asks for."""

    def closure() -> torch.Tensor:
        opt.zero_grad()
        value = loss()
        value.backward()
        return value

    if "evaluate" in opt.needs:  # type: ignore[attr-defined]
        return opt.step(closure)
    value = closure()
    return opt.step(loss=value)  # type: ignore[call-arg]


def run(
    name: str, steps: int, problem: Problem | None = None, opt: Any = None, start: int = 0, **hyper: Any
) -> tuple[Problem, Any]:
    """Step a fresh or given optimizer from `start` to `steps`."""
    problem = problem or Problem()
    opt = opt if opt is not None else make(name, problem.params, **hyper)
    for t in range(start, steps):
        step(opt, lambda t=t: problem.loss(t))
    return problem, opt
