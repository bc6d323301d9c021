"""L4Adam: Adam's direction with a step linear in the loss."""

from __future__ import annotations

from typing import Any

from hf_optim.core.reduce import dot
from hf_optim.optimizers.l4_mom import L4Mom


class L4Adam(L4Mom):
    """L4Adam: L4 with Adam's direction (Rolinek and Martius 2018).

        1   m = 0.9 m + 0.1 g;  g_est = m / (1 - 0.9^t);  s = 0.999 s + 0.001 g^2
        2   v = g_est / (sqrt(s / (1 - 0.999^t)) + adam_eps)       the direction
        3   Lmin = init_factor f in the first step, else min(Lmin, f)
        4   eta = fraction (f - minloss_factor Lmin) / (<g_est, v> + eps)
        5   x = x - lr eta v
        6   Lmin = Lmin (1 + 1 / forget)

    The product in line 4 runs over all groups; f is the mean loss of the effective batch at x: `step(loss=loss)` or
    `step(closure)`. f must not be negative. `group["lr"]`, 1.0, is a multiplier through which schedules act.

    Args:
        params: tensors or groups, with equal numbers in all groups but for lr and adam_eps.
        fraction: alpha, 0.15.
        minloss_factor: gamma, 0.9.
        init_factor: gamma_0, 0.75.
        forget: tau, 1000 steps.
        eps: 1e-12.
        adam_eps: 1e-4.
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
    slots = {"m": 0.0, "s": 0.0}
    search_space = {"fraction": ("choice", (0.05, 0.15, 0.25))}

    def __init__(
        self,
        params: Any,
        fraction: float = 0.15,
        minloss_factor: float = 0.9,
        init_factor: float = 0.75,
        forget: float = 1000.0,
        eps: float = 1e-12,
        adam_eps: float = 1e-4,
        *,
        on_bad_loss: str = "raise",
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super(L4Mom, self).__init__(params, locals())

    @staticmethod
    def prepare(h, t, memory):
        return {
            "w1": 0.1,
            "beta2": 0.999,
            "w2": 1 - 0.999,
            "square_bias1": (1 - 0.9**t) ** 2,
            "unbias": (1 - 0.999**t) ** -0.5,
            "adam_eps": h.adam_eps,
        }

    @staticmethod
    def measure(g, raw, m, s, c):
        m.lerp_(g, c.w1)  # line 1
        s.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        return (dot(m, m.div(s.sqrt().mul_(c.unbias).add_(c.adam_eps))) / c.square_bias1,)

    @staticmethod
    def scalars(h, t, s):
        return {"step": h.lr * s.eta / (1 - 0.9**t)}

    @staticmethod
    def update(x, m, s, c):
        x.addcdiv_(m, s.sqrt().mul_(c.unbias).add_(c.adam_eps), value=-c.step)
