"""AdaBound: Adam whose rates are clipped towards those of SGD."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer


class AdaBound(Optimizer):
    """AdaBound: dynamic bounds on Adam's rate in each coordinate (Luo et al. 2019).

        1   g = g + weight_decay x
        2   m = beta1 m + (1 - beta1) g
        3   v = beta2 v + (1 - beta2) g^2
        4   r = v                                                amsbound: r = max(r, v)
        5   eta = lr sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(r) + eps)
        6   eta = clip(eta, F (1 - 1 / (gamma t + 1)), F (1 + 1 / (gamma t)))     F = final_lr lr / base_lr
        7   x = x - eta m

    base_lr is a group's lr at construction, so that a schedule of lr moves the bounds too.

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        final_lr: the rate of SGD to which the bounds close, 0.1.
        gamma: how fast they close, 1e-3, in (0, 1).
        eps: 1e-8.
        weight_decay: 0.0, an L2 term.
        amsbound: line 4's running maximum (AMSBound).
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: AdaBound, Algorithm 2 and Section 5, with the bias corrections of its published code. The paper's eta is
    divided by sqrt(t) for its theorem only.
    """

    paper = "Adaptive Gradient Methods with Dynamic Bound of Learning Rate"
    cited = (
        "Luo, Liangchen and Xiong, Yuanhao and Liu, Yan and Sun, Xu",
        "Adaptive Gradient Methods with Dynamic Bound of Learning Rate",
        "International Conference on Learning Representations",
        2019,
    )
    slots = {"m": 0.0, "v": 0.0, "r": 0.0}
    kept = {"base_lr": "lr"}
    optional_slots = {"r": ("amsbound", True)}
    int8_slots = {"m": "signed", "v": "unsigned"}
    state_bytes = 8
    structural = ("amsbound",)
    bounds = {"gamma": (0.0, 1.0, False, False), "final_lr": (0.0, float("inf"), True, False)}
    search_space = {"lr": ("log", 1e-5, 1e-1), "final_lr": ("log", 1e-3, 1.0), "weight_decay": ("log", 1e-5, 1e-2)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        final = h.final_lr * (h.lr / h.base_lr if h.base_lr else float(h.lr > 0))
        return {
            "l2": h.weight_decay != 0,
            "weight_decay": h.weight_decay,
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "step": h.lr * (1 - beta2**t) ** 0.5 / (1 - beta1**t),
            "low": final * (1 - 1 / (h.gamma * t + 1)),
            "high": final * (1 + 1 / (h.gamma * t)),
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
        eta = (v if r is None else r).sqrt().add_(c.eps).reciprocal_().mul_(c.step).clamp_(c.low, c.high)
        x.addcmul_(eta, m, value=-1)
