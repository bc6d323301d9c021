"""SLS: stochastic line search with the Armijo condition."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.line_search import LineSearch


class SLS(LineSearch):
    """SLS: gradient descent whose step satisfies the batch's Armijo condition (Vaswani et al. 2019, Algorithms 1, 2).

        1   eta = eta_previous gamma^(1/N)                      reset_option 1; 0: eta_previous; 2: init_step_size
        2   eta = min(eta, eta_max)
        3   while f(x - eta g) > f(x) - c eta ||g||^2:  eta = beta_b eta         at most 100 trials
        4   x = x - lr eta g

    N is the number of steps in an epoch, eta_previous starts at init_step_size, ||g|| runs over all groups, and every
    f is on the step's own batch: `step(closure)`, or `step(loss=loss, evaluate=evaluate)`. f may be negative.
    `group["lr"]`, 1.0, is a multiplier through which schedules act; the search does not see it.

    Args:
        params: tensors or groups, with equal numbers in all groups but for lr.
        init_step_size: eta_0, 1.0.
        c: demanded share of the linear decrease, 0.1.
        beta_b: factor from one trial to the next, 0.9.
        gamma: growth of the step over an epoch, 2.0.
        reset_option: where the next search begins, 1 (line 1).
        steps_per_epoch: N, 500; the Trainer and Accelerate doors put in the true number unless it is given.
        eta_max: upper bound of the first trial step; None for none.
        on_bad_loss: "raise", or "skip" to leave everything as it is and count: a loss or gradient that is not finite.
        grad_transform: None; anything else raises, since ||g||^2 is part of the condition.

    Source: Painless Stochastic Gradient, Algorithms 1 and 2, and its published code, which keeps a step for each group
    (the second then compares with a loss that the first has moved) and, when 100 trials fail, steps 1e-6 but remembers
    the last rejected eta, from which line 1 takes epochs to recover. Here the search is global, and a failed one steps
    1e-6 and leaves eta_previous as it was.
    """

    family = "line search"
    paper = "Painless Stochastic Gradient: Interpolation, Line-Search, and Convergence Rates (Vaswani et al. 2019)"
    cited = (
        "Vaswani, Sharan and Mishkin, Aaron and Laradji, Issam and Schmidt, Mark "
        "and Gidel, Gauthier and Lacoste-Julien, Simon",
        "Painless Stochastic Gradient: Interpolation, Line-Search, and Convergence Rates",
        "Advances in Neural Information Processing Systems",
        2019,
    )
    needs = {"evaluate"}
    memory = {"eta_previous": "init_step_size", "eta": "init_step_size"}
    choices = {"reset_option": (0, 1, 2)}
    shared = ("init_step_size", "c", "beta_b", "gamma", "steps_per_epoch", "eta_max")
    bounds = {
        "init_step_size": (0.0, float("inf"), False, False),
        "c": (0.0, 1.0, False, False),
        "beta_b": (0.0, 1.0, False, False),
        "gamma": (1.0, float("inf"), True, False),
        "eta_max": (0.0, float("inf"), False, True),
    }
    search_space = {"c": ("choice", (0.1, 0.2, 0.5)), "gamma": ("choice", (1.5, 2.0, 3.0))}

    def __init__(
        self,
        params: Any,
        init_step_size: float = 1.0,
        c: float = 0.1,
        beta_b: float = 0.9,
        gamma: float = 2.0,
        reset_option: int = 1,
        steps_per_epoch: int = 500,
        eta_max: float | None = None,
        *,
        on_bad_loss: str = "raise",
        grad_transform: Any = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def loss_floor(h):
        return float("-inf")

    @staticmethod
    def begin(h, square, loss, memory):
        eta = h.init_step_size if h.reset_option == 2 else memory["eta_previous"]
        if h.reset_option == 1:
            eta *= h.gamma ** (1 / h.steps_per_epoch)
        return (eta if h.eta_max is None else min(eta, h.eta_max)), loss

    @staticmethod
    def shrink(h):
        return h.beta_b

    @staticmethod
    def finish(h, eta, backtracks, accepted, memory):
        if accepted:
            memory["eta_previous"] = eta
