"""The settings of the papers and of ours that image classifiers are trained in.

`SETTINGS` holds who trains on what, and how; `ROWS` which model is trained in which of them. A preset is a model in a
setting, `resnet50@agr-cifar100`; the first setting of a model is its preset under the bare name too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hf_optim.experiment.task import REST, Preset, Size, Source, Value
from hf_optim.tasks.presets.architectures import ARCHITECTURES, Architecture


def paper(value: Any, note: str = "") -> Value[Any]:
    """Printed in the paper."""
    return Value(value, "paper", note)


def code(value: Any, note: str = "") -> Value[Any]:
    """In the paper's public code, or in the code that it takes over."""
    return Value(value, "code", note)


def ours(value: Any, note: str = "") -> Value[Any]:
    """Left open by the paper."""
    return Value(value, "ours", note)


def least_certain(sources: Iterable[Source]) -> Source:
    """The source that a reader has to doubt most; `paper` of none."""
    return max(sources, key=("paper", "code", "ours").index, default="paper")


@dataclass(frozen=True)
class Setting:
    """What a model is trained in: the values of `Preset` but `model`, and what of `model` the setting decides.

    `model` is laid over the architecture's configuration; `augment` is described in `data/augment.py`.
    """

    preset: dict[str, Value[Any]]
    model: dict[str, Value[Any]] = field(default_factory=dict)
    about: str = ""

    @property
    def source(self) -> Source:
        """That of the least certain value of the model."""
        return least_certain(value.source for value in self.model.values())


HELD_OUT = {
    "validation": ours(5000, "held out of train; the papers have none"),
    "drop_last": ours(False, "torch's default; the papers are silent"),
}
IMAGENET = {
    **HELD_OUT,
    "validation": ours(10_000, "held out of train; the validation split is the test, as in the papers"),
    "train_evaluation": ours(50_000, "as many as there are test images"),
}
CROP_FLIP: dict[str, Any] = {"crop": 4, "flip": True}
RESIZED: dict[str, Any] = {"resized_crop": [0.08, 1.0], "flip": True}


def _smaran(data: str, note: str = "") -> dict[str, Value[Any]]:
    return {
        "epochs": paper(100),
        "batch_size": paper(128),
        "optimizer": paper({"name": "smaran", "lr": 0.1}, "gamma .9 and lambda .01, as printed, are its defaults"),
        "schedule": paper({"name": "constant"}, "no schedule"),
        "data": paper(data, note),
        **HELD_OUT,
    }


def _agr(data: str, epochs: Value[int], batch: Value[int]) -> dict[str, Value[Any]]:
    return {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": code(
            {"name": "adamw_agr", "lr": 1e-3, "weight_decay": 5e-4, "decay_all": True},
            "lr: as printed in Algorithm 2; the code's option has .1, left from its SGD",
        ),
        "schedule": code(
            {"name": "multistep", "at": [0.3, 0.6, 0.8], "gamma": 0.2, "warmup": 0.005},
            "epochs 60, 120, 160 of 200; one epoch of warm-up",
        ),
        "data": paper(data),
        **HELD_OUT,
    }


def _official(lr: float, batch: Value[int], end: float, clip: float) -> dict[str, Value[Any]]:
    return {
        "epochs": paper(300),
        "batch_size": batch,
        "optimizer": code({"name": "adamw_agr", "lr": lr, "weight_decay": 0.05}),
        "schedule": code({"name": "cosine", "warmup": 20 / 300, "end": end}, "20 epochs of warm-up"),
        "max_grad_norm": code(clip),
        "data": paper("tiny-imagenet", "resized to 224 by the code; its validation split is the test"),
        **HELD_OUT,
    }


def _tlr(data: str, epochs: Value[int], batch: Value[int], held_out: dict[str, Value[Any]]) -> dict[str, Value[Any]]:
    base = {"name": "sgd", "lr": 0.1, "momentum": 0.8, "weight_decay": 5e-4, "decay_all": True}
    return {
        "epochs": epochs,
        "batch_size": batch,
        "optimizer": code({"name": "tlr", "base": base}),
        "schedule": code({"name": "constant"}, "its default; sgd-mstep's is printed, and the study's"),
        "data": paper(data),
        **held_out,
    }


def _amvt(data: str, epochs: int, batch: int, held_out: dict[str, Value[Any]]) -> dict[str, Value[Any]]:
    return {
        "epochs": ours(epochs, "not printed"),
        "batch_size": ours(batch, "one of the printed grid, 32 to 512"),
        "optimizer": ours(
            {"name": "amvt", "lr": 1e-3, "weight_decay": 1e-4}, "the printed default, and one of the grid"
        ),
        "schedule": ours(
            {"name": "cosine", "warmup": 0.05},
            "Section 4.4's best, with 5% of ours; Section 2.5 has warm restarts, without a period",
        ),
        "max_grad_norm": ours(0.0, "no clipping: Algorithm 1's is optional, without a threshold"),
        "data": paper(data),
        **held_out,
        "validation": ours(
            held_out["validation"].value, "held out of train; Section 2.5 has a validation loss, of what is not said"
        ),
    }


_JITTER = {**CROP_FLIP, "jitter": 0.2}
_MIX = "without RandAugment, erasing, mixup, cutmix"
_RECIPE = {"augment": code(RESIZED), "image_size": code(224), "label_smoothing": code(0.1)}
#: AMVT names crops, flips, jitter, smoothing and a dropout of .1 to .3; the amounts are ours
_REGULARISED = {
    "augment": ours(_JITTER), "small_stem": ours(True), "dropout": ours(0.1), "label_smoothing": ours(0.1),
}  # fmt: skip

SETTINGS: dict[str, Setting] = {
    "smaran-cifar10": Setting(_smaran("cifar10", "normalisation only"), {}, "SMARAN, Fig. 2, 5 to 7"),
    "smaran-cifar100": Setting(_smaran("cifar100", "normalisation only"), {}, "SMARAN, Fig. 2, 6, 7"),
    "smaran-tiny-imagenet": Setting(_smaran("tiny-imagenet"), {"augment": paper(CROP_FLIP)}, "SMARAN, Fig. 3"),
    "agr-cifar100": Setting(
        _agr("cifar100", paper(200), paper(128, "2 GPUs x 64")),
        {"augment": code({**CROP_FLIP, "rotate": 15}), "small_stem": code(True)},
        "AGR, Table 5 as Section 5.3.1 has it; crop, flip, rotation and stem from the code that its own takes over",
    ),
    "agr-tiny-imagenet": Setting(
        _agr("tiny-imagenet", paper(200, "Table 5; Section 5.3 says 300"), paper(256, "2 GPUs x 128")),
        {"augment": ours({**CROP_FLIP, "rotate": 15}), "small_stem": ours(True)},
        "AGR, Table 5 as its caption has it; augmentation and stem as for CIFAR-100",
    ),
    "agr-convnext": Setting(
        _official(4e-3, code(1024, "2 GPUs x 128, 4 accumulations"), 2.5e-4, 0.0),
        _RECIPE,
        f"AGR, Table 3: ConvNeXt's recipe {_MIX}, EMA",
    ),
    "agr-swin": Setting(
        _official(2.5e-4, paper(256, "2 GPUs x 128"), 0.01, 5.0), _RECIPE, f"AGR, Table 3: Swin's recipe {_MIX}"
    ),
    "agr-tinyvit": Setting(
        _official(2.5e-4, paper(256, "2 GPUs x 128"), 0.01, 5.0), _RECIPE, f"AGR, Tables 4, 7: TinyViT's recipe {_MIX}"
    ),
    "tlr-mnist": Setting(
        {
            **_tlr(
                "mnist",
                paper(20, "of the grid search; those of the figures are not printed"),
                ours(128, "one of the printed 64 to 512"),
                HELD_OUT,
            ),
            "optimizer": paper({"name": "sgd", "lr": 0.1}, "one of 1e-1 to 1e-9"),
        },
        {},
        "TLR, Fig. 1, 2",
    ),
    "tlr-cifar10": Setting(
        _tlr("cifar10", code(80), ours(128, "printed of CIFAR-100"), HELD_OUT),
        {"augment": code(CROP_FLIP)},
        "TLR, named without results",
    ),
    "tlr-cifar100": Setting(
        _tlr("cifar100", code(80), paper(128), HELD_OUT), {"augment": code(CROP_FLIP)}, "TLR, Table 1 and Fig. 3"
    ),
    "tlr-imagenet": Setting(
        _tlr("imagenet", paper(80), paper(96), IMAGENET),
        {"augment": ours(RESIZED), "image_size": ours(224)},
        "TLR, Fig. 4; the augmentation is ours",
    ),
    "amvt-mnist": Setting(
        _amvt("mnist", 20, 128, HELD_OUT),
        {"dropout": ours(0.1), "label_smoothing": ours(0.1)},
        "AMVT, Section 5.2; without Section 2.5's crops, flips and jitter; amounts and budget are ours",
    ),
    "amvt-cifar10": Setting(
        _amvt("cifar10", 200, 128, HELD_OUT),
        _REGULARISED,
        "AMVT, Sections 5.1 to 5.9; its amounts of jitter, dropout and smoothing, stem and budget are ours",
    ),
    "amvt-cifar100": Setting(_amvt("cifar100", 200, 128, HELD_OUT), _REGULARISED, "AMVT, Section 5.2; as amvt-cifar10"),
    "amvt-imagenet": Setting(
        _amvt("imagenet", 90, 256, IMAGENET),
        {
            "augment": ours({**RESIZED, "jitter": 0.2}),
            "image_size": ours(224),
            "dropout": ours(0.1),
            "label_smoothing": ours(0.1),
        },
        "AMVT, Sections 5.2, 5.4, 5.6; as amvt-cifar10",
    ),
}


class Row(NamedTuple):
    """The settings of a model at size paper, the first being its default, and what they change in its configuration.

    `named`: where the architecture stands. `ours`: what of the model is ours, where the setting itself is more certain
    than that.
    """

    settings: tuple[str, ...]
    model: dict[str, Value[Any]] = {}
    named: Source = "paper"
    ours: str = ""


ROWS: dict[str, Row] = {
    "mlp": Row(("tlr-mnist",)),
    "resnet": Row(("agr-cifar100",)),
    "mnist_cnn": Row(("amvt-mnist",), named="ours"),
    "resnet18": Row(("smaran-cifar10", "agr-cifar100", "agr-tiny-imagenet")),
    "resnet50": Row(
        (
            "smaran-cifar10",
            "smaran-cifar100",
            "smaran-tiny-imagenet",
            "agr-cifar100",
            "agr-tiny-imagenet",
            "tlr-imagenet",
            "amvt-cifar10",
            "amvt-imagenet",
        )
    ),
    "resnet101": Row(("agr-cifar100", "agr-tiny-imagenet", "amvt-cifar100")),
    "resnet152": Row(("amvt-imagenet",)),
    "densenet121": Row(("smaran-cifar10", "smaran-cifar100", "smaran-tiny-imagenet")),
    "vgg11": Row(
        ("agr-cifar100", "agr-tiny-imagenet"),
        {"small_stem": ours(True)},
        ours="one linear layer for the code's three",
    ),
    "vgg16": Row(("amvt-cifar10",)),
    "wrn16_4": Row(("tlr-cifar100", "tlr-cifar10"), {"dropout": code(0.1)}),
    "convnext_tiny": Row(("agr-convnext",)),
    "convnext_small": Row(("agr-convnext",), named="ours", ours="that the table's second ConvNeXt Tiny is the Small"),
    "swin_tiny": Row(("agr-swin",)),
    "swin_small": Row(("agr-swin",)),
    "tinyvit_5m": Row(("agr-tinyvit",)),
    "tinyvit_11m": Row(("agr-tinyvit",)),
    "tinyvit_21m": Row(("agr-tinyvit",)),
    "vit_b16": Row(("amvt-imagenet",)),
}

ADAMW = {"name": "adamw", "lr": 1e-3}
NARROW: dict[str, Any] = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64],
    "depths": [1, 1, 1],
    "layer_type": "basic",
    "small_stem": True,
    "downsample_in_first_stage": True,
}
TINY: dict[str, Any] = {**NARROW, "embedding_size": 4, "hidden_sizes": [4, 8, 8]}


def _preset(epochs: int, batch: int, data: str, model: Value[dict[str, Any]], **more: Value[Any]) -> Preset:
    """A preset of ours, at AdamW."""
    return Preset(
        epochs=ours(epochs), batch_size=ours(batch), optimizer=ours(ADAMW), data=ours(data), model=model, **more
    )


def _smoke() -> dict[str, Preset]:
    presets = {
        name: _preset(1, 16, "emoji", ours({**each.config, **each.smoke}), samples=ours(64))
        for name, each in ARCHITECTURES.items()
    }
    presets["mnist_cnn"] = _preset(1, 64, "digits", presets["mnist_cnn"].model, samples=ours(256))
    presets["resnet"] = _preset(1, 64, "digits", ours(TINY), samples=ours(256))
    presets["mlp"] = _preset(2, 64, "digits", presets["mlp"].model, samples=ours(512))
    return presets


EMOJI: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet": (20, NARROW),
    "convnext_tiny": (20, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "patch_size": 2}),
    "tinyvit_5m": (
        20,
        {
            "embed_dims": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 3, 4],
            "window_sizes": [4, 4, 4, 4],
        },
    ),
}
"""Epochs and the narrowed configuration of what is trained on emoji at size small."""


def _small() -> dict[str, Preset]:
    mlp = ARCHITECTURES["mlp"].config
    presets = {
        "mlp": _preset(6, 64, "digits", paper(mlp, "TLR: one hidden layer of 1000")),
        "resnet": _preset(4, 64, "digits", ours(NARROW, "77 thousand parameters")),
        "mnist_cnn": _preset(4, 64, "digits", ours(ARCHITECTURES["mnist_cnn"].config)),
    }
    for name, (epochs, narrow) in EMOJI.items():
        values = {**narrow, "augment": {"crop": 3}}
        if name != "resnet":
            values = {**ARCHITECTURES[name].config, "drop_path_rate": 0.0, **values}
        preset = _preset(epochs, 64, "emoji", ours(values))
        presets.setdefault(name, preset)
        presets[f"{name}@emoji"] = preset
    return presets


def _paper() -> dict[str, Preset]:
    presets: dict[str, Preset] = {}
    for name, row in ROWS.items():
        for setting in row.settings:
            preset = _in_setting(ARCHITECTURES[name], SETTINGS[setting], row)
            presets.setdefault(name, preset)
            presets[f"{name}@{setting}"] = preset
    return presets


def _in_setting(architecture: Architecture, setting: Setting, row: Row) -> Preset:
    given = {**setting.model, **row.model}
    if architecture.family == "convnext":  # has drop_path_rate in its place
        given = {key: value for key, value in given.items() if key != "dropout"}
    configuration = {**architecture.config, **{key: value.value for key, value in given.items()}}
    parts: dict[str, Source] = {REST: row.named, **{key: value.source for key, value in given.items()}}
    if "drop_path_rate" in configuration:
        parts["drop_path_rate"] = "code"  # that of the recipe
    about = f"{setting.about}; {row.ours} is ours" if row.ours else setting.about
    return Preset(**setting.preset, model=Value(configuration, least_certain(parts.values()), about, parts))


SIZES = {
    "smoke": Size("seconds, for tests: a few of the embedded digits or emoji, every model at its narrowest", _smoke()),
    "small": Size("seconds to minutes on one core: all embedded digits or emoji; optimizers visibly differ", _small()),
    "paper": Size("the papers' settings, data from the Hub; for a GPU", _paper()),
}
