"""How sentences put counts and choices."""

from __future__ import annotations

from collections.abc import Iterable


def plural(noun: str, number: float = 2) -> str:
    """`run` for one, `runs` and `passes` for any other number."""
    return noun if number == 1 else f"{noun}{'es' if noun.endswith('s') else 's'}"


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`, `1,000 processes`."""
    return f"{number:,} {plural(noun, number)}"


def either(words: Iterable[str]) -> str:
    """`a, b or c`."""
    return _joined(words, "or")


def both(words: Iterable[str]) -> str:
    """`a, b and c`."""
    return _joined(words, "and")


def _joined(words: Iterable[str], last: str) -> str:
    *first, end = list(words) or [""]
    return f"{', '.join(first)} {last} {end}" if first else end
