"""Numbers as people write them on a command line, where Python also takes 1_000 and the digits of every script there
is, and as they read them.
"""

from __future__ import annotations

import math
import re

_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(
    r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[-+]?[0-9]+)?|[-+]?inf(?:inity)?|[-+]?nan", re.IGNORECASE
)


def whole(text: str) -> int:
    """A whole number. Raises ValueError."""
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def number(text: str) -> float:
    """A number. Raises ValueError."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no number")
    return float(text)


def decimal(value: float, decimals: int, sign: str = "") -> str:
    """0.9120; from a billion on 1.2346e+148, of which the other digits say nothing."""
    return f"{value:{sign}.{decimals}{'f' if abs(value) < 1e9 else 'e'}}"


def size_text(count: float) -> str:
    """Bytes as 12.3 MB (powers of 1000), or a dash where the count is not known."""
    for unit in ("B", "kB", "MB", "GB"):
        if math.isnan(count) or count < 1000 or unit == "GB":
            return "–" if math.isnan(count) else f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
