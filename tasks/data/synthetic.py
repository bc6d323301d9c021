"""Random data of the form that a task trains on, so that models of paper size can be stepped without the papers' data.

Nothing is learnt from them: they are for memory, operations and time. `facts["train_samples"]` says how many samples
the real train split has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from hf_optim.errors import UserError
from hf_optim.experiment.task import Data
from hf_optim.tasks.data.published_counts import IMAGES, TEXTS

#: so many rows are drawn, and repeated
ROWS = 64
#: bytes of a row, of which `ROWS` are drawn whatever a sample is: a gigabyte in all
MOST_OF_A_ROW = 1 << 24
#: tokens of a sentence: Multi30k's have about 15
SENTENCE = (8, 24)


class Rows(Dataset[dict[str, torch.Tensor]]):
    """`rows` given columns, again and again, as a data set of `samples`."""

    def __init__(self, columns: Mapping[str, torch.Tensor], samples: int) -> None:
        self.columns, self.samples = dict(columns), samples

    def __len__(self) -> int:
        return self.samples

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch."""
        chosen = torch.as_tensor(indices) % len(next(iter(self.columns.values())))
        return {name: column[chosen] for name, column in self.columns.items()}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def data(train: Dataset[Any], name: str, facts: Mapping[str, Any]) -> Data:
    """The same rows as every split."""
    return Data(train, train, train, name, "synthetic", "synthetic", facts)


def _check_row(numbers: int, each: int) -> None:
    """Raise a UserError for rows of so many numbers, of so many bytes each, that nobody could look at them."""
    if numbers * each > MOST_OF_A_ROW:
        raise UserError(f"a sample of {numbers:,} numbers is more than is looked at beforehand")


def _check_words(vocabulary: int) -> None:
    """Raise a UserError for more words than a model has."""
    from hf_optim.tasks.data import blocks as texts

    if vocabulary > texts.MOST_IDS:
        raise UserError(f"options: vocabulary must be at most {texts.MOST_IDS:,}, got {vocabulary:,}")


def generator() -> torch.Generator:
    """Draws beside torch's own random state."""
    return torch.Generator().manual_seed(0)


def images(name: str, held_out: int, size: int | None) -> Data:
    """Pictures of the set `name`, of `size` pixels a side if they are resized; as many as are left to train on."""
    known, draw = IMAGES[name], generator()
    shape = (known.shape[0], size, size) if size else known.shape
    _check_row(math.prod(shape), 4)
    labels = torch.randint(known.classes, (ROWS,), generator=draw)
    columns = {"pixel_values": torch.randn(ROWS, *shape, generator=draw), "labels": labels}
    samples = known.train - held_out
    facts = {"shape": shape, "classes": tuple(str(number) for number in range(known.classes))}
    return data(Rows(columns, samples), name, {**facts, "train_samples": samples})


def blocks(name: str, length: int, vocabulary: int) -> Data:
    """Blocks of a text for a causal language model, with a tokenizer of as many words."""
    from hf_optim.tasks.data import blocks as texts

    _check_words(vocabulary)
    _check_row(length, 16)
    tokenizer = texts.words([" ".join(f"w{number}" for number in range(vocabulary))], vocabulary)
    known = TEXTS.get(name)
    words = 400_000 if known is None else known.words
    ids = torch.randint(vocabulary, (ROWS, length), generator=generator())
    labels = ids.clone()
    labels[:, 0] = texts.IGNORED
    samples = words // (length - 1)
    facts = {"tokenizer": tokenizer, "fingerprint": "synthetic", "vocabulary": len(tokenizer), "block": length}
    columns = {"input_ids": ids, "labels": labels, "covered": torch.ones(ROWS, 3, dtype=torch.int64)}
    return data(Rows(columns, samples), name, {**facts, "train_samples": samples})


def pairs(name: str, vocabulary: int, length: int, share: float, longest: int) -> Data:
    """Sentence pairs for a masked language model."""
    from dataclasses import asdict

    from hf_optim.tasks.data.pairs import SPECIAL, Masking, Pairs

    _check_words(vocabulary)
    _check_row(length, 64)
    masking = Masking(share, longest, SPECIAL.index("[MASK]"), len(SPECIAL), vocabulary)
    ids = torch.randint(len(SPECIAL), vocabulary, (2 * ROWS, length), generator=generator())
    words = torch.arange(length).repeat(2 * ROWS, 1)
    words[:, [0, length // 2, length - 1]] = -1
    segments = (torch.arange(length) > length // 2).int().repeat(2 * ROWS, 1)
    order = torch.arange(2 * ROWS) % 2
    dataset = Pairs(ids.int(), words.int(), segments, order, masking)
    samples = TEXTS[name].pairs if name in TEXTS else 4000
    text = {"tokenizer": "synthetic", "length": length, "mask_share": share, "longest_ngram": longest}
    facts = {"vocabulary": vocabulary, "masking": asdict(masking), "text": text, "train_samples": samples}
    return data(Rows({key: column.long() for key, column in dataset.columns.items()}, samples), name, facts)


def sentences(name: str, vocabulary: int, longest: int) -> Data:
    """Sentences in two languages, of the lengths of image captions."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from hf_optim.tasks.data.sentences import ROLES, SPECIAL, Sentences

    _check_words(vocabulary)
    words = [*SPECIAL, *(f"w{number}" for number in range(vocabulary - len(SPECIAL)))]
    table = {word: number for number, word in enumerate(words)}
    tokenizers = [
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(table, unk_token="<unk>")), **ROLES)
        for _ in range(2)
    ]
    draw = generator()
    sides = []
    for _ in range(2):
        shortest, longer = (min(bound, longest - 1) for bound in SENTENCE)
        lengths = torch.randint(shortest, longer + 1, (ROWS,), generator=draw).tolist()
        sides.append([torch.randint(len(SPECIAL), vocabulary, (n,), generator=draw).tolist() for n in lengths])
    samples = TEXTS[name].train if name in TEXTS else 24_723
    repeated = [(side * (samples // ROWS + 1))[:samples] for side in sides]
    from hf_optim.tasks.data.parallel import Pairs as Texts

    texts = Texts(tuple(["w"] * samples), tuple(["w"] * samples))
    facts = {"source": tokenizers[0], "target": tokenizers[1], "tokenizers": "synthetic", "train_samples": samples}
    return data(Sentences(texts, *repeated), name, facts)
