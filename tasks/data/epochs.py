"""Tells a data set that changes its samples from epoch to epoch which one it is."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class Epochs(TrainerCallback):
    """Sets `epoch` of the train data set, also in a run that is resumed in the middle of one.

    accelerate calls a data set's `set_epoch` itself, but not when it shards the batches over several processes.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """`state.epoch` counts the epochs that are over, with a fraction."""
        train_dataloader.dataset.epoch = int(state.epoch or 0)
