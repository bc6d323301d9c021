"""What TrainingArguments say about the optimizer, and what a rule makes of it.

`TrainingArguments.learning_rate` is 5e-5 unless set, which would freeze a rule whose rate is 0.1. So a value counts
only where somebody chose it: given to `attach`, set by a hyper-parameter search, or different from the default of the
arguments' own class. Otherwise the rule's default stays.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hf_optim import registry
from hf_optim.errors import UserError

#: TrainingArguments that an attached optimizer takes over (when set), and those it would make meaningless
_TAKEN = {"learning_rate": "lr", "weight_decay": "weight_decay"}
_REPLACED = ("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon")


def to_spec(name: str | Mapping[str, Any], hyper: Mapping[str, Any], settled: bool = True) -> dict[str, Any]:
    """`("tlr", {"gamma": .3})` or `({"name": "tlr"}, {"gamma": .3})` -> one checked specification.

    Args:
        settled: False where `settle` follows, which may find a rate for a rule that has none by default.

    Raises:
        UserError: unknown rule or hyper-parameter; the message names the closest or the valid ones.
    """
    if isinstance(name, str):
        spec = {"name": name, **hyper}
    elif isinstance(name, Mapping):
        if "name" not in name:
            raise UserError(f"an optimizer specification needs a name: {{'name': 'smaran', ...}}, got {dict(name)}")
        spec = {**name, **hyper}
    else:
        raise UserError(f"an optimizer is given by name or as {{'name': ...}}, not as {type(name).__name__}")
    base = spec.get("base")
    made = base is not None and not isinstance(base, (str, Mapping))  # an instance has been checked when it was made
    late = {} if settled else dict.fromkeys(set(_required(spec["name"])) & set(_TAKEN.values()), 0.0)
    registry.check({**late, **spec, **({"base": "sgd"} if made else {})})
    return spec


def _required(name: Any) -> tuple[str, ...]:
    return () if not isinstance(name, str) or ":" in name else registry.info(name).required


def _chosen(args: Any, field: str, searched: Mapping[str, Any]) -> bool:
    declared = getattr(type(args), "__dataclass_fields__", {}).get(field)
    return field in searched or (declared is not None and getattr(args, field) != declared.default)


def _innermost(full: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Where the hyper-parameters of the innermost optimizer of nested wrappers are written, and its name.

    Copies what it descends through. The name is empty for an optimizer instance, whose rate is its own.
    """
    inner, name = full, str(full["name"])
    while True:
        known = None if ":" in name else registry.info(name)
        if known is None or known.family != "wrapper":
            return inner, name
        base = inner.get("base")
        if known.base is not None:  # a preset: its base has a name already, and takes hyper-parameters only
            inner["base"] = dict(base or {})
            name = str(known.base["name"])
        elif isinstance(base, (str, Mapping)):
            inner["base"] = registry.as_spec(base)
            name = inner["base"]["name"]
        else:
            return {}, ""
        inner = inner["base"]


def _defaults(name: str) -> Mapping[str, Any]:
    if not name:
        return {}
    if ":" not in name:
        return {**dict.fromkeys(registry.info(name).required), **registry.info(name).defaults}
    parameters = inspect.signature(registry.resolve(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def settle(spec: Mapping[str, Any], args: Any, searched: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The specification with the rate and decay that `args` ask for.

    Args:
        spec: as given to `attach`; what it says wins.
        args: a `TrainingArguments`, read now, so that a hyper-parameter search has had its say.
        searched: the trial's parameters, empty outside of a search.

    Returns:
        The full specification, and one line each for the log: what was taken over, and what has no effect.

    Raises:
        UserError: a rule without a default for one of them, and nobody gave it.
    """
    full: dict[str, Any] = dict(spec)
    inner, name = _innermost(full)
    defaults = _defaults(name)
    lines: list[str] = []
    for field, hyper in _TAKEN.items():
        if hyper in inner:
            lines.append(f"{hyper}={inner[hyper]} as given")
        elif _chosen(args, field, searched):
            value = getattr(args, field)
            if hyper in defaults:
                inner[hyper] = value
                lines.append(f"{hyper}={value} from TrainingArguments.{field}")
            else:
                owner = f"{name} has no {hyper}" if name else "the base is an instance with hyper-parameters of its own"
                lines.append(f"TrainingArguments.{field}={value} has no effect: {owner}")
        elif hyper in _required(name):
            raise UserError(f"{name} has no default for {hyper}: give it, or set TrainingArguments.{field}")
        elif hyper in defaults:
            lines.append(f"{hyper}={defaults[hyper]}, the rule's default (TrainingArguments.{field} is not set)")
    return full, lines


def meaningless(args: Any) -> list[str]:
    """Names of arguments that were set for Trainer's own optimizer, which an attached one replaces."""
    return [f"{field}={getattr(args, field)}" for field in _REPLACED if _chosen(args, field, {})]


def trial_parameters(trainer: Any) -> Mapping[str, Any]:
    """What a running hyper-parameter search has set on the arguments; empty outside of one."""
    trial = getattr(trainer, "_trial", None)
    found = getattr(trial, "params", trial)
    return found if isinstance(found, Mapping) else {}
