"""Names: what there is, what it takes, and how to make it. The folder is the registry.

Every file in `optimizers/` and `wrappers/` is one optimizer, its stem is the name, its class the one that derives from
`Optimizer` or `Wrapper`; `PRESETS` in a file adds names. Everything but `create` reads the files without running them,
so that listing and checking import neither torch nor the rule.
"""

from __future__ import annotations

import ast
import fnmatch
import importlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from hf_optim.core import validate
from hf_optim.core.importing import import_path, stands
from hf_optim.errors import UserError

if TYPE_CHECKING:
    import torch

    from hf_optim.bases.optimizer import Optimizer

Made = TypeVar("Made", bound="torch.optim.Optimizer")

_HERE = Path(__file__).parent
_BASES = {"optimizers": "Optimizer", "wrappers": "Wrapper"}
#: of how an optimizer is built over a model, and no hyper-parameter of its rule
BUILDING = ("decay_all",)


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


_DECLARED = ("family", "paper", "cited", "needs", "slots", "int8_slots", "state_bytes", "search_space",
             "special_cases", "as_base")  # fmt: skip


def _literals(body: list[ast.stmt], names: Collection[str], path: Path) -> dict[str, Any]:
    """The values of those of `names` that are assigned in `body`, where anything else may be computed."""
    literals = {}
    for node in (statement for statement in body if isinstance(statement, (ast.Assign, ast.AnnAssign))):
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name) and target.id in names and node.value is not None:
            try:
                literals[target.id] = _value(node.value)
            except (KeyError, ValueError):
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
    init = next(n for n in cls.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    args = init.args.args[2:]  # without self and params or base
    values = [_value(d) for d in init.args.defaults]
    required = tuple(a.arg for a in args[: len(args) - len(values)])
    defaults = dict(zip([a.arg for a in args[len(required) :]], values, strict=True))
    return defaults, required, tuple(a.arg for a in init.args.kwonlyargs)


def _has_init(cls: ast.ClassDef) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name == "__init__" for n in cls.body)


def _read(path: Path, kind: str) -> dict[str, Info]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    top = _literals(tree.body, ("PRESETS",), path)
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.bases]
    infos: dict[str, Info] = {}
    optimizers = [c for c in classes if _has_init(c)]
    if not optimizers:
        return infos
    cls = optimizers[0]
    own = _literals(cls.body, _DECLARED, path)
    defaults, required, options = _signature(cls)
    family = "wrapper" if kind == "wrappers" else own.get("family", "plain")
    slots = own.get("slots", {})
    info = Info(
        path.stem,
        f"hf_optim.{cls.name}",
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
    infos[path.stem] = info
    for name, preset in top.get("PRESETS", {}).items():
        infos[name] = _preset(name, info, preset)
    return infos


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
def _all() -> dict[str, Info]:
    infos: dict[str, Info] = {}
    for kind in _BASES:
        for path in sorted((_HERE / kind).glob("*.py")):
            if not path.stem.startswith("_"):
                infos.update(_read(path, kind))
    return infos


@cache
def classes() -> dict[str, tuple[str, str]]:
    """Public class name -> (module, class)."""
    homes = {}
    for name, info in _all().items():
        short = info.cls.rsplit(".", 1)[1]
        for kind in _BASES:
            if (_HERE / kind / f"{name}.py").exists():
                homes[short] = (f"hf_optim.{kind}.{name}", short)
    return homes


# --- the public functions ------------------------------------------------------------------------------------------


def list_optimizers(pattern: str = "*") -> list[str]:
    """Registered names that match a wildcard pattern, sorted."""
    return sorted(n for n in _all() if fnmatch.fnmatchcase(n, pattern))


def info(name: str) -> Info:
    """What is known of a registered name.

    Raises:
        UserError: no such name; it says which are near.
    """
    try:
        return _all()[name]
    except KeyError:
        near = validate.closest(str(name), _all())
        raise UserError(
            f"there is no optimizer {name!r}{near}; hf_optim.list_optimizers() lists them, and "
            "'package.module:Class' or 'file.py:Class' names any other"
        ) from None


def named(value: Any) -> Any:
    """The name of a class of this library; anything else as it is."""
    home, _, stem = (value.__module__ if isinstance(value, type) else "").rpartition(".")
    ours = home in ("hf_optim.optimizers", "hf_optim.wrappers") and info(stem).cls.endswith(f".{value.__name__}")
    return stem if ours else value


def as_spec(spec: Any) -> dict[str, Any]:
    """A name or a mapping with `name`, as a mapping; a class or a factory stands as its own name."""
    given = dict(spec) if isinstance(spec, dict) else {"name": spec}
    if stands(given.get("name")):
        return {**given, "name": named(given["name"])}
    raise UserError(f"an optimizer is a name, a class, a factory or a mapping with a 'name', got {spec!r}")


def check_spec(spec: Any) -> None:
    """Check names and hyper-parameter names of a specification, nested ones too, without importing torch.

    Raises:
        UserError: an unknown name or hyper-parameter, with the nearest or valid ones.
    """
    given = as_spec(spec)
    name = given.pop("name")
    if not isinstance(name, str) or ":" in name:
        return
    known = info(name)
    if known.family == "wrapper":
        base = given.pop("base", None)
        if known.base is not None:
            base = {**known.base, **({} if base is None else _preset_base(name, base))}
        if base is None:
            raise UserError(f"{name} wraps another optimizer: give base, e.g. base: {{name: sgd, lr: 0.1}}")
        check_spec(base)
    building = () if known.family == "wrapper" else BUILDING  # a wrapper's base is what is built over the model
    validate.unknown(name, given, [*known.required, *known.defaults, *known.options, *building])
    for k, v in known.arguments.items():
        if v is True and given.get(k, v) is not v:
            rule = classes()[known.cls.rsplit(".", 1)[1]][0].rsplit(".", 1)[1]
            raise UserError(f"{name} is {rule} with {k}={v}, got {k}={given[k]!r}: take {rule}")
    for r in known.required:
        if r not in given:
            raise UserError(f"{name} has no default for {r}: give it")


def _preset_base(name: str, base: Any) -> dict[str, Any]:
    if not isinstance(base, dict) or "name" in base:
        raise UserError(f"{name} fixes its base: give only the base's hyper-parameters, e.g. base={{'lr': 0.1}}")
    return base


def resolve(name: str) -> Any:
    """The class behind a name (for a preset, the class it configures), or the class or factory of an import path."""
    if ":" in name:
        target = import_path(name)
        from hf_optim.core import foreign

        if not foreign.is_class(target) and (isinstance(target, type) or not callable(target)):
            raise UserError(f"{name} is not a torch.optim.Optimizer class, nor a function that makes one")
        return target
    short = info(name).cls.rsplit(".", 1)[1]
    module, attribute = classes()[short]
    return getattr(importlib.import_module(module), attribute)


def create(name: Any, params_or_model: Any, **hyper: Any) -> torch.optim.Optimizer:
    """Make an optimizer by name, from a specification, a class, a factory or an instance.

    Args:
        name: a registered name (`list_optimizers()`), or `package.module:Class`, `file.py:Class`,
            `file.py:make_optimizer`, or a specification, `{"name": ..., "lr": ...}`; in Python also the class, the
            factory or the instance itself. A factory is called with what its arguments ask for: `model`,
            `named_parameters`, `groups` or `params`.
        params_or_model: what torch's optimizers take, or an nn.Module, whose parameters are then divided into groups
            that decay and groups that do not (`hf_optim.core.groups`), whoever wrote the optimizer. None for an
            instance.
        hyper: the rule's hyper-parameters and options (`info(name).defaults`). Wrappers take `base`: a name, a
            mapping with `name`, a class, a factory, or an instance, with `params_or_model` None then.
            `decay_all=True` decays a model's biases and normalisation layers too, as published code without parameter
            groups does.

    Raises:
        UserError: an unknown name or hyper-parameter, or a value out of range.
    """
    import torch
    from torch import nn

    from hf_optim.core import foreign
    from hf_optim.core.groups import Parameters

    if isinstance(name, dict):
        return build({**name, **hyper}, params_or_model)
    source = Parameters(params_or_model) if isinstance(params_or_model, nn.Module) else params_or_model
    name = named(name)
    if not isinstance(name, str):
        if not (isinstance(name, torch.optim.Optimizer) or stands(name)):
            raise UserError(f"an optimizer is a name, a class, a factory or an instance, got {type(name).__name__}")
        return _named(foreign.make(name, foreign.label(name), source, hyper), source)
    base = hyper.get("base")
    if isinstance(base, torch.optim.Optimizer):
        return _wrap(name, base, {k: v for k, v in hyper.items() if k != "base"})
    check_spec({"name": name, **hyper})
    if ":" in name:
        return _named(foreign.make(resolve(name), name, source, hyper), source)
    known = info(name)
    if known.family == "wrapper":
        base_spec = dict(known.base or {})
        base_spec.update(as_spec(base) if base is not None and known.base is None else dict(base or {}))
        return _wrap(name, build(base_spec, source), {k: v for k, v in hyper.items() if k != "base"})
    decay_all = hyper.pop("decay_all", False)
    if not isinstance(decay_all, bool):
        raise UserError(f"{name}: decay_all must be true or false, got {decay_all!r}")
    cls, params = resolve(name), source
    decay, opt_out = _division(cls, known, hyper, decay_all)
    if isinstance(source, Parameters):
        params = source.groups(decay, opt_out=opt_out, route=getattr(cls, "route", None))
    optimizer: Optimizer = cls(params, **{**known.arguments, **hyper})
    optimizer.given |= set(hyper) & set(known.defaults)  # a default that was written down is a choice too
    if isinstance(source, Parameters):
        _named(optimizer, source, source.earlier(decay, apart=bool(opt_out)))
        if hasattr(optimizer, "watch"):
            optimizer.watch(source.model)
    return optimizer


def _named(optimizer: Made, source: Any, earlier: list[list[str]] | None = None) -> Made:
    """The optimizer with its tensors' names in its groups, where a model has told them."""
    from hf_optim.bases import parameter_names

    names = getattr(source, "names", {})
    if all(p in names for group in optimizer.param_groups for p in group["params"]):
        parameter_names.name(optimizer, names, [list(names.values())] if earlier is None else earlier)
    return optimizer


def _division(cls: Any, known: Info, hyper: dict[str, Any], decay_all: bool) -> tuple[float | None, str]:
    """The decay of the groups that decay, None for a rule without one and where one group decays as the rule itself
    says; the key with which embeddings stay out of a transform."""
    opt_out = cls.opt_out
    if not opt_out and hyper.get("grad_transform") is not None:
        from hf_optim.transforms import make

        opt_out = make(hyper["grad_transform"]).opt_out
    divided = "weight_decay" in known.defaults and not decay_all
    return hyper.get("weight_decay", known.defaults["weight_decay"]) if divided else None, opt_out


def _wrap(name: str, base: torch.optim.Optimizer, own: dict[str, Any]) -> torch.optim.Optimizer:
    known = info(name)
    if known.family != "wrapper":
        raise UserError(f"{name} takes no base")
    validate.unknown(name, own, [*known.required, *known.defaults, *known.options])
    return resolve(name)(base, **own)  # type: ignore[no-any-return]


def check_values(spec: Any) -> None:
    """Check a specification's values too, by making the optimizer on one small layer; of a factory, which may want the
    model, only that it takes the arguments. Imports torch.

    Raises:
        UserError: what `create` would raise in a run.
    """
    from torch import nn

    from hf_optim.core import foreign

    inner = as_spec(spec)
    while stands(inner.get("base")) or (isinstance(inner.get("base"), dict) and "name" in inner["base"]):
        inner = as_spec(inner["base"])
    name = inner.pop("name")
    target = resolve(name) if isinstance(name, str) and ":" in name else name
    if not isinstance(target, str) and not foreign.is_class(target):
        check_spec(spec)
        foreign.check_arguments(target, foreign.label(name), inner)
    else:
        build(spec, nn.Linear(2, 2))


def build(spec: Any, params_or_model: Any) -> torch.optim.Optimizer:
    """`create` from a name or a mapping with `name`, as in a YAML file."""
    given = as_spec(spec)
    return create(given.pop("name"), params_or_model, **given)
