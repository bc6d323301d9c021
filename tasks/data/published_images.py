"""The papers' image sets as they are distributed: archives or unpacked, known by their files' names.

- CIFAR-10 and CIFAR-100: `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, `cifar-100-...`, or their folders;
- MNIST: a folder with the four idx files, compressed or not;
- Tiny-ImageNet: `tiny-imagenet-200.zip`, or its folder;
- ImageNet: a folder with `train` and `val`, each with a folder a class (see `images`; unpack its archives).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_optim.errors import UserError
from hf_optim.tasks.data import archives, unpickled
from hf_optim.tasks.data.image_sets import Row

#: where torchvision and tar leave them below the folder that one names
BELOW = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary", "tiny-imagenet-200",
         "raw", "MNIST/raw")  # fmt: skip
#: of a split; EMNIST has 814,255
MOST_IMAGES = 2_000_000
#: bytes of a text beside the images
LARGEST_NOTES = 16 << 20
_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
_IDX = {
    "train": (("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
              ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte")),
    "test": (("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
             ("t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte")),
}  # fmt: skip


@dataclass(frozen=True)
class Distributed:
    """A set's name in `published_counts`, the rows of its splits, and the names of its classes if it tells them."""

    name: str
    rows: Mapping[str, list[Row]]
    classes: list[str]


def read(path: Path) -> Distributed | None:
    """The set that `path` is; None if it is none of them.

    Raises:
        UserError: it is one, and damaged.
    """
    if path.is_file():
        return _archive(path) if archives.is_archive(path) else None
    for folder in (path, *(path / name for name in BELOW)):
        if not folder.is_dir():
            continue
        if (folder / "val" / "val_annotations.txt").is_file():
            return _tiny_folder(folder)
        names = {file.name.removesuffix(".gz"): file for file in folder.iterdir() if file.is_file()}
        data = _known(str(folder), list(names), lambda name, names=names: archives.read_file(names[name]))  # type: ignore[misc]
        if data is not None:
            return data
    for file in sorted(path.iterdir()):  # the archive lies in the folder that is named
        if archives.is_archive(file) and file.name.startswith(("cifar-10", "tiny-imagenet")):
            return _archive(file)
    return None


def _archive(path: Path) -> Distributed | None:
    if path.suffix == ".zip":
        return _tiny_archive(path)
    members = archives.read_archive(path, lambda name: name.count("/") <= 1)
    files = {name.rpartition("/")[2]: content for name, content in members.items()}
    return _known(str(path), list(files), files.__getitem__)


def _known(place: str, names: list[str], content: Callable[[str], bytes]) -> Distributed | None:
    """The set whose files these are."""
    have = set(names)
    if {"data_batch_1", "test_batch"} <= have:
        splits = {"train": [name for name in _BATCHES if name in have], "test": ["test_batch"]}
        return _pickled("cifar10", place, splits, "labels", ("batches.meta", "label_names"), have, content)
    if {"train", "test", "meta"} <= have:
        splits = {"train": ["train"], "test": ["test"]}
        return _pickled("cifar100", place, splits, "fine_labels", ("meta", "fine_label_names"), have, content)
    if {"data_batch_1.bin", "test_batch.bin"} <= have:
        splits = {"train": [f"{name}.bin" for name in _BATCHES if f"{name}.bin" in have], "test": ["test_batch.bin"]}
        return _binary("cifar10", place, splits, 1, "batches.meta.txt", have, content)
    if {"train.bin", "test.bin"} <= have:
        splits = {"train": ["train.bin"], "test": ["test.bin"]}
        return _binary("cifar100", place, splits, 2, "fine_label_names.txt", have, content)
    if any(name in have for name in _IDX["train"][0]):
        return _idx(place, have, content)
    return None


def _pickled(
    name: str,
    place: str,
    splits: Mapping[str, list[str]],
    label: str,
    meta: tuple[str, str],
    have: set[str],
    content: Callable[[str], bytes],
) -> Distributed:
    def read(file: str) -> list[Row]:
        batch = unpickled.read(content(file), f"{place}/{file}")
        pixels, labels = batch.get("data"), batch.get(label)
        whole = isinstance(labels, list) and all(type(number) is int and abs(number) < 2**63 for number in labels)
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or not whole:
            raise UserError(f"data: {place}/{file}: no batch of CIFAR: no bytes 'data', or no numbers {label!r}")
        return _rows(f"{place}/{file}", pixels, labels)  # type: ignore[arg-type]

    rows = _joined(splits, read)
    names = unpickled.read(content(meta[0]), f"{place}/{meta[0]}").get(meta[1]) if meta[0] in have else None
    told = names if isinstance(names, list) else []
    return Distributed(name, rows, [n.decode("utf-8", "replace") for n in told if isinstance(n, bytes)])


def _binary(
    name: str,
    place: str,
    splits: Mapping[str, list[str]],
    labels: int,
    meta: str,
    have: set[str],
    content: Callable[[str], bytes],
) -> Distributed:
    """Records of `labels` label bytes, the last of them the one that counts, and 3,072 of pixels."""

    def read(file: str) -> list[Row]:
        raw = np.frombuffer(content(file), np.uint8)
        if not len(raw) or len(raw) % (labels + 3072):
            raise UserError(f"data: {place}/{file}: {len(raw)} bytes are no records of {labels + 3072}: fetch it anew")
        table = raw.reshape(-1, labels + 3072)
        return _rows(f"{place}/{file}", table[:, labels:], table[:, labels - 1].tolist())

    names = _notes(content(meta), f"{place}/{meta}").split() if meta in have else []
    return Distributed(name, _joined(splits, read), names)


def _joined(splits: Mapping[str, list[str]], read: Callable[[str], list[Row]]) -> dict[str, list[Row]]:
    """The rows of each split, file by file."""
    return {split: [row for file in files for row in read(file)] for split, files in splits.items()}


def _rows(place: str, pixels: np.ndarray, labels: list[int]) -> list[Row]:
    """Of pixels [N, 3072], channel by channel."""
    if pixels.ndim != 2 or pixels.shape[1] != 3072 or len(pixels) != len(labels):
        raise UserError(f"data: {place}: {len(labels)} labels for pixels of shape {list(pixels.shape)}: fetch it anew")
    pictures = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return [
        (f"{place}, image {i}", picture, label) for i, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    ]


def _idx(place: str, have: set[str], content: Callable[[str], bytes]) -> Distributed:
    rows: dict[str, list[Row]] = {}
    for split, (images, labels) in _IDX.items():
        chosen = [next((name for name in names if name in have), "") for names in (images, labels)]
        if not all(chosen):
            raise UserError(f"data: {place}: {images[0]} and {labels[0]} belong together, and one of them is missing")
        pixels, numbers = (_array(content(name), f"{place}/{name}") for name in chosen)
        if len(numbers) > MOST_IMAGES:
            raise UserError(
                f"data: {place}/{chosen[1]} holds more than {MOST_IMAGES:,} labels: it is none of the data sets"
            )
        if pixels.ndim != 3 or numbers.ndim != 1 or len(pixels) != len(numbers) or not pixels[:1].size:
            raise UserError(
                f"data: {place}: {chosen[0]} has shape {list(pixels.shape)} and {chosen[1]} {list(numbers.shape)}: "
                "they are not the images and labels of one split"
            )
        rows[split] = [
            (f"{place}/{chosen[0]}, image {i}", picture[:, :, None], label)
            for i, (picture, label) in enumerate(zip(pixels, numbers.tolist(), strict=True))
        ]
    return Distributed("mnist", rows, [])


def _array(content: bytes, place: str) -> np.ndarray:
    """The bytes of an idx file as an array: two zeros, the type (8: bytes), how many sizes, the sizes, the data."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise UserError(f"data: {place} is no idx file of bytes: fetch it anew")
    sizes = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
    body = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    try:
        return body.reshape(sizes)
    except ValueError:  # other numbers, or more sizes than NumPy has
        told = " x ".join(map(str, sizes))[:80]
        raise UserError(f"data: {place}: {len(body)} bytes are not {told}: it is cut short") from None


def _tiny_folder(folder: Path) -> Distributed:
    if not (folder / "train").is_dir():
        raise UserError(f"data: {folder} has no folder train: fetch it anew")
    train: list[Row] = [
        (str(file), file, place.name)
        for place in sorted((folder / "train").iterdir())
        for file in sorted((place / "images").glob("*.JPEG"))
    ]
    notes = archives.read_file(folder / "val" / "val_annotations.txt")
    test: list[Row] = [
        (str(folder / "val" / "images" / name), folder / "val" / "images" / name, label)
        for name, label in _annotations(notes, str(folder / "val"))
    ]
    return Distributed("tiny-imagenet", {"train": train, "test": test}, [])


def _tiny_archive(path: Path) -> Distributed | None:
    files = archives.read_archive(
        path, lambda name: name.endswith((".JPEG", "val_annotations.txt")) and "/test/" not in f"/{name}"
    )
    notes = next((name for name in files if name.endswith("val/val_annotations.txt")), None)
    if notes is None:
        return None
    root = notes.removesuffix("val/val_annotations.txt")
    train: list[Row] = [
        (f"{path}: {name}", content, name.removeprefix(f"{root}train/").split("/")[0])
        for name, content in sorted(files.items())
        if name.startswith(f"{root}train/")
    ]
    test: list[Row] = []
    for name, label in _annotations(files[notes], f"{path}: {notes}"):
        place = f"{root}val/images/{name}"
        if place not in files:
            raise UserError(f"data: {path}: there is no {place}, of which {notes} tells: fetch it anew")
        test.append((f"{path}: {place}", files[place], label))
    return Distributed("tiny-imagenet", {"train": train, "test": test}, [])


def _annotations(content: bytes, place: str) -> list[tuple[str, str]]:
    """(file, class) of each line of val_annotations.txt."""
    rows = [line.split("\t") for line in _notes(content, place).splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or Path(row[0]).name != row[0] or row[0] in ("", ".", ".."):
            raise UserError(f"data: {place}, line {number}: expected a file's name, a tab and its class")
    return [(row[0], row[1]) for row in rows]


def _notes(content: bytes, place: str) -> str:
    """What a set says of its files or classes; Tiny-ImageNet's has 300 kB."""
    if len(content) > LARGEST_NOTES:
        raise UserError(f"data: {place} has more than {LARGEST_NOTES >> 20} MB: fetch it anew")
    return content.decode("utf-8", "replace")
