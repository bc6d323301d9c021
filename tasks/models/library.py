"""ConvNeXt, Swin and ViT of transformers, each with the testbed's loss."""

from huggingface_hub.dataclasses import strict
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_optim.tasks.models.classifier import Classifier


@strict
class SmoothConvNextConfig(ConvNextConfig):
    """transformers' configuration and the share of label smoothing."""

    model_type = "hf_optim_convnext"
    label_smoothing: float = 0.0


class SmoothConvNextForImageClassification(Classifier, ConvNextForImageClassification):  # type: ignore[misc]
    """ConvNeXt (Liu et al. 2022)."""

    config_class = SmoothConvNextConfig


@strict
class SmoothSwinConfig(SwinConfig):
    """transformers' configuration and the share of label smoothing."""

    model_type = "hf_optim_swin"
    label_smoothing: float = 0.0


class SmoothSwinForImageClassification(Classifier, SwinForImageClassification):  # type: ignore[misc]
    """Swin Transformer (Liu et al. 2021)."""

    config_class = SmoothSwinConfig


@strict
class SmoothViTConfig(ViTConfig):
    """transformers' configuration and the share of label smoothing."""

    model_type = "hf_optim_vit"
    label_smoothing: float = 0.0


class SmoothViTForImageClassification(Classifier, ViTForImageClassification):  # type: ignore[misc]
    """Vision Transformer (Dosovitskiy et al. 2021)."""

    config_class = SmoothViTConfig
