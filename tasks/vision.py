"""Image classification: networks from an MLP to ViT-B/16 on digits, emoji, the papers' sets or images of your own."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_optim.core.validate import closest
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.task import Data, Metric, Preset, Primary, Task
from hf_optim.tasks.presets.architectures import ARCHITECTURES
from hf_optim.tasks.presets.vision import SIZES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from transformers import PreTrainedModel, TrainerCallback

    from hf_optim.tasks.data.augment import Augment
    from hf_optim.tasks.data.images import Splits

HERE = Path(__file__).parent / "data"
EMBEDDED = {
    "digits": "5,000 real MNIST digits, 28x28 grey, 10 classes (3,500/500/1,000)",
    "emoji": "3,812 emoji drawings, 32x32 colour, 9 coarse classes (3,048/296/468)",
    "emoji-fine": "the same emoji with their 98 fine classes",
}


class HubSet(NamedTuple):
    """A data set of the Hub: its columns and the split that serves as test."""

    repository: str
    image: str
    label: str
    test: str = "test"


HUB = {
    "mnist": HubSet("ylecun/mnist", "image", "label"),
    "cifar10": HubSet("uoft-cs/cifar10", "img", "label"),
    "cifar100": HubSet("uoft-cs/cifar100", "img", "fine_label"),
    # The test labels of these two are not public: their validation split is the test, as in the papers.
    "tiny-imagenet": HubSet("zh-plus/tiny-imagenet", "image", "label", "valid"),
    "imagenet": HubSet("ILSVRC/imagenet-1k", "image", "label", "validation"),  # gated: accept its terms and log in
}
OPTIONS = {
    "augment": "random changes of the training images, as {crop: 4, flip: true}: see tasks/data/augment.py",
    "image_size": "pixels a side: images of any size are resized to it, and decoded when they are asked for",
    "dropout": "share of the hidden units that training leaves out",
    "label_smoothing": "share of a label that training spreads over all classes",
}


class Vision(Task):
    """See the module; `embedded` are the data sets that come with the package.

    A model is an architecture, or one in a setting: `resnet50@agr-cifar100` is ResNet-50 as AGR trains it on CIFAR-100.
    The bare name takes the first setting of its size.
    """

    name = "vision"
    title = "Image classification"
    primary = Primary("test_accuracy", greater_is_better=True)
    metrics = (Metric("accuracy", True, "share"), Metric("top5", True, "share"), Metric("map", True, "share"))
    models = tuple(ARCHITECTURES)
    sizes = SIZES
    embedded = EMBEDDED
    options = OPTIONS

    def preset(self, model: str, size: str) -> Preset:
        """The preset of `MODEL` or `MODEL@SETTING` at `size`; a `UserError` names the valid ones."""
        presets = self.sizes[size].presets if isinstance(size, str) and size in self.sizes else {}
        if isinstance(model, str) and model in presets:
            return presets[model]
        name = model.partition("@")[0] if isinstance(model, str) else model
        if not presets or name not in self.models:
            return super().preset(name, size)  # which says what is wrong
        if name not in presets:
            there = [each for each in presets if "@" not in each]
            raise UserError(f"model {name!r} has no size {size!r}: choose from {', '.join(there)}, or another size")
        settings = [each for each in presets if each.startswith(f"{name}@")]
        near = closest(model, settings)
        raise UserError(f"there is no {model!r} at size {size!r}{near}: choose from {', '.join([name, *settings])}")

    def data(self, preset: Preset, source: str | None) -> Data:
        """The preset's set, the embedded one of a name (`./NAME` is a folder of yours), or files of your own."""
        name, (augment, size) = source or preset.data.value, _checked(preset.model.value)
        if name in EMBEDDED:
            splits, note = _embedded(name, size), f"{EMBEDDED[name]}; a subset, not comparable with published figures"
        elif source is None:
            splits, note = _hub(name, preset.validation.value, size), f"{HUB[name].repository} from the Hub"
        else:
            path, asked, held_out = Path(os.path.realpath(source)), preset.data.value, preset.validation.value
            splits, note = _own(str(path), _newest(path), size, asked, held_out or None), "files of your own"
            name = path.name
        limit = preset.samples.value if source is None else None
        facts = {"classes": splits.classes, "shape": splits.shape}
        train, validation, test = splits.train, splits.validation, splits.test
        if limit:
            train, validation, test = train.head(limit), validation.head(limit), test.head(limit)
            note += f"; the first {limit} samples of a split only"
        if splits.note:
            note += f"; {splits.note}"
        if augment is None:
            return Data(train, validation, test, name, splits.fingerprint, note, facts)
        changed = train.augmented(augment)
        return Data(changed, validation, test, name, splits.fingerprint, note, facts, train_evaluated=train)

    def synthetic(self, model: str, preset: Preset) -> Data:
        """See `Task`."""
        from hf_optim.tasks.data import synthetic

        _, size = _checked(preset.model.value)
        return synthetic.images(preset.data.value, preset.validation.value, size)

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The network for the data's shape and classes."""
        from hf_optim.tasks.models.images import build

        name = name.partition("@")[0]
        values = {key: value for key, value in preset.model.value.items() if key not in ("augment", "image_size")}
        return build(name, ARCHITECTURES[name].family, values, data.facts["shape"], data.facts["classes"])

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint of `name`."""
        from hf_optim.tasks.models.images import model_class

        return model_class(ARCHITECTURES[name.partition("@")[0]].family)

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """A checkpoint belongs to images of one shape and to classes of certain names."""
        shape, classes = list(data.facts["shape"]), list(data.facts["classes"])
        config: Any = model.config
        if list(getattr(config, "image_shape", shape)) != shape:
            raise UserError(
                f"checkpoint: made for images of {_size(config.image_shape)}, {data.name} has {_size(shape)}"
            )
        known = [config.id2label[number] for number in sorted(config.id2label)]
        unnamed = known == [f"LABEL_{number}" for number in range(len(classes))]  # somebody else's, in the data's order
        if known != classes and not unnamed:
            raise UserError(
                f"checkpoint: made for {len(known)} classes ({_few(known)}), {data.name} has {len(classes)} "
                f"({_few(classes)})"
            )

    def callbacks(self, model: PreTrainedModel, preset: Preset, steps: int) -> Sequence[TrainerCallback]:
        """What tells an augmented data set the epoch."""
        if not preset.model.value.get("augment"):
            return ()
        from hf_optim.tasks.data.epochs import Epochs

        return (Epochs(),)

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """Accuracy, top-5, cross-entropy (nats) and macro average precision of logits [N, classes] and labels [N]."""
        accuracy, top_k, loss, precision = (
            _metric(name) for name in ("accuracy", "top_k", "cross_entropy", "mean_average_precision")
        )
        return {
            "accuracy": accuracy.compute(predictions=predictions.argmax(axis=1), references=references)["accuracy"],
            "top5": top_k.compute(predictions=predictions, references=references, k=5)["top_k"],
            "loss": loss.compute(predictions=predictions, references=references)["cross_entropy"],
            "map": precision.compute(predictions=predictions, references=references)["mean_average_precision"],
        }

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """The dataset's `__getitems__` gives whole batches."""
        return _as_is


def _as_is(batch: Any) -> dict[str, Any]:
    return dict(batch)


def _size(shape: Sequence[int]) -> str:
    return f"{counted(shape[0], 'channel')} of {shape[2]}x{shape[1]}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _checked(values: Mapping[str, Any]) -> tuple[Augment | None, int | None]:
    """The augmentation and the size of images among a model's values; a `UserError` says what is wrong with them."""
    from hf_optim.tasks.data.augment import Augment

    size = values.get("image_size")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UserError(f"image_size must be a whole number of pixels, 1 or more, got {size!r}")
    augment = Augment.of(values["augment"]) if values.get("augment") else None
    if augment is not None and augment.resized_crop is not None and size is None:
        raise UserError("augment: resized_crop needs option image_size")
    return augment, size


@lru_cache(maxsize=8)
def _metric(name: str) -> Any:
    from hf_optim import metrics

    return metrics.load(name)


@lru_cache(maxsize=3)
def _embedded(name: str, size: int | None) -> Splits:
    from hf_optim.tasks.data.images import read

    folder, _, fine = name.partition("-")
    return read(HERE / folder, label="fine_label" if fine else "label", size=size)


@lru_cache(maxsize=1)
def _own(path: str, changed: int, size: int | None, asked: str, held_out: int | None) -> Splits:
    """Your own files, read once for the runs of a process; `changed` makes files that were changed be read anew."""
    from hf_optim.tasks.data.images import read

    return read(Path(path), size=size, published=asked, held_out=held_out)


def _newest(path: Path) -> int:
    """The time in ns of the last change to `path` and what is directly in it; 0 if it does not exist."""
    if not path.exists():
        return 0
    return max(entry.stat().st_mtime_ns for entry in [path, *(path.iterdir() if path.is_dir() else ())])


@lru_cache(maxsize=1)
def _hub(name: str, held_out: int, size: int | None) -> Splits:
    """A data set of the Hub: decoded in memory, or left encoded if its images are to be resized."""
    from hf_optim.tasks.data import hub
    from hf_optim.tasks.data.image_sets import HubRows
    from hf_optim.tasks.data.images import assemble
    from hf_optim.tasks.data.published_counts import IMAGES

    known = HUB[name]
    parts = hub.load(known.repository)
    splits = {
        split: HubRows(parts[there], f"{known.repository}, {there}", known.image, known.label)
        for split, there in (("train", "train"), ("test", known.test))
    }
    names = parts["train"].features[known.label].names
    return assemble(splits, names, held_out=held_out, size=size, moments=IMAGES[name].moments)


TASK = Vision()
