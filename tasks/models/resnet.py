"""The ResNet of transformers, with the stem that small pictures need if it is asked for."""

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetConvLayer

from hf_optim.tasks.models.classifier import Classifier


@strict
class StemResNetConfig(ResNetConfig):
    """transformers' configuration, and

    Args:
        small_stem: a 3x3 convolution of stride 1 and no pooling for the 7x7 stem (CIFAR's pictures are 32x32).
        dropout: before the linear classifier.
    """

    model_type = "hf_optim_resnet"
    small_stem: bool = False
    dropout: float = 0.0
    label_smoothing: float = 0.0


class StemResNetForImageClassification(Classifier, ResNetForImageClassification):  # type: ignore[misc]
    """A class of its own, so that checkpoints keep the stem; otherwise as transformers has it."""

    config_class = StemResNetConfig

    def __init__(self, config: StemResNetConfig) -> None:
        super().__init__(config)
        if config.small_stem:
            embedder = self.resnet.embedder
            embedder.embedder = ResNetConvLayer(
                config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
            )
            embedder.pooler = nn.Identity()  # type: ignore[assignment]
        if config.dropout:  # in the place of the flattening alone, which has no weights: names stay
            self.classifier[0] = nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout))
        self.post_init()
