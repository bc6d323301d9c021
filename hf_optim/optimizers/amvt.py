"""AMVT: Adam with a tracked gradient variance."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import maximum, sqrt


class AMVT(Optimizer):
    """AMVT: adaptive momentum with variance tracking (Section 3.2, Algorithm 1).

        c   g = g clip / ||g||                                   if clip is given and ||g|| > clip
        d   m = beta1 m + (1 - beta1) g
        e   v = beta2 v + (1 - beta2) g^2
        f   s = beta3 s + (1 - beta3) (g - m)^2                  with the new m
        g   mhat, vhat, shat = m / (1 - beta1^t), v / (1 - beta2^t), s / (1 - beta3^t)
        h   alpha = lr (1 + shat / (vhat + eps))^(-1/2) / sqrt(vhat + eps) = lr / sqrt(vhat + shat + eps)
        i   x_new = x - alpha mhat
        j   x_new = x_new - weight_decay x                       free of lr, as printed

    Args:
        params: tensors or groups.
        lr: alpha_0, 1e-3.
        betas: decay of momentum, second moment and variance, (0.9, 0.999, 0.99).
        eps: 1e-8.
        weight_decay: 0.0.
        clip: threshold on the global norm, equal in all groups; None for no clipping.
        momentum: "corrected" uses mhat in line i (Section 3.2, step 7); "raw" m (Algorithm 1); Theorem 1 has both.
        eps_mode: "inside" the root as printed; "outside": lr / (sqrt(vhat + shat) + eps).
        decay: "paper" is line j, but at lr = 0 nothing moves; "adamw" multiplies x by 1 - lr weight_decay first.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: AMVT, Section 3.2 and Algorithm 1, which disagree on line i. With m uncorrected inside line f, shat/vhat is
    beta1^2 in the first step, so the first step is 0.743 lr in each coordinate. The modules that the paper lists
    without a formula are `amvt_modules`.
    """

    paper = "Deep Learning Optimization Using Adaptive Gradient Methods (AMVT)"
    cited = (
        "Saravana Ram, R.",
        "Deep Learning Optimization Using Adaptive Gradient Methods: A Mathematical Framework for Enhanced Convergence",
        "",
        0,
    )
    slots = {"m": 0.0, "v": 0.0, "s": 0.0}
    int8_slots = {"m": "signed", "v": "unsigned", "s": "unsigned"}
    choices = {"momentum": ("corrected", "raw"), "eps_mode": ("inside", "outside"), "decay": ("paper", "adamw")}
    shared = ("clip",)
    bounds = {"clip": (0.0, float("inf"), False, False)}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("choice", (0.0, 1e-5, 1e-4, 1e-3))}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        clip: float | None = None,
        momentum: str = "corrected",
        eps_mode: str = "inside",
        decay: str = "paper",
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h):
        return ("gg",) if h.clip else ()

    @staticmethod
    def measure(given, c):
        return (dot(given, given),)

    @staticmethod
    def derive(h, sums):
        return {"factor": h.clip / maximum(sqrt(sums["gg"]), h.clip)}

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2, beta3 = h.betas
        bias1 = 1 - beta1**t if h.momentum == "corrected" else 1.0
        return {
            "clipped": bool(h.clip),
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "beta3": beta3,
            "w3": 1 - beta3,
            "unbias": 1 / (1 - beta2**t),
            "ratio": (1 - beta2**t) / (1 - beta3**t),
            "eps": h.eps,
            "inside": h.eps_mode == "inside",
            "step": h.lr / bias1,
            "decays": h.weight_decay != 0 and h.lr != 0,
            "shrink": 1 - h.weight_decay * (1.0 if h.decay == "paper" else h.lr),
        }

    @staticmethod
    def update(x, g, raw, m, v, s, c):
        if c.clipped:
            g, raw = g * c.factor, raw * c.factor
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        d = raw - m
        s.mul_(c.beta3).addcmul_(d, d, value=c.w3)
        spread = v.add(s, alpha=c.ratio).mul_(c.unbias)  # vhat + shat
        root = spread.add_(c.eps).sqrt_() if c.inside else spread.sqrt_().add_(c.eps)
        if c.decays:
            x.mul_(c.shrink)
        x.addcdiv_(m, root, value=-c.step)
