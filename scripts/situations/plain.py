"""The same steps in plain torch: what a script's run through the doors is compared with.

Nothing of `hf_optim.hub` has a part in it. A Trainer's run is written down batch by batch as `compute_loss` is given
them, and repeated by `repeat`; in a loop of one's own `PlainSession` stands where `hf_optim.Session` was.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import hf_optim


def step(optimizer: Any, loss: torch.Tensor, evaluate: Any) -> None:
    """One step with what the rule declares that it reads."""
    needs = getattr(optimizer, "needs", ())
    given = {"loss": loss.detach()} if {"loss", "evaluate"} & set(needs) else {}
    optimizer.step(**given, **({"evaluate": evaluate} if "evaluate" in needs else {}))


class PlainSession:
    """`Session` as one would write it for a single process: backward, add up, step."""

    def __init__(self, accelerator: Any, optimizer: Any, steps_per_epoch: int | None = None) -> None:
        self._accelerator, self._optimizer = accelerator, optimizer.optimizer
        self._window: list[tuple[torch.Tensor, Any]] = []
        if hasattr(self._optimizer, "set_steps_per_epoch"):
            self._optimizer.set_steps_per_epoch(steps_per_epoch)

    def _objective(self, again: bool) -> torch.Tensor:
        total, now = torch.zeros(()), torch.get_rng_state()
        for random, fn in self._window:
            torch.set_rng_state(random)
            total = total + fn() / self._accelerator.gradient_accumulation_steps
        if again:
            torch.set_rng_state(now)
        return total

    def loss(self, fn: Any, *args: Any) -> torch.Tensor:
        self._window.append((torch.get_rng_state(), functools.partial(fn, *args)))
        with torch.no_grad():
            return fn(*args)

    def step(self) -> bool:
        if not self._accelerator.sync_gradients:
            return False
        self._optimizer.zero_grad()
        loss = self._objective(again=False)
        loss.backward()
        with torch.no_grad():
            step(self._optimizer, loss, lambda: self._objective(again=True))
        self._window.clear()
        return True


@contextlib.contextmanager
def by_hand(start: Path | None = None) -> Iterator[None]:
    """Inside, `hf_optim.Session` is the plain one; the weights before the first step go to `start`, if given."""
    session = hf_optim.Session

    def plain_session(accelerator: Any, *args: Any, **kwargs: Any) -> PlainSession:
        if start is not None:
            accelerator.save_model(accelerator._models[-1], start)
        return PlainSession(accelerator, *args, **kwargs)

    hf_optim.Session = plain_session
    try:
        yield
    finally:
        hf_optim.Session = session


@contextlib.contextmanager
def written_down(windows: list[dict[str, Any]]) -> Iterator[None]:
    """Every batch that a trainer's `compute_loss` trains on goes to `windows` as well."""
    attach, patched = hf_optim.attach, []

    def watched(trainer: Any, *args: Any, **hyper: Any) -> Any:
        owner = next(c for c in type(trainer).__mro__ if "compute_loss" in vars(c))
        original = owner.compute_loss

        @functools.wraps(original)
        def compute_loss(self: Any, model: Any, inputs: Any, *more: Any, **named: Any) -> Any:
            if torch.is_grad_enabled() and model.training:
                windows.append(_kept(inputs))
            return original(self, model, inputs, *more, **named)

        owner.compute_loss = compute_loss
        patched.append((owner, original))
        return attach(trainer, *args, **hyper)

    hf_optim.attach = watched
    try:
        yield
    finally:
        hf_optim.attach = attach
        for owner, original in patched:
            owner.compute_loss = original


def _kept(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: _kept(v) for k, v in value.items()}
    return [_kept(v) for v in value] if isinstance(value, list) else value


@contextlib.contextmanager
def repeated(windows: list[list[dict[str, Any]]], by_labels: bool = False, start: Path | None = None) -> Iterator[None]:
    """Inside, a script's `attach` and `train` take the plain steps over these windows of batches instead.

    Args:
        windows: the batches of each step, of all processes.
        by_labels: whether the loss is the sum over a window divided by the number of its labels, and not the mean over
            its batches. Trainer counts GPT-2's first label, too, which no loss has a part for.
        start: where the weights before the first step go.
    """
    from transformers import Trainer

    attach, train, asked = hf_optim.attach, Trainer.train, []

    def noted(trainer: Any, spec: Any) -> None:
        asked.append(spec)
        if start is not None:
            trainer.save_model(str(start))

    hf_optim.attach = noted
    Trainer.train = lambda trainer, *args, **kwargs: repeat(trainer, asked[-1], windows, by_labels)
    try:
        yield
    finally:
        hf_optim.attach, Trainer.train = attach, train


def repeat(trainer: Any, spec: Mapping[str, Any], windows: list[list[dict[str, Any]]], by_labels: bool) -> None:
    """Gradient, clipping, linear schedule and step, written out."""
    model, args = trainer.model, trainer.args
    trained = dict(model.named_parameters())
    beside = getattr(trainer, "loss", None)
    known = set(trained.values())
    others = [p for p in beside.parameters() if p not in known] if isinstance(beside, torch.nn.Module) else []
    decayed = set(trainer.get_decay_parameter_names(model))
    hyper = {k: v for k, v in spec.items() if k != "name"}
    if "weight_decay" in spec:
        groups: Any = [
            {"params": [p for n, p in trained.items() if n in decayed]},
            {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
        ]
        if others:
            groups[0]["params"] += [p for p in others if p.dim() > 1]
            groups[1]["params"] += [p for p in others if p.dim() < 2]
    else:
        groups = [*trained.values(), *others]
    optimizer = hf_optim.create(spec["name"], groups, **hyper)
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    trainer.current_gradient_accumulation_steps = 1

    def objective(window: list[dict[str, Any]]) -> torch.Tensor:
        if by_labels:
            labels = torch.tensor(sum(int((batch["labels"] != -100).sum()) for batch in window))
            return sum(trainer.compute_loss(model, _kept(batch), num_items_in_batch=labels) for batch in window)
        losses = sum(trainer.compute_loss(model, _kept(batch)) for batch in window)
        # GRPO's batches say how many tokens all processes have, and its losses are their parts.
        return losses if "num_items_in_batch" in window[0] else losses / len(window)

    for t, window in enumerate(windows):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - t / len(windows))
        for p in (*trained.values(), *others):
            p.grad = None
        loss = objective(window)
        loss.backward()
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained.values(), args.max_grad_norm)
        with torch.no_grad():
            step(optimizer, loss, functools.partial(objective, window))
