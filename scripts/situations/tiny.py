"""Tokenizers, models and data small enough to train in a second; nothing comes from a hub."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, GPT2Config, PreTrainedTokenizerFast

WORDS = ("the", "cat", "dog", "bird", "sat", "ran", "flew", "on", "mat", "road", "roof", "and", "then", "slept")
SPECIAL = ("<pad>", "<eos>", "<unk>", "<mask>", "<cls>", "<sep>")
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


@dataclass
class ScriptArguments:
    """What every script takes beside the training arguments."""

    optimizer: str = field(default="adamw", metadata={"help": "a name of `hf-optim list`, or JSON with a name"})
    dropout: float = field(default=0.0, metadata={"help": "of the model"})

    def __post_init__(self) -> None:
        if self.optimizer.startswith("{"):
            self.optimizer = json.loads(self.optimizer)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; pairs of texts become `<cls> a <sep> b <sep>`."""
    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<cls> $A <sep>",
        pair="<cls> $A <sep> $B:1 <sep>:1",
        special_tokens=[("<cls>", words["<cls>"]), ("<sep>", words["<sep>"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", bos_token="<eos>",
        mask_token="<mask>", cls_token="<cls>", sep_token="<sep>", model_max_length=48,
    )  # fmt: skip
    fast.chat_template = CHAT
    return fast


def gpt2(dropout: float, **more: Any) -> GPT2Config:
    """Two layers of width 16."""
    return GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS), n_positions=48, n_embd=16, n_layer=2, n_head=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=1, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **more,
    )  # fmt: skip


def bert(dropout: float, **more: Any) -> BertConfig:
    """Two layers of width 16."""
    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=48, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, pad_token_id=0, **more,
    )  # fmt: skip


def sentences(n: int, seed: int = 0, words: int = 8) -> list[str]:
    """n sentences of 3 to `words` words; a word is likely to be followed by the next of the list."""
    generator = torch.Generator().manual_seed(seed)

    def sentence() -> str:
        length = int(torch.randint(3, words + 1, (), generator=generator))
        word, said = int(torch.randint(len(WORDS), (), generator=generator)), []
        for jump in torch.randint(1, 3, (length,), generator=generator).tolist():
            said.append(WORDS[word])
            word = (word + jump) % len(WORDS)
        return " ".join(said)

    return [sentence() for _ in range(n)]


def classes(text: list[str]) -> list[int]:
    """1 where a sentence has a cat in it."""
    return [int("cat" in s.split()) for s in text]


def pictures(n: int, channels: int = 3, side: int = 8) -> tuple[torch.Tensor, list[int]]:
    """(n, channels, side, side) pictures in [-1, 1] with a bright half, and which half: 0 left, 1 right."""
    generator = torch.Generator().manual_seed(0)
    pixels = 0.3 * torch.randn(n, channels, side, side, generator=generator)
    labels = torch.randint(2, (n,), generator=generator)
    for picture, label in zip(pixels, labels.tolist(), strict=True):
        picture[..., label * side // 2 : (label + 1) * side // 2] += 0.6
    return pixels.clamp(-1, 1), labels.tolist()


def share(drawn: torch.Tensor, accelerator: Any) -> torch.Tensor:
    """A process's part of what every process has drawn alike: a run is then the same on any number of them."""
    return drawn.chunk(accelerator.num_processes)[accelerator.process_index]
