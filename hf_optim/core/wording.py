"""How sentences put counts and choices."""

from __future__ import annotations

from collections.abc import Sequence


def plural(noun: str, number: float = 2) -> str:
    """`run` for one, `runs` and `passes` for any other number."""
    return noun if number == 1 else f"{noun}{'es' if noun.endswith('s') else 's'}"


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`, `1,000 processes`."""
    return f"{number:,} {plural(noun, number)}"


def either(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
