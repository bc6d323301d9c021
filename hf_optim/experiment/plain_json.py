"""JSON of others as plain data, and ours as they can read it: finite, shallow, of whole letters, not without end."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hf_optim.core.shape import FARTHEST, once

#: values of a JSON text: a short one of a list's is three characters in a file and a hundred bytes in memory
MOST_VALUES = 4_000_000
#: levels of JSON that we write are five or six
DEEPEST = 24
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONG = re.compile(r"(?<![0-9.])[0-9]{19}")


def parse_json(text: str, wide: bool = False, most: int = MOST_VALUES) -> Any:
    """Plain data. A ValueError for what is not JSON, and for what Python takes and nobody means: NaN, halves of
    characters, hundreds of levels, more than `most` values, and, unless `wide` (what others have written), two values
    under one name and whole numbers of more than 64 bits (as transformers writes for "no limit").
    """
    check_count(text, most)
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=None if wide else once)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not is_shallow(value, DEEPEST):
        raise ValueError("nested too deeply")
    if not wide and _LONG.search(text) and not _in_64_bits(value):
        raise ValueError("a whole number has more than 64 bits")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half a character (a lone surrogate)") from None
    return value


def _in_64_bits(value: Any) -> bool:
    """What no other program reads, and no float holds. (Hashes are texts.)"""
    if isinstance(value, int):
        return abs(value) < 2**64
    return all(
        map(_in_64_bits, value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    )


def check_count(text: str, most: int = MOST_VALUES) -> None:
    """Raise a ValueError if JSON (or JSON lines) would be more than `most` values, without parsing it."""
    if len(text) > most and sum(map(text.count, ",[{\n")) > most:
        raise ValueError(f"more than {most:,} values")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def is_shallow(value: Any, levels: int) -> bool:
    """Whether plain data are nested at most so deeply."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return True
    return levels > 0 and all(is_shallow(inner, levels - 1) for inner in value if isinstance(inner, (dict, list)))


def readable(value: Any) -> Any:
    """`value` as `parse_json` takes it again (`files.write_json`)."""
    if isinstance(value, Mapping):
        return {readable(key): readable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(entry) for entry in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float) and not abs(value) < FARTHEST:  # a perplexity of e^400 as infinity
        return None
    return value
