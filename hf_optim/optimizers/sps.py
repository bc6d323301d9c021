"""SPS: the stochastic Polyak step size."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.notes import once
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import TINY, maximum, minimum, sqrt, where


class SPS(Optimizer):
    """SPS: gradient descent with Polyak's step on the batch (Loizou et al. 2021, Equation 3 and Section 5).

        1   s = f / (c ||g||^2 + eps)                            adapt "smooth_iter"
            s = max(f - f_star, 0) / (c ||g||^2 + eps)           adapt "constant"
        2   eta = min(gamma^(1/N) eta_previous, s)               "smooth_iter";  eta = s for "constant"
        3   eta = min(eta, eta_max)
        4   x = x - lr eta g

    N is the number of steps in an epoch, eta_previous starts at init_step_size, ||g|| runs over all groups, and f is
    the mean loss of the effective batch at x: `step(loss=loss)` or `step(closure)`. f must not be negative. A gradient
    with a norm below 1e-8 moves nothing. `group["lr"]`, 1.0, is a multiplier through which schedules act. Clipped
    gradients break the rule: they enter line 1.

    Args:
        params: tensors or groups, with equal numbers in all groups but for lr.
        c: Polyak's constant, 0.5 (deep networks are often run with 0.2).
        gamma: largest growth of the step over an epoch, 2.0.
        init_step_size: eta_0, 1.0.
        steps_per_epoch: N, 500; the Trainer and Accelerate doors put in the true number unless it is given.
        eta_max: upper bound of the step (SPS_max); None for none.
        adapt: "smooth_iter" bounds the growth of the step, "constant" does not.
        f_star: the smallest possible loss, 0.0; "smooth_iter" does not read it.
        eps: 1e-8.
        on_bad_loss: "raise", or "skip" to leave everything as it is and count.
        grad_transform: None; anything else raises, since ||g||^2 is part of the rule.
        compile: as in hf_optim.Optimizer.

    Source: Stochastic Polyak Step-size for SGD, and its published code. There a vanished gradient or loss stores a
    step of 0, from which "smooth_iter" never recovers; here steps of 0 are not remembered. The code bounds by eta_max
    with "constant" only; here it bounds both.
    """

    family = "loss-aware"
    paper = "Stochastic Polyak Step-size for SGD (Loizou et al. 2021)"
    cited = (
        "Loizou, Nicolas and Vaswani, Sharan and Laradji, Issam and Lacoste-Julien, Simon",
        "Stochastic Polyak Step-size for SGD: An Adaptive Learning Rate for Fast Convergence",
        "International Conference on Artificial Intelligence and Statistics",
        2021,
    )
    needs = {"loss"}
    fixed_lr = True
    no_transform = "its theory uses ||g||^2"
    memory = {"eta_previous": "init_step_size", "eta": "init_step_size"}
    choices = {"adapt": ("smooth_iter", "constant")}
    shared = ("c", "gamma", "init_step_size", "steps_per_epoch", "eta_max", "f_star", "eps")
    bounds = {
        "c": (0.0, float("inf"), False, False),
        "gamma": (1.0, float("inf"), True, False),
        "init_step_size": (0.0, float("inf"), False, False),
        "eta_max": (0.0, float("inf"), False, True),
    }
    search_space = {"c": ("log", 0.1, 1.0), "gamma": ("choice", (1.5, 2.0, 3.0))}

    def __init__(
        self,
        params: Any,
        c: float = 0.5,
        gamma: float = 2.0,
        init_step_size: float = 1.0,
        steps_per_epoch: int = 500,
        eta_max: float | None = None,
        adapt: str = "smooth_iter",
        f_star: float = 0.0,
        eps: float = 1e-8,
        *,
        on_bad_loss: str = "raise",
        compile: bool | None = None,
        grad_transform: Any = None,
    ) -> None:
        super().__init__(params, locals())
        if f_star != 0 and adapt == "smooth_iter":
            once(f"sps: f_star = {f_star!r} has no effect with adapt='smooth_iter'")

    @staticmethod
    def loss_floor(h):
        return min(h.f_star, 0.0) if h.adapt == "constant" else 0.0

    @staticmethod
    def measures(h):
        return ("gg",)

    @staticmethod
    def measure(g, c):
        return (dot(g, g),)

    @staticmethod
    def control(h, t, sums, loss, memory):
        above = loss if h.adapt == "smooth_iter" else maximum(loss - h.f_star, 0.0)
        eta = above / maximum(h.c * sums["gg"] + h.eps, TINY)  # line 1
        if h.adapt == "smooth_iter":
            eta = minimum(h.gamma ** (1 / h.steps_per_epoch) * memory["eta_previous"], eta)
        if h.eta_max is not None:
            eta = minimum(eta, h.eta_max)
        eta = where(sqrt(sums["gg"]) >= 1e-8, eta, 0.0)
        memory["eta_previous"] = where(eta > 0, eta, memory["eta_previous"])
        memory["eta"] = eta
        return {"loss": loss, "eta": eta}

    @staticmethod
    def scalars(h, t, s):
        return {"rate": h.lr * s.eta}

    @staticmethod
    def update(x, g, c):
        x.add_(g, alpha=-c.rate)  # line 4

    @staticmethod
    def rate(h, memory):
        return h.lr * memory["eta"]
