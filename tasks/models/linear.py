"""Logistic and softmax regression as a transformers model, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class LinearConfig(PreTrainedConfig):
    """`inputs` features and `outputs` logits: 1 for two classes, else one a class."""

    model_type = "hf_optim_linear"
    inputs: int = 25
    outputs: int = 1


class LinearForClassification(PreTrainedModel):
    """One linear layer with bias, which starts at zero: the objective is convex, and no seed decides the start."""

    config_class = LinearConfig
    main_input_name = "features"
    base_model_prefix = "linear"
    accepts_loss_kwargs = False

    def __init__(self, config: LinearConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.inputs, config.outputs, dtype=torch.float64)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(
        self, features: torch.Tensor, labels: torch.Tensor | None = None, floor: torch.Tensor | None = None
    ) -> Any:
        """Logits [N, outputs] of `features` [N, inputs]; with `labels` [N], the mean loss in nats. `floor` is for
        `Task.reduce` alone.
        """
        logits = self.classifier(features)
        loss = None if labels is None else losses(logits, labels).mean()
        return ImageClassifierOutput(loss=loss, logits=logits)


def losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [N] in nats of logits [N, 1] (of class 1 against class 0) or [N, classes], and labels [N]."""
    if logits.shape[1] == 1:
        return nn.functional.softplus((1 - 2 * labels) * logits[:, 0])
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def classes(logits: torch.Tensor) -> torch.Tensor:
    """The likelier class [N] of each sample."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)
