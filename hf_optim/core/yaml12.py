"""Plain values by YAML 1.2. PyYAML reads them by 1.1, where 010 is 8, 1:30 is 90, 1e-3 a text and "no" false."""

from __future__ import annotations

import re
from typing import Any

import yaml

#: characters of a text: PyYAML reads a few ten thousand a second, and ours have some thousand
LARGEST = 256 << 10


class Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """SafeLoader with the plain values of YAML 1.2's core schema: 010 is 10, and yes, 1:30 and 2026-01-01 are texts."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def __init__(self, text: str) -> None:
        if len(text) > LARGEST:
            raise yaml.YAMLError(f"more than {LARGEST:,} characters")
        super().__init__(text)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML's, of what has no tag: one could say that a text is a number, or name what is to be made of it."""
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"tags such as {event.tag} are not allowed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """SafeDumper that quotes also the texts that are numbers by 1.2 alone, as 1e-3 and 09."""


for _kind, _rule, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
):  # fmt: skip
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_rule})$"), _first)


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(node.value)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


Loader.add_constructor("tag:yaml.org,2002:int", _whole)


class _Unaliased(Loader):
    """Without aliases: aliases of aliases grow without bound as soon as the value is written out."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML's, of everything but an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are for files")
        return super().compose_node(parent, index)


def load(text: str) -> Any:
    """The plain data of a YAML text without aliases. Raises yaml.YAMLError, ValueError or RecursionError."""
    return yaml.load(text, Loader=_Unaliased)


def dump(value: Any) -> str:
    """The text of plain data, by which both versions of YAML read the same data again."""
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))
