"""Lion: the sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.moments import decoupled


class Lion(Optimizer):
    """Lion: evolved sign momentum (Chen et al. 2023, Program 1).

        1   x = x (1 - lr weight_decay)
        2   x = x - lr sign(beta1 m + (1 - beta1) g)
        3   m = beta2 m + (1 - beta2) g

    Every coordinate moves by lr: take a rate 3 to 10 times smaller than AdamW's, and a decay as much larger.

    Args:
        params: tensors or groups.
        lr: 1e-4.
        betas: (0.9, 0.99), of the step and of the momentum.
        weight_decay: 0.0, decoupled.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Lion, Algorithm 2 and its published code.
    """

    paper = "Symbolic Discovery of Optimization Algorithms"
    cited = (
        "Chen, Xiangning and others",
        "Symbolic Discovery of Optimization Algorithms",
        "Advances in Neural Information Processing Systems",
        2023,
    )
    slots = {"m": 0.0}
    int8_slots = {"m": "signed"}
    search_space = {"lr": ("log", 1e-6, 1e-2), "weight_decay": ("log", 1e-3, 1.0)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
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
            "w1": 1 - beta1,
            "w2": 1 - beta2,
            "lr": h.lr,
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, m, c):
        if c.decay:
            x.mul_(c.shrink)
        x.add_(m.lerp(g, c.w1).sign_(), alpha=-c.lr)
        m.lerp_(g, c.w2)
