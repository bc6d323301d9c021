"""What the files of `optimizers/` and `wrappers/` declare, read without running them, and what others' classes do."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hf_optim.errors import UserError, first_line

#: bytes of a file of code
LARGEST = 16 << 20

_HERE = Path(__file__).parent.parent
_BASES = ("optimizers", "wrappers")
#: the family of a class that declares none
FOREIGN = "foreign"


@dataclass(frozen=True)
class Info:
    """What is known of a name without importing it.

    `cls` is its public path, `needs` what step() must be given, `state_bytes` the fp32 state of one parameter,
    `int8_bytes` that of a large tensor with state_dtype="int8" (None where that does not suit), `search_space` name ->
    ("log" | "linear", low, high) or ("choice", values); `options` are further keyword-only arguments that choose a way
    of running. A preset has what it gives: `base` to a wrapper, `arguments` to a rule.
    """

    name: str
    cls: str
    family: str
    paper: str
    needs: frozenset[str]
    defaults: MappingProxyType[str, Any]
    required: tuple[str, ...]
    options: tuple[str, ...]
    state_bytes: int
    search_space: MappingProxyType[str, tuple[Any, ...]]
    doc: str = field(repr=False)
    base: MappingProxyType[str, Any] | None = None
    arguments: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    cited: tuple[str, str, str, int] = ("", "", "", 0)
    #: how many of its slots may be kept in 8 bits
    int8_slots: int = 0
    #: the rules that it contains, and its base of a wrapper that may be its base: see `core.rule` and `bases.wrapper`
    special_cases: MappingProxyType[str, dict[str, float]] = field(default_factory=lambda: MappingProxyType({}))
    as_base: MappingProxyType[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def int8_bytes(self) -> float | None:
        """Codes of one byte, and four bytes for each 256 of them."""
        coded = min(self.int8_slots, self.state_bytes // 4)
        return self.state_bytes - coded * (3 - 4 / 256) if coded else None


# --- reading files -------------------------------------------------------------------------------------------------


#: what a class says of itself, and whether a value can be that
_DECLARED: dict[str, Callable[[Any], bool]] = {
    "family": lambda value: isinstance(value, str),
    "paper": lambda value: isinstance(value, str),
    "cited": lambda value: (
        isinstance(value, (tuple, list))
        and len(value) == 4
        and all(isinstance(part, str) for part in value[:3])
        and isinstance(value[3], int)
    ),
    "needs": lambda value: isinstance(value, (set, frozenset, tuple, list)) and _named(value),
    "slots": lambda value: isinstance(value, dict) and _named(value),
    "int8_slots": lambda value: isinstance(value, (dict, tuple, list)) and _named(value),
    "state_bytes": lambda value: isinstance(value, (int, float)) and 0 <= value < 2**53,
    "search_space": lambda value: isinstance(value, dict) and _named(value) and _bounded(value),
    "special_cases": lambda value: isinstance(value, dict) and _named(value) and _bounded(value),
    "as_base": lambda value: isinstance(value, dict) and _named(value) and _bounded(value),
}


def _named(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _bounded(value: Any) -> bool:
    """Whether no whole number in plain data is beyond what a float holds, or is written."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list, set)) else ()
    return all(map(_bounded, inner)) and not (isinstance(value, int) and abs(value) >= 2**63)


def shown(value: object) -> str:
    """`str`, also of a number with more digits than Python writes."""
    try:
        return str(value)
    except ValueError:
        return "a number of thousands of digits"


def _check(path: str, declared: Mapping[str, Any]) -> None:
    """Raise UserError for a declaration that is none, by an author's slip or a stranger's."""
    for key, value in declared.items():
        if not _DECLARED[key](value):
            raise UserError(f"{path}: {key} = {shown(value)[:40]} is not what `hf_optim.core.rule` says of {key}")


def _literals(body: list[ast.stmt], names: Collection[str], path: Path) -> dict[str, Any]:
    """The values of those of `names` that are assigned in `body`, where anything else may be computed."""
    literals = {}
    for node in (statement for statement in body if isinstance(statement, (ast.Assign, ast.AnnAssign))):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id in names and node.value is not None:
            try:
                literals[target.id] = _value(node.value)
            except (KeyError, TypeError, ValueError):  # TypeError: a set of lists
                where = f"{path}:{node.lineno}: {target.id}"
                raise UserError(f"{where} must be a literal: the registry reads it without running the file") from None
    return literals


def _value(node: ast.expr) -> Any:
    """A literal, or float("inf"), math.inf, set() and the like as their values."""
    try:
        return ast.literal_eval(node)
    except ValueError:  # to unparse every literal of every file would take a sixth of the time
        inf = float("inf")
        return {"float('inf')": inf, "math.inf": inf, "inf": inf, "set()": set()}[ast.unparse(node)]


def _signature(cls: ast.ClassDef) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    init = _constructor(cls)
    assert init is not None
    args = init.args[2:]  # without self and params or base
    values = [_value(d) for d in init.defaults]
    required = tuple(a.arg for a in args[: len(args) - len(values)])
    defaults = dict(zip([a.arg for a in args[len(required) :]], values, strict=True))
    return defaults, required, tuple(a.arg for a in init.kwonlyargs)


def code_of(file: Path) -> bytes:
    """The text of a file of code. A ValueError for one that is larger than any: a file's hole takes no disk."""
    with file.open("rb") as opened:
        text = opened.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MB")
    return text


def written(path: str) -> Info | None:
    """What the file of `file.py:Class` declares, read without running it; None where that would take running it: a
    class with other parents than `Optimizer`, values that are computed, an installed module."""
    file, _, name = path.rpartition(":")
    if not file.endswith(".py") or not Path(file).expanduser().is_file():
        return None
    try:
        tree = ast.parse(code_of(Path(file).expanduser()))
        ours = ["Optimizer"] if any(map(_imports_ours, tree.body)) else ["hf_optim.Optimizer"]
        for cls in (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name):
            init = _constructor(cls)
            if init is not None and list(map(ast.unparse, cls.bases)) == ours and init.kwarg is None:
                return _declared(cls, path, path, "optimizers", Path(file))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        pass  # whoever runs it is told why
    return None


def _imports_ours(node: ast.stmt) -> bool:
    """Whether it is `from hf_optim... import Optimizer`, and not torch's."""
    ours = isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "hf_optim"
    return ours and any((a.asname or a.name) == "Optimizer" for a in node.names)  # type: ignore[attr-defined]


def _constructor(cls: ast.ClassDef) -> ast.arguments | None:
    """The arguments of a class's own `__init__`."""
    return next((n.args for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def read(path: Path, kind: str) -> dict[str, Info]:
    """The names of one file: the optimizer, and its presets."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    top = _literals(tree.body, ("PRESETS",), path)
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.bases]
    infos: dict[str, Info] = {}
    optimizers = [c for c in classes if _constructor(c)]
    if not optimizers:
        return infos
    cls = optimizers[0]
    info = _declared(cls, path.stem, f"hf_optim.{cls.name}", kind, path)
    infos[path.stem] = info
    for name, preset in top.get("PRESETS", {}).items():
        infos[name] = _preset(name, info, preset)
    return infos


def _declared(cls: ast.ClassDef, name: str, public: str, kind: str, path: Path) -> Info:
    """What a class of a file says of itself."""
    own = _literals(cls.body, _DECLARED, path)
    _check(name, own)
    defaults, required, options = _signature(cls)
    family = "wrapper" if kind == "wrappers" else own.get("family", "plain")
    slots = own.get("slots", {})
    return Info(
        name,
        public,
        family,
        own.get("paper", ""),
        frozenset(own.get("needs", ())),
        MappingProxyType(defaults),
        required,
        options,
        own.get("state_bytes", 4 * len(slots)),
        MappingProxyType(own.get("search_space", {})),
        ast.get_docstring(cls) or "",
        cited=own.get("cited", ("", "", "", 0)),
        int8_slots=len(own.get("int8_slots", ())),
        special_cases=MappingProxyType(own.get("special_cases", {})),
        as_base=MappingProxyType(own.get("as_base", {})),
    )


def _preset(name: str, info: Info, preset: dict[str, Any]) -> Info:
    """A wrapper around a certain base, or a rule with other arguments, and so from another paper."""
    if info.family == "wrapper":
        return replace(
            info, name=name, base=MappingProxyType(preset), doc=f"{info.doc}\n\nThe base is {preset['name']}."
        )
    changed = preset["arguments"]
    return replace(
        info,
        name=name,
        paper=preset["paper"],
        cited=preset.get("cited", ("", "", "", 0)),
        defaults=MappingProxyType({**info.defaults, **changed}),
        arguments=MappingProxyType(changed),
        state_bytes=preset.get("state_bytes", info.state_bytes),
        search_space=MappingProxyType(preset["search_space"]),
        special_cases=MappingProxyType(preset.get("special_cases", {})),
    )


@cache
def everything() -> dict[str, Info]:
    """Name -> what is known of it."""
    infos: dict[str, Info] = {}
    for kind in _BASES:
        for path in sorted((_HERE / kind).glob("*.py")):
            if not path.stem.startswith("_"):
                infos.update(read(path, kind))
    return infos


@cache
def classes() -> dict[str, tuple[str, str]]:
    """Public class name -> (module, class)."""
    homes = {}
    for name, info in everything().items():
        short = info.cls.rsplit(".", 1)[1]
        for kind in _BASES:
            if (_HERE / kind / f"{name}.py").exists():
                homes[short] = (f"hf_optim.{kind}.{name}", short)
    return homes


# --- classes of others -----------------------------------------------------------------------------------------------


def described(path: str, cls: Any) -> Info:
    """What a class that lives outside of the package says of itself; its family is "foreign" where it says nothing.

    Args:
        path: by which it was imported; its name from here on.
        cls: the class, or a factory.
    """
    try:
        parameters = list(inspect.signature(cls).parameters.values())[1 if isinstance(cls, type) else 0 :]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} does not say what it is made from: {first_line(error)}") from None
    said = vars(cls).get("__doc__") if isinstance(cls, type) else cls.__doc__
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    own = {key: value for key in _DECLARED if (value := getattr(cls, key, None)) is not None}
    own = {key: value for key, value in own.items() if not isinstance(value, property)}  # known of an instance alone
    if any(parent.__module__.partition(".")[0] == "hf_optim" for parent in getattr(cls, "__mro__", ())):
        _check(path, own)
    own = {key: value for key, value in own.items() if _DECLARED[key](value)}  # another's class means something else
    return Info(
        path,
        path,
        own.get("family", FOREIGN),
        own.get("paper", ""),
        frozenset(own.get("needs", ())),
        MappingProxyType({p.name: p.default for p in named if p.default is not p.empty}),
        tuple(p.name for p in named if p.default is p.empty),
        tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        own.get("state_bytes") or 4 * len(own.get("slots", ())),
        doc=inspect.cleandoc(said) if isinstance(said, str) else "",
        cited=own.get("cited", ("", "", "", 0)),
        int8_slots=len(own.get("int8_slots", ())),
        **{k: MappingProxyType(dict(own.get(k, {}))) for k in ("search_space", "special_cases", "as_base")},
    )
