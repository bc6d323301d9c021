"""Yogi: Adam with additive control of the second moment."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer


class Yogi(Optimizer):
    """Yogi: a second moment that changes by at most (1 - beta2) g^2 (Zaheer et al. 2018).

        1   g = g + weight_decay x
        2   m = beta1 m + (1 - beta1) g
        3   v = v - (1 - beta2) sign(v - g^2) g^2
        4   x = x - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: tensors or groups.
        lr: 1e-2.
        betas: (0.9, 0.999).
        eps: 1e-3.
        initial_accumulator: first value of m and v, 1e-6.
        weight_decay: 0.0, an L2 term.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Yogi, Algorithm 2, with Adam's bias corrections and the first values of the common implementations. The
    paper starts from m = 0 and a v measured on a batch.
    """

    paper = "Adaptive Methods for Nonconvex Optimization"
    cited = (
        "Zaheer, Manzil and Reddi, Sashank J. and Sachan, Devendra and Kale, Satyen and Kumar, Sanjiv",
        "Adaptive Methods for Nonconvex Optimization",
        "Advances in Neural Information Processing Systems",
        2018,
    )
    slots = {"m": "initial_accumulator", "v": "initial_accumulator"}
    int8_slots = {"m": "signed", "v": "unsigned"}
    bounds = {"initial_accumulator": (0.0, float("inf"), True, False)}
    search_space = {
        "lr": ("log", 1e-4, 1e-1),
        "eps": ("choice", (1e-3, 1e-5, 1e-8)),
        "weight_decay": ("log", 1e-5, 1e-2),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-3,
        initial_accumulator: float = 1e-6,
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
            "w2": 1 - beta2,
            "eps": h.eps,
            "unbias": (1 - beta2**t) ** -0.5,
            "step": h.lr / (1 - beta1**t),
        }

    @staticmethod
    def update(x, g, raw, m, v, c):
        if c.l2:
            decay = x * c.weight_decay
            g, raw = g + decay, raw + decay
        m.lerp_(g, c.w1)
        square = raw * raw
        v.addcmul_((v - square).sign_(), square, value=-c.w2)
        x.addcdiv_(m, v.sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)
