"""HDAdam: Adam that descends on its own rate."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.hypergradient import Hypergradient
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import maximum


class HDAdam(Hypergradient):
    """Adam-HD: hypergradient descent on the rate of Adam (Baydin et al. 2018, Algorithm 6).

        1   g = g + weight_decay x
        2   h = <g, u>                                             u from the step before, 0 in the first
        3   lr = lr + hypergrad_lr h                               rule "additive"
            lr = lr (1 + hypergrad_lr h / (||g|| ||u||))           rule "multiplicative"
        4   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        5   u = sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        6   x = x - lr u

    The products run over all groups, so every group's rate is shifted (or scaled) alike, and line 3 comes before the
    step. The adapted rate is kept apart from `group["lr"]`, and a scheduler multiplies it. u is computed again from m
    and v instead of being stored.

    Args:
        params: tensors or groups; hypergrad_lr must be equal in all groups.
        lr: the first rate; required.
        hypergrad_lr: beta, 1e-8. Nothing keeps an additive rate above 0.
        rule: "additive" or "multiplicative" (in the paper, not in its code).
        betas: decay of both moments, (0.9, 0.999).
        eps: 1e-8, added to the root of the uncorrected v.
        weight_decay: 0.0, an L2 term that line 2 sees.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Online Learning Rate Adaptation with Hypergradient Descent, Section 3. The published code moves the rate
    once for each tensor within a step, so that it depends on their order; here one h moves it once.
    """

    paper = "Online Learning Rate Adaptation with Hypergradient Descent (Baydin et al. 2018)"
    cited = (
        "Baydin, Atilim Gunes and Cornish, Robert and Martinez Rubio, David and Schmidt, Mark and Wood, Frank",
        "Online Learning Rate Adaptation with Hypergradient Descent",
        "International Conference on Learning Representations",
        2018,
    )
    slots = {"m": 0.0, "v": 0.0}
    choices = {"rule": ("additive", "multiplicative")}
    search_space = {"lr": ("log", 1e-5, 1e-1), "hypergrad_lr": ("log", 1e-10, 1e-3)}
    special_cases = {"adam": {"hypergrad_lr": 0.0}}

    def __init__(
        self,
        params: Any,
        lr: float,
        hypergrad_lr: float = 1e-8,
        rule: str = "additive",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def prepare(h, t, memory):
        (beta1, beta2), n = h.betas, maximum(t - 1, 1)
        return {
            "weight_decay": h.weight_decay,
            "decays": h.weight_decay != 0,
            "angle": h.rule == "multiplicative",
            "eps": h.eps,
            "scale": (1 - beta2**n) ** 0.5 / (1 - beta1**n),  # in the first step m is 0
        }

    @staticmethod
    def measure(x, g, m, v, c):
        if c.decays:
            g = g.add(x, alpha=c.weight_decay)
        u = m.div(v.sqrt().add_(c.eps)).mul_(c.scale)
        return (dot(g, u), dot(g, g), dot(u, u)) if c.angle else (dot(g, u),)

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        rate = HDAdam.rate(h, vars(s))
        return {
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "weight_decay": h.weight_decay,
            "decays": h.weight_decay != 0,
            "step": rate * (1 - beta2**t) ** 0.5 / (1 - beta1**t),
        }

    @staticmethod
    def update(x, g, raw, m, v, c):
        if c.decays:
            g, raw = g.add(x, alpha=c.weight_decay), raw.add(x, alpha=c.weight_decay)
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        x.addcdiv_(m, v.sqrt().add_(c.eps), value=-c.step)
