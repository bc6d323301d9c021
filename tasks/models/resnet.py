"""The ResNet of transformers with the stem that small pictures need."""

from __future__ import annotations

from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer


class SmallStemResNetForImageClassification(ResNetForImageClassification):
    """A 3x3 convolution of stride 1 and no pooling for the 7x7 stem; a subclass, so that checkpoints keep it."""

    # Its forward takes **kwargs and ignores `num_items_in_batch`: without this, accumulation would scale the loss.
    accepts_loss_kwargs = False

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__(config)
        embedder = self.resnet.embedder
        embedder.embedder = ResNetConvLayer(
            config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
        )
        embedder.pooler = nn.Identity()  # type: ignore[assignment]
        self.post_init()
