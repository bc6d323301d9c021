"""A tiny language model, its tokenizer and data sets, made here: nothing comes from the Hub."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

WORDS = ("the", "cat", "dog", "bird", "sat", "ran", "flew", "on", "mat", "road", "roof", "and", "then", "slept")
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "<eos>", "<unk>", *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<eos>"
    )
    fast.chat_template = CHAT
    return fast


def model(head: str = "lm", dropout: float = 0.1) -> Any:
    """A GPT-2 of two layers and width 16, the same every time."""
    set_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS) + 3, n_positions=64, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1,
        eos_token_id=1, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, num_labels=1,
    )  # fmt: skip
    return (GPT2LMHeadModel if head == "lm" else GPT2ForSequenceClassification)(config)


def sentences(n: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    return [
        " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (int(length),), generator=generator))
        for length in torch.randint(4, 9, (n,), generator=generator)
    ]


def dataset(kind: str, n: int = 16) -> Dataset:
    """In the columns that each kind of training reads."""
    first, second = sentences(2 * n)[:n], sentences(2 * n)[n:]
    columns = {
        "sft": {"text": first},
        "dpo": {"prompt": ["the cat"] * n, "chosen": first, "rejected": second},
        "kto": {"prompt": ["the cat"] * n, "completion": first, "label": [i % 2 == 0 for i in range(n)]},
        "reward": {"chosen": first, "rejected": second},
        "grpo": {"prompt": [" ".join(s.split()[:3]) for s in first]},
    }
    return Dataset.from_dict(columns[kind])
