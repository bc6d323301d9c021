"""Adan with adaptive gradient regularization."""

from __future__ import annotations

from typing import Any

from hf_optim.optimizers.adan import Adan
from hf_optim.transforms.agr import from_hyper


class AdanAGR(Adan):
    """Adan(AGR): Adan whose first-order averages see the regularised gradient (AGR, Algorithm 1).

        0   ghat = g - (|g| / sum|g|) g                          a matrix at a time
        1   clip by the global norm of the raw gradient          if max_grad_norm is given
        2   d = ghat - ghat_previous                             0 in the first step
        3   m = beta1 m + (1 - beta1) ghat
        4   v = beta2 v + (1 - beta2) d
        5   n = beta3 n + (1 - beta3) (g + beta2 (g - g_previous))^2
        6,7 as Adan

    Args:
        params: tensors or groups; a group with `agr=False` is left out of line 0.
        lr, betas, eps, weight_decay, no_prox, max_grad_norm, restart_every: as Adan.
        agr_moments: "first" regularises m and the difference d, and n sees raw gradients (Section 3.3), for which both
            previous gradients are kept; "all" regularises everything, as the published code; "m" regularises m alone.
        agr_scope: "matrix" for tensors of two dimensions and more (Section 3.1), "all" as the published code.
        agr_steps: number of first updates with AGR (Table 8); None for all. The stored previous gradient stays; a
            restart starts the count anew.
        compile, state_dtype: as in hf_optim.Optimizer.

    Source: AGR, Algorithm 1 and Section 3.3, with the bias corrections of Adan's code (the listing starts from m = g,
    n = g^2 instead); the listing's betas are 1 minus these, and it does not say when it restarts. The published code
    applies AGR before the clipping factor; so does this.
    """

    family = "transform"
    paper = "Adaptive Gradient Regularization"
    cited = (
        "",
        "Adaptive Gradient Regularization",
        "",
        0,
    )
    slots = {"m": 0.0, "v": 0.0, "n": 0.0, "previous": 0.0, "raw_previous": 0.0}
    optional_slots = {"raw_previous": ("agr_moments", "first")}
    int8_slots = {"m": "signed", "v": "signed", "n": "unsigned"}
    choices = {"agr_moments": ("first", "all", "m"), "agr_scope": ("matrix", "all")}
    structural = ("no_prox", "restart_every", "agr_steps")
    bounds = {
        "restart_every": (1, float("inf"), True, False),
        "max_grad_norm": (0.0, float("inf"), False, False),
        "agr_steps": (0, float("inf"), True, False),
    }
    opt_out = "agr"
    everywhere = {"agr_scope": "all"}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_prox: bool = False,
        max_grad_norm: float | None = None,
        restart_every: int | None = None,
        agr_moments: str = "first",
        agr_scope: str = "matrix",
        agr_steps: int | None = None,
        *,
        compile: bool | None = None,
        state_dtype: str | None = None,
    ) -> None:
        super(Adan, self).__init__(params, locals())

    def _make_transform(self, given, hyper):
        return from_hyper(hyper)

    @staticmethod
    def scalars(h, t, s):
        return {**Adan.scalars(h, t, s), "strict": h.agr_moments == "m"}
