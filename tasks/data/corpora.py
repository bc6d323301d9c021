"""Corpora that are too large to hold: read as a stream of documents, packed into token files once, and mapped.

A document goes to validation or test by its own SHA-256 (half a per cent each), so that the split is the same whoever
makes it and however much is read, and equal documents never stand on both sides. Equal held-out documents count once.
What is made is kept below the cache folder under the hash of everything that decides it, whole or not at all; two
processes that make the same do it twice, and one of them wins.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from hf_optim.core import shape
from hf_optim.errors import UserError
from hf_optim.experiment.files import read_json, remove
from hf_optim.tasks.data import cache, hub, paragraphs, places, published_texts
from hf_optim.tasks.data.blocks import END, IGNORED, UNKNOWN, Stream, counted, encode, end_of, ids_of

FORMAT = 2  # changes when the same documents would give other files
#: name -> (repository, configuration); the column `text` of the split `train` of each
HUB = {
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-100BT"),
    "c4": ("allenai/c4", "en"),
    "openwebtext": ("Skylion007/openwebtext", None),
}
HELD_OUT = {"validation": 5, "test": 5}  # of 1,000 documents
TOKENS = 100_000_000  # of train, unless the options say otherwise
TRAINED_ON = 20_000  # documents of train that a tokenizer is trained on
BATCH = 1000  # documents that are tokenized together
_COUNTED = {"tokens": int, "documents": int, "bytes": int}
FACTS = {"splits": dict.fromkeys(paragraphs.SPLITS, _COUNTED), "dropped": int, "ended": bool,
         "width": ("uint16", "uint32")}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """The splits of a corpus as mapped tokens, and what they are.

    `facts` has tokens and documents of each split, `dropped` (held-out documents that were there before), and whether
    the source was read to its end.
    """

    streams: dict[str, Stream]
    facts: dict[str, Any]


class Packed(Dataset[dict[str, torch.Tensor]]):
    """Blocks of `length` tokens of a mapped stream, as `blocks.Blocks` gives them, without the last, shorter one."""

    def __init__(self, stream: Stream, length: int) -> None:
        self.stream, self.length = stream, length
        self.count = (len(stream.ids) - 1) // (length - 1)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Any) -> dict[str, torch.Tensor]:
        places = np.asarray(indices)[:, None] * (self.length - 1) + np.arange(self.length)
        ids = torch.from_numpy(self.stream.ids[places].astype(np.int64))
        labels = ids.clone()
        labels[:, 0] = IGNORED
        later = places[:, 1:]
        return {
            "input_ids": ids,
            "labels": labels,
            "covered": counted(self.stream.covered[later], self.stream.unknown[later]),
        }

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def split_of(document: str) -> str:
    """train, validation or test, by the document's own hash."""
    place = int.from_bytes(hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()[:8], "big") % 1000
    for split, share in HELD_OUT.items():
        if place < share:
            return split
        place -= share
    return "train"


def documents(name: str) -> Iterator[str]:
    """The documents of a corpus of the Hub by its name here, as they are streamed."""
    import datasets

    repository, config = HUB[name]
    rows = hub.load(repository, config=config, split="train", streaming=True)
    try:
        for row in rows:
            yield row["text"]
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"data: {repository} cannot be streamed from the Hub ({type(error).__name__}): connect, or give files of "
            "your own with data=PATH"
        ) from error


def is_folder_of_documents(path: Path) -> bool:
    """A folder of tables or texts none of which is called train: all of it is one corpus, split here."""
    if not path.is_dir() or published_texts.is_one(path):
        return False
    named = {alias for aliases in paragraphs.ALIASES.values() for alias in aliases}
    files = _files(path)
    return bool(files) and not any(file.parent == path and file.stem in named for file in files)


def documents_in(path: Path) -> Iterator[str]:
    """The documents of the files below `path`, in the order of their names: the rows of a table's column `text`, a text
    file as a whole.
    """
    places.check(path)
    for file in _files(path):
        if file.suffix == ".txt":
            yield paragraphs.plain(file)
        else:
            yield from (text for text in paragraphs.texts(file) if text is not None)


def fingerprint_of(path: Path) -> str:
    """A hash of the names, sizes and times of the files below `path`; of the two times that a file has, an archive
    brings one along, and nobody chooses the other: a stranger's files are not taken for those they are called like.
    """
    known = [(str(f.relative_to(path)), (s := f.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for f in _files(path)]
    return hashlib.sha256(repr(known).encode()).hexdigest()


def identity(tokenizer: Any) -> str:
    """A hash of all that decides its tokens. Of its words alone it would not do: what a stranger's tokenizer makes of a
    corpus would be kept as that of any other with the same words.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}
    marks = end_of(tokenizer), tokenizer.unk_token_id, tokenizer.unk_token
    return hashlib.sha256(json.dumps([told, *marks]).encode()).hexdigest()


def prepare(source: Iterable[str], key: str, tokenizer: Any, tokens: int) -> Corpus:
    """The corpus of `source` as tokens of `tokenizer`, from the cache where it was made before.

    Args:
        source: the documents; read only if the cache has not got them, and only as far as `tokens` asks.
        key: what says which documents these are.
        tokens: so many of train at most.

    Raises:
        UserError: a split without a document, a disk that is full.
    """
    settings = repr((FORMAT, key, identity(tokenizer), tokens))
    home = cache.folder() / f"corpus-{hashlib.sha256(settings.encode()).hexdigest()[:32]}"
    facts = _kept(home)
    if facts is None:
        try:
            cache.make(home.parent)
            with tempfile.TemporaryDirectory(dir=home.parent, prefix="making-") as making:
                _write(source, Path(making) / "made", tokenizer, tokens)
                try:
                    os.replace(Path(making) / "made", home)
                except OSError:
                    if _kept(home) is None:  # else another process was done first
                        remove(home.parent, home.name)
                        os.replace(Path(making) / "made", home)
        except OSError as error:
            raise UserError(f"data: the tokens cannot be kept in {home.parent}: {error.strerror or error}") from error
        facts = _kept(home)
    if facts is None:
        raise UserError(f"data: the tokens in {home} are damaged while they are read: take the folder away")
    return Corpus({split: _read(home, split, facts["width"]) for split in paragraphs.SPLITS}, facts)


def _kept(home: Path) -> dict[str, Any] | None:
    """What is known of a corpus in the cache; None where there is none, or one that is cut short."""
    try:
        facts = read_json(home, "corpus.json")
        shape.check_shape(facts, FACTS, "corpus.json")
        sizes = {part: np.dtype(kind).itemsize for part, kind in _parts(facts["width"]).items()}
        whole = all(
            (home / f"{split}.{part}").stat().st_size == size * facts["splits"][split]["tokens"]
            for split in paragraphs.SPLITS
            for part, size in sizes.items()
        )
    except (OSError, ValueError):
        return None
    return facts if whole else None


def trained_tokenizer(source: Iterable[str], key: str, kind: str, vocabulary: int) -> Any:
    """A byte-level BPE ("bpe") of the first train documents, or their most frequent words ("words"); kept under `key`,
    so that the documents are not read again.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    settings = repr((FORMAT, key, kind, vocabulary, TRAINED_ON))
    name = f"corpus-tokenizer-{hashlib.sha256(settings.encode()).hexdigest()[:32]}.json"
    kept = cache.read(name)
    try:
        known = None if kept is None else Tokenizer.from_str(kept.decode())
    except Exception:  # a damaged one is made anew; tokenizers raises nothing more precise
        known = None
    if known is None:
        known = _trained(source, kind, vocabulary).backend_tokenizer
        cache.keep(name, known.to_str().encode())
    return PreTrainedTokenizerFast(
        tokenizer_object=known, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def _trained(source: Iterable[str], kind: str, vocabulary: int) -> Any:
    from hf_optim.tasks.data import blocks
    from hf_optim.tasks.data import tokenizer as training

    some: list[str] = []
    for document in source:
        if split_of(document) == "train":
            some.append(document)
        if len(some) >= TRAINED_ON:
            break
    if kind == "words":
        return blocks.words(some, vocabulary)
    roles = {"eos_token": END, "unk_token": UNKNOWN}
    return training.train("bpe", some, vocabulary, (END, UNKNOWN), roles=roles)


def _files(path: Path) -> list[Path]:
    return sorted(places.below(path, *paragraphs.SUFFIXES))


def _write(source: Iterable[str], home: Path, tokenizer: Any, tokens: int) -> None:
    """Token files of each split, and last of all corpus.json."""
    home.mkdir()
    width = "uint16" if ids_of(tokenizer) <= 2**16 else "uint32"
    counts = {split: {"tokens": 0, "documents": 0, "bytes": 0} for split in paragraphs.SPLITS}
    files = {split: {part: (home / f"{split}.{part}").open("wb") for part in _parts(width)} for split in counts}
    seen: set[bytes] = set()
    dropped, ended = 0, True
    try:
        for batch in _batches(source):
            by_split: dict[str, list[str]] = {split: [] for split in counts}
            for document in batch:
                split = split_of(document)
                digest = hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()
                if split != "train" and digest in seen:
                    dropped += 1
                    continue
                if split != "train":
                    seen.add(digest)
                by_split[split].append(document)
            for split, texts in by_split.items():
                if texts:
                    _append(encode(tokenizer, texts), files[split], counts[split], len(texts), width)
            if counts["train"]["tokens"] >= tokens:
                ended = False
                break
    finally:
        for parts in files.values():
            for file in parts.values():
                file.close()
    for split, count in counts.items():
        if not count["documents"]:
            total = sum(c["documents"] for c in counts.values())
            raise UserError(f"data: none of {total} documents falls into {split}: bring more, or files of each split")
    facts = {"splits": counts, "dropped": dropped, "ended": ended, "width": width}
    (home / "corpus.json").write_text(json.dumps(facts), encoding="utf-8")


def _batches(source: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in source:
        if document and not document.isspace():
            batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _parts(width: str) -> dict[str, str]:
    return {"ids": width, "covered": "uint32", "unknown": "bool"}


def _append(stream: Stream, files: dict[str, Any], count: dict[str, int], documents: int, width: str) -> None:
    first = 0 if not count["tokens"] else 1  # one end mark alone stands before the first document
    for part, kind in _parts(width).items():
        getattr(stream, part)[first:].astype(kind).tofile(files[part])
    count["tokens"] += len(stream.ids) - first
    count["documents"] += documents
    count["bytes"] += stream.bytes


def _read(home: Path, split: str, width: str) -> Stream:
    return Stream(**{part: np.memmap(home / f"{split}.{part}", kind, "r") for part, kind in _parts(width).items()})
