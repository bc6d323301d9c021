"""LAMB: Adam with a rate for each layer."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import sqrt, where


class LAMB(Optimizer):
    """LAMB: layerwise adaptive large-batch optimization (You et al. 2020, Algorithm 2).

        1   m = beta1 m + (1 - beta1) g
        2   v = beta2 v + (1 - beta2) g^2
        3   mhat, vhat = m / (1 - beta1^t), v / (1 - beta2^t)
        4   r = mhat / (sqrt(vhat) + eps) + weight_decay x
        5   ratio = ||x|| / ||r||                                one tensor at a time; 1 if either norm is 0
        6   x = x - lr ratio r

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-6.
        weight_decay: 0.0.
        bias_correction: False takes m and v themselves for mhat and vhat in line 3.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: LAMB, Algorithm 2 with phi(z) = z. No clamp on ||x||, no clipping before the step, and tensors without decay
    are adapted as all others: those are variants of other implementations.
    """

    paper = "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
    cited = (
        "You, Yang and others",
        "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
        "International Conference on Learning Representations",
        2020,
    )
    slots = {"m": 0.0, "v": 0.0}
    int8_slots = {"m": "signed", "v": "unsigned"}
    structural = ("bias_correction",)
    search_space = {"lr": ("log", 1e-4, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h):
        return ("xx", "rr")

    @staticmethod
    def scope(h):
        return "tensor"

    @staticmethod
    def prepare(h, t, memory):
        beta1, beta2 = h.betas
        bias1, bias2 = (1 - beta1**t, 1 - beta2**t) if h.bias_correction else (1.0, 1.0)
        return {
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "unbias": bias1 / bias2**0.5,
            "eps": bias1 * h.eps,
            "decay": h.weight_decay != 0,
            "weight_decay": h.weight_decay,
        }

    @staticmethod
    def direction(x, m, v, c):  # line 4, with the bias correction of m in the denominator
        r = m / v.sqrt().mul_(c.unbias).add_(c.eps)
        return r.add_(x, alpha=c.weight_decay) if c.decay else r

    @staticmethod
    def measure(x, g, raw, m, v, c):
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        r = LAMB.direction(x, m, v, c)
        return dot(x, x), dot(r, r)

    @staticmethod
    def derive(h, sums):
        norm_x, norm_r = sqrt(sums["xx"]), sqrt(sums["rr"])
        return {"ratio": where((norm_x > 0) & (norm_r > 0), norm_x / norm_r, 1.0)}

    @staticmethod
    def scalars(h, t, s):
        return {"lr": h.lr}

    @staticmethod
    def update(x, m, v, c):
        x.add_(LAMB.direction(x, m, v, c).mul_(c.ratio), alpha=-c.lr)
