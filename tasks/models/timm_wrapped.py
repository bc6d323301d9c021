"""DenseNet, VGG, TinyViT and whatever else timm has, through transformers' wrapper."""

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

from hf_optim.tasks.models.classifier import Classifier


@strict
class StemTimmConfig(TimmWrapperConfig):
    """transformers' configuration of a timm model, and

    Args:
        small_stem: what a network for ImageNet needs on pictures of 32x32: DenseNet gets a 3x3 convolution of stride 1
            and no pooling for its stem, VGG one linear layer for its three.
    """

    model_type = "hf_optim_timm"
    small_stem: bool = False
    label_smoothing: float = 0.0


class StemTimmForImageClassification(Classifier, TimmWrapperForImageClassification):  # type: ignore[misc]
    """A timm model with timm's own initialisation: the wrapper of transformers would draw all weights anew."""

    config_class = StemTimmConfig

    def __init__(self, config: StemTimmConfig) -> None:
        super().__init__(config)
        if not config.small_stem:
            return
        model: Any = self.timm_model
        classes: Any = self.num_labels
        if config.architecture.startswith("densenet"):
            wide = model.features.conv0
            model.features.conv0 = nn.Conv2d(wide.in_channels, wide.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(model.features.conv0.weight)
            model.features.pool0 = nn.Identity()
        elif config.architecture.startswith("vgg"):
            model.pre_logits = nn.Identity()
            model.head.fc = nn.Linear(model.num_features, classes)
            nn.init.normal_(model.head.fc.weight, 0, 0.01)
            nn.init.zeros_(model.head.fc.bias)
        else:
            raise ValueError(f"small_stem: {config.architecture} has none")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Only what a checkpoint does not hold; timm has drawn the weights."""
        fill: Any = getattr(module, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()
