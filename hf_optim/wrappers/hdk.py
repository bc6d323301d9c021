"""HDK: the hypergradient baseline in TLR's frame of K steps."""

from __future__ import annotations

import math
from typing import Any

import torch

from hf_optim.bases.rate_windows import RateWindows
from hf_optim.core import validate


class HDK(RateWindows):
    """HDK: first-order hypergradient descent on the rate, once in K steps (TLR, Section 3 and Table 1).

        every K steps of the base, with w the parameters now and lr the rate of those K steps:
        u_new = (w_previous - w) / (K lr)                          average "mean"; "sum" leaves K out
        lr = lr + eta <u_old, u_new>                               rule "additive"
        lr = lr (1 + eta cos(u_old, u_new))                        rule "multiplicative"
        u_old = u_new;  w_previous = w

    The snapshot is taken before the first step and the rate first moves at step 2 K; the products run over all groups.
    Decay and momentum of the base are part of u. The base steps with `group["lr"]` times `group["hf_optim_lr_scale"]`,
    and `group["lr"]` stays the scheduler's: a schedule multiplies the learned rate. Nothing keeps an additive rate
    above 0.

    Args:
        base: any torch.optim.Optimizer instance.
        eta: the meta-learning rate; required. Table 1 uses 1e-1 and 1e-2 (additive), 1e-4 and 1e-5 (multiplicative).
        interval: K; required.
        rule: "additive" or "multiplicative".
        average: "mean" or "sum" over the K updates; the same for "multiplicative".

    Source: TLR, Section 3, "State-of-the-art Comparisons", and footnote 2, which calls this form "gradient-averaging";
    the windows are Section 2's, "Technical Considerations": "we update the learning rate every K iterations by
    averaging the weights' gradients/update directions". What Section 2 writes down is their sum, the weights'
    difference over K steps divided by the rate: the default follows the word, "sum" the formula.
    """

    paper = "Newton-based Trainable Learning Rate (TLR), Table 1: hypergradient baseline"
    cited = (
        "Retsinas, George and Sfikas, Giorgos and Filntisis, Panagiotis Paraskevas and Maragos, Petros",
        "Newton-based Trainable Learning Rate",
        "",
        0,
    )
    state_bytes = 8
    kept = ("tlr_interval", "hdk_lr_0")
    choices = {"rule": ("additive", "multiplicative"), "average": ("mean", "sum")}
    search_space = {"eta": ("log", 1e-5, 1e-1), "rule": ("choice", ("additive", "multiplicative"))}
    as_base = {"eta": 0.0}
    bounds = {"eta": (0.0, math.inf, True, False), "interval": (1, math.inf, True, False)}

    def __init__(
        self, base: torch.optim.Optimizer, eta: float, interval: int, rule: str = "additive", average: str = "mean"
    ) -> None:
        own = {"eta": eta, "interval": interval, "rule": rule, "average": average}
        kinds = {"eta": 0.0, "interval": 1, "rule": "additive", "average": "mean"}
        validate.values("hdk", own, kinds, self.choices, self.bounds, validate.whole_numbers(type(self)))
        self.eta, self.adaptation, self.average = eta, rule, average
        super().__init__(base)
        self._set_interval(interval)

    def _start_group(self, group: dict[str, Any]) -> None:
        group.setdefault("hdk_lr_0", float(group.get("initial_lr", group["lr"])))
        super()._start_group(group)

    def _rescaled(self, scale: float, products: tuple[float, float, float, float], group: dict[str, Any]) -> float:
        a, b, c, _ = products
        if self.adaptation == "multiplicative":
            norms = math.sqrt(a) * math.sqrt(c)
            return scale * (1 + self.eta * (b / norms if norms > 0 else 0.0))
        lr_0 = group["hdk_lr_0"] or float(group["lr"])
        K = group["tlr_interval"] if self.average == "mean" else 1
        return scale + self.eta * b / K**2 / lr_0 if lr_0 else scale
