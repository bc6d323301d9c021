"""What every image classifier of the testbed has in common: its loss."""

from __future__ import annotations

import torch
from torch import nn


class Classifier:
    """Mixed in before a transformers class: mean cross-entropy, smoothed while training if the config says so.

    `config.label_smoothing` in [0, 1) (default 0) spreads that share of a label over all classes. Evaluation mode never
    smooths, so that losses of runs with and without it compare.
    """

    # Trainer takes a forward with **kwargs to scale its loss by `num_items_in_batch`; this mean does not.
    accepts_loss_kwargs = False
    training: bool

    def loss_function(self, labels: torch.Tensor, pooled_logits: torch.Tensor, config: object) -> torch.Tensor:
        """The mean loss (nats) of logits [N, classes] and `labels` [N]; transformers' models call it so."""
        smoothing = getattr(config, "label_smoothing", 0.0) if self.training else 0.0
        return nn.functional.cross_entropy(pooled_logits, labels, label_smoothing=smoothing)
