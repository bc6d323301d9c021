"""Sentence pairs in one of two orders, and masks of whole n-grams: the data of MLM with sentence-order prediction.

A pair is the opening of a paragraph and what follows it, both whole sentences where they fit. A sample is
`[CLS] first [SEP] second [SEP]`, padded to one length. Evaluation sees every pair in both orders, so that chance is
one half, with masks that are fixed by the text: the same in every run. Training sees a pair in one order in the even
epochs, in the other in the odd ones, and draws other masks at every step (`hf_optim.tasks.models.masked_lm`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.tasks.data.paragraphs import SPLITS, sentences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["ROLES", "SPECIAL", "SPLITS", "Masking", "Pairs", "Swapping", "build", "mask_ngrams", "masking"]
IGNORED = -100
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROLES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
SHORTEST = 5
"""Tokens of the shortest segment: less is a remnant of sentence splitting."""
PADDING = 0
CHUNK = 4096


@dataclass(frozen=True)
class Masking:
    """How masks are drawn.

    Args:
        share: of the ordinary tokens that are to be predicted.
        longest: words of the longest n-gram; n words are masked together with probability proportional to 1/n.
        mask: id of the mask token.
        ordinary: the first id that is no special token; those up to `vocabulary` are drawn as random tokens.
        vocabulary: number of ids.
    """

    share: float
    longest: int
    mask: int
    ordinary: int
    vocabulary: int


def masking(tokenizer: PreTrainedTokenizerFast, share: float, longest: int) -> Masking:
    """The masking of a tokenizer whose first ids are those of `SPECIAL`."""
    assert tokenizer.mask_token_id is not None
    return Masking(share, longest, tokenizer.mask_token_id, len(SPECIAL), len(tokenizer))


def mask_ngrams(
    ids: torch.Tensor,
    words: torch.Tensor,
    segments: torch.Tensor,
    how: Masking,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask whole n-grams of whole words.

    Every row is divided into n-grams that end at the segment's end; n-grams are taken in random order until `share` of
    the row's ordinary tokens is reached (the last one if at least half of it fits; always at least one). Of the chosen
    tokens 80% become the mask, 10% a random ordinary token, 10% stay.

    Args:
        ids: int64 [batch, length].
        words: int64 [batch, length], the number of the token's word in its row; negative for special tokens.
        segments: int64 [batch, length], 0 or 1.
        how: what to mask.
        generator: of the draws; None takes torch's own random state of the device.

    Returns:
        the masked ids, and the labels: the original ids where masked, elsewhere -100. Both int64 [batch, length].
    """
    rows, length = ids.shape
    device = ids.device
    ordinary = words >= 0
    weights = 1 / torch.arange(1, how.longest + 1, dtype=torch.float32)
    bounds = (weights / weights.sum()).cumsum(0)[:-1].to(device)

    def draw(columns: int) -> torch.Tensor:
        return torch.rand(rows, columns, device=device, generator=generator)

    ends = (torch.bucketize(draw(length), bounds, right=True) + 1).cumsum(1)  # in words
    # An n-gram that would reach over the segments' border is two: hence two numbers for each.
    gram = 2 * torch.searchsorted(ends, words.clamp(min=0), right=True) + segments
    sizes = torch.zeros(rows, 2 * length, device=device).scatter_add_(1, gram, ordinary.float())
    rank = draw(2 * length).masked_fill(sizes == 0, 2.0).argsort(1)
    sorted_sizes = sizes.gather(1, rank)
    before = sorted_sizes.cumsum(1) - sorted_sizes
    taken = before + sorted_sizes / 2 <= how.share * ordinary.sum(1, keepdim=True)
    taken[:, 0] = True
    chosen = torch.zeros_like(taken).scatter_(1, rank, taken).gather(1, gram) & ordinary

    kind = draw(length)
    random = (draw(length) * (how.vocabulary - how.ordinary)).long() + how.ordinary
    masked = torch.where(chosen & (kind < 0.8), how.mask, ids)
    masked = torch.where(chosen & (kind >= 0.9), random, masked)
    return masked, torch.where(chosen, ids, IGNORED)


class Pairs(Dataset[dict[str, torch.Tensor]]):
    """Pairs with fixed masks: first each in one order, then each in the other.

    Args:
        ids, words, segments: int32 [N, length], see `mask_ngrams`; padding has the id 0 and the word -1.
        order: int64 [N], 1 where the pair is swapped.
        how: the fixed masks.
    """

    def __init__(
        self, ids: torch.Tensor, words: torch.Tensor, segments: torch.Tensor, order: torch.Tensor, how: Masking
    ) -> None:
        generator = torch.Generator().manual_seed(len(ids))
        parts = []
        for start in range(0, len(ids), CHUNK):
            rows = slice(start, start + CHUNK)
            ngrams = mask_ngrams(ids[rows].long(), words[rows].long(), segments[rows].long(), how, generator)
            parts.append([part.int() for part in ngrams])
        self.columns = {
            "input_ids": torch.cat([masked for masked, _ in parts]),
            "attention_mask": (ids != PADDING).int(),
            "token_type_ids": segments,
            "words": words,
            "labels": torch.cat([labels for _, labels in parts]),
            "sentence_order_label": order,
        }

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch, int64: `input_ids` (masked), `attention_mask`, `token_type_ids`, `words` and `labels`
        [n, length], `sentence_order_label` [n].
        """
        chosen = torch.as_tensor(indices)
        return {name: column[chosen].long() for name, column in self.columns.items()}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        digest = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            digest.update(f"{name}{tuple(column.shape)}".encode())
            digest.update(column.numpy().tobytes())
        return digest.hexdigest()


class Swapping(Dataset[dict[str, torch.Tensor]]):
    """Every pair of `pairs` once an epoch, in one order or the other as `epoch` is even or odd.

    `hf_optim.tasks.data.epochs.Epochs` sets `epoch`.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs, self.epoch = pairs, 0

    def __len__(self) -> int:
        return len(self.pairs) // 2

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch, as that of `Pairs`."""
        shift = len(self) * (self.epoch % 2)
        return self.pairs.__getitems__([index + shift for index in indices])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def build(
    paragraphs: Sequence[str], tokenizer: PreTrainedTokenizerFast, length: int, how: Masking, *, split: str
) -> Pairs:
    """The pairs of the paragraphs, in order: one of each paragraph of two sentences or more.

    A segment is cut off at half of the length. The first one takes as many sentences as fit, but leaves one.

    Args:
        paragraphs: running text.
        tokenizer: with the special tokens of `SPECIAL`.
        length: tokens of a sample.
        how: the fixed masks.
        split: its name, for messages.

    Raises:
        UserError: no paragraph has two sentences.
    """
    text = _Text(paragraphs, tokenizer)
    pairs = text.pairs((length - 3) // 2)
    if not pairs:
        raise UserError(
            f"data: the {split} split has no paragraph of two sentences "
            f"({counted(len(paragraphs), 'paragraph')} read): bring running text, one "
            "whole paragraph a row (in .txt files, with an empty line after each)"
        )
    # As many in either order, to one; drawn, so that batches of neighbours are no pattern.
    order = torch.arange(len(pairs)) % 2
    order = order[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(len(pairs)))]
    order = torch.cat([order, 1 - order])
    spans = torch.tensor(pairs).repeat(2, 1, 1)  # [2 N, segment, begin and size]
    spans = torch.where(order.bool()[:, None, None], spans.flip(1), spans)
    begin, size, begin_second, size_second = spans.flatten(1)[:, :, None].unbind(1)

    column = torch.arange(length)
    end = size + size_second + 2
    in_first = (column >= 1) & (column <= size)
    in_second = (column >= size + 2) & (column < end)
    at = torch.where(in_second, begin_second + column - size - 2, begin + column - 1)
    at = torch.where(in_first | in_second, at, 0)
    ids = torch.full((len(order), length), int(tokenizer.sep_token_id or 0))
    ids[:, 0] = int(tokenizer.cls_token_id or 0)
    ids = torch.where(in_first | in_second, text.ids[at], ids).masked_fill(column > end, PADDING)
    first_words = text.words[begin + size - 1] - text.words[begin] + 1
    words = text.words[at] - torch.where(in_second, text.words[begin_second] - first_words, text.words[begin])
    words = words.masked_fill(~(in_first | in_second), -1)
    segments = ((column >= size + 2) & (column <= end)).int()
    return Pairs(ids.int(), words.int(), segments, order, how)


class _Text:
    """The tokens of all sentences of some paragraphs, end to end.

    ids: int64 [tokens]; words: int64 [tokens], the number of the token's word in all of the text; sentences: for each
    paragraph, the number of tokens of each of its sentences.
    """

    def __init__(self, paragraphs: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> None:
        parts = [sentences(paragraph) for paragraph in paragraphs]
        # With the space, tokenizers for which it belongs to a word know the first one as they know the others.
        encoded = tokenizer([f" {sentence}" for part in parts for sentence in part], add_special_tokens=False)
        ids, words, sizes, base = [], [], [], 0
        for encoding in encoded.encodings or ():
            ids += encoding.ids
            words += [base + (word or 0) for word in encoding.word_ids]
            sizes.append(len(encoding.ids))
            base = words[-1] + 1 if words else 0
        self.ids, self.words = torch.tensor(ids), torch.tensor(words)
        rest = iter(sizes)
        self.sentences = [list(islice(rest, len(part))) for part in parts]

    def pairs(self, room: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Both segments of each paragraph that has two, as (first token, number of tokens up to `room`)."""
        cuts, begin = [], 0
        for sizes in self.sentences:
            first = count = 0
            for size in sizes[:-1]:
                if count and first + size > room:
                    break
                first, count = first + size, count + 1
            second = sum(sizes[count:])
            if min(first, second) >= SHORTEST:
                cuts.append(((begin, min(first, room)), (begin + first, min(second, room))))
            begin += first + second
        return cuts
