"""Running text as paragraphs, in order, and paragraphs as sentences.

A source of your own is one of
- a folder with `train`, and if there are any `validation` and `test`, as `.parquet`, `.csv`, `.jsonl` or `.txt` files;
- one such file;
- WikiText or the Penn Treebank as they are distributed (see `published_texts`).
Tables have a column `text` with one paragraph a row; in a `.txt` file an empty line ends a paragraph. Missing splits
are cut off the end of `train`: 10% of the paragraphs each, so that they come from other articles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.tasks.data import places, published_texts, tables

SPLITS = ("train", "validation", "test")
ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
TABLES = (".parquet", ".csv", ".jsonl")
SUFFIXES = (*TABLES, ".txt")
HELD_OUT = 0.1
PART = 1 << 24  # letters that are read at a time

# A full stop after one of these words, or after a single letter, ends no sentence.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr st prof rev hon gen sen rep gov capt cpt lt col sgt maj adm jr sr no nos vol vols vs cf fig figs al "
    "op ed eds pp approx est inc ltd co corp bros mt ft jan feb mar apr jun jul aug sep sept oct nov dec "
    "e.g i.e u.s u.k u.n d.c a.m p.m b.c a.d ph.d".split()
)
# From each place it looks as far as one run of stops reaches, and no further: texts are long, and some have no spaces.
_END = re.compile(r"(?<![.!?…])([.!?…]+)([\"'”’»)\]]*)\s+")


def sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, in order, without the white space around them.

    A sentence ends at `.`, `!`, `?` or `…` (and closing quotes or brackets) before white space, unless a lower-case
    letter follows or the full stop belongs to an abbreviation or an initial.
    """
    cut, begin, seen, letter = [], 0, 0, 0
    for match in _END.finditer(paragraph):
        while letter < len(paragraph) and (letter < match.end() or not paragraph[letter].isalnum()):
            letter = max(letter + 1, match.end())
        follows = paragraph[letter : letter + 1]
        before = paragraph[seen : match.start()].split()
        word = before[-1].lstrip("\"'“‘«([").lower() if before and not paragraph[match.start() - 1].isspace() else ""
        seen = match.end()
        dotted = match[1] == "." and not match[2] and (word in ABBREVIATIONS or (len(word) == 1 and word.isalpha()))
        if follows and not follows.islower() and not dotted:
            cut.append(paragraph[begin : match.end()].strip())
            begin = match.end()
    rest = paragraph[begin:].strip()
    return [*cut, rest] if rest else cut


def read(path: Path) -> tuple[dict[str, list[str]], str]:
    """The paragraphs of each split of `path` (see the module), and a note about splits that were cut off.

    Raises:
        UserError: no such path, an unknown kind of file, no column `text`, values that are no texts, a file that
            cannot be read, an empty split; each in one line with what to do.
    """
    if not path.exists():
        raise UserError(f"data: no such file or folder: {path}")
    places.check(path)
    published = published_texts.read(path)
    if published is not None:
        lines, note = published
        return {split: running(part) for split, part in lines.items()}, note
    splits: dict[str, list[str]] = {}
    for split, file in sources(path).items():
        splits[split] = [text for text in _paragraphs(file) if text and not text.isspace()]
        if not splits[split]:
            raise UserError(f"data: the {split} split is empty: {file} holds no text")
    return splits, hold_out(splits)


def running(lines: Iterable[str]) -> list[str]:
    """The paragraphs among lines of WikiText, of which others are empty or, between equals signs, headings."""
    stripped = (line.strip() for line in lines)
    return [line for line in stripped if line and not line.startswith("= ")]


def apart(splits: dict[str, list[str]]) -> int:
    """Take texts out of validation and test that stand in train too, or in validation, in place; gives how many."""
    seen, dropped = set(splits["train"]), 0
    for split in ("validation", "test"):
        kept = [text for text in splits[split] if text not in seen]
        if not kept:
            raise UserError(f"data: every text of the {split} split stands in another split too: bring other texts")
        dropped += len(splits[split]) - len(kept)
        seen |= set(kept)
        splits[split] = kept
    return dropped


def hold_out(splits: dict[str, list[str]]) -> str:
    """Cut missing splits off the end of train, in place; gives a note that says so."""
    notes = []
    for split in ("test", "validation"):
        if split not in splits:
            total = len(splits["train"])
            count = max(1, round(HELD_OUT * total))
            if total < 3:
                raise UserError(f"data: too few to take a {split} split out of them: {counted(total, 'paragraph')}")
            splits["train"], splits[split] = splits["train"][:-count], splits["train"][-count:]
            notes.append(f"{split}: the last {counted(count, 'paragraph')} of train")
    return "; ".join(notes)


def sources(path: Path, suffixes: Sequence[str] = SUFFIXES) -> dict[str, Path]:
    """The file of each split of a folder, or the one file as train; of the kinds that the suffixes tell.

    Raises:
        UserError: no such path, another kind of file, two files for a split, no train split.
    """
    if not path.exists():
        raise UserError(f"data: no such file or folder: {path}")
    places.check(path)
    if path.is_file():
        if path.suffix not in suffixes:
            raise UserError(f"data: {path} is none of {', '.join(suffixes)} and no folder of such files")
        return {"train": path}
    names = {split: [alias + suffix for alias in ALIASES[split] for suffix in suffixes] for split in SPLITS}
    present = {split: [path / name for name in names[split] if (path / name).is_file()] for split in SPLITS}
    for split, files in present.items():
        if len(files) > 1:
            raise UserError(f"data: {path} holds {files[0].name} and {files[1].name}: keep one file for {split}")
    if not present["train"]:
        raise UserError(f"data: no train split in {path}: expected train{', train'.join(suffixes)}")
    return {split: files[0] for split, files in present.items() if files}


def plain(file: Path, newline: str | None = None) -> str:
    """A file of plain text; `newline` as in `open`.

    Raises:
        UserError: it is none; UTF-16 without its mark is UTF-8 with a NUL at every other place.
    """
    parts: list[str] = []
    try:
        with file.open(encoding="utf-8-sig", newline=newline) as stream:
            while part := stream.read(PART):
                if "\0" in part:  # holes are nothing else, and cost nothing to send: they are not read on
                    at = sum(map(len, parts)) + part.index("\0")
                    raise UserError(
                        f"data: {file} holds a NUL character (at {at}): it is no text, or one in another encoding "
                        "(UTF-16): convert it to UTF-8 first"
                    )
                parts.append(part)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data: {file} cannot be read as UTF-8 text ({tables.why(error)}): convert it first") from error
    return "".join(parts)


def _paragraphs(file: Path) -> Sequence[str]:
    if file.suffix == ".txt":
        return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", plain(file))]
    return [" ".join(value.split()) for value in texts(file) if value is not None]


def texts(file: Path, column: str = "text") -> list[str | None]:
    """A column of a table, as it stands there.

    Raises:
        UserError: no such column, values that are no texts, a file that cannot be read.
    """
    table = tables.read(file, ("text", "question", "answer"))
    if column not in table.column_names:
        columns = tables.listed(table.column_names)
        raise UserError(f"data: {file} has no column {column!r}; it has {columns}: rename yours")
    values: list[str | None] = tables.column(table, column, file)
    for number, value in enumerate(values):
        if not isinstance(value, str | None):
            raise UserError(
                f"data: {file}, row {number}: column {column!r} must hold texts, not {type(value).__name__}"
            )
    return values
