"""Image generation by denoising diffusion: a UNet on digits, emoji, CIFAR-10 or images of your own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.core import extras
from hf_optim.errors import UserError
from hf_optim.experiment.task import REST, Data, Metric, Moment, Preset, Primary, Size, Source, Task, Value

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, TrainerCallback

    from hf_optim.tasks.data.images import Splits

HERE = Path(__file__).parent / "data"
EMBEDDED = {
    "digits": "5,000 real MNIST digits, grey (3,500/500/1,000)",
    "emoji": "3,812 emoji drawings, colour (3,048/296/468)",
}
HUB = {"cifar10": ("uoft-cs/cifar10", "img", "label")}

OPTIONS = {
    "resolution": "side of the square images; larger ones are scaled down, their middle square",
    "channels": "width of the UNet's first level",
    "multipliers": "the levels' widths, in `channels`; the resolution halves from one to the next",
    "attention": "resolutions with self-attention; the middle block always has it",
    "layers_per_block": "residual blocks of a level",
    "dropout": "in the residual blocks",
    "flip": "mirror every training image with probability 1/2",
    "timesteps": "of the diffusion, beta rising linearly from 1e-4 to 0.02 (at 1,000 timesteps)",
    "ema_decay": "of the weights' moving average, which is what is evaluated; 0 for the weights themselves",
    "generated": "images that are generated for each evaluation",
    "ddim_steps": "DDIM steps of each of them",
    "ddim_batch": "images generated at a time by one process",
    "real": "what generated images are compared with: `split` (the split that is evaluated) or `train`",
    "early": "share of the run after which one evaluation is added; 0 for none",
    "inception": "Inception weights for FID and IS: a path, `cache` (torch's own) or `none`",
}
UNET = ("resolution", "channels", "multipliers", "attention", "layers_per_block", "dropout", "flip", "timesteps",
        "ema_decay")  # fmt: skip
TINY = {
    "resolution": 8, "channels": 16, "multipliers": [1, 2], "attention": [], "layers_per_block": 1, "dropout": 0.0,
    "flip": False, "timesteps": 1000, "ema_decay": 0.99, "generated": 500, "ddim_steps": 100, "ddim_batch": 125,
    "real": "split", "early": 0.0, "inception": "none",
}  # fmt: skip
CIFAR = {
    "resolution": 32, "channels": 128, "multipliers": [1, 2, 2, 2], "attention": [16], "layers_per_block": 2,
    "dropout": 0.1, "flip": True, "timesteps": 1000, "ema_decay": 0.0, "generated": 50_000, "ddim_steps": 100,
    "ddim_batch": 128, "real": "train", "early": 10 / 2000, "inception": "cache",
}  # fmt: skip
#: where CIFAR's values stand: the paper has a U-Net, CIFAR-10's size, the steps, images and epochs of its evaluation
PARTS: dict[str, Source] = {
    REST: "paper", **dict.fromkeys(CIFAR, "code"), "resolution": "paper", "generated": "paper", "ddim_steps": "paper",
    "early": "paper", "ddim_batch": "ours", "inception": "ours",
}  # fmt: skip

SIZE_TABLE = {
    "smoke": Size(
        "seconds: 256 of the embedded digits at 8x8, for tests",
        {
            "unet": Preset(
                epochs=Value(1),
                steps=Value(8),
                batch_size=Value(32),
                optimizer=Value({"name": "adamw", "lr": 2e-3}),
                data=Value("digits"),
                model=Value(
                    {**TINY, "channels": 8, "ema_decay": 0.9, "generated": 64, "ddim_steps": 5, "ddim_batch": 32}
                ),  # fmt: skip
                max_grad_norm=Value(1.0, "code"),
                samples=Value(256),
                evaluations=Value(2),
            ),
        },
    ),
    "small": Size(
        "minutes on two cores: the embedded digits at 8x8; optimizers visibly differ",
        {
            "unet": Preset(
                epochs=Value(18, "ours", "bounded by steps"),
                steps=Value(1000),
                batch_size=Value(64),
                optimizer=Value({"name": "adamw", "lr": 2e-3}),
                data=Value("digits"),
                model=Value(TINY, "ours", "164 thousand parameters; an average that suits the short run"),
                schedule=Value({"name": "constant", "warmup": 50}, "ours", "the paper's 200 of 780,000 steps"),
                max_grad_norm=Value(1.0, "code"),
                evaluations=Value(4),
            ),
        },
    ),
    "paper": Size(
        "AGR's DDPM on CIFAR-10 from the Hub; for a GPU",
        {
            "unet": Preset(
                epochs=Value(2000, "paper", "AGR, Section 5.2"),
                batch_size=Value(128, "paper", "AGR, Section 5.2"),
                optimizer=Value({"name": "adamw", "lr": 2e-4}, "code", "one of six; each is given its rate only"),
                data=Value("cifar10", "paper"),
                model=Value(
                    CIFAR,
                    "code",
                    "DDIM in 100 steps, 50,000 images and epoch 10 of 2000 are printed; the code keeps an "
                    "average of the weights (.9999) and generates from the weights themselves",
                    PARTS,
                ),  # fmt: skip
                schedule=Value({"name": "constant", "warmup": 200}, "code", "its LambdaLR, as the text has"),
                max_grad_norm=Value(1.0, "code"),
                validation=Value(1000, "ours", "held out of train, for the loss; the paper has none"),
                evaluations=Value(5, "paper", "Tables 1 and 2: epochs 400, 800, 1200, 1600 and 2000, and `early`"),
                train_evaluation=Value(10_000),
                drop_last=Value(True, "code"),
            ),
        },
    ),
}


class DDPM(Task):
    """See the module.

    FID, KID and the Inception score end in `_small_cnn` where a small CNN stands in for Inception; without such an end
    they are the published kind.
    """

    name = "ddpm"
    title = "Image generation by diffusion (DDPM)"
    primary = Primary("test_fid_small_cnn", greater_is_better=False)
    metrics = tuple(
        Metric(name + extractor, greater)
        for extractor in ("", "_small_cnn")
        for name, greater in (("fid", False), ("kid", False), ("is", True), ("is_std", False))
    )
    models = ("unet",)
    sizes = SIZE_TABLE
    embedded = EMBEDDED
    options = OPTIONS
    label_names = ("timesteps",)

    def data(self, preset: Preset, source: str | None) -> Data:
        """The preset's set, the embedded one of a name (`./NAME` is a folder of yours), or files of your own."""
        extras.installed("ddpm", "diffusion")
        settings = checked(preset.model.value)
        extra = []
        if settings["inception"] != "none":  # first of all: it may be missing, and nothing should wait for that
            from hf_optim.tasks.models.extractors import inception

            extra.append(inception(settings["inception"]))
        from hf_optim.tasks.data.generated import Sampling
        from hf_optim.tasks.data.pictures import NoisedPictures, Pictures

        name = source or preset.data.value
        if name in EMBEDDED:
            splits, note = _embedded(name), f"{EMBEDDED[name]}; a subset, not comparable with published figures"
        elif source is None:
            splits, note = _hub(name, preset.validation.value), f"{HUB[name][0]} from the Hub"
        else:
            splits, note = _own(source, preset.validation.value or None), "files of your own"
            name = Path(source).resolve().name
        pixels, standin = _prepared(splits, settings["resolution"])
        note += f"; {splits.note}" if splits.note else ""
        limit = preset.samples.value if source is None else None
        if limit:
            pixels = {split: images[:limit] for split, images in pixels.items()}
            note += f"; the first {limit} samples of a split only"
        sides = "x".join(str(side) for side in pixels["train"].shape[2:])
        note += f"; at {sides}; {'; '.join(extractor.about for extractor in (standin, *extra))}"
        real = dict.fromkeys(("validation", "test"), pixels["train"]) if settings["real"] == "train" else pixels
        sampling = Sampling(
            settings["generated"], settings["ddim_steps"], settings["ddim_batch"], real, (standin, *extra)
        )
        train, validation, test = (
            NoisedPictures(pixels[split], settings["timesteps"]) for split in ("train", "validation", "test")
        )
        facts = {"image_channels": pixels["train"].shape[1], "settings": settings, "sampling": sampling}
        return Data(Pictures(pixels["train"]), validation, test, name, splits.fingerprint, note, facts, train)

    def synthetic(self, model: str, preset: Preset) -> Data:
        """See `Task`."""
        from hf_optim.tasks.data import synthetic

        settings = checked(preset.model.value)
        images = synthetic.images(preset.data.value, preset.validation.value, settings["resolution"])
        rows: Any = images.train
        del rows.columns["labels"]
        facts = {"image_channels": images.facts["shape"][0], "settings": settings}
        return synthetic.data(rows, images.name, {**facts, "train_samples": len(rows)})

    def model(self, name: str, preset: Preset, data: Data) -> PreTrainedModel:
        """The UNet for the data's channels."""
        from hf_optim.tasks.models.ddpm import DDPMConfig, DDPMModel
        from hf_optim.tasks.models.images import UNFIT

        chosen = {key: data.facts["settings"][key] for key in UNET}
        try:
            return DDPMModel(DDPMConfig(image_channels=data.facts["image_channels"], **chosen))
        except UNFIT as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"model {name!r}: {chosen} make no model: {' '.join(str(error).split())}") from error

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """The class that reads a checkpoint."""
        from hf_optim.tasks.models.ddpm import DDPMModel

        return DDPMModel

    def suits(self, model: PreTrainedModel, data: Data) -> None:
        """The images' size and channels must be the checkpoint's."""
        built = (model.config.image_channels, model.config.resolution, model.config.timesteps)
        settings = data.facts["settings"]
        here = (data.facts["image_channels"], settings["resolution"], settings["timesteps"])
        for quantity, theirs, ours in zip(("channels", "pixels a side", "timesteps"), built, here, strict=True):
            if theirs != ours:
                raise UserError(
                    f"checkpoint: its {quantity} are {theirs}, and those of {data.name} at this size {ours}: "
                    "give the --data and --model.KEY values of its training"
                )

    def measure(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        """The mean squared error of the noise, over images, in float64: `predictions` [N], one an image."""
        return {"loss": float(predictions.astype("float64").mean())}

    def sample(self, model: PreTrainedModel, data: Data, moment: Moment) -> dict[str, float]:
        """FID, KID and the Inception score of generated images, which are the same noise's every time."""
        figures: dict[str, float] = data.facts["sampling"].figures(model, moment)
        return figures

    def callbacks(self, model: PreTrainedModel, preset: Preset, steps: int) -> list[TrainerCallback]:
        """The moving average after every step; the early evaluation."""
        from hf_optim.tasks.models.ddpm import EvaluateAt, UpdateEMA

        early = round(preset.model.value["early"] * steps)
        return [UpdateEMA(), *([EvaluateAt(early)] if early else [])]

    def collate(self, data: Data) -> Callable[[Any], dict[str, Any]]:
        """The datasets' `__getitems__` give whole batches."""
        return dict


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they must be; a `UserError` says which is not and what it should be."""
    checked_values = dict(values)
    for key in ("resolution", "channels", "layers_per_block", "timesteps", "generated", "ddim_steps", "ddim_batch"):
        _require(key, _whole(checked_values[key], 1), "a whole number from 1", checked_values[key])
    for key in ("multipliers", "attention"):
        fine = isinstance(checked_values[key], (list, tuple)) and all(_whole(entry, 1) for entry in checked_values[key])
        _require(key, fine, "a list of whole numbers, as [1, 2, 2]", checked_values[key])
    for key in ("dropout", "ema_decay", "early"):
        fine = (
            isinstance(checked_values[key], (int, float))
            and not isinstance(checked_values[key], bool)
            and 0 <= checked_values[key] < 1
        )
        _require(key, fine, "a number from 0 up to but not including 1", checked_values[key])
        checked_values[key] = float(checked_values[key])
    _require("flip", isinstance(checked_values["flip"], bool), "true or false", checked_values["flip"])
    _require("real", checked_values["real"] in ("split", "train"), "split or train", checked_values["real"])
    _require(
        "inception", isinstance(checked_values["inception"], str), "a path, cache or none", checked_values["inception"]
    )
    _require("multipliers", bool(checked_values["multipliers"]), "at least one level", checked_values["multipliers"])
    _require(
        "channels",
        checked_values["channels"] % 2 == 0,
        "an even number (they are normalised in groups)",
        checked_values["channels"],
    )
    halvings = 2 ** (len(checked_values["multipliers"]) - 1)
    _require(
        "resolution", checked_values["resolution"] % halvings == 0,
        f"a multiple of {halvings} for {len(checked_values['multipliers'])} levels", checked_values["resolution"],
    )  # fmt: skip
    _require(
        "generated",
        checked_values["generated"] >= 20,
        "20 or more, for the ten parts of IS",
        checked_values["generated"],
    )
    _require(
        "ddim_steps",
        checked_values["ddim_steps"] <= checked_values["timesteps"],
        "at most the timesteps",
        checked_values["ddim_steps"],
    )
    return checked_values


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(key: str, fine: bool, expected: str, value: Any) -> None:
    if not fine:
        raise UserError(f"model: {key} must be {expected}, got {value!r}")


@lru_cache(maxsize=2)
def _prepared(splits: Splits, resolution: int) -> tuple[dict[str, Any], Any]:
    """The splits' pixels at `resolution` (a whole run's and its evaluations' alike), and the stand-in for them."""
    from hf_optim.tasks.data.pictures import pixels_of
    from hf_optim.tasks.models.extractors import small_cnn

    pixels = pixels_of(splits, resolution)
    standin = small_cnn(
        pixels["train"], splits.train.labels, len(splits.classes), (pixels["validation"], splits.validation.labels)
    )
    return pixels, standin


@lru_cache(maxsize=2)
def _embedded(name: str) -> Splits:
    from hf_optim.tasks.data.images import read

    return read(HERE / name)


def _own(source: str, held_out: int | None) -> Splits:
    from hf_optim.tasks.data.images import read

    return read(Path(os.path.realpath(source)), held_out=held_out)


@lru_cache(maxsize=1)
def _hub(name: str, held_out: int) -> Splits:
    from hf_optim.tasks.data.pictures import from_hub

    return from_hub(*HUB[name], held_out)


TASK = DDPM()
