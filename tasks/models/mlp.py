"""A multilayer perceptron with one hidden layer, as a transformers model."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_optim.tasks.models.classifier import Classifier


@strict
class MLPConfig(PreTrainedConfig):
    """`inputs` values a sample (channels x height x width), `hidden_size` units (the TLR paper's MNIST model: 1000),
    `dropout` of the hidden units.
    """

    model_type = "hf_optim_mlp"
    inputs: int = 784
    hidden_size: int = 1000
    dropout: float = 0.0
    label_smoothing: float = 0.0


class MLPForImageClassification(Classifier, PreTrainedModel):  # type: ignore[misc]
    """Flatten, linear, ReLU, linear; torch's own initialisation of linear layers."""

    config_class = MLPConfig
    main_input_name = "pixel_values"
    base_model_prefix = "mlp"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(config.inputs, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """Logits [N, classes] of `pixel_values` [N, channels, height, width]; with `labels` [N], the mean loss."""
        logits = self.classifier(self.dropout(torch.relu(self.hidden(pixel_values.flatten(1)))))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)
