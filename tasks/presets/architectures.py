"""The image classifiers, each as published and narrowed for tests. Light: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """A model: its family (see `hf_optim.tasks.models.images`), its configuration, and where it comes from.

    `parameters` is the published count for `shape` and `classes`, with the published stem; `smoke` is laid over
    `config` for tests.
    """

    title: str
    family: str
    source: str
    parameters: int
    config: dict[str, Any]
    smoke: dict[str, Any]
    shape: tuple[int, int, int] = (3, 224, 224)
    classes: int = 1000


HF, TIMM = "transformers", "timm"


def _resnet(title: str, layer: str, depths: list[int], parameters: int, narrow: list[int]) -> Architecture:
    wide = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    config = {"embedding_size": 64, "hidden_sizes": wide, "depths": depths, "layer_type": layer, "small_stem": False}
    smoke = {"embedding_size": 4, "hidden_sizes": [8, 8, 8, 8], "depths": narrow}
    return Architecture(title, "resnet", HF, parameters, config, smoke)


def _timm(title: str, name: str, parameters: int, smoke: dict[str, Any], **config: Any) -> Architecture:
    return Architecture(title, "timm", TIMM, parameters, {"architecture": name, **config}, smoke)


_TINY_VIT = {"embed_dims": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}
_TINY_VIT["window_sizes"] = [2, 2, 2, 2]
_SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 2, "window_size": 4}
_CONVNEXT = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}

ARCHITECTURES = {
    "mlp": Architecture(
        "MLP, one hidden layer of 1000",
        "mlp",
        "ours",
        795_010,
        {"hidden_size": 1000},
        {"hidden_size": 64},
        (1, 28, 28),
        10,
    ),
    "resnet": _resnet("ResNet, narrow at smoke and small", "basic", [2, 2, 2, 2], 11_689_512, [1, 1, 1, 1]),
    "mnist_cnn": Architecture(
        "CNN, two convolutions",
        "cnn",
        "ours",
        421_642,
        {"widths": [32, 64], "hidden_size": 128},
        {"widths": [4, 8], "hidden_size": 16},
        (1, 28, 28),
        10,
    ),
    "resnet18": _resnet("ResNet-18", "basic", [2, 2, 2, 2], 11_689_512, [1, 1, 1, 1]),
    "resnet50": _resnet("ResNet-50", "bottleneck", [3, 4, 6, 3], 25_557_032, [1, 1, 1, 1]),
    "resnet101": _resnet("ResNet-101", "bottleneck", [3, 4, 23, 3], 44_549_160, [1, 1, 2, 1]),
    "resnet152": _resnet("ResNet-152", "bottleneck", [3, 8, 36, 3], 60_192_808, [1, 2, 2, 1]),
    "densenet121": _timm(
        "DenseNet-121",
        "densenet121",
        7_978_856,
        {"growth_rate": 4, "block_config": [1, 1, 1, 1]},
        small_stem=False,
        growth_rate=32,
        block_config=[6, 12, 24, 16],
    ),
    "vgg11": _timm("VGG-11, batch norm", "vgg11_bn", 132_868_840, {"small_stem": True}, small_stem=False),
    "vgg16": _timm("VGG-16, batch norm", "vgg16_bn", 138_365_992, {"small_stem": True}, small_stem=False),
    "wrn16_4": Architecture(
        "WRN-16-4",
        "wrn",
        "ours",
        2_748_890,
        {"depth": 16, "widen": 4},
        {"depth": 10, "widen": 1, "base": 4},
        (3, 32, 32),
        10,
    ),
    "convnext_tiny": Architecture(
        "ConvNeXt-T",
        "convnext",
        HF,
        28_589_128,
        {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "drop_path_rate": 0.1},
        _CONVNEXT,
    ),
    "convnext_small": Architecture(
        "ConvNeXt-S",
        "convnext",
        HF,
        50_223_688,
        {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 27, 3], "drop_path_rate": 0.4},
        _CONVNEXT,
    ),
    "swin_tiny": Architecture(
        "Swin-T",
        "swin",
        HF,
        28_288_354,
        {
            "embed_dim": 96,
            "depths": [2, 2, 6, 2],
            "num_heads": [3, 6, 12, 24],
            "patch_size": 4,
            "window_size": 7,
            "drop_path_rate": 0.2,
        },
        _SWIN,
    ),
    "swin_small": Architecture(
        "Swin-S",
        "swin",
        HF,
        49_606_258,
        {
            "embed_dim": 96,
            "depths": [2, 2, 18, 2],
            "num_heads": [3, 6, 12, 24],
            "patch_size": 4,
            "window_size": 7,
            "drop_path_rate": 0.3,
        },
        _SWIN,
    ),
    "tinyvit_5m": _timm("TinyViT-5M", "tiny_vit_5m_224", 5_392_764, _TINY_VIT, drop_path_rate=0.0),
    "tinyvit_11m": _timm("TinyViT-11M", "tiny_vit_11m_224", 10_996_972, _TINY_VIT, drop_path_rate=0.1),
    "tinyvit_21m": _timm("TinyViT-21M", "tiny_vit_21m_224", 21_198_568, _TINY_VIT, drop_path_rate=0.2),
    "vit_b16": Architecture(
        "ViT-B/16",
        "vit",
        HF,
        86_567_656,
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "patch_size": 16,
        },
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8},
    ),
}
