"""MARS: AdamW on gradients whose variance is reduced."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.routed import Routed
from hf_optim.core.moments import adam, decoupled
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import maximum, sqrt


class MARS(Routed):
    """MARS: AdamW on gradients corrected by their last change (Yuan et al. 2024, Algorithm 3: MARS-AdamW, approximate).

        1   c = g + gamma beta1 / (1 - beta1) (g - g_previous)      0 for the bracket in the first step
        2   c = c / max(1, ||c||)                                   one tensor at a time
        3   m = beta1 m + (1 - beta1) c
        4   v = beta2 v + (1 - beta2) c^2
        5   x = x - lr ((m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay x)

    Tensors of fewer than two dimensions skip lines 1 and 2 and have betas of their own.

    Args:
        params: tensors or groups; a group's `route` ("mars" or "adamw") overrides the dimensions.
        lr: 3e-3.
        betas: (0.95, 0.99).
        gamma: 0.025, how much of the change is used.
        eps: 1e-8.
        weight_decay: 0.0, decoupled.
        betas_1d: (0.9, 0.95), of vectors.
        compile, state_dtype: as in hf_optim.Optimizer.

    Source: MARS, Algorithm 3 with g_previous from the previous batch ("approximate"), as in the paper's experiments.
    The published code takes g_previous = 0 in the first step, the algorithm x_0 = x_1; here the algorithm counts.
    """

    paper = "MARS: Unleashing the Power of Variance Reduction for Training Large Models"
    cited = (
        "Yuan, Huizhuo and Liu, Yifeng and Wu, Shuang and Zhou, Xun and Gu, Quanquan",
        "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
        "arXiv preprint",
        2024,
    )
    routed = ("mars", "adamw")
    slots = {"m": 0.0, "v": 0.0, "previous": 0.0}
    optional_slots = {"previous": ("route", "mars")}
    int8_slots = {"m": "signed", "v": "unsigned"}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.99),
        gamma: float = 0.025,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        betas_1d: tuple[float, float] = (0.9, 0.95),
        *,
        compile: bool | None = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h):
        return ("cc",)

    @staticmethod
    def scope(h):
        return "tensor"

    @staticmethod
    def prepare(h, t, memory):
        return {
            "first": t == 1,
            "corrected": h.route == "mars",
            "more": h.gamma * h.betas[0] / (1 - h.betas[0]),
        }

    @staticmethod
    def correction(g, previous, c):  # line 1
        if c.first:
            previous.copy_(g)
        return (g - previous).mul_(c.more).add_(g)

    @staticmethod
    def measure(g, c, previous=None):
        if c.corrected:
            g = MARS.correction(g, previous, c)
        return (dot(g, g),)

    @staticmethod
    def derive(h, sums):
        return {"clip": 1 / maximum(sqrt(sums["cc"]), 1.0)}

    @staticmethod
    def scalars(h, t, s):
        betas = h.betas if h.route == "mars" else h.betas_1d
        return adam(h.lr, betas, h.eps, t) | decoupled(h)

    @staticmethod
    def update(x, g, m, v, c, previous=None):
        d = g
        if c.corrected:
            d = MARS.correction(g, previous, c).mul_(c.clip)
            previous.copy_(g)
        m.lerp_(d, c.w1)
        v.mul_(c.beta2).addcmul_(d, d, value=c.w2)
        if c.decay:
            x.mul_(c.shrink)
        x.addcdiv_(m, v.sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)
