"""TLRLegacy: TLR with the schedule and tests of its published code."""

from __future__ import annotations

from typing import Any

import torch

from hf_optim.core.notes import once
from hf_optim.wrappers.tlr import TLR


class TLRLegacy(TLR):
    """TLR as its published code runs it, to reproduce published runs; `tlr` is the paper's rule.

        after step K + 1 of the base:                w_previous = w
        after every K further steps, with lr the rate of those K steps:
        u_new = (w_previous - w) / lr
        a, b = <u_old, u_old>, <u_old, u_new>                      one rate for each group
        factor = 1 if a < 0 else min(1 + gamma b / (a - b + 1e-10), cap)
        lr = lr factor;  u_old = u_new;  w_previous = w

    What differs from `tlr`: the snapshot after step K + 1, so that the rate first moves at step 3 K + 1; the test of a,
    which is never negative, in place of a - b; no cap; inner products by group; no max(1, ...) around K; gamma and p.
    With a - b < 0 the rate may jump or turn negative, and the base then climbs. With K = 0 the published loop takes its
    snapshot once and never moves the rate; so does this one, with a warning.

    Args:
        base: any torch.optim.Optimizer instance.
        gamma: 0.20.
        p: K as a share of an epoch, 1/3: K = int(p steps_per_epoch).
        steps_per_epoch: optimizer steps in an epoch; the Trainer and Accelerate doors fill it in.
        interval: K itself.
        cap: largest factor, infinite: the published code has its cap commented out.
        scope: "group"; "global" or "tensor" as in `tlr`.
        lookahead: as in `tlr`, with the schedule and tests above.
        bound: as in `tlr`; infinite: the published code has none.

    Source: the code published with TLR. Its defaults, above, are what the paper's Figure 1 holds, not its text's.
    """

    paper = "Newton-based Trainable Learning Rate (TLR), published code"
    cited = (
        "Retsinas, George and Sfikas, Giorgos and Filntisis, Panagiotis Paraskevas and Maragos, Petros",
        "Newton-based Trainable Learning Rate",
        "",
        0,
    )
    state_bytes = 8
    from_start = False
    search_space = {"gamma": ("linear", 0.1, 0.5), "p": ("linear", 0.1, 0.5)}
    defaults_own = {
        "gamma": 0.20,
        "p": 0.3333333333333333,
        "steps_per_epoch": None,
        "interval": None,
        "cap": float("inf"),
        "scope": "group",
        "lookahead": False,
        "bound": float("inf"),
    }

    def __init__(
        self,
        base: torch.optim.Optimizer,
        gamma: float = 0.20,
        p: float = 0.3333333333333333,
        steps_per_epoch: int | None = None,
        interval: int | None = None,
        cap: float = float("inf"),
        scope: str = "group",
        lookahead: bool = False,
        bound: float = float("inf"),
    ) -> None:
        super().__init__(base, gamma, p, steps_per_epoch, interval, cap, scope, lookahead, bound)

    def _window(self, steps_per_epoch: int) -> int:
        K = int(self.p * steps_per_epoch)
        if K == 0:
            once(
                f"tlr_legacy: int(p steps_per_epoch) = int({self.p:g} * {steps_per_epoch}) = 0, so the rate "
                "never moves; give a larger p, or interval"
            )
        return K or -1  # 0 in a group stands for "not known yet"

    def _due(self, count: int, K: int) -> bool:
        return K > 0 and count > 1 and (count - 1) % K == 0

    def _rescaled(self, scale: float, products: tuple[float, float, float, float], group: dict[str, Any]) -> float:
        a, b, *_ = products
        return scale if a < 0 else scale * min(1 + self.gamma * b / (a - b + 1e-10), self.cap)
