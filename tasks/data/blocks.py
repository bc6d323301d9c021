"""Texts as blocks of tokens for causal language models.

The texts of a split are joined, each followed by the end mark, and cut into blocks of equal length. Consecutive blocks
share one token and the first one begins with an end mark, so that every token of the split is predicted exactly once.
Every byte of a text belongs to exactly one of its tokens, whatever the tokenizer, which makes bits per byte exact.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from hf_optim.errors import UserError
from hf_optim.tasks.data import paragraphs, places, published_texts
from hf_optim.tasks.data.tokenizer import using

IGNORED = -100
END, UNKNOWN = "<eos>", "<unk>"
#: ids of a tokenizer; the largest there are have some hundred thousand
MOST_IDS = 10_000_000


@dataclass(frozen=True)
class Stream:
    """The tokens of a split, the first being an end mark that is never predicted.

    ids: int64 [N]; covered: int64 [N], the bytes of UTF-8 text that each token stands for (an end mark: what follows
    the last token of its text, mostly none); unknown: bool [N], whether it says that but not which.
    """

    ids: np.ndarray
    covered: np.ndarray
    unknown: np.ndarray

    def first(self, count: int) -> Stream:
        """Its first so many tokens."""
        return Stream(self.ids[:count], self.covered[:count], self.unknown[:count])

    @property
    def bytes(self) -> int:
        """Bytes of all texts of the split."""
        return int(self.covered.sum())


class Blocks(Dataset[dict[str, torch.Tensor]]):
    """Blocks of `length` tokens of a stream.

    Args:
        whole: keep the last, shorter block, filled up with tokens that are not predicted; False leaves it out.
    """

    def __init__(self, stream: Stream, length: int, *, whole: bool) -> None:
        self.length = length
        predicted = len(stream.ids) - 1
        step = length - 1
        self.count = math.ceil(predicted / step) if whole else predicted // step
        filled = max(self.count * step + 1 - len(stream.ids), 0)
        end = int(stream.ids[0])
        self.ids = torch.from_numpy(np.pad(stream.ids, (0, filled), constant_values=end))
        self.targets = torch.from_numpy(np.pad(stream.ids, (0, filled), constant_values=IGNORED))
        covered, unknown = (
            np.pad(part, (0, filled))[1 : self.count * step + 1].reshape(self.count, step)
            for part in (stream.covered, stream.unknown)
        )
        self.covered = counted(covered, unknown)

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch: `input_ids` and `labels` int64 [n, length] (the model shifts the labels), `covered` [n, 3].

        The first label of a block is ignored: no model predicts it, but Trainer counts it for those (GPT-2) whose loss
        it does not know to be shifted, which would make loss and gradient (length - 1) / length of what they are.
        """
        chosen = torch.as_tensor(indices)
        places = chosen[:, None] * (self.length - 1) + torch.arange(self.length)
        labels = self.targets[places]
        labels[:, 0] = IGNORED
        return {"input_ids": self.ids[places], "labels": labels, "covered": self.covered[chosen]}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def counted(covered: np.ndarray, unknown: np.ndarray) -> torch.Tensor:
    """int64 [blocks, 3]: the bytes that the predicted tokens of each block cover, the unknown ones, and
    the bytes of those; from `covered` and `unknown` of a stream, [blocks, tokens] each.
    """
    parts = (covered, unknown, np.where(unknown, covered, 0))
    return torch.from_numpy(np.stack([part.sum(axis=1, dtype=np.int64) for part in parts], axis=1))


def spread(blocks: Blocks, most: int) -> Dataset[dict[str, torch.Tensor]]:
    """At most so many of the blocks, evenly spread over them."""
    if len(blocks) <= most:
        return blocks
    return Subset(blocks, [i * len(blocks) // most for i in range(most)])


def read(path: Path) -> tuple[dict[str, list[str]], str]:
    """The texts of each split of your own files, and a note about splits that were cut off the end of train.

    WikiText and the Penn Treebank as they are distributed (`data/published_texts.py`), where a line that is not empty
    is a text; parquet, CSV and JSONL as `data/paragraphs.py` reads them; in a `.txt` file every line is a text.

    Raises:
        UserError: no such path, no train split, a missing column, an empty split; each in one line.
    """
    places.check(path)
    if path.exists() and (published := published_texts.read(path)) is not None:
        lines_of, note = published
        return {split: [text for line in part if (text := line.strip())] for split, part in lines_of.items()}, note
    files = _text_files(path)
    if not files:
        return paragraphs.read(path)
    texts: dict[str, list[str]] = {}
    for split, file in files.items():
        texts[split] = [text for line in paragraphs.plain(file).splitlines() if (text := line.strip())]
        if not texts[split]:
            raise UserError(f"data: the {split} split is empty: {file} holds no text")
    if "train" not in texts:
        raise UserError(f"data: no train split in {path}: expected train.txt beside {', '.join(map(str, files))}")
    return texts, paragraphs.hold_out(texts)


def _text_files(path: Path) -> dict[str, Path]:
    """The `.txt` file of each split; none if there are tables, or neither."""
    if path.suffix == ".txt" and path.is_file():
        return {"train": path}
    if not path.is_dir():
        return {}
    names = {split: [f"{alias}.txt" for alias in paragraphs.ALIASES[split]] for split in paragraphs.SPLITS}
    tables = [file for file in path.iterdir() if file.suffix in paragraphs.SUFFIXES and file.suffix != ".txt"]
    by_split = {split: [path / name for name in names[split] if (path / name).is_file()] for split in names}
    return {} if tables else {split: files[0] for split, files in by_split.items() if files}


def words(texts: Sequence[str], vocabulary: int) -> Any:
    """A tokenizer of the most frequent words, split at white space as the Penn Treebank is.

    Args:
        texts: of the train split.
        vocabulary: the most entries, the end and unknown marks included; ties go to the word that comes first.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    counted = Counter(word for text in texts for word in text.split() if word not in (END, UNKNOWN))
    known = [END, UNKNOWN, *(word for word, _ in counted.most_common(vocabulary - 2))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token=UNKNOWN)


def fingerprint(tokenizer: Any) -> str:
    """16 hexadecimal characters of its vocabulary with the ids: the same after the tokenizer was saved and read."""
    entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def ids_of(tokenizer: Any) -> int:
    """How many ids a tokenizer's tokens go to: as many as it has tokens, or more where it leaves some out.

    Raises:
        UserError: more than any model has rows for.
    """
    return max(len(tokenizer), check_ids(tokenizer.get_vocab()))


def check_ids(vocabulary: Mapping[str, int]) -> int:
    """One more than the highest id of a vocabulary; a UserError where that is more than any model has rows for."""
    count = 1 + max(vocabulary.values(), default=0)
    if count > MOST_IDS:
        raise UserError(f"tokenizer: its ids go up to {count - 1}, more than any model has: take another one")
    return count


def end_of(tokenizer: Any) -> int:
    """The id of the end mark: the tokenizer's end, or else its beginning.

    Raises:
        UserError: it has neither.
    """
    for mark in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if mark is not None:
            return int(mark)
    raise UserError("tokenizer: it has neither an end nor a beginning mark: set its eos_token")


def encode(tokenizer: Any, texts: Sequence[str]) -> Stream:
    """The texts as one stream, an end mark before the first and after each.

    Raises:
        UserError: a text that is no valid Unicode.
    """
    end, unknown = end_of(tokenizer), tokenizer.unk_token_id
    ids, covered, blind = [np.array([end])], [np.array([0])], [np.array([False])]
    for start in range(0, len(texts), 1000):
        part = list(texts[start : start + 1000])
        try:
            borders = [_borders(text) for text in part]
        except UnicodeEncodeError as error:
            raise UserError(f"data: a text holds a lone surrogate ({error.reason}): repair its encoding") from error
        with using("tokenizer: it fails at a text of the data: save it again, or take another"):
            coded = tokenizer(
                part,
                add_special_tokens=False,
                return_offsets_mapping=True,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            )
        for text, border, tokens, offsets in zip(
            part, borders, coded["input_ids"], coded["offset_mapping"], strict=True
        ):
            spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
            # Tokens of one character share its end: the first of them takes its bytes, so that the sum is exact.
            ends = np.maximum.accumulate(np.append(border[spans[:, 1]], border[-1]))
            ids.append(np.append(np.asarray(tokens, dtype=np.int64), end))
            covered.append(np.diff(ends, prepend=0))
            missing = [
                token == unknown and text[a:b].strip() != tokenizer.unk_token
                for token, (a, b) in zip(tokens, offsets, strict=True)
            ]
            blind.append(np.array([*missing, False]))
    return Stream(np.concatenate(ids), np.concatenate(covered), np.concatenate(blind))


def _borders(text: str) -> np.ndarray:
    """The place in bytes of UTF-8 before each character and after the last, int64 [characters + 1]."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])


def frequency_loss(train: Stream, test: Stream, vocabulary: int) -> float:
    """Nats a token of predicting each test token by its frequency in train (every count plus one): what a model has to
    beat to have learnt anything of order.
    """
    counts = np.bincount(train.ids[1:], minlength=vocabulary) + 1.0
    return float(-np.log(counts / counts.sum())[test.ids[1:]].mean())
