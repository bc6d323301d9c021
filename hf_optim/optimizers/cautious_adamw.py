"""Cautious AdamW: only where the update still agrees with the gradient."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.elementwise import agreeing, count
from hf_optim.core.moments import decoupled
from hf_optim.core.reduce import l1
from hf_optim.core.vocabulary import maximum


class CautiousAdamW(Optimizer):
    """Cautious AdamW: elements whose update would go against their gradient wait (Liang et al. 2024, Algorithm 1).

        1   x = x (1 - lr weight_decay)
        2   m = beta1 m + (1 - beta1) g
        3   v = beta2 v + (1 - beta2) g^2
        4   u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
        5   mask = 1 where u g > 0, else 0
        6   x = x - lr u mask / max(mean(mask), 1e-3)               the mean of one tensor at a time

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.01, decoupled.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Cautious Optimizers, Algorithm 1, with line 6 as in the published code: the algorithm divides by
    (number of ones + 1) / size instead, which differs for small tensors only.
    """

    paper = "Cautious Optimizers: Improving Training with One Line of Code"
    cited = (
        "Liang, Kaizhao and Chen, Lizhang and Liu, Bo and Liu, Qiang",
        "Cautious Optimizers: Improving Training with One Line of Code",
        "arXiv preprint",
        2024,
    )
    slots = {"m": 0.0, "v": 0.0}
    int8_slots = {"m": "signed", "v": "unsigned"}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
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
        return {"w1": 1 - beta1, "beta2": beta2, "w2": 1 - beta2}

    @staticmethod
    def measure(g, raw, m, v, c):  # lines 2, 3, 5; u has the sign of m
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        return l1(agreeing(m, g)), count(g)

    @staticmethod
    def derive(h, sums):
        return {"longer": 1 / maximum(sums["kept"] / maximum(sums["size"], 1), 1e-3)}

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        return {
            "eps": h.eps,
            "unbias": (1 - beta2**t) ** -0.5,
            "step": h.lr / (1 - beta1**t),
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, m, v, c):
        if c.decay:
            x.mul_(c.shrink)
        u = m / v.sqrt().mul_(c.unbias).add_(c.eps)
        x.add_(u.mul_(agreeing(m, g)).mul_(c.longer), alpha=-c.step)
