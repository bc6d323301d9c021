"""The loss of the same batch again, at other parameters, leaving no trace.

A line search asks for f at trial points, a closure for its gradient too. What must be the same as in the training
step is kept at its beginning (the prepared inputs, the token count, the random state, the buffers); what a forward
pass disturbs is put back afterwards (random state, buffers such as BatchNorm's averages, a trainer's own counters).
Evaluated at the unmoved parameters, the replay equals the loss that was fed bit for bit.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_optim.core import reduce
from hf_optim.core.rewind import RandomState, reshard
from hf_optim.errors import UserError
from hf_optim.hub.feed import LossFeed, mean_over_ranks

#: relative difference up to which a re-evaluated loss counts as the same: kernels with atomics are not bitwise
SAME = 1e-3
#: share of the decrease that its gradient promises by which a loss must fall at the least; gradients may be clipped
FALLS = 0.1


@contextmanager
def untouched(models: Iterable[nn.Module], device: torch.device, grad: bool = False) -> Iterator[None]:
    """Forward passes inside leave buffers, training mode and random state as they were; a graph only with `grad`."""
    models = list(models)
    state = RandomState(device)
    buffers = [(b, b.detach().clone()) for model in models for b in model.buffers()]
    modes = [(m, m.training) for model in models for m in model.modules()]
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training
        reshard(models)
        state.restore()


_COUNTERS = (bool, int, float, str, type(None))


def _copied(value: Any) -> Any:
    """Containers copied, and those inside dicts, elements shared: undoes counts and appends, even beside a data set
    that is a long list, at the price of a few pointers."""
    if isinstance(value, dict):
        twin = copy.copy(value)
        for key in twin:
            twin[key] = _copied(twin[key])
        return twin
    return copy.copy(value) if type(value) in (list, deque, set) else value


def _refill(live: Any, kept: Any) -> Any:
    """The kept contents in the object that others may hold a reference to."""
    if isinstance(live, dict):
        live.clear()
        live.update(kept)
    else:
        live.clear()
        (live.update if isinstance(live, set) else live.extend)(kept)
    return live


@contextmanager
def counters_kept(trainer: Any) -> Iterator[None]:
    """Trainers count tokens and collect metrics inside `compute_loss`; a replay must not count twice."""
    numbers = {k: v for k, v in vars(trainer).items() if type(v) in _COUNTERS}
    containers = {
        k: (v, _copied(v)) for k, v in vars(trainer).items() if isinstance(v, dict) or type(v) in (list, deque, set)
    }
    state = {k: v for k, v in vars(trainer.state).items() if type(v) in _COUNTERS}
    try:
        yield
    finally:
        vars(trainer).update(numbers)
        for key, (live, kept) in containers.items():
            vars(trainer)[key] = _refill(live, kept)
        vars(trainer.state).update(state)


def uncounted(trainer: Any) -> AbstractContextManager[Any]:
    """Around what is looked at once, at the beginning of a training or of its resumption, and is none: a trainer that
    counts what it spends has a method of this name for it.
    """
    context: AbstractContextManager[Any] = getattr(trainer, "uncounted", nullcontext)()
    return context


@dataclass
class _Step:
    """One micro-batch: how to compute its loss again, and the random state it started from."""

    forward: Callable[[], Any]
    random: RandomState


class Replay:
    """Evaluates the objective of the current window of micro-batches again.

    Args:
        accelerator: the accelerator of the run.
        models: what may hold buffers; called at every evaluation, since models are wrapped late.
    """

    def __init__(self, accelerator: Any, models: Callable[[], Iterable[nn.Module]]) -> None:
        self.accelerator = accelerator
        self._models = models
        self._window: list[_Step] = []
        self._start: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._checked = self._moved = False
        self.feed: LossFeed | None = None
        #: laid around every evaluation; a trainer puts its counters back here
        self.around: Callable[[], Any] | None = None

    def record(self, forward: Callable[[], Any], state: RandomState) -> None:
        """Keep one micro-batch; `forward` must end in `accelerator.backward`."""
        if not self._window:  # spectral norms and the like: a forward pass reads the buffers that the last one wrote
            self._start = [(b, b.detach().clone()) for model in self._models() for b in model.buffers()]
        self._window.append(_Step(forward, state))

    def reset(self) -> None:
        self._window.clear()
        self._start = []

    def __call__(self, backward: bool = False) -> torch.Tensor:
        """f at the parameters as they are now: a 0-d tensor, the same on every rank.

        Args:
            backward: run the backward passes too, which add to `p.grad` as those of the window did.
        """
        feed = self.feed
        assert feed is not None
        if not self._window:
            raise UserError("there is no batch to evaluate again: the window's batches are kept only until its step")
        parts: list[torch.Tensor] = []
        with ExitStack() as inside:
            inside.enter_context(untouched(self._models(), self.accelerator.device, grad=backward))
            if self.around is not None:
                inside.enter_context(self.around())
            with torch.no_grad():
                for buffer, before in self._start:
                    buffer.copy_(before)
            for i, step in enumerate(self._window):
                step.random.restore()
                with self._unreduced(backward and i < len(self._window) - 1):
                    parts += feed.again(step.forward, backward)
        total = sum(parts[1:], start=parts[0])  # in the order of the feed: equal bit for bit
        return mean_over_ranks(self.accelerator, total)

    @contextmanager
    def _unreduced(self, wanted: bool) -> Iterator[None]:
        """Gradients are averaged over ranks once a window, by its last backward pass."""
        with ExitStack() as inside:
            for wrapper in self.feed.wrappers if wanted and self.feed is not None else ():
                inside.enter_context(self.accelerator.no_sync(wrapper))
            yield

    def check_once(self, advice: str) -> None:
        """At the first step: a replay that does not give the fed loss back would mislead every line search.

        Raises:
            UserError: the two differ, on any rank (the numbers are already means over ranks).
        """
        if self._checked or self.feed is None or self.feed.fed is None:
            return
        self._checked = True
        fed, again = float(self.feed.fed), float(self())
        if fed == fed and abs(again - fed) > SAME * max(abs(fed), 1e-6):
            raise UserError(f"the same batch gave a loss of {fed:.6g} and then, evaluated again, {again:.6g}: {advice}")

    def check_moves(self, optimizer: Any) -> None:
        """At the first step: a loss that does not fall along its own gradient as the gradient says is not the function
        that it is the gradient of (policy losses, whose ratio is 1 by construction at every evaluation; a divergence
        beside it changes the loss, but not as that gradient says).

        f is taken on both sides of the parameters, so that its curvature cancels, at steps of several lengths, so that
        one of them lies between rounding and where f bends; one that fits is enough.

        Raises:
            UserError: none fits. Nothing was moved.
        """
        if self._moved or self.feed is None or self.feed.fed is None:
            return
        self._moved = True
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        squares = [reduce.local(p.grad).double().square().sum().reshape(1) for p in params]
        if not params:
            return
        square = float(reduce.combine(torch.stack([s.cpu() for s in squares]), params).sum())
        fed = float(self.feed.fed)
        if not (math.isfinite(square) and math.isfinite(fed)) or math.sqrt(square) < 1e-8:
            return
        starts = [p.detach().clone() for p in params]
        try:
            for scale in (0.1, 0.01, 1e-3, 1e-5, 1.0, 8.0):
                eta = scale * 0.03 * max(abs(fed), 0.03) / square
                behind, ahead = (self._moved_by(params, starts, sign * eta) for sign in (-1, 1))
                if behind - ahead > 2 * FALLS * eta * square + self._rounding(params) * max(abs(fed), 0.2):
                    return
        finally:
            with torch.no_grad():
                for p, start in zip(params, starts, strict=True):
                    p.copy_(start)
        raise UserError(
            f"the loss, {fed:.6g}, does not fall when the parameters move along its own gradient: it is no function of "
            f"them (a policy's ratio is 1 at every evaluation), and {type(optimizer).__name__}, which reads its value, "
            "would be misled; take a rule that reads no loss"
        )

    def _moved_by(self, params: list[torch.Tensor], starts: list[torch.Tensor], eta: float) -> float:
        """f at `eta` along the descent direction."""
        with torch.no_grad():
            for p, start in zip(params, starts, strict=True):
                assert p.grad is not None
                p.copy_(start).sub_(p.grad.to(p.dtype), alpha=eta)
        return float(self())

    def _rounding(self, params: list[torch.Tensor]) -> float:
        """Relative error of a loss."""
        half = any(p.dtype in (torch.bfloat16, torch.float16) for p in params)
        return 4e-3 if half or self.accelerator.mixed_precision != "no" else 1e-6
