"""Labelled images as tensors: from parquet, CSV, image folders or the Hub, without torchvision.

A source of your own is one of
- a folder with `train`, and if there are any `validation` and `test`, as `.parquet` or `.csv` files;
- a folder with such sub-folders, each holding one folder of image files a class (or these class folders alone);
- one `.parquet` or `.csv` file;
- a paper's set as it is distributed (see `distributed`).
Tables have the columns `image` (a path relative to the CSV file; in parquet the encoded bytes, or datasets' image
type) and `label` (integers from 0, or names). Missing splits are taken out of `train`: 10% of the samples each, the
same ones every time.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.tasks.data import places, published_images, tables
from hf_optim.tasks.data.image_sets import (
    IMAGENET_MOMENTS,
    EncodedImages,
    Images,
    Moments,
    Places,
    Row,
    identity,
    picture,
)
from hf_optim.tasks.data.published_counts import IMAGES, VALIDATION_IS_TEST, difference

SPLITS = ("train", "validation", "test")
ALIASES = {
    "validation": ("validation", "val", "valid", "dev"),
    "train": ("train", "training"),
    "test": ("test", "testing"),
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
HELD_OUT = 0.1
#: classes of a set; ImageNet-21k has 21,841
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Splits:
    """The three splits, the classes' names, the images' shape, and a SHA-256 of all images and labels."""

    train: Images | EncodedImages
    validation: Images | EncodedImages
    test: Images | EncodedImages
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    fingerprint: str
    note: str


def read(
    path: Path,
    label: str = "label",
    size: int | None = None,
    *,
    published: str | None = None,
    held_out: int | None = None,
) -> Splits:
    """The images of `path`, see the module; `size` as in `assemble`.

    Args:
        published: the set that is asked for, if it may be a paper's: sizes are then compared, and its validation split
            is the test where the papers do so.
        held_out: of a paper's set as it is distributed, as in `assemble`.

    Raises:
        UserError: no such path, no images, a missing column, a file that is no image, images of different sizes,
            labels that are not 0 to C-1, one class only, an empty split; each says where and what to do.
    """
    if not path.exists():
        raise UserError(f"data: no such file or folder: {path}")
    places.check(path)
    known = published_images.read(path)
    if known is not None:
        return _published(known.name, known.rows, known.classes, size, held_out)
    splits: dict[str, list[Row]] = {}
    names: list[str] = []
    for split, source in _sources(path).items():
        if source.is_dir():
            rows = list(_folder_rows(source))
        elif source.suffix == ".csv":
            rows = list(_csv_rows(source, label))
        else:
            rows, names = _parquet_rows(source, label, names)
        if not rows:
            raise UserError(f"data: the {split} split is empty: {source} holds no images")
        splits[split] = rows
    if "train" not in splits:
        raise UserError(f"data: no train split in {path}: expected train.parquet, train.csv or a folder train/")
    if published is not None and published in VALIDATION_IS_TEST and "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        return _published(published, splits, names, size, held_out)
    return assemble(splits, names, size=size)


def _published(
    name: str, rows: Mapping[str, Sequence[Row]], classes: Sequence[str], size: int | None, held_out: int | None
) -> Splits:
    """A paper's set, with a word about it in the note."""
    told = difference(name, {split: len(part) for split, part in rows.items()})
    splits = assemble(rows, classes, held_out=held_out, size=size, moments=IMAGES[name].moments)
    return replace(splits, note="; ".join(text for text in (told or name, splits.note) if text))


def assemble(
    splits: Mapping[str, Sequence[Row]],
    names: Sequence[str] = (),
    held_out: int | None = None,
    *,
    size: int | None = None,
    moments: Moments | None = None,
) -> Splits:
    """Decode, check, split and normalise rows.

    Args:
        splits: the rows of each split; `train` is among them.
        names: of the classes, if the labels are numbers that have names.
        held_out: samples of a missing split (default: 10% of train).
        size: leave the images encoded and read them when they are asked for, as colour pictures of this many pixels a
            side; without it they are decoded now and must be of one size.
        moments: mean and deviation of each channel in [0, 1]; default: of the train split, or ImageNet's with `size`.
    """
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"data: the {split} split is empty: it holds no images")
    if len(names) > MOST_CLASSES:
        raise UserError(f"data: {len(names)} classes are named: more than {MOST_CLASSES} are not taken")
    where = {split: Places(rows) for split, rows in splits.items()}
    arrays: dict[str, np.ndarray] = {}
    if size is None:
        for split, rows in splits.items():
            arrays[split] = _decode(rows, [*arrays.values()])
        _same_shape(arrays, where)
    labels, classes = _labels({split: _values(rows) for split, rows in splits.items()}, where, names)
    parts, note = _hold_out(labels, held_out)
    if size is not None:
        return _lazily(splits, labels, classes, parts, note, size, moments or IMAGENET_MOMENTS)
    if len({array.shape[3] for array in arrays.values()}) > 1:
        arrays = {split: np.repeat(a, 3, axis=3) if a.shape[3] == 1 else a for split, a in arrays.items()}
    pixels = {split: arrays[source][at] for split, (source, at) in parts.items()}
    targets = {split: labels[source][at] for split, (source, at) in parts.items()}
    return _tensors(pixels, targets, classes, note, moments)


def _tensors(
    arrays: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    classes: tuple[str, ...],
    note: str,
    moments: Moments | None,
) -> Splits:
    """The datasets, with the mean and deviation of the train split, and the fingerprint of everything."""
    digest = hashlib.sha256(repr(classes).encode())
    pixels = {}
    for split in SPLITS:
        pixels[split] = torch.from_numpy(np.ascontiguousarray(arrays[split].transpose(0, 3, 1, 2)))
        digest.update(f"{split}{tuple(pixels[split].shape)}".encode())
        digest.update(pixels[split].numpy().tobytes())
        digest.update(labels[split].tobytes())
    train = arrays["train"].reshape(-1, arrays["train"].shape[3])
    mean, std = (torch.from_numpy(of(axis=0, dtype=np.float64) / 255).float() for of in (train.mean, train.std))
    if (std == 0).any():
        raise UserError(
            "data: all pixels of the train split are equal in a channel: these images carry nothing to learn"
        )
    if moments is not None:
        mean, std = torch.tensor(moments[0]), torch.tensor(moments[1])
    images = {split: Images(pixels[split], torch.from_numpy(labels[split]), mean, std) for split in SPLITS}
    channels, height, width = pixels["train"].shape[1:]
    return Splits(**images, classes=classes, shape=(channels, height, width), fingerprint=digest.hexdigest(), note=note)


def _lazily(
    splits: Mapping[str, Sequence[Row]],
    labels: dict[str, np.ndarray],
    classes: tuple[str, ...],
    parts: dict[str, tuple[str, Any]],
    note: str,
    size: int,
    moments: Moments,
) -> Splits:
    digest = hashlib.sha256(repr(classes).encode())
    for split in sorted(splits):
        digest.update(f"{split} {identity(splits[split])}".encode())
        digest.update(labels[split].tobytes())
    mean, std = torch.tensor(moments[0]), torch.tensor(moments[1])
    images = {}
    for split, (source, at) in parts.items():
        positions = torch.arange(len(splits[source]))[torch.as_tensor(at) if isinstance(at, np.ndarray) else at]
        targets = torch.from_numpy(labels[source][at])
        images[split] = EncodedImages(splits[source], positions, targets, mean, std, size)
    return Splits(**images, classes=classes, shape=(3, size, size), fingerprint=digest.hexdigest(), note=note)


def _values(rows: Sequence[Row]) -> Sequence[Any]:
    """The labels; rows that know them all at once need not read their images for it."""
    known = getattr(rows, "labels", None)
    return [row[2] for row in rows] if known is None else known


def _sources(path: Path) -> dict[str, Path]:
    """The file or folder of each split."""
    if path.is_file():
        if path.suffix not in (".parquet", ".csv"):
            raise UserError(f"data: {path} is neither .parquet nor .csv, nor a folder or a paper's archive")
        return {"train": path}
    sources = {}
    for split in SPLITS:
        for alias in ALIASES[split]:
            candidates = [path / f"{alias}.parquet", path / f"{alias}.csv", path / alias]
            existing = [candidate for candidate in candidates if candidate.is_file() or candidate.is_dir()]
            if existing and split not in sources:
                sources[split] = existing[0]
    if sources:
        return sources
    if any(entry.is_dir() and any(_image_files(entry)) for entry in path.iterdir()):
        return {"train": path}
    raise UserError(
        f"data: no images in {path}: expected train.parquet, train.csv, train/CLASS/IMAGE or CLASS/IMAGE files in it"
    )


def _image_files(folder: Path) -> Iterator[Path]:
    return (file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES)


def _folder_rows(folder: Path) -> Iterator[Row]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            for file in _image_files(entry):
                yield str(file), file, entry.name


def _csv_rows(file: Path, label: str) -> Iterator[Row]:
    places.check_file(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            _need_columns(file, reader.fieldnames or [], label)
            for row in reader:
                image, value = row["image"], row[label]
                place = f"{file}, line {reader.line_num}"
                if not image or value in (None, ""):
                    raise UserError(f"data: {place}: image or {label} is empty")
                yield place, file.parent / image, int(value) if re.fullmatch("-?[0-9]{1,18}", value) else value
    except (OSError, UnicodeDecodeError, csv.Error) as error:  # not UTF-8, a cell of megabytes
        raise UserError(f"data: {file} cannot be read as csv: {tables.why(error)}") from error


def _parquet_rows(file: Path, label: str, names: list[str]) -> tuple[list[Row], list[str]]:
    table = tables.read(file)
    _need_columns(file, table.column_names, label)
    known = tables.class_names(table.schema.metadata, label)
    if names and known and known != names:
        raise UserError(f"data: {file} numbers its classes otherwise than the splits before it: {_short(known)}")
    names = names or known
    rows: list[Row] = []
    images, labels = (tables.column(table, name, file) for name in ("image", label))
    for number, (image, value) in enumerate(zip(images, labels, strict=True)):
        place = f"{file}, row {number}"
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str):
            image = file.parent / image
        if image is None or value is None:
            raise UserError(f"data: {place}: image or {label} is empty")
        if not isinstance(image, (bytes, Path)):
            raise UserError(f"data: {place}: column image must hold encoded images (PNG, JPEG) or paths, not numbers")
        rows.append((place, image, value))
    return rows, names


def _need_columns(file: Path, columns: Sequence[str], label: str) -> None:
    for column in ("image", label):
        if column not in columns:
            raise UserError(f"data: {file} has no column {column!r}; it has {tables.listed(columns)}: rename yours")


def _decode(rows: Sequence[Row], others: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [N, height, width, channels] beside `others`: one channel if all are grey, else three; clear is white."""
    pictures: list[np.ndarray] = []
    held, channels = sum(a.size // a.shape[3] for a in others), max((a.shape[3] for a in others), default=1)
    for place, image, _ in rows:
        pictures.append(picture(place, image))
        first, other = pictures[0].shape[:2], pictures[-1].shape[:2]
        if first != other:  # before the rest is decoded, which may not fit into memory
            raise UserError(_sizes(rows[0][0], first, place, other))
        channels = max(channels, pictures[-1].shape[2])
        if (size := (held + other[0] * other[1] * len(rows)) * channels) > tables.LARGEST:  # from some hundred bytes
            images = counted(len(rows) + sum(map(len, others)), "image")
            raise UserError(
                f"data: {images} of {first[1]}x{first[0]} ({place}) have {size / 1e9:.1f} GB in memory, and at most "
                f"{tables.LARGEST >> 30} GB are held: let option image_size read them one by one"
            )
    if any(each.shape[2] == 3 for each in pictures):
        pictures = [np.repeat(each, 3, axis=2) if each.shape[2] == 1 else each for each in pictures]
    return np.stack(pictures)


def _sizes(place: str, size: tuple[int, ...], other_place: str, other: tuple[int, ...]) -> str:
    return (
        f"data: images differ in size: {size[1]}x{size[0]} ({place}) and {other[1]}x{other[0]} ({other_place}): "
        "resize them all to one size first, or let option image_size do it"
    )


def _same_shape(arrays: dict[str, np.ndarray], where: Mapping[str, Sequence[str]]) -> None:
    train = arrays["train"].shape[1:3]
    for split, array in arrays.items():
        if array.shape[1:3] != train:
            raise UserError(_sizes(where["train"][0], train, where[split][0], array.shape[1:3]))


def _labels(
    values: Mapping[str, Sequence[Any]], where: Mapping[str, Sequence[str]], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels as indices and the classes' names. Names are numbered in their sorted order in the train split."""
    texts = {isinstance(value, str) for split in values.values() for value in split}
    if texts == {True, False}:
        raise UserError("data: some labels are numbers and some are names: use one kind")
    if texts == {True}:
        classes = tuple(sorted(set(values["train"])))
        index = {name: number for number, name in enumerate(classes)}
        for split, entries in values.items():
            for place, value in zip(where[split], entries, strict=True):
                if value not in index:
                    raise UserError(f"data: {place}: label {_short(value)} does not occur in the train split")
        numbers = {split: np.asarray([index[value] for value in entries]) for split, entries in values.items()}
    else:
        count = len(names) or len({value for value in values["train"] if isinstance(value, int)})
        for split, entries in values.items():
            for place, value in zip(where[split], entries, strict=True):
                if isinstance(value, bool) or not isinstance(value, int):
                    raise UserError(f"data: {place}: label {_short(value)} is neither a whole number nor a name")
                if not 0 <= value < count:
                    raise UserError(
                        f"data: {place}: label {_short(value)} is not one of 0 to {count - 1} "
                        f"(the train split has {count} classes): number the classes from 0 without gaps"
                    )
        classes = tuple(names) or tuple(str(number) for number in range(count))
        numbers = {split: np.asarray(entries) for split, entries in values.items()}
    if len(set(numbers["train"].tolist())) < 2:
        raise UserError("data: the train split has one class only: there is nothing to tell apart")
    return {split: entries.astype(np.int64) for split, entries in numbers.items()}, classes


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _hold_out(labels: dict[str, np.ndarray], held_out: int | None) -> tuple[dict[str, tuple[str, Any]], str]:
    """Where each split's samples stand: missing ones are taken out of train, the same ones whatever a run's seed.

    Gives split -> (the split that holds its samples, their positions in it), and a note of what was taken.
    """
    notes = []
    left = np.arange(len(labels["train"]))
    places: dict[str, tuple[str, Any]] = {}
    for split in ("test", "validation"):
        if split in labels:
            places[split] = split, slice(None)
            continue
        count = held_out or max(1, round(HELD_OUT * len(left)))
        if count >= len(left) - 1:
            raise UserError(
                f"data: {len(left)} train samples are too few to take a {split} split of {count} out of them"
            )
        order = np.random.default_rng(0).permutation(len(left))
        places[split] = "train", left[np.sort(order[:count])]
        left = left[np.sort(order[count:])]
        notes.append(f"{split}: {counted(count, 'sample')} taken out of train")
    places["train"] = "train", left if notes else slice(None)
    if len(set(labels["train"][places["train"][1]].tolist())) < 2:
        raise UserError("data: after taking the missing splits out, train has one class only: bring more samples")
    return places, "; ".join(notes)
