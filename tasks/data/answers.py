"""Questions with answers, as conversations of which only the answer is trained on.

The embedded pairs are made of real words: every word of three to twelve letters in the embedded Wikipedia paragraphs is
asked for its number of letters. A model has to read a word from its tokens, so it is more than a list to remember: no
held-out word stands in train.

Pairs of your own are tables (parquet, CSV, JSONL) with the columns `question` and `answer`: a folder with train, and if
there are any validation and test, or one file. Missing splits are made by the questions' hashes, a tenth each; a
held-out question that stands in train too is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from hf_optim.core.wording import both, counted
from hf_optim.errors import UserError, one_line
from hf_optim.tasks.data import paragraphs
from hf_optim.tasks.data.blocks import IGNORED, end_of
from hf_optim.tasks.data.tokenizer import using
from hf_optim.tasks.data.tokenizer_growth import GROWTH

#: for tokenizers without a chat template of their own
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Question: {{ message['content'] }}\nAnswer:"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
#: letters that a chat template may put around any conversation
LARGEST_FRAME = 1 << 16
Pair = tuple[str, str]


@dataclass(frozen=True)
class Encoded:
    """One conversation: its tokens, how many of them ask, and the bytes of the answer's text."""

    ids: tuple[int, ...]
    asked: int
    bytes: int


class Answers(Dataset[dict[str, torch.Tensor]]):
    """Conversations filled up to `length` tokens; the labels of everything but the answers are ignored."""

    def __init__(self, rows: Sequence[Encoded], length: int, filler: int) -> None:
        self.ids = torch.full((len(rows), length), filler)
        self.mask = torch.zeros(len(rows), length, dtype=torch.long)
        self.labels = torch.full((len(rows), length), IGNORED)
        for i, row in enumerate(rows):
            self.ids[i, : len(row.ids)] = torch.tensor(row.ids)
            self.mask[i, : len(row.ids)] = 1
            self.labels[i, row.asked : len(row.ids)] = torch.tensor(row.ids[row.asked :])
        self.bytes = torch.tensor([row.bytes for row in rows])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch: `input_ids`, `attention_mask`, `labels` int64 [n, length], `answer_bytes` int64 [n]."""
        i = torch.as_tensor(indices)
        return {
            "input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.labels[i],
            "answer_bytes": self.bytes[i],
        }  # fmt: skip

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def letters(folder: Path) -> dict[str, list[Pair]]:
    """The embedded pairs, by split, in the order in which the words first occur."""
    texts, _ = paragraphs.read(folder)
    words = dict.fromkeys(word for text in texts["train"] for word in re.findall(r"\b[a-z]{3,12}\b", text))
    return split([(f"How many letters has '{word}'?", str(len(word))) for word in words])


def split(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """A tenth of the questions for validation and a tenth for test, by the hash of each: equal ones stay together."""
    parts: dict[str, list[Pair]] = {name: [] for name in paragraphs.SPLITS}
    for question, answer in pairs:
        place = int.from_bytes(hashlib.sha256(question.encode()).digest()[:4], "big") % 10
        parts["test" if place == 0 else "validation" if place == 1 else "train"].append((question, answer))
    return parts


def read(path: Path) -> tuple[dict[str, list[Pair]], str]:
    """The pairs of `path` by split, and a note.

    Raises:
        UserError: no such path, no train split, a column that is missing or holds no text, a split without a pair.
    """
    files = paragraphs.sources(path, paragraphs.TABLES)
    parts = {name: _pairs(file) for name, file in files.items()}
    notes = []
    if missing := [name for name in paragraphs.SPLITS if name not in parts]:
        cut = split(parts["train"])
        parts |= {name: cut[name] for name in missing}
        taken = {question for name in missing for question, _ in cut[name]}
        parts["train"] = [pair for pair in parts["train"] if pair[0] not in taken]
        notes.append(f"{both(missing)} taken out of train by the questions' hashes")
    known = {question for question, _ in parts["train"]}
    for name in ("validation", "test"):
        kept = [pair for pair in parts[name] if pair[0] not in known]
        if len(kept) < len(parts[name]):
            notes.append(f"{counted(len(parts[name]) - len(kept), 'question')} of {name} left out that stand in train")
        parts[name] = kept
    for name, pairs in parts.items():
        if not pairs:
            raise UserError(f"data: the {name} split has no pair of its own: bring more questions")
    return parts, "; ".join(["pairs of your own", *notes])


def _pairs(file: Path) -> list[Pair]:
    columns = [paragraphs.texts(file, name) for name in ("question", "answer")]
    return [(q, a) for q, a in zip(*columns, strict=True) if q and a and not q.isspace() and not a.isspace()]


def encode(tokenizer: Any, pairs: Sequence[Pair], length: int) -> tuple[list[Encoded], int]:
    """The conversations as tokens by the tokenizer's chat template (TEMPLATE where it has none), and how many were left
    out because they are longer than `length`.

    The question and what follows it are tokenized apart, so that no token reaches from one into the other.

    Raises:
        UserError: a template that does not continue the question by the answer, or nothing is short enough.
    """
    given = tokenizer.chat_template
    template = TEMPLATE if not given else given if isinstance(given, str) else None  # of several, their default
    rows, dropped = [], 0
    for question, answer in pairs:
        asked = _text(tokenizer, template, [("user", question)])
        whole = _text(tokenizer, template, [("user", question), ("assistant", answer)])
        if not whole.startswith(asked) or whole == asked:
            raise UserError("tokenizer: its chat template does not continue a question by its answer: give another one")
        first, rest = (_ids(tokenizer, text) for text in (asked, whole[len(asked) :]))
        if len(first) + len(rest) > length:
            dropped += 1
            continue
        rows.append(Encoded((*first, *rest), len(first), len(answer.encode())))
    if not rows:
        raise UserError(f"data: every conversation is longer than {length} tokens: set --model.length")
    return rows, dropped


def _text(tokenizer: Any, template: str | None, said: Sequence[tuple[str, str]]) -> str:
    messages = [{"role": role, "content": content} for role, content in said]
    try:
        text = str(
            tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=len(said) == 1
            )
        )
    except Exception as error:  # a template is a program of Jinja's, which may raise anything
        raise UserError(f"tokenizer: its chat template cannot be used: {one_line(error)}") from error
    if len(text) > LARGEST_FRAME + GROWTH * sum(len(content) for _, content in said):
        raise UserError(f"tokenizer: its chat template makes a conversation {GROWTH} times longer: give another")
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    with using("tokenizer: it fails at a text of the data: save it again, or take another"):
        return list(tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])


def splits(
    tokenizer: Any, pairs: Mapping[str, Sequence[Pair]], length: int
) -> tuple[dict[str, Answers], dict[str, int]]:
    """The splits as data sets, and how many conversations of each were too long."""
    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_of(tokenizer)
    coded = {name: encode(tokenizer, part, length) for name, part in pairs.items()}
    encoded = {name: Answers(rows, length, filler) for name, (rows, _) in coded.items()}
    return encoded, {name: dropped for name, (_, dropped) in coded.items() if dropped}
