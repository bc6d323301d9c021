"""Cautious Lion: only where the update still agrees with the gradient."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.elementwise import agreeing, count
from hf_optim.core.moments import decoupled
from hf_optim.core.reduce import l1
from hf_optim.core.vocabulary import maximum


class CautiousLion(Optimizer):
    """Cautious Lion: elements whose update would go against their gradient wait (Liang et al. 2024, Algorithm 2).

        1   x = x (1 - lr weight_decay)
        2   u = sign(beta1 m + (1 - beta1) g)
        3   mask = 1 where u g > 0, else 0
        4   x = x - lr u mask / max(mean(mask), 1e-3)               the mean of one tensor at a time
        5   m = beta2 m + (1 - beta2) g

    Args:
        params: tensors or groups.
        lr: 1e-4.
        betas: (0.9, 0.99), of the step and of the momentum.
        weight_decay: 0.0, decoupled.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Cautious Optimizers, with line 4 as in the published code: the paper divides by (number of ones + 1) / size
    instead, which differs for small tensors only.
    """

    paper = "Cautious Optimizers: Improving Training with One Line of Code"
    cited = (
        "Liang, Kaizhao and Chen, Lizhang and Liu, Bo and Liu, Qiang",
        "Cautious Optimizers: Improving Training with One Line of Code",
        "arXiv preprint",
        2024,
    )
    slots = {"m": 0.0}
    int8_slots = {"m": "signed"}
    search_space = {"lr": ("log", 1e-6, 1e-2), "weight_decay": ("log", 1e-3, 1.0)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h):
        return ("kept", "size")

    @staticmethod
    def scope(h):
        return "tensor"

    @staticmethod
    def prepare(h, t, memory):
        beta1, beta2 = h.betas
        return {"w1": 1 - beta1, "w2": 1 - beta2}

    @staticmethod
    def measure(g, m, c):
        return l1(agreeing(m.lerp(g, c.w1), g)), count(g)

    @staticmethod
    def derive(h, sums):
        return {"longer": 1 / maximum(sums["kept"] / maximum(sums["size"], 1), 1e-3)}

    @staticmethod
    def scalars(h, t, s):
        return {"lr": h.lr, **decoupled(h)}

    @staticmethod
    def update(x, g, m, c):
        if c.decay:
            x.mul_(c.shrink)
        u = m.lerp(g, c.w1).sign_()
        x.add_(agreeing(u, g).mul_(u).mul_(c.longer), alpha=-c.lr)
        m.lerp_(g, c.w2)
