"""Tokenizers trained on a task's own train split, and kept so that every run of a comparison has the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Literal

from hf_optim.errors import UserError
from hf_optim.tasks.data import cache

Kind = Literal["unigram", "bpe", "wordpiece", "word"]
MOST = 1_000_000  # entries
FORMAT = 1  # changes when the same texts would give another tokenizer


def train(
    kind: Kind,
    texts: Sequence[str],
    vocabulary: int,
    special: Sequence[str],
    *,
    roles: dict[str, str],
    template: tuple[str, str | None] | None = None,
    lowercase: bool = False,
) -> Any:
    """A `PreTrainedTokenizerFast` trained on `texts`, from the cache if the same one was made before.

    Args:
        kind: "unigram" (SentencePiece's, as ALBERT and Marian), "bpe" (of bytes, as GPT-2), "wordpiece" (as BERT), or
            "word" (whole words and punctuation).
        vocabulary: the most entries, `special` included.
        special: the special tokens, with ids 0, 1, 2 and so on.
        roles: transformers' names of them, as {"pad_token": "<pad>", "eos_token": "</s>"}.
        template: how one text and a pair of texts are framed, as ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1").
        lowercase: fold case before anything else.

    The tokenizer's `fingerprint` attribute is 16 hexadecimal characters of its content; it is cached below
    `$XDG_CACHE_HOME/hf_optim` (default ~/.cache) under the hash of its texts and settings, written whole or not at all.

    Raises:
        UserError: no texts, or a vocabulary that does not hold the special tokens.
    """
    if not any(text.strip() for text in texts):
        raise UserError("tokenizer: there are no words to train it on: the train split is empty")
    if vocabulary <= len(special) + 1:
        raise UserError(f"tokenizer: a vocabulary of {vocabulary} is too small: {len(special)} tokens are special")
    if vocabulary > MOST:  # room for all is made at the beginning, and a program of Rust's ends where there is none
        raise UserError(f"tokenizer: a vocabulary of more than {MOST:,} entries is not trained, got {vocabulary}")
    key = hashlib.sha256(repr((FORMAT, kind, vocabulary, tuple(special), template, lowercase)).encode())
    for text in texts:  # with its length: whatever mark stood between them, a text of a stranger's may hold it
        content = text.encode()
        key.update(b"%d " % len(content) + content)
    serialised = _serialised(key.hexdigest(), kind, tuple(texts), vocabulary, tuple(special), template, lowercase)

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(serialised), clean_up_tokenization_spaces=False, **roles
    )
    fast.fingerprint = hashlib.sha256(serialised.encode()).hexdigest()[:16]
    return fast


@lru_cache(maxsize=4)
def _serialised(
    key: str,
    kind: Kind,
    texts: tuple[str, ...],
    vocabulary: int,
    special: tuple[str, ...],
    template: tuple[str, str | None] | None,
    lowercase: bool,
) -> str:
    name = f"tokenizer-{key[:32]}.json"
    kept = cache.read(name)
    if kept is not None:
        with suppress(Exception):  # tokenizers raises nothing more precise
            from tokenizers import Tokenizer

            text = kept.decode("utf-8")
            Tokenizer.from_str(text)  # a damaged file is made anew
            return text
    text = _build(kind, texts, vocabulary, special, template, lowercase).to_str()
    cache.keep(name, text.encode("utf-8"))
    return text


def _build(
    kind: Kind,
    texts: Sequence[str],
    vocabulary: int,
    special: Sequence[str],
    template: tuple[str, str | None] | None,
    lowercase: bool,
) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    unknown = next((token for token in special if "unk" in token.lower()), None)
    common: dict[str, Any] = {"vocab_size": vocabulary, "special_tokens": list(special), "show_progress": False}
    if kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
        tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
        trainer: Any = trainers.UnigramTrainer(unk_token=unknown, **common)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
        tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown or "[UNK]"))  # type: ignore[call-arg]
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
        tokenizer.decoder = decoders.WordPiece()  # type: ignore[assignment]
        trainer = trainers.WordPieceTrainer(**common)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=unknown or "<unk>"))  # type: ignore[call-arg]
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        trainer = trainers.WordLevelTrainer(**common)
    steps: list[Any] = [normalizers.NFKC()] if kind in ("unigram", "word") else []
    tokenizer.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if lowercase else [])])  # type: ignore[assignment]
    tokenizer.train_from_iterator(texts, trainer=trainer, length=len(texts))
    if template is not None:
        ids = [(token, tokenizer.token_to_id(token)) for token in special]
        pair = {} if template[1] is None else {"pair": template[1]}
        tokenizer.post_processor = processors.TemplateProcessing(single=template[0], special_tokens=ids, **pair)  # type: ignore[assignment, arg-type]
    return tokenizer


@contextmanager
def using(why: str) -> Iterator[None]:
    """Whatever a tokenizer of somebody's raises within it is a `UserError` that says `why`. A panic of Rust's (at an
    expression that looks back for too long) is no Exception.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(why) from error
