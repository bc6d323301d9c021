"""Running one of ours beside its twin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from twins.core import DEFAULTS, run

Arrays = list[np.ndarray]
# True: a name of the contract that the registry lacks fails the tests instead of being reported.
STRICT = True


@cache
def names() -> frozenset[str]:
    import hf_optim

    return frozenset(hf_optim.list_optimizers())


def registered(name: str, hyper: dict[str, Any]) -> None:
    """Report the test as expected to fail when ``name``, or the base it wraps, is not in the registry (yet)."""
    base = (DEFAULTS[name].get("base", {}) | hyper.get("base", {})).get("name", name)
    try:
        missing = {name, base} - names()
    except (ImportError, AttributeError):
        missing = {name}
    if missing:
        message = f"not registered: {', '.join(sorted(missing))}"
        pytest.fail(message) if STRICT else pytest.xfail(message)


class Ours:
    """One optimizer of the library on a problem, stepped as a training loop does.

    ``style``: "loss" puts ready gradients and the loss there, "closure" gives a closure; None: what the rule needs.
    The gradients are NumPy's (fast) or, with ``autograd``, torch's.
    """

    def __init__(
        self,
        name: str,
        problem: Any,
        groups: list[dict[str, Any]] | None = None,
        style: str | None = None,
        autograd: bool = False,
        schedule: dict[int, float] | None = None,
        **hyper: Any,
    ) -> None:
        import hf_optim

        self.problem, self.autograd, self.schedule = problem, autograd, schedule or {}
        self.params = problem.parameters()
        given: Any = self.params
        if groups is not None:
            given = [
                {
                    "params": [self.params[i] for i in group["at"]],
                    **{key: value for key, value in group.items() if key != "at"},
                }
                for group in groups
            ]
        self.opt = hf_optim.create(name, given, **hyper)
        self.needs = getattr(self.opt, "needs", frozenset())
        # a look-ahead needs gradients at the point it looks at
        needs_closure = "evaluate" in self.needs or hyper.get("lookahead")
        self.style = style or ("closure" if needs_closure else "loss")

    def step(self, t: int) -> Any:
        def evaluate() -> Any:
            return self.problem.torch(self.params, t) if self.autograd else self.problem.numpy(self.arrays(), t)[0]

        def closure() -> Any:
            self.opt.zero_grad()
            if self.autograd:
                loss = evaluate()
                loss.backward()
                return loss
            value, grads = self.problem.numpy(self.arrays(), t)
            for p, g in zip(self.params, grads, strict=True):
                p.grad = p.detach().new_tensor(g)
            return value

        if t in self.schedule:  # as a scheduler does, between two steps
            for group in self.opt.param_groups:
                group["lr"] *= self.schedule[t]
        if self.style == "closure":
            return self.opt.step(closure)
        loss = closure()
        if "evaluate" in self.needs:
            return self.opt.step(loss=loss, evaluate=evaluate)
        return self.opt.step(loss=loss) if "loss" in self.needs else self.opt.step()

    def arrays(self) -> Arrays:
        return [p.detach().numpy() for p in self.params]


class Walk:
    """One of ours over given gradients and losses, without a problem behind them."""

    def __init__(self, name: str, start: list[np.ndarray], **hyper: Any) -> None:
        import torch

        import hf_optim

        registered(name, hyper)
        self.params = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in start]
        self.opt = hf_optim.create(name, self.params, **hyper)

    def step(self, grads: Sequence[np.ndarray | None], loss: float = 1.0) -> list[np.ndarray]:
        import torch

        for p, g in zip(self.params, grads, strict=True):
            p.grad = None if g is None else torch.tensor(g, dtype=torch.float64)
        needs = getattr(self.opt, "needs", frozenset())
        if "evaluate" in needs:
            self.opt.step(loss=loss, evaluate=lambda: loss)
        elif "loss" in needs:
            self.opt.step(loss=loss)
        else:
            self.opt.step()
        return [p.detach().numpy().copy() for p in self.params]


@dataclass
class Trajectory:
    """A twin's run with the tolerance of every step: 1e-11 + 1e-14 times what a change of the start grows to."""

    steps: list[tuple[Arrays, dict[str, Any]]]
    atol: list[float]
    first: list[int]

    def wrong(self, k: int, arrays: Arrays) -> str:
        """What differs after ``k`` updates; empty if nothing does."""
        for i, (a, b) in enumerate(zip(arrays, self.steps[k - 1][0], strict=True)):
            gap = float(np.abs(a - b).max())
            if not gap <= self.atol[k - 1]:
                values = f"{a.ravel()[:4]} for {b.ravel()[:4]}"
                return f"tensor {i} is off by {gap:.3g} (allowed {self.atol[k - 1]:.3g}): {values}"
        return ""

    def rates(self, k: int) -> list[float] | None:
        """The effective rate of every group, where the rule adapts one and the tensors of a group share it."""
        rates = self.steps[k - 1][1].get("lr")
        if rates is None:
            return None
        shared = all(
            rates[i] == rates[j]
            for i, j in zip(range(len(rates)), range(1, len(rates)), strict=False)
            if j not in self.first
        )
        return [rates[i] for i in self.first] if shared else None


def trajectory(
    name: str, problem: Any, steps: int, groups: list[dict[str, Any]] | None, hyper: dict[str, Any]
) -> Trajectory:
    plain = run(name, problem.start, problem.numpy, steps, groups, **hyper)
    nudge = 1e-7
    moved = run(name, [a * (1 + nudge) for a in problem.start], problem.numpy, steps, groups, **hyper)
    growth = [
        max(float(np.abs(a - b).max()) for a, b in zip(p[0], q[0], strict=True)) / nudge
        for p, q in zip(plain, moved, strict=True)
    ]
    return Trajectory(plain, [1e-11 + 1e-14 * g for g in growth], [g["at"][0] for g in groups or [{"at": [0]}]])
