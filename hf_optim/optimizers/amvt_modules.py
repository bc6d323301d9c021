"""AMVT with the modules that its paper names without a formula, each by our own definition and off by default."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.errors import UserError
from hf_optim.optimizers.amvt import AMVT


class AMVTModules(AMVT):
    """AMVT plus modules of Section 3.1 that the paper leaves without a formula. The definitions are ours.

        c, d, e, f, g, j   as `amvt` (Algorithm 1), d with beta1_t in place of beta1
        momentum_schedule  beta1_t = min(beta1, 1 - 1 / (2 (floor(t / momentum_schedule) + 1)));
                           mhat = m / (1 - beta1_1 ... beta1_t)
        curvature          y = beta3 y + (1 - beta3) (g - g_previous)^2, with 0 in the first step,
                           yhat = y / (1 - beta3^(t-1)), and shat + yhat in place of shat in line h
        snr                r = mhat^2 / (mhat^2 + shat), with 0 / 0 = 0, else r = 1
        h                  u = r mhat / sqrt(vhat + shat + yhat + eps)
        update_clip        u = clamp(u, -update_clip, update_clip)
        i                  x_new = x - lr u

    With everything off this is `amvt`, bit for bit. Module 1's gradient normalisation and outlier filter are the
    transforms `normalize` and `outlier_filter` (`grad_transform="normalize"`, or both as
    `grad_transform={"name": "normalize", "outliers": 5.0}`), which any rule takes.

    Args:
        params: tensors or groups.
        lr: alpha_0, 1e-3.
        betas: decay of momentum, second moment and variance, (0.9, 0.999, 0.99).
        eps: 1e-8.
        weight_decay: 0.0.
        clip: threshold on the global norm, equal in all groups; None for no clipping.
        momentum: "corrected" uses mhat in line h; "raw" uses m there (r always uses mhat).
        eps_mode: "inside" the root as printed; "outside": u = r mhat / (sqrt(vhat + shat + yhat) + eps).
        decay: "paper" is line j; "adamw" multiplies x by 1 - lr weight_decay first.
        snr: False; True weights every coordinate by the signal's share r of its gradient, in [0, 1]. shat is the
            estimate of the gradient's noise that Module 1 asks for.
        curvature: False; True slows coordinates whose gradient changes from step to step: along a step d that change
            is about the Hessian times d. Tracked and used as line f's variance is. Two more numbers a parameter.
        momentum_schedule: length in steps of a plateau of beta1_t = 1/2, 3/4, 5/6, 7/8, ... up to beta1, the schedule
            of Sutskever et al. (2013) with 250; None for a constant beta1.
        update_clip: most that lr is multiplied with in a coordinate's move, decay apart; None for no limit.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: AMVT, Algorithm 1, and for the modules only their names: "signal-to-noise ratio computation" and
    "curvature-based adjustment" (Section 3.1, Module 3), "momentum scheduling that adjusts to loss landscape curvature"
    (Section 1; ours goes by time alone), "update clipping for stability" (Module 4). The paper's results cannot be
    attributed to these definitions.
    """

    paper = "Deep Learning Optimization Using Adaptive Gradient Methods (AMVT); modules: our definitions"
    cited = (
        "Saravana Ram, R.",
        "Deep Learning Optimization Using Adaptive Gradient Methods: A Mathematical Framework for Enhanced Convergence",
        "",
        0,
    )
    slots = {"m": 0.0, "v": 0.0, "s": 0.0, "q": 0.0, "y": 0.0}
    optional_slots = {"q": ("curvature", True), "y": ("curvature", True)}
    state_bytes = 12
    structural = ("snr", "curvature", "momentum_schedule")
    bounds = {"clip": (0.0, float("inf"), False, False), "update_clip": (0.0, float("inf"), False, False)}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("choice", (0.0, 1e-5, 1e-4, 1e-3))}
    ours = {
        "snr": "signal-to-noise ratio: each coordinate's step times mhat^2 / (mhat^2 + shat)",
        "curvature": "curvature adjustment: the tracked mean of (g_t - g_{t-1})^2 joins shat in the rate",
        "momentum_schedule": "momentum schedule: beta1 = 1/2, 3/4, 5/6, ... over plateaus of momentum_schedule steps",
        "update_clip": "update clipping: no coordinate moves by more than lr update_clip",
    }

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
        snr: bool = False,
        curvature: bool = False,
        momentum_schedule: int | None = None,
        update_clip: float | None = None,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        n = momentum_schedule
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise UserError(f"amvt_modules: momentum_schedule must be None or a whole number of steps, got {n!r}")
        Optimizer.__init__(self, params, {k: v for k, v in locals().items() if k != "n"})

    @staticmethod
    def scalars(h, t, s):
        base = AMVT.scalars(h, t, s)
        beta1, beta2, beta3 = h.betas
        bias1, corrected = 1 - beta1**t, h.momentum == "corrected"
        if h.momentum_schedule:
            base["w1"] = 1 - plateau(t, beta1, h.momentum_schedule)
            bias1 = 1 - product(t, beta1, h.momentum_schedule)
            base["step"] = h.lr / (bias1 if corrected else 1.0)
        return base | {
            "first": h.curvature and t == 1,
            "curved": h.curvature,
            "weighted": h.snr,
            "limited": bool(h.update_clip),
            "change": (1 - beta2**t) / (1 - beta3 ** (t - 1)) if t > 1 else 0.0,
            "noise": bias1**2 / (1 - beta3**t),
            "most": (h.update_clip or 0.0) * (bias1 if corrected else 1.0),
        }

    @staticmethod
    def update(x, g, raw, m, v, s, c, q=None, y=None):
        if c.clipped:
            g, raw = g * c.factor, raw * c.factor
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        d = raw - m
        s.mul_(c.beta3).addcmul_(d, d, value=c.w3)
        spread = v.add(s, alpha=c.ratio)
        if c.curved:
            if not c.first:
                e = raw - q
                y.mul_(c.beta3).addcmul_(e, e, value=c.w3)
            q.copy_(raw)
            spread.add_(y, alpha=c.change)
        spread.mul_(c.unbias)  # vhat + shat + yhat
        root = spread.add_(c.eps).sqrt_() if c.inside else spread.sqrt_().add_(c.eps)
        if c.decays:
            x.mul_(c.shrink)
        top = m
        if c.weighted:
            power = m * m  # of the signal, mhat^2 (1 - beta1 ...)^2; shat on the same scale
            top = power.div(power.add(s, alpha=c.noise).add_(1e-30)).mul_(m)
        if c.limited:
            x.add_(top.div(root).clamp_(-c.most, c.most), alpha=-c.step)
        else:
            x.addcdiv_(top, root, value=-c.step)


def plateau(t: int, beta1: float, steps: int) -> float:
    """beta1_t of the momentum schedule."""
    return min(beta1, 1 - 1 / (2 * (t // steps + 1)))


def product(t: int, beta1: float, steps: int) -> float:
    """beta1_1 ... beta1_t; a factor a plateau."""
    whole, value, at = 1.0, plateau(1, beta1, steps), 1
    while at <= t and whole > 0:
        value = plateau(at, beta1, steps)
        end = t if value == beta1 else min(t, (at // steps + 1) * steps - 1)
        whole *= value ** (end - at + 1)
        at = end + 1
    return whole
