"""A closure for every step: the window's batches again, with gradients.

Neither Trainer nor Accelerate passes a closure, and LBFGS, SAM and their kind cannot step without one. The one that is
handed over here clears the gradients, repeats the window's forward and backward passes from their own random state and
buffers, averages over ranks as DDP does, and returns the loss. At the unmoved parameters, loss and gradients equal the
window's own bit for bit.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_optim.errors import BadLoss, MissingLoss, UserError, one_line
from hf_optim.hub.feed import needs
from hf_optim.hub.replay import Replay


def wanted(optimizer: Any) -> bool:
    """Whether the optimizer, or one that it wraps, steps only with a closure.

    It says so itself (`needs_closure = True`, or "closure" in `needs`), or `closure` is an argument of its `step`
    without a default, as in torch's LBFGS.
    """
    while isinstance(optimizer, torch.optim.Optimizer):
        if getattr(optimizer, "needs_closure", False) or "closure" in needs(optimizer) or insists(type(optimizer)):
            return True
        optimizer = getattr(optimizer, "base", None)
    return False


def insists(cls: Any) -> bool:
    """Whether an optimizer class steps only with a closure, as far as the class says it."""
    closure = inspect.signature(inspect.unwrap(cls.step)).parameters.get("closure")
    asks = closure is not None and closure.default is inspect.Parameter.empty
    return asks or getattr(cls, "needs_closure", False) is True  # a wrapper's is a property


def choice(optimizer: Any, closure: bool | None, name: str) -> bool:
    """Whether every step gets a closure: what the user says, else what the optimizer asks for.

    Raises:
        UserError: `closure` is not a bool or None, or False for an optimizer that cannot do without.
    """
    if closure is not None and not isinstance(closure, bool):
        raise UserError(f"closure must be True, False or None (where the optimizer asks for one), got {closure!r}")
    asked = wanted(optimizer)
    if asked and closure is False:
        raise UserError(f"{name} steps only with a closure: leave closure=False out")
    return asked or bool(closure)


class Closure:
    """What `optimizer.step(closure)` takes: f at the parameters as they are now, its gradient in `p.grad`.

    Args:
        replay: the window that is repeated.
        optimizer: not wrapped; only its parameters' gradients change.
        max_norm: gradients are clipped to it, as the trainer clips the window's own; 0 or None for not at all.
        average: called after each backward pass, for gradients that DDP does not average.
    """

    def __init__(
        self,
        replay: Replay,
        optimizer: Any,
        max_norm: float | None = None,
        average: Callable[[], None] = lambda: None,
    ) -> None:
        self._replay = replay
        self._optimizer = optimizer
        self._max_norm = max_norm
        self._average = average
        #: evaluations in this step, and in the last one
        self.calls = self.last_calls = 0

    def __call__(self) -> torch.Tensor:
        """A 0-d tensor, the same on every rank."""
        self.calls += 1
        accelerator = self._replay.accelerator
        mine = [p for group in self._optimizer.param_groups for p in group["params"]]
        with self._others_kept(mine):
            for p in mine:
                p.grad = None
            loss = self._replay(backward=True)
            self._average()
        if self._max_norm:
            accelerator.clip_grad_norm_(mine, self._max_norm)
        return loss

    @contextmanager
    def _others_kept(self, mine: list[torch.Tensor]) -> Iterator[None]:
        """A loss may reach models that another optimizer trains: their gradients are not ours to add to."""
        own = set(map(id, mine))
        others = [p for m in self._replay.accelerator._models for p in m.parameters() if id(p) not in own]
        kept = [p.grad for p in others]
        for p in others:
            p.grad = None
        try:
            yield
        finally:
            for p, grad in zip(others, kept, strict=True):
                p.grad = grad

    def step(self, step: Callable[..., Any]) -> Any:
        """`step(closure)` of Accelerate's wrapper."""
        self.calls = 0
        try:
            return step(self)
        finally:
            self.last_calls = self.calls


@contextmanager
def explained(name: str) -> Iterator[None]:
    """An optimizer that turns out to want a closure says so in its own words; say what to do, too."""
    try:
        yield
    except Exception as error:
        asks = "closure" in str(error).lower() or _called_none(error)
        if isinstance(error, (MissingLoss, BadLoss)) or not asks:
            raise
        raise UserError(
            f"{name} asks for a closure ({one_line(error)}): give closure=True, or let its class say "
            "needs_closure = True, which commands and studies read, too"
        ) from error


def _called_none(error: BaseException) -> bool:
    """Whether a step ended where it called its `closure`, which was None."""
    if not isinstance(error, (TypeError, AttributeError)) or "NoneType" not in str(error):
        return False
    called = [
        traceback.FrameSummary(frame.f_code.co_filename, line, "").line or ""
        for frame, line in traceback.walk_tb(error.__traceback__)
        if "closure" in inspect.getargs(frame.f_code).args
    ]
    return bool(called) and "closure" in called[-1] and "step(" not in called[-1]  # which hands it on
