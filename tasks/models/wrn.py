"""Wide residual networks (Zagoruyko and Komodakis 2016), as a transformers model; no library has the CIFAR ones."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_optim.tasks.models.classifier import Classifier


@strict
class WRNConfig(PreTrainedConfig):
    """WRN-`depth`-`widen`: depth = 6n + 4 gives three groups of n blocks, 16, 32 and 64 times `widen` channels wide.

    `dropout` is between the two convolutions of a block; `base` replaces the 16 channels of the first convolution.
    """

    model_type = "hf_optim_wrn"
    num_channels: int = 3
    depth: int = 16
    widen: int = 4
    base: int = 16
    dropout: float = 0.0
    label_smoothing: float = 0.0


class Block(nn.Module):
    """Pre-activation block: batch norm, ReLU and a 3x3 convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs or stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]; a shortcut with weights starts at the ReLU."""
        active = torch.relu(self.norm1(x))
        y = self.conv2(self.dropout(torch.relu(self.norm2(self.conv1(active)))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WRNForImageClassification(Classifier, PreTrainedModel):  # type: ignore[misc]
    """A 3x3 convolution, three groups of blocks, global average, linear."""

    config_class = WRNConfig
    main_input_name = "pixel_values"
    base_model_prefix = "wrn"

    def __init__(self, config: WRNConfig) -> None:
        super().__init__(config)
        blocks, rest = divmod(config.depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth must be 10, 16, 22, ... (6n + 4), got {config.depth}")
        width = config.base
        layers: list[nn.Module] = [nn.Conv2d(config.num_channels, width, 3, padding=1, bias=False)]
        for group in range(3):
            outputs = config.base * config.widen * 2**group
            for block in range(blocks):
                layers.append(Block(width, outputs, 2 if group and not block else 1, config.dropout))
                width = outputs
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, config.num_labels)  # type: ignore[arg-type]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):  # not its running statistics, which may have come from a checkpoint
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        """Logits [N, classes] of `pixel_values` [N, channels, height, width]; with `labels` [N], the mean loss."""
        logits = self.classifier(self.features(pixel_values).mean(dim=(2, 3)))
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)
