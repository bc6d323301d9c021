"""How a tokenizer lengthens a text, told from its tokenizer.json before it is used: by what it puts in the place of
letters, before them, around them or between all; and in how many letters it looks words up.
"""

from __future__ import annotations

import base64
import math
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_optim.core.private import strings
from hf_optim.errors import UserError
from hf_optim.experiment.configuration import whole_numbers

GROWTH = 1000  # times that a tokenizer may lengthen a text
LONGEST_WORD = 10_000  # letters; WordPiece's time goes by their square, and its makers take 100
MOST_ADDED = 128 << 20  # letters, once the steps have lengthened them
LONGEST_PIECE = 500  # of them that Unigram knows; its makers take 16
#: letters that one becomes at most by steps that say no more of it than their type: one for each of its four bytes
#: (spelled out, ñ¼¼¼), and a mark before each word, which may have one letter
NORMALIZERS = {"ByteLevel": 11}
PRE_TOKENIZERS = {"ByteLevel": 5, "Metaspace": 2}


def check_growth(folder: Path, tokenizer: Mapping[str, Any], marks: Any) -> None:
    """Raise a `UserError` if the tokenizer of a folder (what its tokenizer.json holds) lengthens a text beyond
    `GROWTH`, adds more than `MOST_ADDED` letters with the `marks` of its settings, or looks up words without end.
    """
    growth = _growth(tokenizer.get("normalizer"), NORMALIZERS)
    words, frame = _growth(tokenizer.get("pre_tokenizer"), PRE_TOKENIZERS), _growth(tokenizer.get("post_processor"), {})
    if growth * words * frame > GROWTH:
        raise UserError(f"checkpoint: {folder}: its tokenizer.json makes a text longer than {GROWTH} times its length")
    if growth * sum(map(len, strings([tokenizer.get("added_tokens"), marks]))) > MOST_ADDED:
        raise UserError(f"checkpoint: {folder}: what its tokenizer adds has more than {MOST_ADDED >> 20} M letters")
    if max(_lengths(tokenizer.get("model"))) > LONGEST_WORD:
        raise UserError(f"checkpoint: {folder}: its tokenizer.json looks up words of more than {LONGEST_WORD} letters")


def _lengths(model: Any) -> Iterator[int]:
    """What a tokenizer's model counts or puts before each part of a word that it looks up."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "max_input_chars_per_word"):
        value = model.get(key) if isinstance(model, dict) else None
        yield len(value) if isinstance(value, str) else value if isinstance(value, int) else 0
    if isinstance(model, dict) and isinstance(pieces := model.get("vocab"), list):  # Unigram's, at each letter anew
        yield LONGEST_WORD // LONGEST_PIECE * max(map(len, strings(pieces)), default=0)


def _growth(step: Any, longer: Mapping[str, int]) -> int:
    """How many letters a letter may become by what a tokenizer puts in its place, before it, or between all, or by how
    often a text stands in its frame.
    """
    if not isinstance(step, dict):
        return 1
    inner = [step.get(key) for key in ("normalizers", "pretokenizers", "processors")]
    steps = [each for part in inner if isinstance(part, list) for each in part]
    return math.prod((_growth(each, longer) for each in steps), start=max(_own(step, longer)))


def _own(step: Mapping[str, Any], longer: Mapping[str, int]) -> Iterator[int]:
    """The same of a step without those in it, by all that it says: one without a type is read by its other keys.

    Letters are counted spelled out, which is all that NFKD and its like do: they lengthen none twice.
    """
    yield longer.get(str(step.get("type")), 1)
    if "handle_chinese_chars" in step:  # a blank on either side
        yield 3
    if isinstance(put := step.get("prepend"), str):
        yield 1 + _spelled(put)
    if isinstance(put := step.get("content"), str):
        pattern = step.get("pattern")
        # an expression may match nothing, between any two letters, which stay
        yield _spelled(put) + (not (isinstance(pattern, dict) and pattern.get("String")))
    if "precompiled_charsmap" in step:  # a table of places, and texts with a NUL after each
        with suppress(ValueError):  # which its own reader will say
            table = base64.b64decode(str(step["precompiled_charsmap"]))
            texts = table[4 + int.from_bytes(table[:4], "little") :].decode(errors="replace").split("\0")
            yield max(map(_spelled, texts))
    for form in step.get("single"), step.get("pair"):  # what a text, or two, are framed with
        pieces = form if isinstance(form, list) else ()
        yield sum("Sequence" in piece for piece in pieces if isinstance(piece, dict))
    yield sum(1 for _ in whole_numbers(step.get("special_tokens")))


def _spelled(text: str) -> int:
    """Letters of a text spelled out: ¼ is three. One that is too long as it stands need not be."""
    return len(text if len(text) > GROWTH else unicodedata.normalize("NFKD", text))
