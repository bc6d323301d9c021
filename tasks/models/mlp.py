"""A multilayer perceptron with one hidden layer, as a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput


class MLPConfig(PreTrainedConfig):
    """`inputs` values a sample (channels x height x width), `hidden_size` units (the TLR paper's MNIST model: 1000)."""

    model_type = "hf_optim_mlp"
    inputs: int = 784
    hidden_size: int = 1000


class MLPForImageClassification(PreTrainedModel):
    """Flatten, linear, ReLU, linear; torch's own initialisation of linear layers."""

    config_class = MLPConfig
    main_input_name = "pixel_values"
    base_model_prefix = "mlp"
    accepts_loss_kwargs = False

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(config.inputs, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """Logits [N, classes] of `pixel_values` [N, channels, height, width]; with `labels` [N], the mean loss."""
        logits = self.classifier(torch.relu(self.hidden(pixel_values.flatten(1))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)
