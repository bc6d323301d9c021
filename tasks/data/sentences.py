"""Sentence pairs as token ids, under two tokenizers trained on their train split."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from torch.utils.data import Dataset

from hf_optim.errors import UserError
from hf_optim.tasks.data import tokenizer
from hf_optim.tasks.data.parallel import SPLITS, Corpus, Pairs

SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")
ROLES = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


class Sentences(Dataset[dict[str, list[int]]]):
    """Pairs and their ids: `input_ids` of the source and `labels` of the target, each with the end of sentence."""

    def __init__(self, pairs: Pairs, source: list[list[int]], target: list[list[int]]) -> None:
        self.pairs, self.source, self.target = pairs, source, target

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.source[index], "labels": self.target[index]}

    def spread(self, count: int) -> list[int]:
        """The indices of up to `count` pairs, evenly spread: neighbours are often of one text."""
        return spread(len(self), count)


def spread(total: int, count: int) -> list[int]:
    """Up to `count` of the indices below `total`, evenly spread."""
    return [i * total // count for i in range(count)] if count < total else list(range(total))


def prepare(corpus: Corpus, limit: int | None, vocabulary: int, longest: int) -> dict[str, Any]:
    """The three splits as `Sentences`, the tokenizers among the facts, and what was left out.

    Args:
        limit: so many pairs of a split, evenly spread; None: all.
        vocabulary: the most entries of each language's byte-level BPE.
        longest: pairs with more tokens (end of sentence included) on either side are left out.

    The train pairs are mixed once, always alike, so that the first N of them are a fair sample.
    """
    parts = {split: getattr(corpus, split) for split in SPLITS}
    if limit is not None:
        parts = {split: pairs.take(spread(len(pairs), limit)) for split, pairs in parts.items()}
    train = parts["train"]
    parts["train"] = train.take(random.Random(0).sample(range(len(train)), len(train)))
    both = [
        tokenizer.train("bpe", texts, vocabulary, SPECIAL, roles=ROLES, template=("$A <eos>", "$A <eos> $B <eos>"))
        for texts in (train.source, train.target)
    ]
    splits, notes = {}, []
    for split, pairs in parts.items():
        ids = [
            tokenizer(list(side))["input_ids"]
            for tokenizer, side in zip(both, (pairs.source, pairs.target), strict=True)
        ]
        kept = [i for i in range(len(pairs)) if max(len(ids[0][i]), len(ids[1][i])) <= longest]
        if not kept:
            raise UserError(
                f"data: every pair of the {split} split has more than {longest} tokens: raise --model.longest"
            )
        if len(kept) < len(pairs):
            notes.append(f"{len(pairs) - len(kept)} of {len(pairs)} {split}")
        splits[split] = Sentences(pairs.take(kept), [ids[0][i] for i in kept], [ids[1][i] for i in kept])
    note = f"pairs of more than {longest} tokens left out: {', '.join(notes)}" if notes else ""
    names = hashlib.sha256("".join(tokenizer.fingerprint for tokenizer in both).encode()).hexdigest()[:16]
    return {"splits": splits, "facts": {"source": both[0], "target": both[1], "tokenizers": names}, "note": note}
