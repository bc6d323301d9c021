"""PoNoS: Polyak's step, relaxed by a nonmonotone line search."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.line_search import LineSearch
from hf_optim.errors import UserError


class PoNoS(LineSearch):
    """PoNoS: a Polyak step, shortened until a nonmonotone Armijo condition holds (Galli, Rauhut and Schmidt 2023).

        1   Q = zhang_xi Q_old + 1;  C = (zhang_xi Q_old C + f(x)) / Q           Q_old = C = 0 at first
        2   eta = clip(delta^l (f(x) - f_star) / (c_p ||g||^2 + 1e-8), min_eta, max_eta)
        3   while f(x - eta g) > max(C, f(x)) - c eta ||g||^2:  eta = delta eta    at most 100 trials, then 1e-6
        4   x = x - lr eta g
        5   l = max(l + backtracks - 1, 0)

    ||g|| runs over all groups and every f is on the step's own batch: `step(closure)`, or `step(loss=loss,
    evaluate=evaluate)`. f must not be negative. `group["lr"]`, 1.0, is a multiplier through which schedules act; the
    search does not see it.

    Args:
        params: tensors or groups, with equal numbers in all groups but for lr.
        c: demanded share of the linear decrease, 0.5.
        c_p: Polyak's constant, 0.1.
        delta: factor from one trial to the next, 0.5.
        zhang_xi: weight of the past in C, 1.0 (the mean of all losses); 0 makes the search monotone.
        max_eta: largest first trial step, 10.0.
        min_eta: smallest first trial step, 1e-6.
        f_star: the smallest possible loss, 0.0. The published code accepts it and does not read it.
        save_backtracks: line 5; False begins every search at the Polyak step.
        on_bad_loss: "raise", or "skip" to leave everything as it is and count.
        grad_transform: None; anything else raises, since ||g||^2 is part of the condition.

    Source: Don't be so Monotone: Relaxing Stochastic Line Search in Over-Parameterized Models, Algorithm 1, and the
    published code, from which the bounds, the 1e-8 and the behaviour after 100 trials come.
    """

    family = "line search"
    paper = "Don't be so Monotone: Relaxing Stochastic Line Search (Galli, Rauhut and Schmidt 2023)"
    cited = (
        "Galli, Leonardo and Rauhut, Holger and Schmidt, Mark",
        "Don't be so Monotone: Relaxing Stochastic Line Search in Over-Parameterized Models",
        "Advances in Neural Information Processing Systems",
        2023,
    )
    needs = {"evaluate"}
    memory = {"Q": 0.0, "C": 0.0, "backtracks": 0.0, "eta": 0.0}
    structural = ("save_backtracks",)
    shared = ("c", "c_p", "delta", "zhang_xi", "max_eta", "min_eta", "f_star")
    bounds = {
        "c": (0.0, 1.0, False, False),
        "c_p": (0.0, float("inf"), False, False),
        "delta": (0.0, 1.0, False, False),
        "zhang_xi": (0.0, 1.0, True, True),
        "max_eta": (0.0, float("inf"), False, True),
        "min_eta": (0.0, float("inf"), True, False),
    }
    search_space = {"c": ("choice", (0.1, 0.5)), "c_p": ("log", 0.05, 1.0), "max_eta": ("choice", (1.0, 10.0))}

    def __init__(
        self,
        params: Any,
        c: float = 0.5,
        c_p: float = 0.1,
        delta: float = 0.5,
        zhang_xi: float = 1.0,
        max_eta: float = 10.0,
        min_eta: float = 1e-6,
        f_star: float = 0.0,
        save_backtracks: bool = True,
        *,
        on_bad_loss: str = "raise",
        grad_transform: Any = None,
    ) -> None:
        super().__init__(params, locals())
        if min_eta > max_eta:
            raise UserError(f"ponos: min_eta = {min_eta!r} is above max_eta = {max_eta!r}")

    @staticmethod
    def loss_floor(h):
        return min(h.f_star, 0.0)

    @staticmethod
    def begin(h, square, loss, memory):
        weight = h.zhang_xi * memory["Q"]
        memory["Q"] = weight + 1  # line 1
        memory["C"] = (weight * memory["C"] + loss) / memory["Q"]
        polyak = h.delta ** memory["backtracks"] * (loss - h.f_star) / (h.c_p * square + 1e-8)
        return min(max(polyak, h.min_eta), h.max_eta), max(memory["C"], loss)

    @staticmethod
    def shrink(h):
        return h.delta

    @staticmethod
    def finish(h, eta, backtracks, accepted, memory):
        if h.save_backtracks:
            memory["backtracks"] = max(memory["backtracks"] + backtracks - 1, 0.0)
