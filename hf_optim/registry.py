"""Names: what there is, what it takes, and how to make it. The folder is the registry.

Every file in `optimizers/` and `wrappers/` is one optimizer, its stem is the name, its class the one that derives from
`Optimizer` or `Wrapper`; `PRESETS` in a file adds names. Everything but `create` reads the files without running them,
so that listing and checking import neither torch nor the rule.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from hf_optim.core import catalogue, validate, wording
from hf_optim.core.catalogue import Info, classes, everything
from hf_optim.core.importing import import_path, readable, stands
from hf_optim.errors import UnknownName, UserError

if TYPE_CHECKING:
    import torch

    from hf_optim.bases.optimizer import Optimizer

Made = TypeVar("Made", bound="torch.optim.Optimizer")

#: of how an optimizer is built over a model, and no hyper-parameter of its rule
BUILDING = ("decay_all",)


# --- the public functions ------------------------------------------------------------------------------------------


def list_optimizers(pattern: str = "*") -> list[str]:
    """Registered names that match a wildcard pattern, sorted."""
    return sorted(n for n in everything() if fnmatch.fnmatchcase(n, pattern))


def info(name: str) -> Info:
    """What is known of a registered name.

    Raises:
        UserError: no such name; it says which are near.
    """
    try:
        return everything()[name]
    except KeyError:
        wrapper, _, rest = str(name).partition("(")
        if rest and wrapper in everything():  # as reports label it
            raise UserError(f"{name}: write it as {wrapper} with base={rest.removesuffix(')')!r}") from None
        near = meant(str(name)) or validate.closest(str(name), everything())
        raise UserError(
            f"there is no optimizer {name!r}{near}; hf_optim.list_optimizers() lists them, and "
            "'package.module:Class' or 'file.py:Class' names any other"
        ) from None


#: in the names of a Trainer's `optim`: whose the optimizer is
_MAKES = {"torch", "fused", "bnb", "8bit", "4bit", "apex", "npu", "xla", "anyprecision"}


def meant(name: str) -> str:
    """What a name that is none was meant for, where a near one is not: code without its colon, a name in capitals, a
    Trainer's `optim`, what several names have as a part."""
    home, _, last = name.rpartition(".")
    if last == "py":
        return f" (an optimizer in that file is {name}:ITS_CLASS)"
    if home and last.isidentifier():
        return f" (did you mean {home}:{last}?)"
    if name.lower() in everything():  # not the others that have it as a part
        return f" (did you mean {name.lower()}?)"
    longer = [known for known in everything() if name.startswith(f"{known}_") and _MAKES & set(name.split("_"))]
    if longer:
        return f" (did you mean {max(longer, key=len)}?)"
    parts = [known for known in everything() if name.lower() in known.split("_")]  # a paper's name: agr in adamw_agr
    return validate.did_you_mean(parts)


def about(name: str) -> Info:
    """`info`, also of an import path: what its class declares, for which its code runs where reading does not do.

    Raises:
        UserError: no such name, or nothing that makes an optimizer.
    """
    if ":" not in name:
        return info(name)
    return _written(name) or catalogue.described(name, resolve(name))


def _written(name: str) -> Info | None:
    return catalogue.written(name) if readable() else None


def named(value: Any) -> Any:
    """The name of a class of this library; anything else as it is."""
    home, _, stem = (value.__module__ if isinstance(value, type) else "").rpartition(".")
    ours = home in ("hf_optim.optimizers", "hf_optim.wrappers") and info(stem).cls.endswith(f".{value.__name__}")
    return stem if ours else value


def as_spec(spec: Any) -> dict[str, Any]:
    """A name or a mapping with `name`, as a mapping; a class or a factory stands as its own name."""
    given = dict(spec) if isinstance(spec, dict) else {"name": spec}
    _no_text(given.get("name"))
    if stands(given.get("name")):
        return {**given, "name": named(given["name"])}
    raise UserError(f"an optimizer is a name, a class, a factory or a mapping with a 'name', got {spec!r}")


def _no_text(name: Any) -> None:
    if isinstance(name, str) and name.strip().startswith("{"):
        raise UserError(f"{name} is the text of a specification: give the mapping itself, not in quotation marks")


def check_spec(spec: Any) -> None:
    """Check names and hyper-parameter names of a specification, nested ones too, without importing torch.

    Raises:
        UserError: an unknown name or hyper-parameter, with the nearest or valid ones.
    """
    given = as_spec(spec)
    name = given.pop("name")
    if not isinstance(name, str) or ":" in name:
        foreign = _written(name) if isinstance(name, str) else None
        if foreign is not None:
            validate.unknown(name, given, [*foreign.required, *foreign.defaults, *foreign.options])
        return
    known = info(name)
    if known.family == "wrapper":
        base = given.pop("base", None)
        if known.base is not None:
            base = {**known.base, **({} if base is None else _preset_base(name, base))}
        if base is None:
            raise UserError(_baseless(name, known))
        check_spec(base)
        _check_base_owns(name, known, given, base)
    building = () if known.family == "wrapper" else BUILDING  # a wrapper's base is what is built over the model
    validate.unknown(name, given, [*known.required, *known.defaults, *known.options, *building])
    for k, v in known.arguments.items():
        if v is True and given.get(k, v) is not v:
            rule = classes()[known.cls.rsplit(".", 1)[1]][0].rsplit(".", 1)[1]
            raise UserError(f"{name} is {rule} with {k}={v}, got {k}={given[k]!r}: take {rule}")
    for r in known.required:
        if r not in given:
            raise UserError(f"{name} has no default for {r}: give it")


def _check_base_owns(name: str, wrapper: Info, given: dict[str, Any], base: Any) -> None:
    """Raise where a wrapper is given what is its base's: a rate, most often."""
    inner = as_spec(base)["name"]
    if not isinstance(inner, str) or ":" in inner:
        return
    own = {*wrapper.required, *wrapper.defaults, *wrapper.options}
    for key in given:
        if key not in own and key in {*info(inner).defaults, *info(inner).required}:
            where = f"base={{'name': {inner!r}, {key!r}: {given[key]!r}}}"
            raise UnknownName(f"{name} has no hyper-parameter {key!r}, its base has: {where}")


def _baseless(name: str, wrapper: Info) -> str:
    """A wrapper without its base, in the spellings of every door."""
    ready = [k for k, v in everything().items() if v.cls == wrapper.cls and v.base is not None]
    return (
        f"{name} wraps another optimizer: give its base, in Python "
        f'base="adamw" or base={{"name": "adamw", "lr": 1e-3}}, '
        f"{{name: {name}, base: adamw}} in YAML, --optimizer.base adamw or '{name}(adamw)' on the command line"
        + (f"; or take {wording.either(ready)}" if ready else "")
    )


def inner(wrapper: Info, base: Any) -> dict[str, Any] | None:
    """The specification of what a wrapper wraps: what is given as its `base` over its own; None where none is named."""
    spec = {**(wrapper.base or {}), **({"name": base} if isinstance(base, str) else base or {})}
    return spec if "name" in spec else None


def _preset_base(name: str, base: Any) -> dict[str, Any]:
    if not isinstance(base, dict) or "name" in base:
        raise UserError(f"{name} fixes its base: give only the base's hyper-parameters, e.g. base={{'lr': 0.1}}")
    return base


def resolve(name: str) -> Any:
    """The class behind a name (for a preset, the class it configures), or the class or factory of an import path."""
    _no_text(name)
    if ":" in name:
        target = import_path(name)
        from hf_optim.core import foreign

        if not foreign.is_class(target) and (isinstance(target, type) or not callable(target)):
            raise UserError(f"{name} is not a torch.optim.Optimizer class, nor a function that makes one")
        if not foreign.is_class(target):
            foreign.check_factory(target, name)
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
            raise UserError(f"an optimizer is a name, a class, a factory or an instance, got {foreign.told(name)}")
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


def check_names(spec: Any) -> None:
    """Check the hyper-parameters' names of classes that an import path names, whose code runs; `check_spec` knows the
    others.

    Raises:
        UserError: a name that the class does not take, with the nearest.
    """
    given = as_spec(spec)
    name, base = given.pop("name"), given.get("base")
    if isinstance(name, str) and ":" in name and isinstance(resolve(name), type):
        takes = inspect.signature(resolve(name)).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            validate.unknown(name, given, list(takes)[1:])
    if isinstance(base, str) or (isinstance(base, dict) and "name" in base):
        check_names(base)


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
