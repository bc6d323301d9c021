"""Image classifiers by family: from a preset's values, an image's shape and the classes to a model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from hf_optim.core import extras
from hf_optim.core.validate import closest
from hf_optim.core.wording import counted
from hf_optim.errors import UserError

#: family -> module, the names of the configuration and of the model in it, and the configuration's name for dropout
FAMILIES: dict[str, tuple[str, str, str, str | None]] = {
    "mlp": ("mlp", "MLPConfig", "MLPForImageClassification", "dropout"),
    "cnn": ("mnist_cnn", "CNNConfig", "CNNForImageClassification", "dropout"),
    "wrn": ("wrn", "WRNConfig", "WRNForImageClassification", "dropout"),
    "resnet": ("resnet", "StemResNetConfig", "StemResNetForImageClassification", "dropout"),
    "convnext": ("library", "SmoothConvNextConfig", "SmoothConvNextForImageClassification", None),
    "swin": ("library", "SmoothSwinConfig", "SmoothSwinForImageClassification", "hidden_dropout_prob"),
    "vit": ("library", "SmoothViTConfig", "SmoothViTForImageClassification", "hidden_dropout_prob"),
    "timm": ("timm_wrapped", "StemTimmConfig", "StemTimmForImageClassification", "drop_rate"),
}
#: what libraries raise for values that do not go together
UNFIT = (
    StrictDataclassError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
SHARES = ("dropout", "label_smoothing", "drop_path_rate")


def model_class(family: str) -> type[PreTrainedModel]:
    """The class whose `from_pretrained` reads a checkpoint of `family`."""
    return getattr(_home(family), FAMILIES[family][2])


def _home(family: str) -> Any:
    """The module of a family."""
    if family == "timm":
        extras.installed("this model", "vision")
        try:
            import timm  # noqa: F401 - transformers' wrapper would say so much later, and not in one line
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"this model comes from timm, which cannot be imported ({' '.join(str(error).split())[:120]}): "
                "install the torchvision that was built for your torch"
            ) from error
    return importlib.import_module(f"hf_optim.tasks.models.{FAMILIES[family][0]}")


def build(
    name: str, family: str, values: Mapping[str, Any], shape: Sequence[int], classes: Sequence[str]
) -> PreTrainedModel:
    """A freshly initialised model, tried on an image of `shape` (without computing anything).

    Args:
        name: of the model, for messages.
        family: a key of `FAMILIES`.
        values: the configuration's own values; `dropout` and `label_smoothing` in [0, 1) mean the same everywhere.
        shape: (channels, height, width).
        classes: the classes' names; a checkpoint keeps them.

    Raises:
        UserError: a value that the architecture does not have or take, or images that are too small for it.
    """
    _, config, model, dropout = FAMILIES[family]
    given, values = dict(values), dict(values)
    if ":" in str(values.get("architecture", "")):  # timm would read it of a hub, or another folder
        raise UserError(f"model {name!r}: architecture must be one of timm's own, got {values['architecture']!r}")
    for key in SHARES:
        share = values.get(key, 0)
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise UserError(f"model {name!r}: {key} must be 0 or more and below 1, got {share!r}")
    if "dropout" in values:
        share = float(values.pop("dropout"))
        if dropout is None and share:
            raise UserError(f"model {name!r} has no dropout: give drop_path_rate instead")
        if dropout is not None:
            values[dropout] = share
    if "label_smoothing" in values:
        values["label_smoothing"] = float(values["label_smoothing"])
    home = _home(family)
    labels = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    try:
        network = getattr(home, model)(getattr(home, config)(**_shaped(family, values, shape), **labels))
        _try(network, shape)
    except ImportError as error:
        if "Unknown model" not in str(error.__cause__):  # what timm said, before transformers did
            raise
        import timm

        near = closest(str(given["architecture"]), timm.list_models())
        raise UserError(
            f"model {name!r}: timm {timm.__version__} has no architecture {given['architecture']!r}{near}"
        ) from error
    except UNFIT as error:
        size = f"{counted(shape[0], 'channel')} of {shape[2]}x{shape[1]}"
        raise UserError(
            f"model {name!r} cannot be built with {_words(given)} for images of {size}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return network


def _shaped(family: str, values: dict[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """The configuration's arguments for images of `shape`."""
    channels, height, width = shape
    common: dict[str, Any] = {"image_shape": list(shape)}
    if family == "mlp":
        return {**common, "inputs": channels * height * width, **values}
    if family == "cnn":
        return {**common, **values}
    if family == "timm":
        ours = [key for key in ("architecture", "small_stem", "label_smoothing") if key in values]
        own: dict[str, Any] = {key: values.pop(key) for key in ours}
        if own.get("small_stem") and str(own["architecture"]).startswith("vgg"):
            # The three layers are replaced by one: do not draw their 120 million weights for nothing.
            values["mlp_ratio"] = 1 / 4096
        return {**common, **own, "model_args": {"in_chans": channels, **values}}
    common["num_channels"] = channels
    if family in ("swin", "vit"):
        common["image_size"] = height if height == width else [height, width]
    return {**common, **values}


def _try(model: PreTrainedModel, shape: Sequence[int]) -> None:
    """A forward pass of shapes alone: what does not fit is found before a run begins."""
    state = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    training = model.training
    model.eval()
    with torch.no_grad():
        torch.func.functional_call(model, state, (torch.empty(2, *shape, device="meta"),))
    model.train(training)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "its own values"
