"""What TrainingArguments say about the optimizer, and what a rule makes of it.

`TrainingArguments.learning_rate` is 5e-5 unless set, which would freeze a rule whose rate is 0.1. So a value counts
only where somebody chose it: given to `attach`, set by a hyper-parameter search, or different from the default of the
arguments' own class. Otherwise the rule's default stays, and since nobody can see whether a default was written down,
one warning says what is in force. Rules that Trainer has itself take the arguments as Trainer's own would, and "args"
asks for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from hf_optim import registry
from hf_optim.core.foreign import check_arguments, is_class, label, signature, told
from hf_optim.core.importing import stands
from hf_optim.core.wording import either
from hf_optim.errors import UserError
from hf_optim.hub import decay

#: TrainingArguments that an attached optimizer takes over (when set), and those it would make meaningless
_TAKEN = {"learning_rate": "lr", "weight_decay": "weight_decay"}
#: "take the argument's", as the value of a hyper-parameter
FROM_ARGS = "args"
#: AdamW and its kind are searched up to here; a default from here on (SMARAN, Padam, Prodigy) is on another scale
OTHER_SCALE = 0.1
_REPLACED = ("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")


def to_spec(name: Any, hyper: Mapping[str, Any], settled: bool = True) -> dict[str, Any]:
    """`("tlr", {"gamma": .3})` or `({"name": "tlr"}, {"gamma": .3})` -> one checked specification.

    Args:
        name: a name, a mapping with one, or a class, a factory or an instance, which then stands as the name.
        settled: False where `settle` follows, which may find a rate for a rule that has none by default.

    Raises:
        UserError: unknown rule or hyper-parameter; the message names the closest or the valid ones.
    """
    if isinstance(name, str):
        spec = {"name": name, **hyper}
    elif isinstance(name, Mapping):
        if "name" not in name:
            raise UserError(f"an optimizer specification needs a name: {{'name': 'smaran', ...}}, got {dict(name)}")
        spec = {**name, "name": registry.named(name["name"]), **hyper}
    elif _is_instance(name):
        if hyper:
            raise UserError(f"{label(name)} is an instance with hyper-parameters of its own: give none")
        return {"name": name}
    elif stands(name):
        spec = {"name": registry.named(name), **hyper}
        if not isinstance(spec["name"], str):
            _check_values(spec)
            return spec
    elif isinstance(name, tuple) and name and hasattr(name[0], "trainer"):
        raise UserError("what factory() gives goes into Trainer(..., optimizer_cls_and_kwargs=...), not to attach")
    else:
        raise UserError(
            "an optimizer is given by name, as {'name': ...}, as a class, a factory or an instance, not as "
            f"{told(name)}"
        )
    instance = _is_instance(spec.get("base"))  # it has been checked when it was made
    late = {} if settled else dict.fromkeys(set(_required(spec["name"])) & set(_TAKEN.values()), 0.0)
    registry.check_spec({**late, **spec, **({"base": "sgd"} if instance else {})})
    _check_values(spec)
    return spec


def _check_values(spec: Mapping[str, Any]) -> None:
    """What would be refused when the optimizer is built, refused now: a sample of it is made on a small layer. Of
    somebody else's, which may want more of a model, only that there is such a thing and that it takes the arguments."""
    import torch

    if _is_instance(spec["name"]):
        return
    registry.check_names(spec)
    named = spec["name"]
    target = registry.resolve(named) if isinstance(named, str) and ":" in named else named
    if not (isinstance(target, str) or is_class(target)):
        check_arguments(target, label(named), {k: v for k, v in spec.items() if k != "name"})
    sample = _sample(spec)
    if sample is not _STAND_IN:
        with torch.random.fork_rng(devices=[]):  # the run's own numbers are not drawn from
            registry.build(sample, torch.nn.Linear(2, 2, device="cpu"))


_STAND_IN = {"name": "sgd", "lr": 0.1}


def _sample(spec: Mapping[str, Any], of: str = "") -> dict[str, Any]:
    """A specification as any model takes it: with some rate and decay where those of TrainingArguments are asked for,
    and SGD in the place of what is not of this library. `of` names what a preset wraps, whose mapping has no name."""
    given = dict(spec)
    name = of or given["name"]
    if not isinstance(name, str) or ":" in name:
        return _STAND_IN
    known, base = registry.info(name), given.get("base")
    if known.base is not None:
        given["base"] = _sample({**known.base, **(base or {})}, str(known.base["name"]))
        given["base"].pop("name", None)
    elif known.family == "wrapper":
        given["base"] = _STAND_IN if _is_instance(base) else _sample(registry.as_spec(base))
    given = {k: v for k, v in given.items() if not _is_asked(v)}
    return {**dict.fromkeys(set(_TAKEN.values()) & set(known.required), 0.1), **given}


def _required(name: Any) -> tuple[str, ...]:
    """Hyper-parameters without a default."""
    if not name or _is_instance(name):
        return ()
    if isinstance(name, str) and ":" not in name:
        return registry.info(name).required
    return tuple(k for k, v in _defaults(name).items() if v is inspect.Parameter.empty)


def _chosen(args: Any, field: str, searched: Mapping[str, Any]) -> bool:
    declared = getattr(type(args), "__dataclass_fields__", {}).get(field)
    return field in searched or (declared is not None and getattr(args, field) != declared.default)


def _is_asked(value: Any) -> bool:
    return isinstance(value, str) and value == FROM_ARGS


def _is_instance(value: Any) -> bool:
    import torch

    return isinstance(value, torch.optim.Optimizer)


def _innermost(full: dict[str, Any]) -> tuple[dict[str, Any], Any, str]:
    """Where the hyper-parameters of the innermost optimizer of nested wrappers are written, its name, and what stands
    before theirs ("base.").

    Copies what it descends through. The name is empty for an optimizer instance, whose rate is its own.
    """
    if not isinstance(full["name"], str):
        return ({}, "", "") if _is_instance(full["name"]) else (full, full["name"], "")
    inner, name, home = full, str(full["name"]), ""
    while True:
        known = None if not isinstance(name, str) or ":" in name else registry.info(name)
        if known is None or known.family != "wrapper":
            return inner, name, home
        base = inner.get("base")
        if known.base is not None:  # a preset: its base has a name already, and takes hyper-parameters only
            inner["base"] = dict(base or {})
            name = str(known.base["name"])
        elif _is_instance(base):
            return {}, "", ""
        else:
            inner["base"] = registry.as_spec(base)
            name = inner["base"]["name"]
        inner, home = inner["base"], f"{home}base."


def _defaults(name: Any) -> Mapping[str, Any]:
    if not name:
        return {}
    if isinstance(name, str) and ":" not in name:
        return {**dict.fromkeys(registry.info(name).required), **registry.info(name).defaults}
    parameters = signature(registry.resolve(name) if isinstance(name, str) else name, label(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def stock(name: Any) -> bool:
    """Whether Trainer has this rule itself (`optim="adamw_torch"`), so that its arguments mean what they mean there."""
    from transformers.training_args import OptimizerNames

    return isinstance(name, str) and any(
        value.value == name or value.value.startswith(f"{name}_") for value in OptimizerNames
    )


def _wanted(args: Any, name: Any, defaults: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """Further arguments that Trainer hands to a rule it has itself: hyper-parameter -> (arguments' names, value)."""
    if name != "adamw" or not hasattr(args, "adam_beta1"):
        return {}
    wanted = {
        "betas": ("adam_beta1 and adam_beta2", (args.adam_beta1, args.adam_beta2)),
        "eps": ("adam_epsilon", args.adam_epsilon),
    }
    return {hyper: value for hyper, value in wanted.items() if hyper in defaults}


def settle(
    spec: Mapping[str, Any], args: Any, searched: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """The specification with the rate and decay that `args` ask for.

    Args:
        spec: as given to `attach`; what it says wins, and "args" takes the argument's.
        args: a `TrainingArguments`, read now, so that a hyper-parameter search has had its say.
        searched: the trial's parameters, empty outside of a search.

    Returns:
        The full specification, a line for the log for everything that was taken over, and warnings: the rate or decay
        in force is not the argument's, or the argument has no effect.

    Raises:
        UserError: a rule without a default for one of them, and nobody gave it; "args" for something else.
    """
    full: dict[str, Any] = dict(spec)
    inner, name, home = _innermost(full)
    defaults = _defaults(name)
    lines: list[str] = []
    warnings: list[str] = []
    against: dict[str, str] = {}  # of what is not the argument's
    taken: set[str] = set()
    for key in [k for k, v in inner.items() if _is_asked(v) and k != "name"]:
        if key not in _TAKEN.values():
            raise UserError(f'{key}="args": only lr and weight_decay can be taken from TrainingArguments')
    for field, hyper in _TAKEN.items():
        where, argument = f"TrainingArguments.{field}", getattr(args, field)
        if not isinstance(argument, (int, float)):
            raise UserError(f"{where} must be a number, got {argument!r}")
        asked, chosen = _is_asked(inner.get(hyper)), _chosen(args, field, searched)
        if hyper in inner and not asked:
            lines.append(f"{hyper}={inner[hyper]} as given")
            if inner[hyper] != argument:
                against[hyper] = f"{hyper}={inner[hyper]}, as given, not {where}={argument}"
        elif hyper not in defaults:
            if asked or chosen:
                owner = (
                    f"{label(name)} has no {hyper}" if name else "it is an instance with hyper-parameters of its own"
                )
                warnings.append(f"{where}={argument} has no effect: {owner}")
        elif asked or chosen or stock(name):
            if hyper == "lr" and not (asked or field in searched or (chosen and stock(name))):
                warnings += _unusual(name, argument, defaults[hyper])
            inner[hyper] = argument
            lines.append(f"{hyper}={argument} from {where}")
            taken.add(hyper)
        elif hyper in _required(name):
            raise UserError(f"{label(name)} has no default for {hyper}: give it, or set {where}")
        else:
            lines.append(f"{hyper}={defaults[hyper]}, the rule's default ({where}={argument} is not set)")
            if defaults[hyper] != argument:
                against[hyper] = f"{hyper}={defaults[hyper]}, the rule's default, not {where}={argument}"
    wanted = _wanted(args, name, defaults)
    for hyper, (fields, value) in wanted.items():
        if hyper not in inner:
            inner[hyper] = value
            lines.append(f"{hyper}={value} from TrainingArguments' {fields}")
    if against:
        asking = either(f'{hyper}="args"' for hyper in against)
        warnings.append(f"trains with {', and with '.join(against.values())}; {asking} takes the argument's")
    foreign: list[str] = []
    if "weight_decay" in taken and not stock(name):
        rest = {k: v for k, v in inner.items() if k not in ("name", "lr", "weight_decay")}
        other = decay.differs(name, rest, inner.get("lr", defaults.get("lr")), inner["weight_decay"])
        foreign = [other] if other else []
    warnings += foreign
    if (settled := _settled.get()) is not None:
        now = {**defaults, **inner}
        values = {f"{home}{key}": now[key] for key in (*_TAKEN.values(), *wanted) if _is_plain(now.get(key))}
        settled.lines += [line for line in (*lines, *foreign) if line not in settled.lines]
        if values and values not in settled.values:
            settled.values.append(values)
    return full, lines, warnings


def _is_plain(value: Any) -> bool:
    """Whether it is a number or a few, which any record keeps."""
    return all(isinstance(entry, (int, float)) for entry in (value if isinstance(value, (tuple, list)) else (value,)))


@dataclass
class Settled:
    """What `settle` has settled: lines that say each rate and decay, and whence; and the values that are in force, by
    their names in the specification ("base.lr"), once for each optimizer that trains otherwise."""

    lines: list[str]
    values: list[dict[str, Any]]


_settled: ContextVar[Settled | None] = ContextVar("_settled", default=None)


@contextmanager
def sources() -> Iterator[Settled]:
    """Fills what it gives with what `settle` settles meanwhile."""
    settled = Settled([], [])
    token = _settled.set(settled)
    try:
        yield settled
    finally:
        _settled.reset(token)


def _unusual(name: Any, rate: float, default: Any) -> list[str]:
    """A warning where the argument's rate was meant for another rule: far from what this one is used with."""
    usual = _usual(name, default)
    if usual is None or usual[0] <= rate <= usual[1]:
        return []
    return [
        f"TrainingArguments.learning_rate={rate:g} is in force, where {label(name)} is used with {usual[0]:g} to "
        f"{usual[1]:g}{'' if default is None else f' (its default is {default:g})'}: give lr=..., "
        'or lr="args" if it is meant'
    ]


def _usual(name: Any, default: Any) -> tuple[float, float] | None:
    """The lowest and highest rate that a rule is used with; None where nobody has said.

    A space that is searched from scratch may begin where AdamW's rates are, which a rule on another scale hardly moves
    with: its default says more. On AdamW's scale (fine-tuning at 2e-5 is 50 times below the default) the space does.
    """
    if isinstance(default, (int, float)) and default >= OTHER_SCALE:
        return default / 10, default * 10
    known = isinstance(name, str) and ":" not in name
    space = registry.info(name).search_space.get("lr") if known else None
    return (space[1], space[2]) if space and space[0] in ("log", "linear") else None


def meaningless(args: Any, name: str = "") -> list[str]:
    """Names of arguments that were set for Trainer's own optimizer, which an attached one replaces."""
    taken = ("adam_beta1", "adam_beta2", "adam_epsilon") if name == "adamw" else ()
    chosen = {f: getattr(args, f) for f in _REPLACED if _chosen(args, f, {}) and f not in taken}
    return [f"{field}={getattr(value, 'value', value)}" for field, value in chosen.items()]


def innermost(spec: Mapping[str, Any]) -> Any:
    """The name of the optimizer inside nested wrappers; empty for an instance."""
    return _innermost(dict(spec))[1]


def trial_parameters(trainer: Any) -> Mapping[str, Any]:
    """What a running hyper-parameter search has set on the arguments; empty outside of one."""
    trial = getattr(trainer, "_trial", None)
    parameters = getattr(trial, "params", trial)
    return parameters if isinstance(parameters, Mapping) else {}
