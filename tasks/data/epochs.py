"""Tells a data set that changes its samples from epoch to epoch which one it is, and under which seed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback


class Epochs(TrainerCallback):
    """Sets `epoch` and `seed` of the train data set, also in a run that is resumed in the middle of one.

    Processes that read ahead are started after that, with a copy of the data set and a random state of their own.

    accelerate calls a data set's `set_epoch` itself, but not when it shards the batches over several processes.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """`state.epoch` counts the epochs that are over, with a fraction."""
        train_dataloader.dataset.epoch = int(state.epoch or 0)
        train_dataloader.dataset.seed = torch.initial_seed()
