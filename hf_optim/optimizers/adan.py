"""Adan: adaptive Nesterov momentum."""

from __future__ import annotations

from typing import Any, ClassVar

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import TINY, maximum, minimum, sqrt


class Adan(Optimizer):
    """Adan: adaptive Nesterov momentum (Xie et al. 2022).

        1   g = g min(1, max_grad_norm / (||g|| + eps))          if max_grad_norm is given
        2   d = g - g_previous                                   0 in the first step
        3   m = beta1 m + (1 - beta1) g
        4   v = beta2 v + (1 - beta2) d
        5   n = beta3 n + (1 - beta3) (g + beta2 d)^2
        6   u = (m / (1 - beta1^t) + beta2 v / (1 - beta2^t)) / (sqrt(n / (1 - beta3^t)) + eps)
        7   x = (x - lr u) / (1 + lr weight_decay)               proximal; no_prox: x (1 - lr weight_decay) - lr u

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: decay rates (0.98, 0.92, 0.99); the paper's betas are 1 minus these.
        eps: 1e-8.
        weight_decay: 0.0.
        no_prox: decay as AdamW does instead of line 7's proximal form.
        max_grad_norm: clip the global norm of the raw gradient; None for not at all.
        restart_every: forget m, v, n and t after so many steps; None for never, as in the paper's runs.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Adan, Algorithm 1, with the bias corrections of its published code (the listing starts from m = g, n = g^2
    instead).
    """

    paper = "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models"
    cited = (
        "Xie, Xingyu and Zhou, Pan and Li, Huan and Lin, Zhouchen and Yan, Shuicheng",
        "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models",
        "IEEE Transactions on Pattern Analysis and Machine Intelligence",
        2024,
    )
    slots = {"m": 0.0, "v": 0.0, "n": 0.0, "previous": 0.0}
    int8_slots = {"m": "signed", "v": "signed", "n": "unsigned"}
    structural: ClassVar[tuple[str, ...]] = ("no_prox", "restart_every")
    shared = ("max_grad_norm",)
    bounds = {"restart_every": (1, float("inf"), True, False), "max_grad_norm": (0.0, float("inf"), False, False)}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        max_grad_norm: float | None = None,
        restart_every: int | None = None,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def lifetime(h):
        return h.restart_every

    @staticmethod
    def measures(h):
        return ("gg",) if h.max_grad_norm else ()

    @staticmethod
    def measure(given, c):
        return (dot(given, given),)

    @staticmethod
    def derive(h, sums):
        return {"clip": minimum(h.max_grad_norm / maximum(sqrt(sums["gg"]) + h.eps, TINY), 1.0)}

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2, beta3 = h.betas
        shrink = 1 - h.lr * h.weight_decay if h.no_prox else 1 / (1 + h.lr * h.weight_decay)
        return {
            "first": t == 1,
            "clipped": bool(h.max_grad_norm),
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "beta3": beta3,
            "w3": 1 - beta3,
            "eps": h.eps,
            "unbias": (1 - beta3**t) ** -0.5,
            "step_m": h.lr / (1 - beta1**t),
            "step_v": h.lr * beta2 / (1 - beta2**t),
            "decay": h.weight_decay != 0,
            "prox": not h.no_prox,
            "shrink": shrink,
            "strict": False,
        }

    @staticmethod
    def update(x, g, raw, m, v, n, previous, c, raw_previous=None):
        if c.clipped:
            g, raw = g * c.clip, raw * c.clip
        now = raw if c.strict else g  # the gradient whose difference line 4 averages
        if c.first:
            previous.copy_(now)
        d = now - previous
        previous.copy_(now)
        m.lerp_(g, c.w1)
        v.lerp_(d, c.w2)
        if raw_previous is not None:  # line 5 sees raw gradients only
            if c.first:
                raw_previous.copy_(raw)
            d = raw - raw_previous
            raw_previous.copy_(raw)
        nesterov = d.mul_(c.beta2).add_(raw)
        n.mul_(c.beta3).addcmul_(nesterov, nesterov, value=c.w3)
        root = n.sqrt().mul_(c.unbias).add_(c.eps)
        if c.decay and not c.prox:
            x.mul_(c.shrink)
        x.addcdiv_(m, root, value=-c.step_m).addcdiv_(v, root, value=-c.step_v)
        if c.decay and c.prox:
            x.mul_(c.shrink)
