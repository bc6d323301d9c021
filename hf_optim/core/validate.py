"""Hyper-parameters are checked where they enter: kinds, ranges, choices, and names nobody reads."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any

from hf_optim.core.wording import either
from hf_optim.errors import UnknownName, UserError

#: what the shell reads of a constructor's arguments, and the rule does not: name -> its values; () for others' to check
SHELL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "compile": (None, True, False),
    "grad_transform": (),
    "state_dtype": (None, "fp32", "bf16", "int8"),
    "on_bad_loss": ("raise", "skip"),
}
#: (low, high, low is allowed, high is allowed) for names that mean the same everywhere
COMMON: dict[str, tuple[float, float, bool, bool]] = {
    "lr": (0.0, math.inf, True, False),
    "betas": (0.0, 1.0, True, False),
    "eps": (0.0, math.inf, True, False),
    "weight_decay": (0.0, math.inf, True, False),
    "momentum": (0.0, 1.0, True, False),
    "gamma": (0.0, 1.0, True, False),
    "steps_per_epoch": (1, math.inf, True, False),
}
#: keys that others (schedulers, torch, people) put into parameter groups
FOREIGN_KEYS = frozenset(
    {
        "params",
        "param_names",
        "name",
        "initial_lr",
        "swa_lr",
        "max_lr",
        "min_lr",
        "max_momentum",
        "base_momentum",
        "lr_scale",
        "hf_optim_names",
    }
)


#: what others call the same
_SAME = {
    "learning_rate": "lr", "learningrate": "lr", "alpha": "lr", "eta": "lr", "epsilon": "eps", "wd": "weight_decay",
    "decay": "weight_decay", "weightdecay": "weight_decay", "l2": "weight_decay", "beta": "momentum", "beta1": "betas",
    "beta2": "betas",
}  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    """Whether two values of a group say the same: a list as a tuple, a tensor of one number as the number;
    anything may stand in a file, a tensor of more numbers too."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if any(hasattr(x, "numel") and x.numel() != 1 for x in (a, b)):
        return False
    return bool(a == b)


def _as_close(word: str, words: Iterable[str]) -> list[str]:
    """Up to three of the words that are alike enough, and about as much as the most alike."""
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5 if len(word) <= 3 else 0.55)
    likeness = [difflib.SequenceMatcher(None, one, word).ratio() for one in near]
    return [one for one, ratio in zip(near, likeness, strict=True) if ratio > likeness[0] - 0.15]


def nearest(word: str, words: Iterable[str]) -> list[str]:
    """What a word that is none of the words may be meant for, up to three of them."""
    words = list(words)
    lower = {known.lower(): known for known in reversed(words)}
    near = [candidate for candidate in (_SAME.get(word.lower(), ""), word) if candidate in words and candidate != word]
    return near or [lower[match] for match in _as_close(word.lower(), lower)]


def did_you_mean(words: Iterable[str]) -> str:
    """` (did you mean a or b?)`, or nothing."""
    listed = either(words)
    return f" (did you mean {listed}?)" if listed else ""


def closest(word: str, words: Iterable[str]) -> str:
    """` (did you mean ...?)` or nothing."""
    return did_you_mean(nearest(word, words))


def no_choice(name: str, value: Any, choices: Collection[Any], written: str = "") -> str:
    """What is wrong with a value that is none of the choices; `written` is how the message shows it (default: repr)."""
    words = [str(choice) for choice in choices]
    return f"{name} must be {either(words)}, got {written or repr(value)}{closest(str(value), words)}"


def handed_over(arguments: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The hyper-parameters among what a constructor hands over; `names` are its own."""
    hyper = [name for name in names if name not in ("self", "params", *SHELL_OPTIONS)]
    if lacking := [name for name in hyper if name not in arguments]:
        raise UserError(f"its constructor hands over no {lacking[0]}: let it call super().__init__(params, locals())")
    return {name: arguments[name] for name in hyper}


def unknown(owner: str, names: Iterable[str], valid: Iterable[str]) -> None:
    """Raise if one of `names` is not in `valid`."""
    valid = list(valid)
    for name in names:
        if name not in valid:
            listed = ", ".join(valid) or "none"
            raise UnknownName(f"{owner} has no hyper-parameter {name!r}{closest(str(name), valid)}; it has: {listed}")


def _elements(value: Any) -> int:
    """Of a tensor or an array; 0 for anything else."""
    return int(value.numel()) if hasattr(value, "numel") else int(getattr(value, "size", 0))


def _number(owner: str, name: str, value: Any, default: Any, bounds: tuple[float, float, bool, bool] | None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        given: Any = value
        single = isinstance(given, Hashable) and hasattr(given, "item") and _elements(given) == 1
        try:
            value = given.item() if single else None  # a tensor or numpy's number, but no array
        except (RuntimeError, NotImplementedError):  # a tensor that has no numbers
            value = None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{owner}: {name} must be a number, got {given!r}")
    if isinstance(value, int) and abs(value) >= 2**63:  # no float, and the power of one has no end
        raise UserError(f"{owner}: {name} is a whole number of more than 64 bits")
    if isinstance(default, int) and not isinstance(default, bool) and not isinstance(value, int):
        raise UserError(f"{owner}: {name} must be a whole number, got {value!r}")
    low, high, closed_low, closed_high = bounds or (-math.inf, math.inf, False, True)
    if not (low < value or (closed_low and value == low)) or not (value < high or (closed_high and value == high)):
        interval = f"{'[' if closed_low else '('}{low:g}, {high:g}{']' if closed_high else ')'}"
        raise UserError(f"{owner}: {name} = {value!r} is outside {interval}")


def values(
    owner: str,
    group: Mapping[str, Any],
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[str, ...]],
    bounds: Mapping[str, tuple[float, float, bool, bool]],
    whole: Collection[str] = (),
) -> None:
    """Raise UserError on the first hyper-parameter of `group` that has a wrong kind, range or choice.

    The default tells a kind; `whole` names those that are whole numbers whatever their default (see `whole_numbers`).
    A tuple's entries may be any number unless `bounds` or `COMMON` says more.
    """
    for name, default in defaults.items():
        value = group[name]
        limits = bounds.get(name, COMMON.get(name))
        if name in choices:
            if not isinstance(value, (str, int, float)) or value not in choices[name]:
                raise UserError(f"{owner}: {no_choice(name, value, choices[name])}")
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise UserError(f"{owner}: {name} must be True or False, got {value!r}")
        elif isinstance(default, tuple):
            if not isinstance(value, (tuple, list)) or len(value) != len(default):
                raise UserError(f"{owner}: {name} must be {len(default)} numbers such as {default!r}, got {value!r}")
            for i, v in enumerate(value):
                _number(owner, f"{name}[{i}]", v, 0.0, limits)
        elif value is None and default is None:
            continue
        elif name in whole:
            _number(owner, name, value, 1, limits)
        elif isinstance(default, (int, float)) or limits is not None:
            _number(owner, name, value, default, limits)


def shell(owner: str, arguments: Mapping[str, Any]) -> None:
    """Raise UserError on the first of `SHELL_OPTIONS` among a constructor's arguments that has none of its values."""
    for name, known in SHELL_OPTIONS.items():
        value = arguments.get(name, known[0] if known else None)
        if known and not any(value is one or (isinstance(value, str) and value == one) for one in known):
            raise UserError(f"{owner}: {name} must be {either([repr(one) for one in known])}, got {value!r}")


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Of a function, or of a class's constructor, by name. Read once: it is half of what making an optimizer takes."""
    return _parameters(function, getattr(function, "__init__", None) if isinstance(function, type) else None)


@functools.lru_cache(maxsize=1024)
def _parameters(function: Callable[..., Any], constructor: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def defaults(rule: Any) -> dict[str, Any]:
    """Constructor arguments and their defaults, which tell each one's kind; what has none is a number."""
    given = list(parameters(rule).values())[1:]
    known = {p.name: 0.0 if p.default is p.empty else p.default for p in given if p.name not in SHELL_OPTIONS}
    return known | ({"lr": 1.0} if rule.fixed_lr else {})


def whole_numbers(rule: Callable[..., Any]) -> frozenset[str]:
    """Constructor arguments that are whole numbers, or None, by their annotation."""
    names = []
    for name, parameter in parameters(rule).items():
        kind = parameter.annotation
        text = kind.__name__ if isinstance(kind, type) else str(kind)
        if re.fullmatch(r"(typing\.)?(Optional\[)?int\]?( \| None)?", text):
            names.append(name)
    return frozenset(names)


def unmovable(p: Any) -> str:
    """Why no step here moves a tensor, whatever gradient it is given; empty where one can."""
    if p.is_complex() or not p.is_floating_point():
        return f"is of dtype {p.dtype}, which cannot be optimised here: give real floating-point tensors"
    if p.dtype.itemsize < 2:
        return f"is of dtype {p.dtype}, too coarse to be moved by a step: train it in bfloat16 or float32"
    if str(p.layout).startswith("torch.sparse_"):
        return f"is of layout {p.layout}, which no step here moves: give a dense one, p.to_dense()"
    return ""
