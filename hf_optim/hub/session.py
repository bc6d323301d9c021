"""The same feed for an Accelerate loop of one's own.

session = Session(accelerator, optimizer)
for batch in loader:
    with accelerator.accumulate(model):
        session.loss(lambda: loss_fn(model, batch))
        session.step()
        scheduler.step()
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_optim.core.rewind import RandomState
from hf_optim.errors import UserError
from hf_optim.hub import backends, closures, modes
from hf_optim.hub.feed import LossFeed, needs, unwrapped
from hf_optim.hub.rates import LoggedRates
from hf_optim.hub.replay import Replay

_REPLAY_ADVICE = (
    "draw noise and timesteps inside the function given to session.loss, and pass what changes from batch to batch as "
    "an argument, session.loss(fn, batch)"
)


def _frozen(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn with the variables it sees as they are now: `lambda: loss_fn(batch)` must not see the next batch later."""
    if not isinstance(fn, types.FunctionType):
        return fn
    twin = types.FunctionType(
        fn.__code__, dict(fn.__globals__), fn.__name__, fn.__defaults__, tuple(map(_same_cell, fn.__closure__ or ()))
    )
    twin.__kwdefaults__ = fn.__kwdefaults__
    return twin


def _same_cell(cell: types.CellType) -> types.CellType:
    try:
        return types.CellType(cell.cell_contents)
    except ValueError:  # a variable that has no value yet
        return types.CellType()


class Session:
    """Feeds an optimizer the loss of the effective batch in a loop written with Accelerate.

    Args:
        accelerator: the `accelerate.Accelerator` of the loop.
        optimizer: what `accelerator.prepare` returned for the optimizer; any optimizer, of this library or not.
        steps_per_epoch: optimizer steps in an epoch, batches / accumulation, for rules whose interval is a share of
            an epoch (TLR, SPS, SLS) and were not given it.
        closure: give every step a closure that repeats the window's losses with gradients. None: where the optimizer
            asks for one (LBFGS; `needs_closure = True`). SAM and its kind, which take one but do not say so: True.

    The session keeps nothing between steps, so `accelerator.save_state` and `load_state` after a step resume bit for
    bit. Several sessions may share an accelerator, one for each optimizer (as in a GAN).

    A window that ends early, at the end of the data, is divided by the full accumulation by Accelerate; the loss that
    is fed is divided alike, so it stays the one whose gradient is there.

    Raises:
        UserError: an optimizer that was not prepared; a backend that cannot do what the rule needs.
    """

    def __init__(
        self, accelerator: Any, optimizer: Any, steps_per_epoch: int | None = None, *, closure: bool | None = None
    ) -> None:
        if not any(optimizer is known for known in accelerator._optimizers):
            raise UserError("Session needs the optimizer that accelerator.prepare returned: prepare it first")
        self.accelerator = accelerator
        self.optimizer = optimizer
        self._inner = unwrapped(optimizer)
        name = type(self._inner).__name__
        closing = closures.choice(self._inner, closure, name)
        backends.refuse(accelerator, self._inner, name, closing)
        if steps_per_epoch is not None:
            if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
                raise UserError(f"steps_per_epoch must be a whole number from 1, got {steps_per_epoch!r}")
            tell = getattr(self._inner, "set_steps_per_epoch", None)
            if tell is not None:
                tell(steps_per_epoch)
        wanted = needs(self._inner)
        self._name = name
        self._rates = LoggedRates()
        self._inside = False
        replayed = "evaluate" in wanted or closing
        self._replay = Replay(accelerator, lambda: accelerator._models) if replayed else None
        self._closure = closures.Closure(self._replay, self._inner) if self._replay is not None and closing else None
        self._save_hook = accelerator.register_save_state_pre_hook(lambda *_: modes.evaluate(self._inner))
        self._feed: LossFeed | None = None
        self._beside: list[Session] = vars(accelerator).setdefault("_hf_optim_sessions", [])
        self._beside.append(self)
        if wanted or closing:
            self._feed = LossFeed(accelerator, self._inner, self._replay)
            self._feed.mine = self._is_mine
            self._feed.install()
            if self._replay is not None:
                self._replay.feed = self._feed
            self._hook = accelerator.register_load_state_pre_hook(lambda *_: self.reset())

    def loss(self, fn: Callable[..., torch.Tensor], /, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss of one micro-batch and run its backward pass.

        Args:
            fn: returns the mean loss as a 0-d tensor. Whatever is random (noise, timesteps) is drawn inside.
            *args, **kwargs: handed to fn.

        Returns:
            The loss of this micro-batch, detached, as fn returned it. Several calls before one `step` add up, as
            their gradients do.
        """
        modes.train(self._inner)
        if self._replay is not None:
            again = _frozen(fn)
            self._replay.record(lambda: self._backward(again(*args, **kwargs)), RandomState(self.accelerator.device))
        value = fn(*args, **kwargs)
        self._backward(value)
        return value.detach()

    def _backward(self, value: torch.Tensor) -> None:
        self._inside = True
        try:
            self.accelerator.backward(value)
        finally:
            self._inside = False

    def step(self) -> bool:
        """Step the optimizer and clear its gradients, if this micro-batch ends a window; clip before, if at all.

        Returns:
            Whether the optimizer stepped: False inside a window, or when a gradient scaler skipped the step.
        """
        if not self.accelerator.sync_gradients:
            return False
        self._rates.remember(self._inner)
        if self._replay is not None:
            self._replay.check_once(_REPLAY_ADVICE)
        try:
            if self._closure is not None:
                self._closure.step(self.optimizer.step)
            else:
                with closures.explained(self._name):
                    self.optimizer.step()
            self.optimizer.zero_grad()
        finally:
            self.reset()
        return not self.optimizer.step_was_skipped

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the parameters hold what is to be evaluated and saved: the average of a Schedule-Free optimizer. With
        other optimizers it changes nothing. `accelerator.save_state` needs no such block."""
        modes.evaluate(self._inner)
        try:
            yield
        finally:
            modes.train(self._inner)

    def figures(self) -> dict[str, float]:
        """`effective_lr`, the rate that the last step used, the optimizer's own figures, `closure_calls`; for a log."""
        found = self._rates.figures(self._inner)
        if self._closure is not None:
            found["closure_calls"] = float(self._closure.last_calls)
        return found

    def reset(self) -> None:
        """Forget a window that was begun, when its batches are given up; `load_state` does so too."""
        if self._feed is not None:
            self._feed.reset()
        if self._replay is not None:
            self._replay.reset()

    def close(self) -> None:
        """Give `accelerator.backward` back; only needed when the accelerator lives on without this optimizer."""
        self._beside.remove(self)
        self._save_hook.remove()
        if self._feed is not None:
            self._feed.remove()
            self._hook.remove()

    def _is_mine(self) -> bool:
        if not any(session._inside for session in self._beside):
            raise UserError(
                f"accelerator.backward was called beside session.loss, so {self._name} would see only a part of its "
                "loss: give every loss to session.loss, with one Session an optimizer"
            )
        return self._inside
