"""Padam: partially adaptive momentum."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer


class PAdam(Optimizer):
    """Padam: Adam's denominator to a power between SGD and Adam (Chen et al. 2018).

        1   g = g + weight_decay x
        2   m = beta1 m + (1 - beta1) g
        3   v = beta2 v + (1 - beta2) g^2
        4   r = max(r, v)                                        without amsgrad: r = v
        5   x = x - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(r) + eps)^(2 partial)

    Args:
        params: tensors or groups.
        lr: 0.1.
        betas: (0.9, 0.999).
        eps: 1e-8.
        partial: p in [0, 1/2]: 0.25; 1/2 is AMSGrad, towards 0 it becomes momentum SGD. The paper's CNNs use 1/8.
        amsgrad: line 4's running maximum of the uncorrected v.
        weight_decay: 0.0, an L2 term.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Padam, Algorithm 1, with the bias corrections and the place of eps of its published code.
    """

    paper = "Closing the Generalization Gap of Adaptive Gradient Methods in Training Deep Neural Networks"
    cited = (
        "Chen, Jinghui and Zhou, Dongruo and Tang, Yiqi and Yang, Ziyan and Cao, Yuan and Gu, Quanquan",
        "Closing the Generalization Gap of Adaptive Gradient Methods in Training Deep Neural Networks",
        "International Joint Conference on Artificial Intelligence",
        2020,
    )
    slots = {"m": 0.0, "v": 0.0, "r": 0.0}
    optional_slots = {"r": ("amsgrad", True)}
    int8_slots = {"m": "signed", "v": "unsigned"}
    structural = ("amsgrad",)
    bounds = {"partial": (0.0, 0.5, True, True)}
    search_space = {
        "lr": ("log", 1e-3, 1.0),
        "partial": ("choice", (0.25, 0.125, 0.0625)),
        "weight_decay": ("log", 1e-5, 1e-2),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        partial: float = 0.25,
        amsgrad: bool = True,
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        return {
            "l2": h.weight_decay != 0,
            "weight_decay": h.weight_decay,
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "step": h.lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t),
            # (.)^(1/2) and (.)^(1/4) as roots, many times faster than a general power
            "roots": {0.25: 1, 0.125: 2}.get(h.partial, 0),
            "power": 2.0 * h.partial,
        }

    @staticmethod
    def update(x, g, raw, m, v, c, r=None):
        if c.l2:
            decay = x * c.weight_decay
            g, raw = g + decay, raw + decay
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        if r is not None:
            r.copy_(r.maximum(v))
        den = (v if r is None else r).sqrt().add_(c.eps)
        if c.roots == 0:
            den.pow_(c.power)
        for _ in range(c.roots):
            den.sqrt_()
        x.addcdiv_(m, den, value=-c.step)
