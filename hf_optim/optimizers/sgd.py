"""Gradient descent, with momentum or without."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.torch_rule import TorchRule, gradient, start
from hf_optim.errors import UserError

PRESETS = {
    "sgdm": {
        "arguments": {"momentum": 0.9},
        "state_bytes": 4,
        "paper": "Polyak 1964",
        "cited": (
            "Polyak, Boris T.",
            "Some methods of speeding up the convergence of iteration methods",
            "USSR Computational Mathematics and Mathematical Physics",
            1964,
        ),
        "search_space": {"lr": ("log", 1e-4, 1.0), "weight_decay": ("log", 1e-5, 1e-2)},
        "special_cases": {"sgd": {"momentum": 0.0}},
    },
    "nesterov": {
        "arguments": {"momentum": 0.9, "nesterov": True},
        "state_bytes": 4,
        "paper": "Nesterov 1983",
        "cited": (
            "Nesterov, Yurii",
            "A method for solving the convex programming problem with convergence rate O(1/k^2)",
            "Doklady Akademii Nauk SSSR",
            1983,
        ),
        "search_space": {"lr": ("log", 1e-4, 1.0), "weight_decay": ("log", 1e-5, 1e-2)},
        "special_cases": {"sgd": {"momentum": 1e-12}},  # 0 itself is refused
    },
}


class SGD(TorchRule):
    """Stochastic gradient descent (Robbins and Monro 1951), as torch.optim.SGD has it.

        1   g = g + weight_decay x                      -g with maximize
        2   b = momentum b + (1 - dampening) g          b = g in the first step
        3   u = g + momentum b with nesterov, else b    u = g without momentum
        4   x = x - lr u

    Args:
        params: tensors or groups.
        lr: 1e-3.
        momentum: 0.0; where it is 0, no average is kept.
        dampening: 0.0.
        weight_decay: 0.0, an L2 term.
        nesterov: Nesterov's look-ahead, which wants a momentum and no dampening; one choice for all groups.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Raises:
        UserError: nesterov without a momentum, or with dampening.

    Source: torch.optim.SGD, whose slots and checkpoints these are. The rate stands outside of the momentum's average,
    unlike in Polyak's and Sutskever's formulas: a change of it acts at once.
    """

    paper = "Robbins and Monro 1951"
    cited = (
        "Robbins, Herbert and Monro, Sutton",
        "A Stochastic Approximation Method",
        "The Annals of Mathematical Statistics",
        1951,
    )
    slots = {"momentum_buffer": 0.0}
    optional_slots = {"momentum_buffer": ("momentum", True)}
    int8_slots = {"momentum_buffer": "signed"}
    state_bytes = 0
    structural = ("nesterov",)
    bounds = {"dampening": (0.0, 1.0, True, True)}
    search_space = {"lr": ("log", 1e-3, 1.0), "weight_decay": ("log", 1e-5, 1e-2)}
    torch_keys = ("foreach", "differentiable", "fused")
    torch_later = ("nesterov", "maximize")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As every rule's, and nesterov has what it is made of."""
        h = {**self.defaults, **param_group}
        if h["nesterov"] is True and (h["momentum"] == 0 or h["dampening"] != 0):
            raise UserError(
                f"{self.rule}: nesterov wants a momentum and no dampening, got momentum = {h['momentum']!r} and "
                f"dampening = {h['dampening']!r}"
            )
        super().add_param_group(param_group)

    @staticmethod
    def scalars(h, t, s):
        averages = h.momentum != 0
        return start(h) | {
            "lr": h.lr,
            "averages": averages,
            "momentum": float(h.momentum),
            "nesterov": h.nesterov,
            "first": averages and h.dampening != 0 and t == 1,  # without dampening line 2 gives g by itself
            "rest": 1.0 - h.dampening,
        }

    @staticmethod
    def update(x, g, c, momentum_buffer=None):
        g = gradient(x, g, c)
        if c.averages:
            if c.first:
                momentum_buffer.copy_(g)
            else:
                momentum_buffer.mul_(c.momentum).add_(g, alpha=c.rest)
            g = g.add(momentum_buffer, alpha=c.momentum) if c.nesterov else momentum_buffer
        x.add_(g, alpha=-c.lr)
