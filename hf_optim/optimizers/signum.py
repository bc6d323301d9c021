"""Signum: the sign of the momentum."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.moments import decoupled


class Signum(Optimizer):
    """Signum: every element moves by lr, against the sign of its momentum (Bernstein et al. 2018, Algorithm 2).

        1   m = beta m + (1 - beta) g
        2   x = x (1 - lr weight_decay) - lr sign(m)

    Args:
        params: tensors or groups.
        lr: 1e-4; every element moves by as much.
        beta: 0.9.
        weight_decay: 0.0, decoupled.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: signSGD, Algorithm 2, on one worker. The paper has no weight decay; the decoupled one is ours. An element
    whose momentum is exactly 0 stays.
    """

    paper = "signSGD: Compressed Optimisation for Non-Convex Problems"
    cited = (
        "Bernstein, Jeremy and Wang, Yu-Xiang and Azizzadenesheli, Kamyar and Anandkumar, Animashree",
        "signSGD: Compressed Optimisation for Non-Convex Problems",
        "International Conference on Machine Learning",
        2018,
    )
    slots = {"m": 0.0}
    int8_slots = {"m": "signed"}
    bounds = {"beta": (0.0, 1.0, True, False)}
    search_space = {"lr": ("log", 1e-6, 1e-2), "weight_decay": ("log", 1e-3, 1.0)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return {
            "w": 1 - h.beta,
            "lr": h.lr,
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, m, c):
        m.lerp_(g, c.w)  # line 1
        if c.decay:
            x.mul_(c.shrink)
        x.add_(m.sign(), alpha=-c.lr)  # line 2
