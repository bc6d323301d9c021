"""ADOPT: Adam that normalises before it averages."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.elementwise import at_least
from hf_optim.core.moments import decoupled


class ADOPT(Optimizer):
    """ADOPT: Adam that converges with any beta2 (Taniguchi et al. 2024, Algorithm 2).

        1   first step: v = g^2, and nothing else
        2   u = clip(g / max(sqrt(v), eps), -k^(1/4), k^(1/4))      k = t - 1, the steps that moved something
        3   m = beta1 m + (1 - beta1) u
        4   x = x (1 - lr weight_decay) - lr m
        5   v = beta2 v + (1 - beta2) g^2                           after the step: u does not know its own g

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.9999).
        eps: 1e-6.
        weight_decay: 0.0, decoupled.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: ADOPT, Algorithm 2 with the clipping of its Section 5 (c_t = t^(1/4)), which the published code has by
    default. Neither moment is bias corrected. The published code adds weight decay to the gradient unless told; here it
    is decoupled.
    """

    paper = "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate"
    cited = (
        "Taniguchi, Shohei and others",
        "ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate",
        "Advances in Neural Information Processing Systems",
        2024,
    )
    slots = {"m": 0.0, "v": 0.0}
    int8_slots = {"m": "signed", "v": "unsigned"}
    search_space = {"lr": ("log", 1e-5, 1e-2), "weight_decay": ("log", 1e-3, 1.0)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
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
        most = float(t - 1) ** 0.25
        return {
            "first": t == 1,
            "low": -most,
            "high": most,
            "eps": h.eps,
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "lr": h.lr,
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, raw, m, v, c):
        if c.first:
            v.addcmul_(raw, raw)  # line 1: v is 0 before
            return
        u = g / at_least(v.sqrt(), c.eps)
        m.lerp_(u.clamp_(c.low, c.high), c.w1)
        if c.decay:
            x.mul_(c.shrink)
        x.add_(m, alpha=-c.lr)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
