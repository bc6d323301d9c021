"""Aligned text in two languages: from two plain files, TSV, parquet or the Hub.

A source of your own is one of
- a folder with `train`, and if there are any `validation` and `test`, each as `train.parquet`, `train.tsv`, or two
  files `train.de` and `train.en` with one sentence a line;
- Multi30k as it is distributed (see `published_texts`);
- one `.parquet` or `.tsv` file, or `NAME` for two files `NAME.de` and `NAME.en`.
Tables name the languages' columns in their first line (TSV, tab-separated, without quoting) or schema; `de` and `en`
stand for whatever the columns are called. Missing splits are taken out of `train`: 10% of the pairs each, the same
ones every time.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.tasks.data import paragraphs, places, published_texts, tables

SPLITS = ("train", "validation", "test")
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
HELD_OUT = 0.1


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, in the same order."""

    source: tuple[str, ...]
    target: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)

    def take(self, indices: Iterable[int]) -> Pairs:
        """The pairs at `indices`."""
        chosen = list(indices)
        return Pairs(tuple(self.source[i] for i in chosen), tuple(self.target[i] for i in chosen))

    def head(self, count: int | None) -> Pairs:
        """The first `count` pairs; all for None."""
        return Pairs(self.source[:count], self.target[:count])


@dataclass(frozen=True)
class Corpus:
    """The three splits, a SHA-256 of all their texts, and what was done to them."""

    train: Pairs
    validation: Pairs
    test: Pairs
    fingerprint: str
    note: str


def read(path: Path, source: str = "de", target: str = "en") -> Corpus:
    """The pairs of `path`, see the module; `source` and `target` are columns, or the files' suffixes.

    Raises:
        UserError: no such path, no pairs, a missing column, files of different lengths, an empty split or sentence, a
            file that cannot be read; each says where and what to do.
    """
    if source == target:
        raise UserError(f"data: source_column and target_column are both {source!r}: name two columns")
    for name in (source, target):
        if not name or "/" in name or "\0" in name:
            raise UserError(f"data: {name!r} is neither a column nor how a file's name ends")
    published = published_texts.multi30k(path, (source, target))
    if published is not None:
        texts, note = published
        aligned = {split: _aligned(two, f"{path}, {split}", (source, target)) for split, two in texts.items()}
        corpus = assemble(aligned)
        return replace(corpus, note="; ".join(text for text in (note, corpus.note) if text))
    splits: dict[str, Pairs] = {}
    for split, files in _sources(path, source, target).items():
        if len(files) == 2:
            splits[split] = _plain(files[0], files[1], source, target)
        elif files[0].suffix == ".tsv":
            splits[split] = _tsv(files[0], source, target)
        else:
            splits[split] = _parquet(files[0], source, target)
    if "train" not in splits:
        raise UserError(
            f"data: no train split in {path}: expected train.parquet, train.tsv or train.{source} and train.{target}"
        )
    return assemble(splits)


def assemble(read_splits: Mapping[str, Pairs]) -> Corpus:
    """Splits from what was found; a missing validation or test split is taken out of train."""
    for split, pairs in read_splits.items():
        if not pairs:
            raise UserError(f"data: the {split} split is empty: it holds no sentence pairs")
    splits, notes = dict(read_splits), []
    for split in ("test", "validation"):
        if split in splits:
            continue
        train = splits["train"]
        count = max(1, round(HELD_OUT * len(train)))
        if count >= len(train) - 1:
            raise UserError(
                f"data: {len(train)} train pairs are too few to take a {split} split of {count} out of them"
            )
        order = random.Random(0).sample(range(len(train)), len(train))
        splits[split], splits["train"] = train.take(sorted(order[:count])), train.take(sorted(order[count:]))
        notes.append(f"{split}: {counted(count, 'pair')} taken out of train")
    return Corpus(splits["train"], splits["validation"], splits["test"], fingerprint(splits), "; ".join(notes))


def fingerprint(splits: Mapping[str, Pairs]) -> str:
    """SHA-256 of every sentence in order, with its place."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for side in (splits[split].source, splits[split].target):
            digest.update(f"{split} {len(side)}\n".encode())
            for text in side:
                digest.update(text.encode())
                digest.update(b"\0")
    return digest.hexdigest()


def columns(table: Mapping[str, Sequence[object]], place: str, source: str, target: str) -> Pairs:
    """The pairs of a table's two columns; `place` names it in messages, rows count from 0."""
    _need_columns(place, list(table), source, target)
    return pairs(table[source], table[target], f"{place}, row", (source, target), 0)


def pairs(source: Sequence[object], target: Sequence[object], place: str, sides: tuple[str, str], first: int) -> Pairs:
    """Checked and stripped pairs; `place` and `first` (the number of the first line or row) are for messages."""
    columns: list[tuple[str, ...]] = []
    for texts, side in zip((source, target), sides, strict=True):
        kept = []
        for number, text in enumerate(texts, first):
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"data: {place}: column {side!r} holds {type(text).__name__}, not text: name a column of texts"
                )
            if text is None or not text.strip():
                raise UserError(f"data: {place} {number}: the {side!r} sentence is empty: remove the pair")
            kept.append(text.strip())
        columns.append(tuple(kept))
    return Pairs(columns[0], columns[1])


def _sources(path: Path, source: str, target: str) -> dict[str, tuple[Path, ...]]:
    """The one table or the two files of each split."""
    places.check(path)
    if path.is_file():
        if path.suffix not in (".parquet", ".tsv"):
            raise UserError(
                f"data: {path} is neither .parquet nor .tsv: give a table, a folder, or NAME of NAME.{source}"
            )
        return {"train": (path,)}
    if not path.is_dir():
        both = _both(path, source, target)
        if both is None:
            raise UserError(f"data: no such file or folder: {path} (nor {path.name}.{source} and {path.name}.{target})")
        return {"train": both}
    sources: dict[str, tuple[Path, ...]] = {}
    for split in SPLITS:
        for alias in ALIASES[split]:
            tables = [(table,) for table in (path / f"{alias}.parquet", path / f"{alias}.tsv") if table.is_file()]
            files = tables[0] if tables else _both(path / alias, source, target)
            if files is not None and split not in sources:
                sources[split] = files
    if not sources:
        raise UserError(
            f"data: no sentence pairs in {path}: expected train.parquet, train.tsv, or train.{source} and "
            f"train.{target} (other names: --model.source_column and --model.target_column)"
        )
    return sources


def _both(stem: Path, source: str, target: str) -> tuple[Path, Path] | None:
    """`stem.de` and `stem.en`; None if neither is there."""
    files = stem.with_name(f"{stem.name}.{source}"), stem.with_name(f"{stem.name}.{target}")
    there = [file.is_file() for file in files]
    if any(there) and not all(there):
        raise UserError(f"data: {files[there.index(True)]} has no {files[there.index(False)].name} beside it")
    return files if all(there) else None


def _plain(source: Path, target: Path, source_name: str, target_name: str) -> Pairs:
    """Two files, one sentence a line; only a line feed ends a line, as in other tools for aligned text."""
    texts = paragraphs.plain(source, "\n"), paragraphs.plain(target, "\n")
    return _aligned(texts, str(source.parent / source.stem), (source_name, target_name))


def _aligned(texts: tuple[str, str], place: str, sides: tuple[str, str]) -> Pairs:
    lines = [text.removesuffix("\n").split("\n") if text else [] for text in texts]
    if len(lines[0]) != len(lines[1]):
        counts = f"{len(lines[0])} lines and {Path(place).name}.{sides[1]} has {len(lines[1])}"
        raise UserError(
            f"data: {place}.{sides[0]} has {counts}: line N of one must be the translation of line N of the other"
        )
    return pairs(lines[0], lines[1], f"{place}.{sides[0]}/{sides[1]}, line", sides, 1)


def _tsv(file: Path, source: str, target: str) -> Pairs:
    rows = [line.removesuffix("\r").split("\t") for line in paragraphs.plain(file, "\n").removesuffix("\n").split("\n")]
    header = [name.strip() for name in rows[0]]
    _need_columns(file, header, source, target)
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise UserError(
                f"data: {file}, line {number}: {len(row)} columns where the first line names {len(header)}: separate "
                "them by one tab, and leave no tab inside a sentence"
            )
    columns = [[row[header.index(name)] for row in rows[1:]] for name in (source, target)]
    return pairs(columns[0], columns[1], f"{file}, line", (source, target), 2)


def _parquet(file: Path, source: str, target: str) -> Pairs:
    table = tables.read(file)
    names = table.column_names
    texts = {name: tables.column(table, name, file) if name in (source, target) else [] for name in names}
    return columns(texts, str(file), source, target)


def _need_columns(where: object, columns: Sequence[str], source: str, target: str) -> None:
    for name, option in ((source, "source_column"), (target, "target_column")):
        if name not in columns:
            there = tables.listed(columns)
            raise UserError(
                f"data: {where} has no column {name!r}; it has {there}: name the column with --model.{option}"
            )
