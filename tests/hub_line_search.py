"""A backtracking line search as a user would write it: not of this library, but it speaks the same contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Armijo(torch.optim.Optimizer):
    """Gradient descent whose step halves until f(x - eta g) <= f(x) - c eta |g|^2 on the same batch."""

    needs = frozenset({"evaluate"})
    no_transform = "its theory uses the norm of the gradient"

    def __init__(self, params: Any, lr: float = 1.0, c: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "c": c})
        self.fed: tuple[Any, Callable[[], Any]] | None = None
        #: (fed loss, the same evaluated again before anything moved) of each step
        self.pairs: list[tuple[float, float]] = []
        self.trials: list[float] = []

    def feed(self, loss: Any = None, evaluate: Callable[[], Any] | None = None) -> None:
        self.fed = None if loss is None or evaluate is None else (loss, evaluate)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self.fed is None:
            raise RuntimeError("no loss")
        loss, evaluate = self.fed
        self.feed()
        self.pairs.append((float(loss), float(evaluate())))
        group = self.param_groups[0]
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        grads = [p.grad.clone() for p in params]
        start = [p.clone() for p in params]
        norm = float(sum((g * g).sum() for g in grads))
        eta = group["lr"]
        for _ in range(20):
            for p, x, g in zip(params, start, grads, strict=True):
                p.copy_(x - eta * g)
            value = float(evaluate())
            self.trials.append(value)
            if value <= float(loss) - group["c"] * eta * norm:
                break
            eta /= 2
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
