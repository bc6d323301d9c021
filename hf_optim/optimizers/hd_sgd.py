"""HDSGD: gradient descent that descends on its own rate."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.hypergradient import Hypergradient
from hf_optim.core.reduce import dot
from hf_optim.errors import UserError


class HDSGD(Hypergradient):
    """SGD-HD: hypergradient descent on the rate of SGD (Baydin et al. 2018, Algorithm 4 and 5).

        1   g = g + weight_decay x
        2   h = <g, u>                                             u from the step before, 0 in the first
        3   lr = lr + hypergrad_lr h                               rule "additive"
            lr = lr (1 + hypergrad_lr h / (||g|| ||u||))           rule "multiplicative"
        4   b = momentum b + g
        5   u = b;  u = g + momentum b with nesterov
        6   x = x - lr u

    The products run over all groups, so every group's rate is shifted (or scaled) alike, and line 3 comes before the
    step. The adapted rate is kept apart from `group["lr"]`, and a scheduler multiplies it.

    Args:
        params: tensors or groups; hypergrad_lr must be equal in all groups.
        lr: the first rate; required.
        hypergrad_lr: beta, 1e-6. The useful size depends on that of the gradients; nothing keeps an additive rate
            above 0.
        rule: "additive" or "multiplicative" (in the paper, not in its code).
        momentum: 0.0.
        nesterov: False.
        weight_decay: 0.0, an L2 term that line 2 sees.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Online Learning Rate Adaptation with Hypergradient Descent, Section 3, and its published code.
    """

    paper = "Online Learning Rate Adaptation with Hypergradient Descent (Baydin et al. 2018)"
    cited = (
        "Baydin, Atilim Gunes and Cornish, Robert and Martinez Rubio, David and Schmidt, Mark and Wood, Frank",
        "Online Learning Rate Adaptation with Hypergradient Descent",
        "International Conference on Learning Representations",
        2018,
    )
    slots = {"u": 0.0, "b": 0.0}
    optional_slots = {"b": ("nesterov", True)}
    choices = {"rule": ("additive", "multiplicative")}
    structural = ("nesterov",)
    search_space = {"lr": ("log", 1e-4, 1.0), "hypergrad_lr": ("log", 1e-8, 1e-1), "momentum": ("choice", (0.0, 0.9))}
    special_cases = {"sgd": {"hypergrad_lr": 0.0, "momentum": 0.0}}

    def __init__(
        self,
        params: Any,
        lr: float,
        hypergrad_lr: float = 1e-6,
        rule: str = "additive",
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())
        if nesterov and any(group["momentum"] == 0 for group in self.param_groups):
            raise UserError("hd_sgd: nesterov=True needs a momentum above 0 in every group")

    @staticmethod
    def prepare(h, t, memory):
        return {"weight_decay": h.weight_decay, "decays": h.weight_decay != 0, "angle": h.rule == "multiplicative"}

    @staticmethod
    def measure(x, g, u, c):
        if c.decays:
            g = g.add(x, alpha=c.weight_decay)
        return (dot(g, u), dot(g, g), dot(u, u)) if c.angle else (dot(g, u),)

    @staticmethod
    def scalars(h, t, s):
        return {
            "momentum": h.momentum,
            "weight_decay": h.weight_decay,
            "decays": h.weight_decay != 0,
            "rate": HDSGD.rate(h, vars(s)),
        }

    @staticmethod
    def update(x, g, u, c, b=None):
        if c.decays:
            g = g.add(x, alpha=c.weight_decay)
        if b is not None:
            b.mul_(c.momentum).add_(g)
            u.copy_(b).mul_(c.momentum).add_(g)
        else:
            u.mul_(c.momentum).add_(g)
        x.add_(u, alpha=-c.rate)
