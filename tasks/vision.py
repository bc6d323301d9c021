"""Image classification: an MLP and small ResNets on handwritten digits, emoji or images of your own."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError
from hf_optim.task import Data, Preset, Primary, Size, Task, Value

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from transformers import PreTrainedModel

    from tasks.data.images import Splits

HERE = Path(__file__).parent / "data"
EMBEDDED = {
    "digits": "5,000 real MNIST digits, 28x28 grey, 10 classes (3,500/500/1,000)",
    "emoji": "3,812 emoji drawings, 32x32 colour, 9 coarse classes (3,048/296/468)",
    "emoji-fine": "the same emoji with their 98 fine classes",
}
# Hub data sets of the paper size: repository, image column, label column.
HUB = {"mnist": ("ylecun/mnist", "image", "label"), "cifar10": ("uoft-cs/cifar10", "img", "label")}

ADAMW = {"name": "adamw", "lr": 1e-3}
RESNET18 = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
NARROW = {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"}
NARROW["downsample_in_first_stage"] = True

SIZE_TABLE = {
    "smoke": Size(
        "seconds: 512 of the embedded digits, for tests",
        {
            "mlp": Preset(
                epochs=Value(2),
                batch_size=Value(64),
                optimizer=Value(ADAMW),
                data=Value("digits"),
                model=Value({"hidden_size": 64}),
                samples=Value(512),
            ),
            "resnet": Preset(
                epochs=Value(1),
                batch_size=Value(64),
                optimizer=Value(ADAMW),
                data=Value("digits"),
                model=Value({**NARROW, "embedding_size": 4, "hidden_sizes": [4, 8, 8]}),
                samples=Value(256),
            ),
        },
    ),
    "small": Size(
        "seconds to a minute on one core: all embedded digits; optimizers visibly differ",
        {
            "mlp": Preset(
                epochs=Value(6),
                batch_size=Value(64),
                optimizer=Value(ADAMW),
                data=Value("digits"),
                model=Value({"hidden_size": 1000}, "paper", "TLR: one hidden layer of 1000"),
            ),
            "resnet": Preset(
                epochs=Value(4),
                batch_size=Value(64),
                optimizer=Value(ADAMW),
                data=Value("digits"),
                model=Value(NARROW, "ours", "77 thousand parameters"),
            ),
        },
    ),
    "paper": Size(
        "the papers' settings, data from the Hub; for a GPU",
        {
            "mlp": Preset(
                epochs=Value(20, "paper", "TLR, MNIST"),
                batch_size=Value(128, "paper", "TLR, one of 64 to 512"),
                optimizer=Value({"name": "sgd", "lr": 0.1}, "paper", "TLR, one of 1e-1 to 1e-9"),
                data=Value("mnist", "paper"),
                model=Value({"hidden_size": 1000}, "paper", "TLR: one hidden layer of 1000"),
                validation=Value(5000, "ours", "held out of train; the paper has none"),
                drop_last=Value(False, "ours", "torch's default; the paper is silent"),
            ),
            "resnet": Preset(
                epochs=Value(100, "paper", "SMARAN, CIFAR-10"),
                batch_size=Value(128, "paper", "SMARAN"),
                optimizer=Value({"name": "smaran", "lr": 0.1}, "paper", "SMARAN, one of .1, .01, .001"),
                data=Value("cifar10", "paper", "normalisation only, no augmentation"),
                model=Value(RESNET18, "ours", "ResNet-18 as in SMARAN's sensitivity study; the 3x3 stem is ours"),
                schedule=Value({"name": "constant"}, "paper", "SMARAN: no schedule"),
                validation=Value(5000, "ours", "held out of train; the paper has none"),
                drop_last=Value(False, "ours", "torch's default; the paper is silent"),
            ),
        },
    ),
}


class Vision(Task):
    """See the module; `embedded` are the data sets that come with the package."""

    name = "vision"
    title = "Image classification"
    primary = Primary("test_accuracy", greater_is_better=True)
    models = ("mlp", "resnet")
    sizes = SIZE_TABLE
    embedded = EMBEDDED

    def data(self, preset: Preset, source: str | None) -> Data:
        """The preset's set, the embedded one of a name (`./NAME` is a folder of yours), or files of your own."""
        name = source or preset.data.value
        if name in EMBEDDED:
            splits, note = _embedded(name), f"{EMBEDDED[name]}; a subset, not comparable with published figures"
        elif source is None:
            splits, note = _hub(name, preset.validation.value), f"{HUB[name][0]} from the Hub"
        else:
            splits, note = _own(str(Path(source).resolve()), _newest(Path(source))), "files of your own"
            name = Path(source).resolve().name
        limit = preset.samples.value if source is None else None
        facts = {"classes": splits.classes, "shape": splits.shape}
        train, validation, test = splits.train, splits.validation, splits.test
        if limit:
            train, validation, test = train.head(limit), validation.head(limit), test.head(limit)
            note += f"; the first {limit} samples of a split only"
        if splits.note:
            note += f"; {splits.note}"
        return Data(train, validation, test, name, splits.fingerprint, note, facts)

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The MLP or the ResNet for the data's shape and classes."""
        channels, height, width = data.facts["shape"]
        classes = len(data.facts["classes"])
        if name == "mlp":
            from tasks.models.mlp import MLPConfig, MLPForImageClassification

            shape = {"inputs": channels * height * width, "num_labels": classes}
            return MLPForImageClassification(MLPConfig(**shape, **preset.model.value))
        from transformers import ResNetConfig

        from tasks.models.resnet import SmallStemResNetForImageClassification

        return SmallStemResNetForImageClassification(
            ResNetConfig(num_channels=channels, **{"num_labels": classes, **preset.model.value})
        )

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint of `name`."""
        if name == "mlp":
            from tasks.models.mlp import MLPForImageClassification

            return MLPForImageClassification
        from tasks.models.resnet import SmallStemResNetForImageClassification

        return SmallStemResNetForImageClassification

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


@lru_cache(maxsize=8)
def _metric(name: str) -> Any:
    from hf_optim import metrics

    return metrics.load(name)


@lru_cache(maxsize=3)
def _embedded(name: str) -> Splits:
    from tasks.data.images import read

    folder, _, fine = name.partition("-")
    return read(HERE / folder, label="fine_label" if fine else "label")


@lru_cache(maxsize=1)
def _own(path: str, changed: int) -> Splits:
    """Your own files, read once for the runs of a process; `changed` makes files that were changed be read anew."""
    from tasks.data.images import read

    return read(Path(path))


def _newest(path: Path) -> int:
    """The time in ns of the last change to `path` and what is directly in it; 0 if it does not exist."""
    if not path.exists():
        return 0
    return max(entry.stat().st_mtime_ns for entry in [path, *(path.iterdir() if path.is_dir() else ())])


@lru_cache(maxsize=1)
def _hub(name: str, held_out: int) -> Splits:
    """A data set of the Hub, decoded in memory."""
    import datasets

    from tasks.data.images import assemble

    repository, image, label = HUB[name]
    try:
        parts = datasets.load_dataset(repository)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data: {repository} cannot be loaded from the Hub ({type(error).__name__}): "
            "connect, or give your own files with data=PATH, or take size small"
        ) from error
    found: dict[str, list[Any]] = {}
    for split in ("train", "validation", "test"):
        if split in parts:
            part = parts[split].cast_column(image, datasets.Image(decode=False))
            found[split] = [
                (f"{repository}, {split} row {i}", row[image]["bytes"], row[label]) for i, row in enumerate(part)
            ]
    return assemble(found, parts["train"].features[label].names, held_out=held_out)


TASK = Vision()
