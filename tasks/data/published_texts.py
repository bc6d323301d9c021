"""The papers' texts as they are distributed: archives or unpacked, known by their files' names.

- WikiText-2 and -103: `wikitext-2-raw-v1.zip`, `wikitext-2-v1.zip`, or a folder with `wiki.train.raw` or `.tokens`;
- the Penn Treebank: `simple-examples.tgz`, or a folder with `ptb.train.txt`;
- Multi30k: a folder with `train.de`, `val.de`, `test_2016_flickr.de` and their `.en`, each compressed or not, or with
  the archives `training.tar.gz`, `validation.tar.gz` and `mmt16_task1_test.tar.gz`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hf_optim.errors import UserError
from hf_optim.tasks.data import archives
from hf_optim.tasks.data.published_counts import TEXTS, difference

#: of a file; WikiText-103 has 1.8 million
MOST_LINES = 20_000_000
_STEMS = {"train": "train", "validation": "valid", "test": "test"}
#: file names of a split's text, by the set's kind
_FILES: dict[str, dict[str, tuple[str, ...]]] = {
    "wikitext": {split: (f"wiki.{stem}.raw", f"wiki.{stem}.tokens") for split, stem in _STEMS.items()},
    "ptb": {split: (f"ptb.{stem}.txt",) for split, stem in _STEMS.items()},
}
#: where the archives put them below the folder that is named
BELOW = ("wikitext-2-raw", "wikitext-2", "wikitext-103-raw", "wikitext-103", "data", "simple-examples/data")
MULTI30K = {
    "train": ("train",),
    "validation": ("val",),
    "test": ("test_2016_flickr", "test2016", "test_2016", "flickr2016", "test"),
}
_PACKED = ("training.tar.gz", "validation.tar.gz", "mmt_task1_test2016.tar.gz", "mmt16_task1_test.tar.gz")


def read(path: Path) -> tuple[dict[str, list[str]], str] | None:
    """The lines of each split of the text that `path` is, and a note; None if it is none of them.

    A line is a sentence of the Penn Treebank, and of WikiText a paragraph, a heading (`= Title =`) or empty.

    Raises:
        UserError: it is one, and a file of it is missing or cannot be read.
    """
    if archives.is_archive(path):
        wanted = {name for files in _FILES.values() for names in files.values() for name in names}
        members = archives.read_archive(path, lambda name: name.rpartition("/")[2] in wanted)
        return _text(path, {name.rpartition("/")[2]: content for name, content in members.items()}.get)
    for folder in (path, *(path / name for name in BELOW)):
        if folder.is_dir() and (corpus := _text(folder, lambda name, folder=folder: _content(folder / name))):  # type: ignore[misc]
            return corpus
    for file in sorted(path.iterdir()) if path.is_dir() else ():  # the archive lies in the folder that is named
        if archives.is_archive(file) and file.name.startswith(("wikitext-", "simple-examples")):
            return read(file)
    return None


def is_one(path: Path) -> bool:
    """Whether `path` is a folder with one of these texts in files, which are then no documents of one corpus."""
    first = [name for files in _FILES.values() for name in files["train"]]
    return any(
        _there(folder / name) is not None for folder in (path, *(path / below for below in BELOW)) for name in first
    )


def _there(file: Path) -> Path | None:
    return next((path for path in (file, file.with_name(f"{file.name}.gz")) if path.is_file()), None)


def _content(file: Path) -> bytes | None:
    place = _there(file)
    return None if place is None else archives.read_file(place)


def _text(place: Path, content: Callable[[str], bytes | None]) -> tuple[dict[str, list[str]], str] | None:
    for kind, files in _FILES.items():
        read = {split: next((c for name in names if (c := content(name)) is not None), None)
                for split, names in files.items()}  # fmt: skip
        if read["train"] is None:
            continue
        lines: dict[str, list[str]] = {}
        for split, raw in read.items():
            if raw is None:
                raise UserError(f"data: {place} has {files['train'][0]} and no {files[split][0]}")
            lines[split] = decoded(raw, f"{place}/{files[split][0]}").removesuffix("\n").split("\n")
        name = kind
        if kind == "wikitext":
            name = "wikitext-103" if len(lines["train"]) > 2 * TEXTS["wikitext-2"].train else "wikitext-2"
        told = difference(name, {split: len(part) for split, part in lines.items()})
        return lines, told or f"{name} as it is distributed"
    return None


def decoded(raw: bytes, place: str) -> str:
    """A file's text; a `UserError` if it is not UTF-8, or holds NUL characters or lines that no text has: they are
    packed small.
    """
    if b"\0" in raw or raw.count(b"\n") > MOST_LINES:
        raise UserError(f"data: {place} holds NUL characters or more than {MOST_LINES:,} lines: fetch it anew")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"data: {place} is not UTF-8 (byte {error.start}): convert it, with iconv for instance"
        ) from error


def multi30k(path: Path, sides: tuple[str, str]) -> tuple[dict[str, tuple[str, str]], str] | None:
    """The texts of both languages of each split of Multi30k, and a note; None if the folder does not hold it. Plain
    files of names that anybody's have are for `parallel.read`.

    Raises:
        UserError: it does, and a file of it is missing or cannot be read.
    """
    if not path.is_dir():
        return None
    packed: dict[str, bytes] = {}
    for file in (path / name for name in _PACKED):
        if file.is_file():
            members = archives.read_archive(file, lambda name: name.rpartition("/")[2].endswith(sides))
            packed |= {name.rpartition("/")[2]: content for name, content in members.items()}
    if not packed and (path / f"test.{sides[0]}").is_file():
        return None
    parts: dict[str, tuple[str, str]] = {}
    for split, stems in MULTI30K.items():
        for stem in stems:
            texts = [_side(path, f"{stem}.{side}", packed) for side in sides]
            if texts[0] is not None and texts[1] is not None and split not in parts:
                parts[split] = texts[0], texts[1]
            elif (texts[0] is None) != (texts[1] is None):
                raise UserError(f"data: {path}: of {stem} there is only one of the languages {sides[0]} and {sides[1]}")
    if "train" not in parts or "test" not in parts:
        return None
    if "validation" not in parts:
        raise UserError(
            f"data: {path} has train.{sides[0]} and no val.{sides[0]}, or is not Multi30k: unpack its files"
        )
    told = difference("multi30k", {split: text[0].removesuffix("\n").count("\n") + 1 for split, text in parts.items()})
    return parts, told or "multi30k as it is distributed"


def _side(path: Path, name: str, packed: Mapping[str, bytes]) -> str | None:
    raw = packed.get(name) if name in packed else _content(path / name)
    return None if raw is None else decoded(raw, f"{path}/{name}")
