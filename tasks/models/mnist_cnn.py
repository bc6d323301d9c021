"""A small convolutional network for digits, as a transformers model."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_optim.tasks.models.classifier import Classifier


@strict
class CNNConfig(PreTrainedConfig):
    """`widths` of the two 3x3 convolutions, each followed by a 2x2 maximum; `hidden_size` units; `dropout` of these.

    `image_shape` is (channels, height, width). AMVT names "CNN" on MNIST and no more: the layers are ours.
    """

    model_type = "hf_optim_cnn"
    image_shape: list[int] | tuple[int, ...] = (1, 28, 28)
    widths: list[int] | tuple[int, ...] = (32, 64)
    hidden_size: int = 128
    dropout: float = 0.0
    label_smoothing: float = 0.0


class CNNForImageClassification(Classifier, PreTrainedModel):  # type: ignore[misc]
    """Two convolutions and two linear layers; torch's own initialisation."""

    config_class = CNNConfig
    main_input_name = "pixel_values"
    base_model_prefix = "cnn"

    def __init__(self, config: CNNConfig) -> None:
        super().__init__(config)
        channels, height, width = config.image_shape
        first, second = config.widths
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, first, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Linear(second * (height // 4) * (width // 4), config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """Logits [N, classes] of `pixel_values` [N, channels, height, width]; with `labels` [N], the mean loss."""
        features = self.convolutions(pixel_values).flatten(1)
        logits = self.classifier(self.dropout(torch.relu(self.hidden(features))))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)
