"""AdEMAMix: Adam with a second, much slower first moment."""

from __future__ import annotations

import math
from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.moments import decoupled


class AdEMAMix(Optimizer):
    """AdEMAMix: Adam whose momentum is a mixture of a fast and a slow average (Pagliardini et al. 2024, Algorithm 1).

        1   beta3_t, alpha_t = their schedules over T steps, or beta3 and alpha
        2   m1 = beta1 m1 + (1 - beta1) g
        3   m2 = beta3_t m2 + (1 - beta3_t) g
        4   v  = beta2 v + (1 - beta2) g^2
        5   m1hat, vhat = m1 / (1 - beta1^t), v / (1 - beta2^t)
        6   x = x - lr ((m1hat + alpha_t m2) / (sqrt(vhat) + eps) + weight_decay x)

    The schedules: alpha_t = min(1, t/T) alpha; beta3_t begins at beta1, and its half-life log(.5)/log(beta3_t) grows
    linearly until it is that of beta3 at t = T.

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999, 0.9999), each above 0: of m1, v and m2.
        alpha: 5.0, the weight of the slow average.
        T: steps of the schedules, the paper's choice is the length of the run; None for constant alpha and beta3.
        eps: 1e-8.
        weight_decay: 0.0, decoupled.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: AdEMAMix, Algorithm 1 and Section 3. m2 has no bias correction. Without T a long beta3 makes early steps
    large: the paper warms both up in all its runs.
    """

    paper = "The AdEMAMix Optimizer: Better, Faster, Older"
    cited = (
        "Pagliardini, Matteo and Ablin, Pierre and Grangier, David",
        "The AdEMAMix Optimizer: Better, Faster, Older",
        "International Conference on Learning Representations",
        2025,
    )
    slots = {"m1": 0.0, "m2": 0.0, "v": 0.0}
    int8_slots = {"m1": "signed", "v": "unsigned"}
    bounds = {
        "betas": (0.0, 1.0, False, False),
        "alpha": (0.0, float("inf"), True, False),
        "T": (1, float("inf"), True, False),
    }
    search_space = {"lr": ("log", 1e-5, 1e-2), "alpha": ("log", 1.0, 20.0), "weight_decay": ("log", 1e-3, 1.0)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        T: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2, beta3 = h.betas
        progress = 1.0 if h.T is None else min(1.0, t / h.T)
        if progress < 1:  # 1 / log(beta3_t), the half-life but for a factor, is interpolated
            beta3 = math.exp(1 / ((1 - progress) / math.log(beta1) + progress / math.log(beta3)))
        return {
            "w1": 1 - beta1,
            "w3": 1 - beta3,
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "unbias": (1 - beta2**t) ** -0.5,
            "step_fast": h.lr / (1 - beta1**t),
            "step_slow": h.lr * h.alpha * progress,
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, raw, m1, m2, v, c):
        m1.lerp_(g, c.w1)
        m2.lerp_(g, c.w3)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        root = v.sqrt().mul_(c.unbias).add_(c.eps)
        if c.decay:
            x.mul_(c.shrink)
        x.addcdiv_(m1, root, value=-c.step_fast).addcdiv_(m2, root, value=-c.step_slow)
