"""Lightning: what its trainer does not tell an optimizer.

Lightning calls `optimizer.step(closure)`, and the closure returns the loss of the last micro-batch over the
accumulation. With `LightningFeed` among the callbacks a rule is told the loss of the whole window, mean over processes,
and the length of an epoch in steps:

    lightning.Trainer(callbacks=[LightningFeed()], accumulate_grad_batches=4)
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback

from hf_optim.core.groups import describe
from hf_optim.errors import UserError
from hf_optim.hub import backends, closures, modes
from hf_optim.hub.feed import needs
from hf_optim.hub.trainer_groups import Untrained

logger = logging.getLogger(__name__)


class LightningFeed(Callback):
    """Feeds every optimizer of a LightningModule under automatic optimization.

    Whatever optimization is, an optimizer with `train()` and `eval()` (Schedule-Free) is switched wherever Lightning
    trains, evaluates and saves, and a parameter that gets a gradient and that no optimizer has is said once.

    Raises:
        UserError: when fitting begins: manual optimization with a rule that reads the loss (call
            `optimizer.step(loss=...)` there), a line search or a closure under accumulation (the closure repeats the
            last micro-batch only), fp16 scaling with either, DeepSpeed and FSDP with a rule that reads the loss.
    """

    def __init__(self) -> None:
        self._sum: torch.Tensor | None = None
        self._untrained: Untrained | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        steps = trainer.num_training_batches
        self._untrained = Untrained([("", pl_module)], trainer.optimizers)
        for optimizer in trainer.optimizers:
            self._refuse(trainer, pl_module, optimizer)
            self._say(trainer, optimizer)
            tell = getattr(optimizer, "set_steps_per_epoch", None)
            if tell is not None and math.isfinite(steps):
                tell(max(1, math.ceil(steps / trainer.accumulate_grad_batches)))

    def _say(self, trainer: Any, optimizer: Any) -> None:
        if not trainer.is_global_zero:
            return
        name, clipped = type(optimizer).__name__, trainer.gradient_clip_val
        logger.info("%s: %s", name, describe(optimizer.param_groups))
        shortened = backends.clipping(optimizer, name, closures.wanted(optimizer))
        if clipped and shortened:
            logger.warning("gradient_clip_val=%s %s: leave it out", clipped, shortened)

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

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        line = self._untrained.late() if self._untrained is not None else None
        if line is not None and trainer.is_global_zero:
            logger.warning("%s", line)

    # --- what the parameters hold -----------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        for optimizer in trainer.optimizers:
            modes.train(optimizer)

    def _hold_the_answer(self, trainer: Any) -> None:
        for optimizer in trainer.optimizers:
            modes.evaluate(optimizer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._hold_the_answer(trainer)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._hold_the_answer(trainer)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._hold_the_answer(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._hold_the_answer(trainer)  # before a checkpoint: Lightning calls what saves last

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._hold_the_answer(trainer)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if any(getattr(saves, "save_weights_only", False) for saves in trainer.checkpoint_callbacks):
            self._hold_the_answer(trainer)  # such a checkpoint asks nobody

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if any(callable(getattr(optimizer, "eval", None)) for optimizer in trainer.optimizers):
            self._hold_the_answer(trainer)
            checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(o) for o in trainer.optimizers]
