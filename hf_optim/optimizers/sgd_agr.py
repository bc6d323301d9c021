"""SGD with adaptive gradient regularization."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.transforms.agr import from_hyper


class SGDAGR(Optimizer):
    """SGD(AGR): gradient descent on the regularised gradient (AGR, Equation 3), with torch's momentum and decay.

        1   ghat = g - (|g| / sum|g|) g                 a matrix at a time
        2   ghat = ghat + weight_decay x
        3   b = momentum b + ghat                       b = ghat in the first step
        4   x = x - lr b

    Args:
        params: tensors or groups; a group with `agr=False` is left out of line 1.
        lr: required, as the paper names none.
        momentum: 0.0.
        weight_decay: 0.0, an L2 term that AGR does not see.
        agr_moments: SGD has one moment: "first", "all" and "m" are the same here.
        agr_scope: "matrix" for tensors of two dimensions and more (Section 3.1), "all" for every tensor.
        agr_steps: number of first updates with AGR; None for all.
        compile, state_dtype: as in hf_optim.Optimizer.

    Source: AGR, Equation 3. Momentum and decay are not in the equation; they are torch.optim.SGD's.
    """

    family = "transform"
    paper = "Adaptive Gradient Regularization"
    cited = (
        "",
        "Adaptive Gradient Regularization",
        "",
        0,
    )
    slots = {"b": 0.0}
    int8_slots = {"b": "signed"}
    choices = {"agr_moments": ("first", "all", "m"), "agr_scope": ("matrix", "all")}
    structural = ("agr_steps",)
    bounds = {"agr_steps": (0, float("inf"), True, False)}
    opt_out = "agr"
    everywhere = {"agr_scope": "all"}
    search_space = {"lr": ("log", 1e-3, 1.0), "momentum": ("choice", (0.0, 0.9)), "weight_decay": ("log", 1e-5, 1e-2)}

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        agr_moments: str = "first",
        agr_scope: str = "matrix",
        agr_steps: int | None = None,
        *,
        compile: bool | None = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    def _make_transform(self, given, hyper):
        return from_hyper(hyper)

    @staticmethod
    def scalars(h, t, s):
        return {"momentum": h.momentum, "weight_decay": h.weight_decay, "lr": h.lr}

    @staticmethod
    def update(x, g, b, c):
        b.mul_(c.momentum).add_(g).add_(x, alpha=c.weight_decay)
        x.add_(b, alpha=-c.lr)
