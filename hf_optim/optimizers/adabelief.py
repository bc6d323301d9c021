"""AdaBelief: the step adapts to how far the gradient is from its average."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.notes import once
from hf_optim.errors import UserError


class AdaBelief(Optimizer):
    """AdaBelief: Adam with a centred second moment (Zhuang et al. 2020).

        1   x = x (1 - lr weight_decay)                          not weight_decouple: g = g + weight_decay x
        2   m = beta1 m + (1 - beta1) g
        3   s = beta2 s + (1 - beta2) (g - m)^2 + eps            with the new m; eps accumulates
        4   r = s                                                amsgrad without rectify: r = max(r, s)
        5   x = x - lr mhat / (sqrt(r / (1 - beta2^t)) + eps)    without rectify; mhat = m / (1 - beta1^t)
            x = x - lr mhat                                      with rectify, while N < 5
            x = x - lr R mhat / (sqrt(r) + eps)                  with rectify, then

    N and R are RAdam's, written out at `ACProp`.

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-16, inside and outside the root.
        weight_decay: 0.0.
        weight_decouple: decay x itself (True) or add an L2 term to the gradient.
        fixed_decay: in line 1, x (1 - weight_decay) without the rate; needs weight_decouple.
        rectify: RAdam's factor, and momentum SGD before it is defined.
        amsgrad: line 4's running maximum; rectified steps do not use it, and a warning says so.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Raises:
        UserError: fixed_decay without weight_decouple, which would do nothing.

    Source: AdaBelief, Algorithm 2, with the defaults and the rectification of version 0.2 of its published code.
    That code drops the maximum when it rectifies, so this does. A rate of 0 stops fixed_decay too.
    """

    paper = "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients"
    cited = (
        "Zhuang, Juntang and Tang, Tommy and Ding, Yifan and Tatikonda, Sekhar and Dvornek, Nicha "
        "and Papademetris, Xenophon and Duncan, James S.",
        "AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
        "Advances in Neural Information Processing Systems",
        2020,
    )
    slots = {"m": 0.0, "s": 0.0, "r": 0.0}
    optional_slots = {"r": ("amsgrad", True)}
    int8_slots = {"m": "signed", "s": "unsigned"}
    state_bytes = 8
    structural = ("weight_decouple", "fixed_decay", "rectify", "amsgrad")
    search_space = {
        "lr": ("log", 1e-5, 1e-1),
        "eps": ("choice", (1e-16, 1e-12, 1e-8)),
        "weight_decay": ("log", 1e-5, 0.1),
    }

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        amsgrad: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())
        if fixed_decay and not weight_decouple:
            raise UserError("adabelief: fixed_decay is a kind of decoupled decay: set weight_decouple=True or leave it")
        if amsgrad and rectify:
            once(
                "adabelief: amsgrad has no effect on rectified steps, as in the published code; "
                "set rectify=False to use the maximum"
            )

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        bias2 = 1 - beta2**t
        n_inf = 2 / (1 - beta2) - 1
        n = n_inf - 2 * t * beta2**t / bias2
        first = h.rectify and n < 5
        step, unbias = h.lr / (1 - beta1**t), 1.0
        if not h.rectify:
            unbias = bias2**-0.5
        elif not first:
            step *= (bias2 * (n - 4) / (n_inf - 4) * (n - 2) / n * n_inf / (n_inf - 2)) ** 0.5
        rate = float(h.lr > 0) if h.fixed_decay else h.lr
        return {
            "first": first,
            "l2": h.weight_decay != 0 and not h.weight_decouple,
            "weight_decay": h.weight_decay,
            "decay": h.weight_decay != 0 and h.weight_decouple,
            "shrink": 1 - rate * h.weight_decay,
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "unbias": unbias,
            "step": step,
            "rectified": h.rectify,
        }

    @staticmethod
    def update(x, g, raw, m, s, c, r=None):
        if c.l2:
            decay = x * c.weight_decay
            g, raw = g + decay, raw + decay
        if c.decay:
            x.mul_(c.shrink)
        m.lerp_(g, c.w1)
        d = raw - m
        s.mul_(c.beta2).addcmul_(d, d, value=c.w2).add_(c.eps)
        if r is not None:
            r.copy_(r.maximum(s))
        if c.first:
            x.add_(m, alpha=-c.step)
        else:
            x.addcdiv_(m, (s if r is None or c.rectified else r).sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)
