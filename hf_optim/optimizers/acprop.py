"""ACProp: asynchronous, centred second moment."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer


class ACProp(Optimizer):
    """ACProp: a centred second moment, used one step late (Zhuang et al. 2021).

        1   x = x (1 - lr weight_decay)                          not weight_decouple: g = g + weight_decay x
        2   m = beta1 m + (1 - beta1) g
        3   s = s + eps                                          from t = 2 on; it accumulates
        4   x = x - lr m / (1 - beta1^t)                         at t = 1, and with rectify while N < 5
        5   x = x - lr g / (sqrt(s / (1 - beta2^(t-1))) + eps)   else, without rectify
            x = x - lr R g / (sqrt(s) + eps)                     else, with rectify
        6   s = beta2 s + (1 - beta2) (g - m)^2                  with the new m, after the step

    N = N_inf - 2 t beta2^t / (1 - beta2^t), N_inf = 2 / (1 - beta2) - 1 and
    R = sqrt((1 - beta2^t) (N - 4)(N - 2) N_inf / ((N_inf - 4)(N_inf - 2) N)) are RAdam's.

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-16, inside and outside the root.
        weight_decay: 0.0.
        weight_decouple: decay x itself (True) or add an L2 term to the gradient.
        rectify: RAdam's factor, and momentum SGD before it is defined.
        momentum_update: step along m / (1 - beta1^t) instead of g in line 5.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: ACProp, Algorithm 3, with the corrections of its published code, which the paper leaves out. The paper's
    CNN runs use rectify=False, weight_decouple=False, weight_decay=5e-4, eps=1e-8.
    """

    paper = "Momentum Centering and Asynchronous Update for Adaptive Gradient Methods"
    cited = (
        "Zhuang, Juntang and Ding, Yifan and Tang, Tommy and Dvornek, Nicha and Tatikonda, Sekhar and Duncan, James S.",
        "Momentum Centering and Asynchronous Update for Adaptive Gradient Methods",
        "Advances in Neural Information Processing Systems",
        2021,
    )
    slots = {"m": 0.0, "s": 0.0}
    int8_slots = {"m": "signed", "s": "unsigned"}
    structural = ("weight_decouple", "rectify", "momentum_update")
    search_space = {"lr": ("log", 1e-5, 1e-1), "eps": ("choice", (1e-16, 1e-8)), "weight_decay": ("log", 1e-5, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        rectify: bool = True,
        momentum_update: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        bias1, bias2 = 1 - beta1**t, 1 - beta2**t
        n_inf = 2 / (1 - beta2) - 1
        n = n_inf - 2 * t * beta2**t / bias2
        first = t == 1 or (h.rectify and n < 5)
        step, unbias = h.lr, 1.0
        if first or h.momentum_update:
            step /= bias1
        if h.rectify and not first:
            step *= (bias2 * (n - 4) / (n_inf - 4) * (n - 2) / n * n_inf / (n_inf - 2)) ** 0.5
        elif not first:
            unbias = (1 - beta2 ** (t - 1)) ** -0.5
        return {
            "first": first,
            "l2": h.weight_decay != 0 and not h.weight_decouple,
            "weight_decay": h.weight_decay,
            "decay": h.weight_decay != 0 and h.weight_decouple,
            "shrink": 1 - h.lr * h.weight_decay,
            "w1": 1 - beta1,
            "grow": h.eps if t > 1 else 0.0,
            "eps": h.eps,
            "unbias": unbias,
            "step": step,
            "momentum": h.momentum_update,
            "beta2": beta2,
            "w2": 1 - beta2,
        }

    @staticmethod
    def update(x, g, raw, m, s, c):
        if c.l2:
            decay = x * c.weight_decay
            g, raw = g + decay, raw + decay
        if c.decay:
            x.mul_(c.shrink)
        m.lerp_(g, c.w1)
        s.add_(c.grow)  # line 3
        if c.first:
            x.add_(m, alpha=-c.step)
        else:
            x.addcdiv_(m if c.momentum else g, s.sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)
        d = raw - m
        s.mul_(c.beta2).addcmul_(d, d, value=c.w2)
