"""DecGD: the gradient as a product of the loss's root and its gradient."""

from __future__ import annotations

from typing import Any

import torch

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.vocabulary import sqrt, where


class DecGD(Optimizer):
    """DecGD: gradient decomposition, grad f = 2 r grad r with r = sqrt(f + c) (Shao, Zhou and Lin 2025).

        1   r = sqrt(f + c)
        2   d = g / (2 r)
        3   m = gamma m + d
        4   v = v + m (x - x_previous)                           v starts at the first r in every coordinate
        5   u = v                                                ams: u = min(u, v), from the same start
        6   x = x - 2 lr u m

    f is the mean loss of the effective batch at x: `step(loss=loss)` or `step(closure)`; f + c must be positive. v
    tracks r to first order in each coordinate. Without ams it may become negative: the step then climbs.

    Args:
        params: tensors or groups.
        lr: 0.01.
        c: 1.0, above 0.
        gamma: 0.9.
        ams: line 5's running minimum.
        x0: the iterate before the first: "x1" makes line 4's first increment 0; "0" makes it m x, as an
            implementation that starts from a zero x_previous does.
        on_bad_loss: "raise", or "skip" to leave everything as it is and count.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer. x_previous is never stored in bf16:
            rounding it would be larger than the increments of line 4.

    Source: DecGD, Algorithm 1, which leaves the first increment open. No published code was found.
    """

    family = "loss-aware"
    paper = "A new adaptive gradient method with gradient decomposition"
    cited = (
        "Shao, Zhou and Lin, Tong",
        "A new adaptive gradient method with gradient decomposition",
        "arXiv preprint",
        2021,
    )
    needs = {"loss"}
    slots = {"m": 0.0, "v": 0.0, "previous": 0.0, "u": 0.0}
    optional_slots = {"u": ("ams", True)}
    state_bytes = 12
    choices = {"x0": ("x1", "0")}
    structural = ("ams",)
    bounds = {"c": (0.0, float("inf"), False, False)}
    search_space = {"lr": ("log", 1e-4, 1.0), "c": ("choice", (0.1, 1.0, 10.0)), "gamma": ("choice", (0.1, 0.9))}

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        c: float = 1.0,
        gamma: float = 0.9,
        ams: bool = False,
        x0: str = "x1",
        *,
        on_bad_loss: str = "raise",
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    def _first_value(self, name: str, p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        first = super()._first_value(name, p, group)
        return first.to(self._compute_dtype(p)) if name == "previous" else first

    @staticmethod
    def loss_floor(h):
        return -h.c * (1 - 1e-6)  # f = -c itself would divide by zero

    @staticmethod
    def control(h, t, sums, loss, memory):
        return {"loss": loss}

    @staticmethod
    def scalars(h, t, s):
        r = sqrt(s.loss + h.c)
        first = t <= 1
        return {
            "start": where(first, r, 0.0),
            "begin": where(first, 0.0 if h.x0 == "0" else 1.0, 0.0),
            "gamma": h.gamma,
            "scale": 0.5 / r,
            "step": 2 * h.lr,
        }

    @staticmethod
    def update(x, g, m, v, previous, c, u=None):
        v.add_(c.start)  # everything starts at 0
        if u is not None:
            u.add_(c.start)
        previous.add_(x, alpha=c.begin)
        m.mul_(c.gamma).add_(g, alpha=c.scale)
        v.addcmul_(m, x - previous)
        previous.copy_(x)
        if u is not None:
            u.copy_(u.minimum(v))
        x.addcmul_(v if u is None else u, m, value=-c.step)
