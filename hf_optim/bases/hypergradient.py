"""Hypergradient descent: the rate follows the derivative of the loss with respect to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.vocabulary import TINY, maximum, sqrt, where


class Hypergradient(Optimizer):
    """Base of HDSGD and HDAdam: a subclass measures h = <g_t, u_(t-1)> and, for "multiplicative", <g, g> and <u, u>.

    The adapted rate of a group whose rate began as lr_0 is lr_0 + shift, or lr_0 times a factor; shift and factor are
    common to all groups. A scheduler that writes `group["lr"]` multiplies it: the rate in force is
    lr (factor + shift / lr_0), which is the paper's for a constant lr and 0 at lr = 0.
    """

    memory = {"lr_shift": 0.0, "lr_factor": 1.0}
    kept = {"lr_0": "lr"}
    choices = {"rule": ("additive", "multiplicative")}
    shared = ("hypergrad_lr",)
    bounds = {"hypergrad_lr": (0.0, float("inf"), True, False)}

    @staticmethod
    def measures(h: SimpleNamespace) -> tuple[str, ...]:
        return ("gu",) if h.rule == "additive" else ("gu", "gg", "uu")

    @staticmethod
    def control(
        h: SimpleNamespace, t: int, sums: dict[str, float], loss: Any, memory: dict[str, float]
    ) -> dict[str, float]:
        if h.rule == "additive":
            memory["lr_shift"] = memory["lr_shift"] + h.hypergrad_lr * sums["gu"]
        else:
            norms = sqrt(sums["gg"]) * sqrt(sums["uu"])
            cosine = where(norms > 0, sums["gu"] / maximum(norms, TINY), 0.0)
            memory["lr_factor"] = memory["lr_factor"] * (1 + h.hypergrad_lr * cosine)
        return dict(memory)

    @staticmethod
    def rate(h: SimpleNamespace, memory: dict[str, float]) -> float:
        lr_0 = where(h.lr_0 > 0, h.lr_0, h.lr)
        rate: float = h.lr * (memory["lr_factor"] + memory["lr_shift"] / maximum(lr_0, TINY))  # a symbol in a trace
        return rate
