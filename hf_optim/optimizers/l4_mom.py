"""L4Mom: momentum with a step linear in the loss."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import TINY, isfinite, maximum, minimum, where


class L4Mom(Optimizer):
    """L4Mom: the step that a linear model of the loss needs to reach a share of its excess (Rolinek and Martius 2018).

        1   m = 0.9 m + 0.1 g;  g_est = m / (1 - 0.9^t)
        2   v = g_est                                              the direction
        3   Lmin = init_factor f in the first step, else min(Lmin, f)
        4   eta = fraction (f - minloss_factor Lmin) / (<g_est, v> + eps)
        5   x = x - lr eta v
        6   Lmin = Lmin (1 + 1 / forget)

    The product in line 4 runs over all groups; f is the mean loss of the effective batch at x: `step(loss=loss)` or
    `step(closure)`. f must not be negative. `group["lr"]`, 1.0, is a multiplier through which schedules act.

    Args:
        params: tensors or groups, with equal numbers in all groups but for lr.
        fraction: alpha, 0.15.
        minloss_factor: gamma, 0.9.
        init_factor: gamma_0, 0.75.
        forget: tau, 1000 steps.
        eps: 1e-12.
        on_bad_loss: "raise", or "skip" to leave everything as it is and count.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: L4: Practical loss-based stepsize adaptation for deep learning, Algorithm 1 and Section 3. Lmin grows after
    it was used; in the published graph the order of the two is left to chance.
    """

    family = "loss-aware"
    paper = "L4: Practical loss-based stepsize adaptation for deep learning (Rolinek and Martius 2018)"
    cited = (
        "Rolinek, Michal and Martius, Georg",
        "L4: Practical loss-based stepsize adaptation for deep learning",
        "Advances in Neural Information Processing Systems",
        2018,
    )
    needs = {"loss"}
    fixed_lr = True
    slots = {"m": 0.0}
    memory = {"Lmin": float("inf"), "eta": 0.0}
    shared = ("fraction", "minloss_factor", "init_factor", "forget", "eps")
    bounds = {
        "fraction": (0.0, float("inf"), False, False),
        "minloss_factor": (0.0, 1.0, True, True),
        "init_factor": (0.0, 1.0, False, True),
        "forget": (0.0, float("inf"), False, True),
    }
    search_space = {"fraction": ("choice", (0.05, 0.15, 0.25))}

    def __init__(
        self,
        params: Any,
        fraction: float = 0.15,
        minloss_factor: float = 0.9,
        init_factor: float = 0.75,
        forget: float = 1000.0,
        eps: float = 1e-12,
        *,
        on_bad_loss: str = "raise",
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h):
        return ("product",)

    @staticmethod
    def prepare(h, t, memory):
        return {"w1": 0.1, "square_bias1": (1 - 0.9**t) ** 2}

    @staticmethod
    def measure(g, m, c):
        m.lerp_(g, c.w1)  # line 1
        return (dot(m, m) / c.square_bias1,)

    @staticmethod
    def control(h, t, sums, loss, memory):
        lowest = where(isfinite(memory["Lmin"]), minimum(memory["Lmin"], loss), h.init_factor * loss)  # line 3
        eta = h.fraction * (loss - h.minloss_factor * lowest) / maximum(sums["product"] + h.eps, TINY)
        memory["eta"] = eta
        memory["Lmin"] = lowest * (1 + 1 / h.forget)
        return {"loss": loss, "eta": eta}

    @staticmethod
    def scalars(h, t, s):
        return {"step": h.lr * s.eta / (1 - 0.9**t)}

    @staticmethod
    def update(x, m, c):
        x.add_(m, alpha=-c.step)

    @staticmethod
    def rate(h, memory):
        return h.lr * memory["eta"]
