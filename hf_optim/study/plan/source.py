"""Reads YAML safely and remembers on which line each value stood, so that an error can name its place.

Only plain data is built: no tags, no classes. Numbers follow YAML 1.2, so `1e-3` is a float (YAML 1.1 reads a string).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_optim.core import shape as shapes
from hf_optim.core.validate import closest, no_choice
from hf_optim.core.yaml12 import LARGEST, Loader
from hf_optim.errors import UserError

Where = tuple[str | int, ...]  # the way from the document's root to a value: ("optimizers", 2, "lr")
_MOST_VALUES = 20_000  # aliases can make a small file expand without bound
_MOST_DEPTH = 20


@dataclass
class Source:
    """A document's plain value, and the line (1-based) of every value in it; `file` is empty where none was read."""

    file: str
    value: Any
    text: str
    lines: dict[Where, int] = field(default_factory=dict)

    def error(self, where: Where, message: str) -> UserError:
        """A UserError that starts with the file and the line of `where` (or of the nearest parent with a line)."""
        while where and where not in self.lines:
            where = where[:-1]
        return UserError(f"{self.file}, line {self.lines.get(where, 1)}: {message}" if self.file else message)

    def check_keys(
        self, where: Where, value: Any, valid: Iterable[str], required: Iterable[str] = ()
    ) -> Mapping[str, Any]:
        """`value` as a mapping whose keys are all among `valid` and include `required`."""
        valid = list(valid)
        if not isinstance(value, dict):
            raise self.error(where, f"expected a mapping with the keys {', '.join(valid)}, got {describe(value)}")
        for key in value:
            if key not in valid:
                near = closest(key, valid)
                raise self.error((*where, key), f"unknown key {key!r}{near}; valid keys: {', '.join(valid)}")
        for key in required:
            if key not in value:
                raise self.error(where, f"the key {key!r} is missing")
            if value[key] is None:
                raise self.error((*where, key), f"{key} has no value")
        return value

    def check_type(self, where: Where, value: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        """`value`, if it is an instance of `kind` (a bool is not an int here)."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(where, f"{where[-1] if where else 'the file'} must be {expected}, got {describe(value)}")
        return value

    def check_choice(self, where: Where, value: Any, valid: Iterable[str]) -> Any:
        """`value`, if it is one of `valid`."""
        valid = list(valid)
        if value not in valid:
            raise self.error(where, no_choice(str(where[-1]), value, valid, describe(value)))
        return value

    def check_text(self, where: Where, value: str) -> str:
        """`value`, if it can be written; two escapes of JSON's that are one character are that."""
        if "\0" in value:  # which is in no name of anything
            raise self.error(where, f"{value[:20]!r} holds a NUL character")
        try:
            return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self.error(where, f"{value[:20]!r} holds half a character") from None

    def check_shape(self, where: Where, value: Any, shape: Any) -> Any:
        """`value`, if it has the shape (see `hf_optim.core.shape`)."""
        try:
            shapes.check_shape(value, shape, str(where[-1]) if where else "the file")
        except UserError as error:
            raise self.error(where, str(error)) from None
        return value


def describe(value: Any) -> str:
    """A value in an error message: short, and with its type where the text alone misleads."""
    if value is None:
        return "nothing"
    text = repr(value)
    kind = {dict: "a mapping", list: "a list", str: "the text", bool: "the boolean"}.get(type(value), "")
    return f"{kind} {text if len(text) <= 60 else text[:57] + '...'}".strip()


def read(path: Path, name: str | None = None) -> Source:
    """Reads the YAML file at `path`; `name` is what errors call it (default: the path as given)."""
    name = name or str(path)
    try:
        with path.open(encoding="utf-8") as opened:
            text = opened.read(LARGEST + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not a UTF-8 text file (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror or error})") from None
    return parse(text, name)


def parse(text: str, name: str) -> Source:
    """Parses YAML text; errors carry `name` and the line."""
    source = Source(name, None, text)
    try:
        loader = Loader(text)
        try:
            node = loader.get_single_node()
            source.value = None if node is None else _plain(loader, node, (), source)
        finally:
            loader.dispose()
    except RecursionError:
        raise UserError(f"{name}: more than {_MOST_DEPTH} levels") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{name}, line {line}: not valid YAML: the character {chr(error.character)!r}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise UserError(f"{name}, line {line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: not valid YAML: {error}") from None
    return source


def _plain(loader: yaml.SafeLoader, node: yaml.Node, where: Where, source: Source) -> Any:
    source.lines[where] = node.start_mark.line + 1
    if len(source.lines) > _MOST_VALUES or len(where) > _MOST_DEPTH:
        raise source.error(where, f"more than {_MOST_VALUES} values or {_MOST_DEPTH} levels: aliases that repeat?")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, child, (*where, i), source) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{source.file}, line {line}: a key must be a word")
            key = source.check_text(where, str(key_node.value))
            if key in mapping:
                raise UserError(f"{source.file}, line {line}: the key {key!r} is given twice")
            mapping[key] = _plain(loader, value_node, (*where, key), source)
            source.lines[(*where, key)] = line
        return mapping
    assert isinstance(node, yaml.ScalarNode)
    if node.tag.startswith("!") or not node.tag.startswith("tag:yaml.org,2002:"):
        raise source.error(where, f"tags such as {node.tag} are not allowed")
    try:
        value = loader.construct_object(node)
    except yaml.constructor.ConstructorError:
        raise source.error(where, f"tags such as {node.tag} are not allowed") from None
    except ValueError:  # more digits than Python reads, or a tag on what it does not fit
        raise source.error(where, f"{node.value[:20]!r} is no value of its kind") from None
    if not isinstance(value, str | int | float | bool | None):
        raise source.error(where, f"tags such as {node.tag} are not allowed")
    if isinstance(value, str):
        return source.check_text(where, value)
    if isinstance(value, float) and not math.isfinite(value) or isinstance(value, int) and abs(value) >= 2**63:
        raise source.error(where, f"{node.value[:20]} is not a finite number of this machine")
    if isinstance(value, float) and abs(value) >= shapes.FARTHEST:  # no plan or record could hold it
        raise source.error(where, f"{node.value[:20]} is beyond {shapes.FARTHEST:g}")
    return value
