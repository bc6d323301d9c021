"""SMARAN: step size from the loss value."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import TINY, maximum, sqrt, where


class SMARAN(Optimizer):
    """SMARAN: normalised gradient, heavy-ball momentum, step size from the loss (Algorithm 1).

        1   ghat = g / (||g|| + eps)
        2   m = gamma m + ghat
        3   v = gamma v + f^2
        4   V = f / (sqrt(v) + eps)
        5   x = x - lr V (m + weight_decay x)

    f is the mean loss of the effective batch at x: `step(loss=loss)` or `step(closure)`. f must not be negative
    (Theorem 2: 0 <= V < 1; a negative V would climb). v is one number; the state is one moment.

    Args:
        params: tensors or groups; gamma must be equal in all groups.
        lr: eta, 0.1.
        gamma: decay of both averages, 0.9; neither is bias-corrected and m has no factor 1 - gamma.
        weight_decay: lambda, 0.01, scaled by lr V.
        eps: 1e-8.
        norm_scope: "global" takes ||g|| over all tensors, as the algorithm states; "tensor" each tensor's own, as the
            published code does (Theorem 1's bound on ||m|| then fails).
        on_bad_loss: "raise", or "skip" to leave everything as it is and count.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: SMARAN, Algorithm 1 and Section 5.1. The published code's class defaults are lr 0.01, gamma 0.1; its
    experiments and the paper use those above. Theorem 3 takes lr/sqrt(t), the experiments a constant rate.
    """

    family = "loss-aware"
    paper = "SMARAN: Closing the Generalization Gap with Performance Driven Optimization Method"
    cited = (
        "Anonymous",
        "SMARAN: Closing the Generalization Gap with Performance Driven Optimization Method",
        "under review",
        0,
    )
    needs = {"loss"}
    slots = {"m": 0.0}
    int8_slots = {"m": "signed"}
    memory = {"v": 0.0, "V": 0.0}
    choices = {"norm_scope": ("global", "tensor")}
    shared = ("gamma", "eps")
    search_space = {"lr": ("log", 1e-3, 1.0), "gamma": ("choice", (0.8, 0.9, 0.95)), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        gamma: float = 0.9,
        weight_decay: float = 0.01,
        eps: float = 1e-8,
        norm_scope: str = "global",
        *,
        on_bad_loss: str = "raise",
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def measures(h):
        return ("gg",)

    @staticmethod
    def scope(h):
        return h.norm_scope

    @staticmethod
    def measure(g, c):
        return (dot(g, g),)

    @staticmethod
    def derive(h, sums):  # one norm a tensor
        return {"per_norm": 1 / maximum(sqrt(sums["gg"]) + h.eps, TINY)}

    @staticmethod
    def control(h, t, sums, loss, memory):
        memory["v"] = h.gamma * memory["v"] + loss**2  # line 4
        memory["V"] = loss / maximum(sqrt(memory["v"]) + h.eps, TINY)
        norm = {"norm": sqrt(sums["gg"])} if sums else {}
        return {"loss": loss, "V": memory["V"], **norm}

    @staticmethod
    def scalars(h, t, s):
        rate = h.lr * s.V
        everywhere = h.norm_scope == "global"
        norm = {"per_norm": where(s.norm > 0, 1 / maximum(s.norm + h.eps, TINY), 0.0)} if everywhere else {}
        return {"gamma": h.gamma, "rate": rate, "shrink": 1 - rate * h.weight_decay, "everywhere": everywhere, **norm}

    @staticmethod
    def update(x, g, m, c):
        m.mul_(c.gamma)  # lines 2, 3
        if c.everywhere:
            m.add_(g, alpha=c.per_norm)
        else:
            m.add_(g * c.per_norm)
        x.mul_(c.shrink).add_(m, alpha=-c.rate)  # line 5

    @staticmethod
    def rate(h, memory):
        return h.lr * memory["V"]
