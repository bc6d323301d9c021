"""AdamW with adaptive gradient regularization."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.moments import adam, decoupled
from hf_optim.transforms.agr import from_hyper


class AdamWAGR(Optimizer):
    """AdamW(AGR): AdamW whose first moment sees the regularised gradient (AGR, Algorithm 2).

        1   ghat = g - (|g| / sum|g|) g                 a matrix at a time
        2   x = x (1 - lr weight_decay)
        3   m = beta1 m + (1 - beta1) ghat
        4   v = beta2 v + (1 - beta2) g^2
        5   x = x - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: tensors or groups; a group with `agr=False` is left out of line 1.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.01, decoupled.
        agr_moments: "first" keeps the raw gradient in v, as Section 3.3 says; "all" regularises both moments, as the
            published code does; "m" is "first" here.
        agr_scope: "matrix" for tensors of two dimensions and more (Section 3.1), "all" as the published code.
        agr_steps: number of first updates with AGR (Tables 7, 8); None for all.
        compile, state_dtype: as in hf_optim.Optimizer.

    Source: AGR, Algorithm 2 and Section 3.3. The listing's `+ lambda theta` inside g is read as the L2 half of the
    two-variant listing of Loshchilov and Hutter and is not added: line 2 has the decay, scaled by the rate as
    everybody has it, and not by the schedule's factor alone. eps and beta2, which are hard to read there (10^-3,
    0.099), are AdamW's.
    """

    family = "transform"
    paper = "Adaptive Gradient Regularization"
    cited = (
        "",
        "Adaptive Gradient Regularization",
        "",
        0,
    )
    slots = {"m": 0.0, "v": 0.0}
    int8_slots = {"m": "signed", "v": "unsigned"}
    choices = {"agr_moments": ("first", "all", "m"), "agr_scope": ("matrix", "all")}
    structural = ("agr_steps",)
    bounds = {"agr_steps": (0, float("inf"), True, False)}
    opt_out = "agr"
    everywhere = {"agr_scope": "all"}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
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
        return adam(h.lr, h.betas, h.eps, t) | decoupled(h)

    @staticmethod
    def update(x, g, raw, m, v, c):
        if c.decay:
            x.mul_(c.shrink)
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        x.addcdiv_(m, v.sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)
