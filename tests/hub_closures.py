"""Closure optimizers as users write them: not of this library, and silent about what they need or not."""

from __future__ import annotations

from typing import Any

import torch


class SAM(torch.optim.SGD):
    """Sharpness-aware SGD: the gradient at the worst point nearby. Takes a closure without declaring it."""

    def __init__(self, params: Any, lr: float = 0.1, rho: float = 0.05) -> None:
        super().__init__(params, lr=lr)
        self.rho = rho
        self.values: list[float] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        assert closure is not None, "SAM requires closure, which was not given"
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = sum(p.grad.square().sum() for p in params).sqrt()
        start = [p.clone() for p in params]
        for p in params:
            p.add_(p.grad * self.rho / norm)
        self.values.append(float(closure()))
        for p, x in zip(params, start, strict=True):
            p.copy_(x)
        return super().step()


class Twice(torch.optim.SGD):
    """SGD whose step evaluates the closure where it stands, and keeps what it and the gradients were."""

    needs_closure = True

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.differences: list[float] = []
        self.values: list[float] = []

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.grad.clone() for p in params]
        self.values.append(float(closure()))
        self.differences.append(max(float((p.grad - g).abs().max()) for p, g in zip(params, before, strict=True)))
        return super().step()


class Silent(SAM):
    """SAM that says nothing of a closure at all."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            closure()
        return super().step(closure)


class Handing(SAM):
    """The same, by a decorator of torch's, as many write it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        closure = torch.enable_grad()(closure)
        closure()
        return super().step(closure)


class Broken(torch.optim.SGD):
    """An optimizer that has a bug, and nothing to do with closures."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr=lr)
        self.rule: Any = None

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.rule(2)
