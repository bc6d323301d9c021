"""Does the loss really scale with `num_items_in_batch`?

Trainer hands the number of labels of the whole effective batch to every model whose `forward` takes `**kwargs`, and
then leaves out its own division by the accumulation. A head that swallows the number and returns a plain mean gets a
loss and a gradient that are too large by accumulation x processes, and so does a model under the label smoothing of
older Trainers (transformers 5.14 is one). Doubling the number must halve the loss; where it does not, the model is told
apart here, on the first batch, with the same verdict on every rank.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch

from hf_optim.hub.feed import mean_over_ranks
from hf_optim.hub.replay import counters_kept, uncounted, untouched

logger = logging.getLogger(__name__)


class LossProbe:
    """Watches `trainer.compute_loss` until the first batch has answered, then steps aside."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._original = trainer.compute_loss

    @staticmethod
    def applies(trainer: Any) -> bool:
        """Whether an inflated loss is possible at all in this run."""
        many = trainer.args.gradient_accumulation_steps > 1 or trainer.accelerator.num_processes > 1
        return (
            many
            and bool(getattr(trainer, "model_accepts_loss_kwargs", False))
            and trainer.compute_loss_func is None
            and getattr(trainer, "loss_is_scaled_for_ga", None) is None
        )

    def install(self) -> None:
        self.trainer.compute_loss = self._compute_loss

    def remove(self) -> None:
        if getattr(vars(self.trainer).get("compute_loss"), "__self__", None) is self:
            del self.trainer.compute_loss
            if self.trainer.compute_loss != self._original:
                self.trainer.compute_loss = self._original

    def _compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        items = kwargs.get("num_items_in_batch")
        if items is not None and model.training and not args and not kwargs.get("return_outputs"):
            share = self._share_that_ignores(model, inputs, items)
            if share is not None:
                self.remove()
                self._conclude(share)
        return self._original(model, inputs, *args, **kwargs)

    def _share_that_ignores(self, model: Any, inputs: Any, items: Any) -> float | None:
        """0 if the loss halves when the number of items doubles, 1 if it does not care, None for no answer."""
        trainer = self.trainer
        device = trainer.accelerator.device
        pair = []
        for factor in (1, 2):
            with untouched([trainer.model], device), counters_kept(trainer), uncounted(trainer):
                loss = self._original(model, copy.copy(inputs), num_items_in_batch=items * factor)
                pair.append(loss.detach().mean().to(torch.float32))
        once, twice = mean_over_ranks(trainer.accelerator, torch.stack(pair)).tolist()
        share = 2 * twice / once - 1 if once != 0 else float("nan")
        return share if share == share and abs(share) != float("inf") else None

    def _conclude(self, share: float) -> None:
        trainer = self.trainer
        if share < 0.02:  # bf16 losses round to 1 part in 256
            return
        model = type(trainer.accelerator.unwrap_model(trainer.model)).__name__
        times = trainer.args.gradient_accumulation_steps
        if trainer.args.average_tokens_across_devices:
            times *= trainer.accelerator.num_processes
        stock = getattr(type(trainer).compute_loss, "__module__", "").startswith("transformers.")
        if share > 0.98 and stock and "compute_loss" not in vars(trainer):
            trainer.model_accepts_loss_kwargs = False
            logger.warning(
                "%s ignores num_items_in_batch, so Trainer would make its loss and gradient %d times too large: "
                "repaired with trainer.model_accepts_loss_kwargs = False",
                model,
                times,
            )
        else:
            logger.warning(
                "%.0f%% of the loss of %s does not scale with num_items_in_batch and may be up to %d times too large "
                "under accumulation: set trainer.model_accepts_loss_kwargs = False if compute_loss returns a mean",
                100 * share,
                model,
                times,
            )
