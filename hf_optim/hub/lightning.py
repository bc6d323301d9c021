"""Lightning: what its trainer does not tell an optimizer.

Lightning calls `optimizer.step(closure)`, and the closure returns the loss of the last micro-batch over the
accumulation. With `LightningFeed` among the callbacks a rule is told the loss of the whole window, mean over processes,
and the length of an epoch in steps:

    lightning.Trainer(callbacks=[LightningFeed()], accumulate_grad_batches=4)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback

from hf_optim.errors import UserError
from hf_optim.hub import closures
from hf_optim.hub.feed import needs


class LightningFeed(Callback):
    """Feeds every optimizer of a LightningModule under automatic optimization.

    Raises:
        UserError: when fitting begins: manual optimization with a rule that reads the loss (call
            `optimizer.step(loss=...)` there), a line search or a closure under accumulation (the closure repeats the
            last micro-batch only), fp16 scaling with either, DeepSpeed and FSDP with a rule that reads the loss.
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        steps = trainer.num_training_batches
        for optimizer in trainer.optimizers:
            self._refuse(trainer, pl_module, optimizer)
            tell = getattr(optimizer, "set_steps_per_epoch", None)
            if tell is not None and math.isfinite(steps):
                tell(max(1, math.ceil(steps / trainer.accumulate_grad_batches)))

    def _refuse(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        name, wanted = type(optimizer).__name__, needs(optimizer)
        again = "evaluate" in wanted or closures.wanted(optimizer)
        if wanted and not pl_module.automatic_optimization:
            raise UserError(f"{name} reads the loss: under manual optimization call optimizer.step(loss=loss)")
        if again and trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"{name} evaluates the loss again, and Lightning's closure repeats the last micro-batch only: set "
                "accumulate_grad_batches=1"
            )
        if again and "16-mixed" == str(trainer.precision):
            raise UserError(f"{name} evaluates the loss again, which fp16 loss scaling makes wrong: use bf16-mixed")
        strategy = type(trainer.strategy).__name__
        if wanted and ("DeepSpeed" in strategy or "FSDP" in strategy):
            raise UserError(f"{name} reads the loss, and {strategy} steps on flat shards: use DDP")

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._sum = None  # Lightning clears gradients where a window begins, before its first backward pass

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        part = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
        self._sum = part if self._sum is None else self._sum + part
        total = trainer.strategy.reduce(self._sum.clone(), reduce_op="mean")
        for optimizer in trainer.optimizers:
            if needs(optimizer):
                optimizer.feed(loss=total)
