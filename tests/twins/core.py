"""What all twins share: the table of names, hyper-parameters by tensor, and three lines of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np

Array = np.ndarray
Arrays = list[Array]
Problem = Callable[[Arrays, int], tuple[float, Arrays]]
Steps = Generator[dict[str, Any], None, None]

TWINS: dict[str, Callable[..., Steps]] = {}
DEFAULTS: dict[str, dict[str, Any]] = {}
WRAPPERS: set[str] = set()

__all__ = [
    "DEFAULTS",
    "TWINS",
    "WRAPPERS",
    "Array",
    "Arrays",
    "Problem",
    "Steps",
    "begin",
    "corrected",
    "count",
    "dot",
    "norm",
    "run",
    "twin",
    "zeros",
]


def twin(*names: str, wraps: bool = False, **defaults: Any) -> Callable[[Callable[..., Steps]], Callable[..., Steps]]:
    """Register a twin under ``names``; a wrapper's twin also gets the base's generator and its hyper-parameters."""

    def register(function: Callable[..., Steps]) -> Callable[..., Steps]:
        for name in names:
            TWINS[name], DEFAULTS[name] = function, defaults
            if wraps:
                WRAPPERS.add(name)
        return function

    return register


def begin(
    name: str, x: Arrays, f: Problem, groups: list[dict[str, Any]] | None, hyper: dict[str, Any]
) -> tuple[Steps, list[SimpleNamespace]]:
    """The generator of twin ``name``, and the hyper-parameters whose ``lr`` a schedule may change between steps.

    ``groups``: ``{"at": [tensor indices], **overrides}``, one a parameter group.
    """
    if name not in WRAPPERS:
        unknown = set(hyper) - set(DEFAULTS[name])
        assert not unknown, f"the twin of {name} has no {unknown}"
        h = spread(DEFAULTS[name] | hyper, len(x), groups)
        return TWINS[name](x, f, h), h
    outer = DEFAULTS[name] | hyper
    base = DEFAULTS[name].get("base", {}) | hyper.get("base", {})
    h = spread(outer, len(x), [{"at": group["at"]} for group in groups or []])
    inner = spread(DEFAULTS[base["name"]] | base, len(x), groups)
    return TWINS[name](x, f, h, TWINS[base["name"]](x, f, inner), inner), inner


def spread(hyper: dict[str, Any], n: int, groups: list[dict[str, Any]] | None) -> list[SimpleNamespace]:
    """One namespace of hyper-parameters for each of ``n`` tensors; ``group`` says which group it is in."""
    out = [SimpleNamespace(**hyper, group=0) for _ in range(n)]
    for number, group in enumerate(groups or []):
        for i in group["at"]:
            out[i].__dict__.update({key: value for key, value in group.items() if key != "at"}, group=number)
    return out


def run(
    name: str,
    start: Iterable[Array],
    f: Problem,
    steps: int,
    groups: list[dict[str, Any]] | None = None,
    schedule: dict[int, float] | None = None,
    **hyper: Any,
) -> list[tuple[Arrays, dict[str, Any]]]:
    """The parameters and the extras after each of ``steps`` updates; ``schedule``: step -> factor on every rate."""
    x = [np.array(a, dtype=np.float64) for a in start]
    (stepper, h), out = begin(name, x, f, groups, hyper), []
    for t in range(1, steps + 1):
        for k in h if schedule and t in schedule else []:
            k.lr *= (schedule or {})[t]
        extra = next(stepper)
        out.append(([a.copy() for a in x], extra))
    return out


def zeros(x: Arrays) -> Arrays:
    return [np.zeros_like(a) for a in x]


def dot(a: Arrays, b: Arrays) -> float:
    """The inner product over all the tensors."""
    return float(sum((u * v).sum() for u, v in zip(a, b, strict=True)))


def norm(a: Arrays) -> float:
    return dot(a, a) ** 0.5


def corrected(moment: Array, beta: float, t: int) -> Array:
    """The bias correction of an exponential moving average that began at zero."""
    return moment / (1 - beta**t)
