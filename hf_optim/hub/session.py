"""The same feed for an Accelerate loop of one's own.

session = Session(accelerator, optimizer)
for batch in loader:
    with accelerator.accumulate(model):
        session.loss(lambda: loss_fn(model, batch))
        session.step()
        scheduler.step()
"""

from __future__ import annotations

import logging
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from hf_optim.core.groups import describe
from hf_optim.core.rewind import RandomState
from hf_optim.core.wording import both
from hf_optim.errors import UserError
from hf_optim.hub import backends, closures, modes
from hf_optim.hub.feed import LossFeed, needs, noting_wrappers, unwrapped
from hf_optim.hub.rates import LoggedRates
from hf_optim.hub.replay import Replay
from hf_optim.hub.trainer_groups import Untrained

logger = logging.getLogger(__name__)

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


class Several:
    """Several optimizers of one loss, as one: what each of them is told and asked."""

    def __init__(self, optimizers: list[Any]) -> None:
        self._all = optimizers

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(needs(optimizer) for optimizer in self._all))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self._all for group in optimizer.param_groups]

    def _each(self, method: str, *args: Any, **kwargs: Any) -> None:
        for optimizer in self._all:
            own = getattr(optimizer, method, None)
            if callable(own):
                own(*args, **kwargs)

    def feed(self, loss: Any = None, evaluate: Any = None) -> None:
        self._each("feed", loss=loss, evaluate=evaluate)

    def set_steps_per_epoch(self, n: int) -> None:
        self._each("set_steps_per_epoch", n)

    def train(self) -> None:
        self._each("train")

    def eval(self) -> None:
        self._each("eval")

    def effective_lr(self) -> list[float]:
        rates: list[float] = []
        for optimizer in self._all:
            own = getattr(optimizer, "effective_lr", None)
            rates += own() if own is not None else [float(group["lr"]) for group in optimizer.param_groups]
        return rates

    def figures(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for optimizer in self._all:
            numbers |= optimizer.figures() if hasattr(optimizer, "figures") else {}
        return numbers


def _weakly(session: Session, method: str) -> Callable[..., None]:
    """A hook of the accelerator, which may outlive the session (a batch size that did not fit the memory)."""
    there = weakref.ref(session)

    def hook(*_: Any) -> None:
        live = there()
        if live is not None:
            getattr(live, method)()

    return hook


def _forget(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


class Session:
    """Feeds an optimizer the loss of the effective batch in a loop written with Accelerate.

    Args:
        accelerator: the `accelerate.Accelerator` of the loop.
        optimizer: what `accelerator.prepare` returned for the optimizer; any optimizer, of this library or not. Several
            of them, as a list, where one loss trains them all (Muon for matrices, another rule for the rest).
        steps_per_epoch: optimizer steps in an epoch, batches / accumulation, for rules whose interval is a share of
            an epoch (TLR, SPS, SLS) and were not given it.
        closure: give every step a closure that repeats the window's losses with gradients. None: where the optimizer
            asks for one (LBFGS; `needs_closure = True`). SAM and its kind, which take one but do not say so: True.

    The session keeps nothing between steps, so `accelerator.save_state` and `load_state` after a step resume bit for
    bit. Several sessions may share an accelerator, one for each loss (as in a GAN): a window begins with clean
    gradients of its own parameters, and what the backward pass of another session's loss leaves in them is not theirs.

    A window that ends early, at the end of the data, is divided by the full accumulation by Accelerate; the loss that
    is fed is divided alike, so it stays the one whose gradient is there.

    Raises:
        UserError: an optimizer that was not prepared; a backend that cannot do what the rule needs.
    """

    def __init__(
        self, accelerator: Any, optimizer: Any, steps_per_epoch: int | None = None, *, closure: bool | None = None
    ) -> None:
        self._optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        if not self._optimizers or not all(any(o is k for k in accelerator._optimizers) for o in self._optimizers):
            raise UserError("Session needs the optimizer that accelerator.prepare returned: prepare it first")
        self.accelerator = accelerator
        self.optimizer = optimizer
        every = [unwrapped(o) for o in self._optimizers]
        self._inner = every[0] if len(every) == 1 else Several(every)
        name = both(type(o).__name__ for o in every)
        closing = any(closures.choice(o, closure, name) for o in every)
        for inner in every:
            backends.refuse(accelerator, inner, type(inner).__name__, closing)
            backends.tell_skips(accelerator, inner)
            if accelerator.is_main_process:
                logger.info("%s: %s", type(inner).__name__, describe(inner.param_groups))
        if len(every) > 1 and (closing or "evaluate" in needs(self._inner)):
            raise UserError(
                f"{name}: a line search or a closure moves all parameters of its loss: one optimizer for it"
            )
        if steps_per_epoch is not None:
            if isinstance(steps_per_epoch, bool) or not isinstance(steps_per_epoch, int) or steps_per_epoch < 1:
                raise UserError(f"steps_per_epoch must be a whole number from 1, got {steps_per_epoch!r}")
            tell = getattr(self._inner, "set_steps_per_epoch", None)
            if tell is not None:
                tell(steps_per_epoch)
        wanted = needs(self._inner)
        self._name = name
        self._rates = LoggedRates()
        self._inside = self._said = False
        replayed = "evaluate" in wanted or closing
        self._replay = Replay(accelerator, lambda: accelerator._models) if replayed else None
        self._closure = closures.Closure(self._replay, self._inner) if self._replay is not None and closing else None
        self._save_hook = accelerator.register_save_state_pre_hook(_weakly(self, "_evaluate"))
        self._feed: LossFeed | None = None
        self._mine = {p for group in self._inner.param_groups for p in group["params"]}
        self._begun = self._reached = False
        self._untrained: Untrained | None = None
        self._beside: weakref.WeakSet[Session] = vars(accelerator).setdefault("_hf_optim_sessions", weakref.WeakSet())
        self._beside.add(self)
        if wanted or closing:
            self._feed = LossFeed(accelerator, self._inner, self._replay)
            self._feed.mine = weakref.WeakMethod(self._is_mine)
            self._feed.install()
            if self._replay is not None:
                self._replay.feed = self._feed
        self._hook = accelerator.register_load_state_pre_hook(_weakly(self, "reset"))
        self._release = weakref.finalize(self, _forget, [self._hook, self._save_hook])

    def loss(self, fn: Callable[..., torch.Tensor], /, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss of one micro-batch and run its backward pass.

        Args:
            fn: returns the mean loss as a 0-d tensor. Whatever is random (noise, timesteps) is drawn inside.
            *args, **kwargs: handed to fn.

        Returns:
            The loss of this micro-batch, detached, as fn returned it. Several calls before one `step` add up, as
            their gradients do.

        A window is given up where fn or its backward pass raises (a batch that was too large), and where gradients
        have been cleared since its last loss (a batch that is left out): the next call begins a new one.
        """
        modes.train(self._inner)
        if self._reached and not self._have_gradients():
            self.reset()
        self._begin()
        try:
            if self._replay is not None:
                again = _frozen(fn)
                state = RandomState(self.accelerator.device)
                self._replay.record(lambda: self._backward(again(*args, **kwargs)), state)
            with self._wrappers_noted():
                value = fn(*args, **kwargs)
            self._backward(value)
            self._reached = self._have_gradients()  # under FSDP2, not before the window's last backward pass
        except BaseException:
            for p in self._mine:
                p.grad = None
            self.reset()
            raise
        return value.detach()

    def _have_gradients(self) -> bool:
        return any(p.grad is not None for p in self._mine)

    def _wrappers_noted(self) -> AbstractContextManager[None]:
        feed = self._feed
        if feed is None or feed.wrappers or self.accelerator.num_processes == 1:
            return nullcontext()
        return noting_wrappers(feed.wrappers)

    def _backward(self, value: torch.Tensor) -> None:
        self._inside = True
        try:
            with self._others_kept():
                self.accelerator.backward(value)
        finally:
            self._inside = False

    def _begin(self) -> None:
        """A window begins with clean gradients: a loss that is not this session's may have reached its parameters."""
        if self._begun:
            return
        self._begun = True
        self._mine = {p for group in self._inner.param_groups for p in group["params"]}
        left = [p for p in self._mine if p.grad is not None]
        for p in left:
            p.grad = None
        if left and not self._said and self.accelerator.is_main_process:
            self._said = True
            logger.warning(
                "%s: another backward pass had left gradients in %d of its parameters when a window began; they were "
                "cleared, and are at every window",
                self._name,
                len(left),
            )

    @contextmanager
    def _others_kept(self) -> Iterator[None]:
        """Gradients of parameters that other sessions train, and this one does not: put back after a backward pass."""
        others = {p for session in self._beside if session is not self for p in session._mine} - self._mine
        kept = [(p, p.grad) for p in others]
        for p in others:
            p.grad = None
        try:
            yield
        finally:
            for p, grad in kept:
                p.grad = grad

    def step(self) -> bool:
        """Step the optimizer and clear its gradients, if this micro-batch ends a window; clip before, if at all.

        Returns:
            Whether the optimizer stepped: False inside a window, or when a gradient scaler skipped the step.
        """
        if not self.accelerator.sync_gradients:
            return False
        self._rates.remember(self._inner)
        self._say_untrained()
        if self._replay is not None:
            self._replay.check_once(_REPLAY_ADVICE)
            if needs(self._inner):
                self._replay.check_moves(self._inner)
        try:
            for optimizer in self._optimizers:
                if self._closure is not None:
                    self._closure.step(optimizer.step)
                else:
                    with closures.explained(self._name):
                        optimizer.step()
            for optimizer in self._optimizers:
                optimizer.zero_grad()
        finally:
            self.reset()
        return not any(optimizer.step_was_skipped for optimizer in self._optimizers)

    def _say_untrained(self) -> None:
        if self._untrained is None:
            models = [("", model) for model in self.accelerator._models]
            self._untrained = Untrained(models, self.accelerator._optimizers)
        line = self._untrained.late()
        if line is not None and self.accelerator.is_main_process:
            logger.warning("%s: %s", self._name, line)

    def _evaluate(self) -> None:
        modes.evaluate(self._inner)

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
        numbers = self._rates.figures(self._inner)
        if self._closure is not None:
            numbers["closure_calls"] = float(self._closure.last_calls)
        return numbers

    def reset(self) -> None:
        """Forget a window that was begun, when its batches are given up; `load_state` does so too."""
        self._begun = self._reached = False
        if self._feed is not None:
            self._feed.reset()
        if self._replay is not None:
            self._replay.reset()

    def close(self) -> None:
        """Give `accelerator.backward` back; only needed when the accelerator lives on without this optimizer."""
        self._beside.discard(self)
        self._release()
        if self._feed is not None:
            self._feed.remove()

    def _is_mine(self) -> bool:
        if not any(session._inside for session in self._beside):
            raise UserError(
                f"accelerator.backward was called beside session.loss, so {self._name} would see only a part of its "
                "loss: give every loss to session.loss, with one Session an optimizer"
            )
        return self._inside
