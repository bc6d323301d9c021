"""The loss of the effective batch, seen where it is exact: at `accelerator.backward`.

The value handed to `accelerator.backward` is the objective whose gradient lands in `p.grad`, whatever made it (label
smoothing, token counts, a trainer's own loss). So

    f = mean over ranks of the sum over micro-batches of the value handed to backward

belongs to the gradient of the step. It is published before the backward pass of the window's last micro-batch, outside
of `optimizer.step`, which a gradient scaler may skip.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_optim.errors import UserError


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside Accelerate's wrapper (and any wrapper of the same make)."""
    from accelerate.optimizer import AcceleratedOptimizer

    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def needs(optimizer: Any) -> frozenset[str]:
    """What `step` must be given; nothing for optimizers that are not of this library."""
    return frozenset(getattr(optimizer, "needs", ()))


def mean_over_ranks(accelerator: Any, value: torch.Tensor) -> torch.Tensor:
    """One collective for one number; no collective in a single process."""
    return accelerator.reduce(value, reduction="mean") if accelerator.num_processes > 1 else value


@contextmanager
def noting_wrappers(wrappers: weakref.WeakSet[torch.nn.Module]) -> Iterator[None]:
    """Every DDP module that is called inside is added."""

    def note(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            wrappers.add(module)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


class LossFeed:
    """Sums the objective of a window of micro-batches and feeds it to a loss-aware optimizer.

    Args:
        accelerator: the `accelerate.Accelerator` whose `backward` is watched.
        optimizer: not wrapped; one without `feed` is told nothing, and the loss is only counted. A `UserError` where
            it says that it needs the loss.
        evaluate: forward-only re-evaluation of the window (see `hf_optim.hub.replay`), for rules that need it.
    """

    def __init__(self, accelerator: Any, optimizer: Any, evaluate: Callable[[], torch.Tensor] | None = None) -> None:
        if "loss" in needs(optimizer) and not hasattr(optimizer, "feed"):
            raise UserError(
                f"{type(optimizer).__name__} says that it needs the loss, and has no method by which it is told: add "
                "feed(self, loss=None, evaluate=None), which keeps it for the next step()"
            )
        self.accelerator = accelerator
        self.optimizer = optimizer
        self.evaluate = evaluate
        #: the loss last fed, a 0-d tensor on the accelerator's device; None between a step and the next window's end
        self.fed: torch.Tensor | None = None
        #: a weak method: whether the loss now handed to backward belongs to this optimizer; None for always. May raise.
        self.mine: weakref.WeakMethod[Callable[[], bool]] | None = None
        #: what averages gradients over processes (DDP); accelerate keeps only the models inside
        self.wrappers: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
        self._sum: torch.Tensor | None = None
        self._tell: Callable[..., None] = getattr(optimizer, "feed", lambda loss=None, evaluate=None: None)
        self._again: list[torch.Tensor] | None = None
        self._dry = True
        self._open = False
        self._original: Callable[..., Any] = accelerator.backward
        self._installed: Callable[..., Any] | None = None

    # --- installing -------------------------------------------------------------------------------------------------

    def install(self) -> None:
        """Put this feed in place of `accelerator.backward`, on this instance only.

        The accelerator holds it weakly: it may live on, and must not keep a model alive that nobody else has.
        """
        self._original = original = self.accelerator.backward
        there = weakref.ref(self)

        def backward(loss: torch.Tensor, **kwargs: Any) -> Any:
            feed = there()
            return original(loss, **kwargs) if feed is None else feed.backward(loss, **kwargs)

        self._installed = backward
        self.accelerator.backward = backward
        self._open = True

    def remove(self) -> None:
        """Take the feed out again; under a wrapper that somebody else laid over it, it becomes a plain pass-through."""
        self._open = False
        if self._installed is not None and self.accelerator.__dict__.get("backward") is self._installed:
            del self.accelerator.backward
            if self._original != self.accelerator.backward:  # another instance-level wrapper was there before
                self.accelerator.backward = self._original
        self.reset()

    # --- counting ---------------------------------------------------------------------------------------------------

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> Any:
        """Stands in for `Accelerator.backward(loss, **kwargs)`."""
        mine = self.mine() if self.mine is not None else None
        if not self._open or (mine is not None and not mine()):
            return self._original(loss, **kwargs)
        part = self._part(loss)
        if self._again is not None:
            self._again.append(part)
            return None if self._dry else self._original(loss, **kwargs)
        self._sum = part if self._sum is None else self._sum + part
        if self.accelerator.sync_gradients:
            self._publish(self._sum)
        return self._original(loss, **kwargs)

    def _part(self, loss: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the objective: what Accelerate will differentiate, in at least fp32."""
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            shape = tuple(getattr(loss, "shape", ()))
            raise UserError(f"accelerator.backward got a loss of shape {shape}: reduce it to one number first")
        part = loss.detach().reshape(()).to(torch.promote_types(loss.dtype, torch.float32))
        steps = self.accelerator.gradient_accumulation_steps
        return part / steps if steps != 1 else part

    def _publish(self, total: torch.Tensor) -> None:
        if any(getattr(wrapper, "require_backward_grad_sync", True) is False for wrapper in self.wrappers):
            raise UserError(
                f"{type(self.optimizer).__name__} reads the loss, and gradients are not averaged over processes here "
                "(LocalSGD, or no_sync around the last micro-batch of a step): the mean loss is not theirs; average "
                "gradients, or take a rule that reads no loss"
            )
        self.fed = mean_over_ranks(self.accelerator, total)
        self._tell(loss=self.fed, evaluate=self.evaluate)

    def reset(self) -> None:
        """Forget the window and what was fed: after every step, taken or skipped, so that no loss outlives it."""
        self._sum = None
        self.fed = None
        self._tell()

    def again(self, forward: Callable[[], Any], backward: bool = False) -> list[torch.Tensor]:
        """What `forward` hands to `accelerator.backward`, call by call; the backward pass itself only if asked."""
        self._again, self._dry = [], not backward
        try:
            forward()
            if not self._again:
                raise UserError("the training step did not call accelerator.backward when it was evaluated again")
            return self._again
        finally:
            self._again = None
