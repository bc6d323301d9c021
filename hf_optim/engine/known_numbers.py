"""Numbers that the host knows and a device computes with: symbols that may decide what code runs."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hf_optim.core.hooks import Hyper
from hf_optim.engine.trace import Symbol


@dataclass(frozen=True)
class Decision:
    """A comparison of a known number with another one, or with a constant, and how it came out."""

    compare: Callable[[Any, Any], bool]
    name: str
    other: str | float
    outcome: bool

    def holds(self, values: Mapping[str, float]) -> bool:
        other = values[self.other] if isinstance(self.other, str) else self.other
        return self.compare(values[self.name], other) is self.outcome


class Known(Symbol):
    """A symbol whose value the host knows: it may decide what code runs, and every decision is written down."""

    def __init__(self, symbol: Symbol, name: str, value: float, decisions: list[Decision]) -> None:
        super().__init__(symbol._builder, symbol._ref)
        self._name, self._value, self._decisions = name, value, decisions

    def _decide(self, compare: Callable[[Any, Any], bool], other: Any) -> Any:
        if isinstance(other, Known):
            value, known = other._value, other._name
        elif isinstance(other, (int, float)):
            value, known = other, float(other)  # type: ignore[assignment]
        elif other is None:
            return compare is operator.ne
        else:
            return NotImplemented
        outcome = compare(self._value, value)
        self._decisions.append(Decision(compare, self._name, known, outcome))
        return outcome

    def __eq__(self, o: object) -> bool:
        return self._decide(operator.eq, o)  # type: ignore[no-any-return]

    def __ne__(self, o: object) -> bool:
        return self._decide(operator.ne, o)  # type: ignore[no-any-return]

    def __bool__(self) -> bool:
        return self._decide(operator.ne, 0.0)  # type: ignore[no-any-return]


def _decided(name: str) -> Callable[..., Any]:
    compare, symbolic = getattr(operator, name), getattr(Symbol, f"__{name}__")

    def method(self: Known, o: Any) -> Any:
        return symbolic(self, o) if isinstance(o, Symbol) and not isinstance(o, Known) else self._decide(compare, o)

    return method


for _name in ("lt", "le", "gt", "ge"):
    setattr(Known, f"__{_name}__", _decided(_name))


def flattened(h: SimpleNamespace) -> tuple[dict[str, float], tuple[Any, ...]]:
    """The floats of hyper-parameters, those in tuples under names of their own, and everything else."""
    floats: dict[str, float] = {}
    rest: list[Any] = []
    for k, v in vars(h).items():
        if isinstance(v, float):
            floats[k] = v
        elif isinstance(v, (tuple, list)) and v and all(isinstance(x, (int, float)) for x in v):
            floats |= {f"{k}_{i}": float(x) for i, x in enumerate(v)}
            rest.append((k, len(v)))
        else:
            rest.append((k, v if v.__hash__ else repr(v)))
    return floats, tuple(rest)


def symbolic(h: SimpleNamespace, symbols: Mapping[str, Any]) -> SimpleNamespace:
    """Hyper-parameters with symbols for their floats."""
    values = {}
    for k, v in vars(h).items():
        if k in symbols:
            values[k] = symbols[k]
        elif f"{k}_0" in symbols:
            values[k] = tuple(symbols[f"{k}_{i}"] for i in range(len(v)))
        else:
            values[k] = v
    return Hyper(**values)
