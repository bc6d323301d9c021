"""Whether plain data (JSON, YAML) has the shape that its reader expects, said with the place where it has not.

A shape is a type; a tuple of shapes, one of which must fit, in which a text stands for itself and None for null; a list
of one shape, for every entry; a mapping from keys to shapes, where a key that ends in "?" may be missing and further
keys are let be; `Each(shape)`, for every value of a mapping; or `Text(most)`. `int` is below 2**63, `float` any number
below `FARTHEST`, and no truth value is either.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hf_optim.core.wording import either
from hf_optim.errors import UserError

LONGEST = 20_000  # characters of a text
FARTHEST = 1e150  # from 0: squares and quotients of numbers are numbers, too
CLOSEST = 1 / FARTHEST  # to 0, and not taken for it


@dataclass(frozen=True)
class Text:
    """A text of at most `most` characters."""

    most: int


@dataclass(frozen=True)
class Each:
    """The shape of every value of a mapping, and of its keys, which are texts."""

    shape: Any
    keys: Any = str


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON. A ValueError for two values under one name: here the last would count, elsewhere the first."""
    value = dict(pairs)
    if len(value) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:40]!r} is there twice")
    return value


def check_shape(value: Any, shape: Any, place: str) -> None:
    """Raise a UserError that begins with `place` and names what is wrong there."""
    if not fits(value, shape):
        where, expected = _first(value, shape, place)
        raise UserError(f"{where}: expected {expected}")


def fits(value: Any, shape: Any) -> bool:
    """Whether `value` has the shape."""
    if isinstance(shape, type):
        return _is(value, shape)
    if shape is None or isinstance(shape, str):
        return value is None if shape is None else bool(value == shape)
    if isinstance(shape, tuple):
        return any(fits(value, option) for option in shape)
    if isinstance(shape, Text):
        return isinstance(value, str) and len(value) <= shape.most
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(entry, shape[0]) for entry in value)
    if not isinstance(value, dict):
        return False
    if isinstance(shape, Each):
        return all(fits(key, shape.keys) and fits(entry, shape.shape) for key, entry in value.items())
    for key, inner in shape.items():
        name = key.removesuffix("?")
        if name in value:
            if not fits(value[name], inner):
                return False
        elif name == key:
            return False
    return True


def _is(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and len(value) <= LONGEST
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float) and abs(value) < 2**63
    if isinstance(value, float):
        return kind is float and abs(value) < FARTHEST
    return isinstance(value, kind)


def _first(value: Any, shape: Any, place: str) -> tuple[str, str]:
    """The deepest place that is wrong, and what was expected there."""
    if isinstance(shape, list) and isinstance(value, list):
        for i, entry in enumerate(value):
            if not fits(entry, shape[0]):
                return _first(entry, shape[0], f"{place}[{i}]")
    if isinstance(shape, Each) and isinstance(value, dict):
        for key, entry in value.items():
            if not fits(key, shape.keys):
                return _first(key, shape.keys, f"{place}: a key")
            if not fits(entry, shape.shape):
                return _first(entry, shape.shape, f"{place}.{str(key)[:40]}")
    if isinstance(shape, dict) and isinstance(value, dict):
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name not in value and name == key:
                return place, f"a key {name!r}"
            if name in value and not fits(value[name], inner):
                return _first(value[name], inner, f"{place}.{name}")
    if isinstance(shape, tuple):
        nested = [option for option in shape if isinstance(option, (dict, list, Each))]
        if len(nested) == 1 and isinstance(value, list if isinstance(nested[0], list) else dict):
            return _first(value, nested[0], place)
    return place, f"{_words(shape)}, got {_short(value)}"


def _words(shape: Any) -> str:
    if isinstance(shape, type):
        return {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping"}.get(
            shape, "a list"
        )
    if isinstance(shape, Text):
        return f"a text of at most {shape.most} characters"
    if isinstance(shape, tuple):
        return either(dict.fromkeys(_words(option) for option in shape))
    return "null" if shape is None else repr(shape) if isinstance(shape, str) else _words(_kind(shape))


def _kind(shape: Any) -> type:
    return list if isinstance(shape, list) else dict


def _short(value: Any) -> str:
    kind = {dict: "a mapping", list: "a list", type(None): "null", int: "one beyond 63 bits"}
    if isinstance(value, str):
        return repr(value[:40]) if len(value) <= LONGEST else f"a text of {len(value)} characters"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return f"{value}, beyond {FARTHEST:g}" if FARTHEST <= abs(value) < math.inf else str(value)
    return kind.get(type(value), type(value).__name__)
