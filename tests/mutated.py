"""Files of ours with one thing changed: another type, another size, half a character, half a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

#: JSON texts that stand for a value; some of them are what no JSON writer of ours would write
JUNK = (
    "null", "true", "false", "0", "-1", "1", "3.5", "1e400", "-1e400", "NaN", "Infinity", str(10**400), str(2**63),
    "-0.0",
    '""', '"x"', '"\\ud800"', '"\\u0000"', '"\\u001b[2J\\u202e"', '"../../x"', '"<script>alert(1)</script>"', '"=1+1"',
    '"' + "y" * 30_000 + '"', "[]", "{}", "[1]", '{"a": 1}', '{"name": "adamw"}', '["adamw"]', "[[[[]]]]",
    "[" * 60 + "]" * 60,
    "[" * 5000 + "]" * 5000, "1" * 5000, "{", "",
)  # fmt: skip
_MARK = "\x7f the place \x7f"


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in plain data."""
    yield way
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*way, key))


def replaced(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """A copy with `new` at the place."""
    if not way:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = replaced(copy[way[0]], way[1:], new)
    return copy


def without(value: Any, way: tuple[Any, ...]) -> Any:
    """A copy without what stands at the place."""
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    if len(way) == 1:
        del copy[way[0]]
    else:
        copy[way[0]] = without(copy[way[0]], way[1:])
    return copy


@st.composite
def mutated(draw: st.DrawFn, text: str) -> bytes:
    """A JSON text with one change."""
    kind = draw(st.sampled_from(["junk", "junk", "junk", "junk", "gone", "again", "bytes"]))
    if kind == "bytes":
        return draw(mutated_bytes(text.encode()))
    value = json.loads(text)
    way = draw(st.sampled_from(list(places(value))))
    if kind == "gone" and way:
        return json.dumps(without(value, way)).encode()
    if kind == "again":  # something of ours at another place
        other = draw(st.sampled_from(list(places(value))))
        inner = value
        for key in other:
            inner = inner[key]
        return json.dumps(replaced(value, way, inner)).encode()
    return json.dumps(replaced(value, way, _MARK)).replace(json.dumps(_MARK), draw(st.sampled_from(JUNK))).encode()


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, with other bytes in it, or with a part twice."""
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, min(len(content), start + 40)))
    kind = draw(st.sampled_from(["cut", "other", "twice", "gone"]))
    if kind == "cut":
        return content[:start]
    put = {"other": draw(st.binary(max_size=8)), "twice": content[start:end] * 2, "gone": b""}[kind]
    return content[:start] + put + content[end:]
