"""`trainer.add_callback(Monitor())`: what the optimizer is doing, in the trainer's log and its reports."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from hf_optim.core import reduce
from hf_optim.errors import UserError


class Monitor(TrainerCallback):
    """Adds the sizes of gradients, updates and weights to the log of a trainer that `attach` has prepared.

    Added to each row with a loss: `gradient_norm` (as the optimizer saw it, after clipping), `update_norm`,
    `weight_norm` and `update_ratio` (update over weight), all over the trained parameters, of the last step looked at;
    `loss_fed` where a rule is fed one; with `per_layer` also `gradient_norm/NAME`, `update_norm/NAME`,
    `update_ratio/NAME` for every parameter. Effective rates and a rule's own figures (the trials of a line search) are
    in the log without a monitor.

    Args:
        per_layer: a figure for every parameter, too.
        every: optimizer steps between two looks, 10. A look costs a copy of the trained parameters and three norms of
            each; the device is waited for only when a row is logged. The first step is always looked at.

    Raises:
        UserError: a bad argument; used on a trainer without `attach`.
    """

    def __init__(self, per_layer: bool = False, every: int = 10) -> None:
        if not isinstance(per_layer, bool):
            raise UserError(f"Monitor: per_layer must be True or False, got {per_layer!r}")
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"Monitor: every must be a whole number from 1, got {every!r}")
        self.per_layer = per_layer
        self.every = every
        self._joined: Any = None
        self._before: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        self._gradients: list[torch.Tensor] = []
        self._squares: torch.Tensor | None = None
        self._names: list[str] = []
        self._loss: torch.Tensor | None = None

    def join(self, attachment: Any) -> None:
        """Called by `attach`'s own callback when training begins."""
        self._joined = attachment
        self._squares = self._loss = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._joined is None:
            raise UserError("Monitor writes to the log through hf_optim.attach: attach an optimizer to this trainer")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every:
            return
        model = kwargs["model"]
        trained = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
        self._before = [(n, p, reduce.local(p.detach()).clone()) for n, p in trained]
        self._gradients = [_square(reduce.local(p.grad)) for _, p in trained]
        feed = self._joined.feed if self._joined is not None else None
        self._loss = None if feed is None or feed.fed is None else feed.fed.detach()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._before:
            return
        rows = [
            torch.stack([g, _square(reduce.local(p.detach()) - old), _square(old)])
            for (_, p, old), g in zip(self._before, self._gradients, strict=True)
        ]
        self._squares = reduce.combine(torch.stack(rows), [p for _, p, _ in self._before])
        self._names = [n.removeprefix("module.") for n, _, _ in self._before]
        self._before, self._gradients = [], []

    def figures(self) -> dict[str, float]:
        """The figures of the last step looked at; waits for the device."""
        if self._squares is None:
            return {}
        table = self._squares.tolist()
        norms = _named(*(sum(column) for column in zip(*table, strict=True)))
        if self._loss is not None:
            norms["loss_fed"] = float(self._loss)
        if self.per_layer:
            for name, row in zip(self._names, table, strict=True):
                norms |= {f"{key}/{name}": value for key, value in _named(*row).items() if key != "weight_norm"}
        return norms


def _square(t: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(t, dtype=torch.float32)
    return norm.square()


def _named(gradient: float, update: float, weight: float) -> dict[str, float]:
    norms = {"gradient_norm": gradient**0.5, "update_norm": update**0.5, "weight_norm": weight**0.5}
    return {**norms, "update_ratio": (update / weight) ** 0.5 if weight else 0.0}
