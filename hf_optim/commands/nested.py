"""Options with dots: `--optimizer.base.lr 1e-3`, as YAML values to any depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.errors import UserError


def value(text: str) -> Any:
    """A YAML value: numbers (also 1e-3), lists, true/false, null, texts."""
    from hf_optim.study.plan.source import parse

    try:
        return parse(text, "value").value
    except UserError as error:
        why = str(error).removeprefix("value, line 1: ")
        raise UserError(
            f"{text!r} is not a YAML value ({why}): write numbers, [lists], true, false, null or texts"
        ) from None


def take_nested(argv: Sequence[str], keys: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Split `--optimizer.base.lr 1e-3` and the like off; a `base` given as a name becomes `{"name": ...}`."""
    plain: list[str] = []
    nested: dict[str, dict[str, Any]] = {key: {} for key in keys}
    rest = iter(argv)
    for token in rest:
        key, equals, text = token.partition("=")
        path = key[2:].split(".")
        if not key.startswith("--") or len(path) < 2 or path[0] not in keys:
            plain.append(token)
            continue
        if not all(path):
            raise UserError(f"{key}: a name is missing between or after the dots")
        if not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise UserError(f"{key} needs a value")
        leaf: Any = value(text)
        if path[-1] == "base" and isinstance(leaf, str):
            leaf = {"name": leaf}
        for part in reversed(path[1:]):
            leaf = {part: leaf}
        nested[path[0]] = merged(nested[path[0]], leaf)
    return plain, nested


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings merged, the second's values winning; a bare name counts as the mapping of its name."""
    whole = dict(first)
    for key, entry in second.items():
        mine = whole.get(key)
        mine = {"name": mine} if isinstance(mine, str) and isinstance(entry, Mapping) else mine
        if isinstance(mine, Mapping) and isinstance(entry, Mapping):
            other = "name" in entry and "name" in mine and entry["name"] != mine["name"]
            entry = dict(entry) if other else merged(mine, entry)
        whole[key] = entry
    return whole
