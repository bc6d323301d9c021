"""Logistic and softmax regression: a convex task whose minimum is known, so that what is left to it can be measured.

There is no penalty. The problem is well-posed because no plane separates the embedded digits on 25 features: the mean
loss then has a minimum, which is found to a gradient of 1e-12 or less. Data that are separable are refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core.validate import no_choice
from hf_optim.errors import UserError
from hf_optim.experiment.task import Data, Metric, Preset, Primary, Size, Task, Value

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from hf_optim.tasks.data.images import Splits

HERE = Path(__file__).parent / "data"
EMBEDDED = {"digits": "5,000 real MNIST digits, pooled to 5x5 (3,500/500/1,000)"}
HUB = {"mnist": ("ylecun/mnist", "image", "label")}
#: the middle 20x20 pixels, where the digits are, in fields of 4x4
SHAPE = {"crop": 4, "pool": 4}
ADAM = {"name": "adam", "lr": 1e-2}


def _presets(size: str) -> dict[str, Preset]:
    presets = {}
    for name, labels in (("logistic", "parity"), ("softmax", "all")):
        model: Value[dict[str, Any]] = Value({**SHAPE, "labels": labels}, "ours", "no penalty, 25 features and a bias")
        if size == "paper":
            presets[name] = Preset(
                epochs=Value(20, "ours", "AMVT prints none"),
                batch_size=Value(128, "ours", "one of AMVT's printed grid, 32 to 512"),
                optimizer=Value({"name": "amvt", "lr": 1e-2}, "ours", "lr one of AMVT's printed grid, 1e-5 to 1e-1"),
                data=Value("mnist", "ours", "AMVT names logistic regression and no data"),
                model=model,
                validation=Value(5000, "ours", "held out of train"),
                evaluation_batch=Value(4096),
            )
        else:
            presets[name] = Preset(
                epochs=Value(2 if size == "smoke" else 40),
                batch_size=Value(50),
                optimizer=Value(ADAM),
                data=Value("digits"),
                model=model,
                evaluations=Value(2 if size == "smoke" else 20),
                evaluation_batch=Value(4096),
            )
    return presets


SIZE_TABLE = {
    "smoke": Size("seconds: two epochs of the embedded digits, for tests", _presets("smoke")),
    "small": Size("seconds: forty epochs of the embedded digits", _presets("small")),
    "paper": Size("MNIST from the Hub; AMVT names the problem and prints no setting", _presets("paper")),
}


class Logistic(Task):
    """See the module; `logistic` tells even digits from odd ones, `softmax` all ten."""

    name = "logistic"
    title = "Logistic regression (convex)"
    primary = Primary("test_loss", greater_is_better=False)
    metrics = (Metric("accuracy", True, "share"), Metric("excess", False, "nats"))
    models = ("logistic", "softmax")
    sizes = SIZE_TABLE
    embedded = EMBEDDED
    label_names = ("labels", "floor")

    def data(self, preset: Preset, source: str | None) -> Data:
        """Pooled images as features, each with its loss at the train split's minimum.

        facts: inputs, outputs, and `minimum` (`hf_optim.tasks.data.convex.Minimum`) of the train split.
        """
        values = _checked(preset.model.value)
        name = source or preset.data.value
        own = source is not None and source not in EMBEDDED
        if preset.samples.value is not None:
            raise UserError("task 'logistic' has no limit on samples")
        place = os.path.realpath(name) if own else name
        changed = _newest(Path(place)) if own else 0
        return _prepared(place, own, preset.validation.value, values["crop"], values["pool"], values["labels"], changed)

    def synthetic(self, model: str, preset: Preset) -> Data | None:
        """See `Task`; none where the border is all of such images: your own may be larger."""
        import torch

        from hf_optim.tasks.data import synthetic
        from hf_optim.tasks.data.published_counts import IMAGES

        values, known = _checked(preset.model.value), IMAGES[preset.data.value]
        side = known.shape[1] - 2 * values["crop"]
        if side < values["pool"]:
            return None
        inputs = (side // values["pool"]) ** 2
        outputs = 1 if model == "logistic" else known.classes
        labels = torch.arange(synthetic.ROWS) % max(2, outputs)
        features = torch.randn(synthetic.ROWS, inputs, dtype=torch.float64, generator=synthetic.generator())
        columns = {"features": features, "labels": labels, "floor": torch.zeros(synthetic.ROWS, dtype=torch.float64)}
        samples = known.train - preset.validation.value
        facts = {"inputs": inputs, "outputs": outputs, "train_samples": samples}
        return synthetic.data(synthetic.Rows(columns, samples), preset.data.value, facts)

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """One linear layer at zero, float64; a `UserError` if the data's classes are not the model's."""
        from hf_optim.tasks.models.linear import LinearConfig, LinearForClassification

        inputs, outputs = data.facts["inputs"], data.facts["outputs"]
        if (outputs == 1) != (name == "logistic"):
            raise UserError(
                f"model {name!r} is for {'two classes' if name == 'logistic' else 'three classes or more'}: "
                f"take --model {'softmax' if name == 'logistic' else 'logistic'} for these data"
            )
        return LinearForClassification(LinearConfig(inputs=inputs, outputs=outputs))

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint of `name`."""
        from hf_optim.tasks.models.linear import LinearForClassification

        return LinearForClassification

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """The dataset's `__getitems__` gives whole batches."""
        return dict

    def reduce(self, logits: Any, labels: Any) -> Any:
        """[batch, 3] float64: loss in nats, right or not, and the loss at the minimum."""
        import torch

        from hf_optim.tasks.models.linear import classes, losses

        truth, floor = labels
        return torch.stack([losses(logits, truth), (classes(logits) == truth).double(), floor], dim=1)

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """loss (nats), accuracy, and excess: loss minus that of the train split's minimiser on the same samples. On the
        train split that is f(x) - f*; on others it may be negative.
        """
        loss, accuracy, floor = (float(mean) for mean in predictions.mean(axis=0))
        return {"loss": loss, "accuracy": accuracy, "excess": loss - floor}

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """Raise a `UserError` if a checkpoint has other features or classes."""
        for key in ("inputs", "outputs"):
            if getattr(model.config, key) != data.facts[key]:
                raise UserError(
                    f"checkpoint: its model has {getattr(model.config, key)} {key}, the data {data.facts[key]}: "
                    "give the data and options of its run"
                )


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    """The options; a `UserError` names one that is out of range."""
    for key, least in (("crop", 0), ("pool", 1)):
        if isinstance(values[key], bool) or not isinstance(values[key], int) or values[key] < least:
            raise UserError(f"options: {key} must be an integer of at least {least}, got {values[key]!r}")
    if values["labels"] not in (known := ("parity", "all")):
        raise UserError(f"options: {no_choice('labels', values['labels'], known)}")
    return values


@lru_cache(maxsize=4)
def _prepared(place: str, own: bool, held_out: int, crop: int, pool: int, labels: str, changed: int) -> Data:
    """The data and their minimum, made once for the runs of a process."""
    import numpy as np
    import torch

    from hf_optim.tasks.data.convex import Features, Objective, pooled

    splits, note = _images(place, own, held_out)
    truth = {split: getattr(splits, split).labels for split in ("train", "validation", "test")}
    classes = len(splits.classes)
    if labels == "parity" and classes > 2:
        if own:
            raise UserError(f"data: model 'logistic' needs two classes, yours have {classes}: take --model softmax")
        truth, classes = {split: numbers % 2 for split, numbers in truth.items()}, 2
    raw = {split: pooled(getattr(splits, split), crop, pool) for split in truth}
    mean, spread = raw["train"].mean(dim=0), raw["train"].std(dim=0, correction=0)
    scale = torch.where(spread > 1e-12, spread, torch.inf)  # a feature that never changes is the bias's affair: 0
    features = {split: (values - mean) / scale for split, values in raw.items()}
    best = Objective(features["train"].numpy(), truth["train"].numpy(), classes).minimum()
    by_split = {}
    for split, values in features.items():
        objective = Objective(values.numpy(), truth[split].numpy(), classes)
        floor = torch.from_numpy(np.ascontiguousarray(objective.losses(best.weights)))
        by_split[split] = Features(values, truth[split], floor)
    note += f"; {values.shape[1]} features; least train loss {best.value:.10f} (gradient {best.gradient:.0e})"
    facts = {"inputs": values.shape[1], "outputs": best.weights.shape[0], "minimum": best}
    name = Path(place).name if own else place
    return Data(
        **by_split, name=name, fingerprint=f"{splits.fingerprint}-{crop}-{pool}-{classes}", note=note, facts=facts
    )


def _images(place: str, own: bool, held_out: int) -> tuple[Splits, str]:
    from hf_optim.tasks.data.images import assemble, read

    if own:
        splits = read(Path(place), held_out=held_out or None)
        return splits, "files of your own" + (f"; {splits.note}" if splits.note else "")
    if place in EMBEDDED:
        return read(HERE / place), EMBEDDED[place]
    import datasets

    from hf_optim.tasks.data import hub

    repository, image, label = HUB[place]
    parts = hub.load(repository, key="data")
    rows: dict[str, list[Any]] = {}
    for split in parts:
        part = parts[split].cast_column(image, datasets.Image(decode=False))
        rows[split] = [
            (f"{repository}, {split} row {i}", row[image]["bytes"], row[label]) for i, row in enumerate(part)
        ]
    splits = assemble(rows, parts["train"].features[label].names, held_out=held_out)
    return splits, f"{repository} from the Hub; {splits.note}"


def _newest(path: Path) -> int:
    """The time in ns of the last change to `path` and what is directly in it; 0 if it does not exist."""
    if not path.exists():
        return 0
    return max(entry.stat().st_mtime_ns for entry in [path, *(path.iterdir() if path.is_dir() else ())])


TASK = Logistic()
