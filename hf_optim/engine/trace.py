"""A rule's function, called once with symbols, becomes a straight program: the one thing that emitters read.

**A Program** (frozen, hashable) is what one pass does to every element of every tensor:

    dtype     in which it computes: torch.float32 or torch.float64
    tensors   ((name, storage dtype), ...): what a tensor of the model consists of: x, g, slots, compensation. Each is
              flat and as long as the others. An element is loaded and converted to `dtype`. Those in int8 and uint8
              are codes (`hf_optim.engine.int8_codes`): each has a tensor of scales beside it, NAME_scale
    numbers   names of the step's numbers (c.lr, c.w1, ...): one row of a table in `dtype` for each group and step count
    sums      names of what was derived from sums (c.S, ...): one row in `dtype` for each tensor
    ops       (Op, ...): op number k computes value number len(tensors) + len(numbers) + len(sums) + k
    writes    (Write, ...): which value is stored into which tensor, when all ops are done
    terms     values that are added up over a tensor's elements, one for each sum that the pass returns

The values are numbered: tensors in their order, then numbers, sums, and results of ops. An argument of an op, a write
or a term is such a number (an int) or a literal (a float, in `dtype`; it may be inf or nan). `Op(name, arguments)`:

    add sub mul div pow          of two;                   pow's exponent is the same for all elements
    maximum minimum              of two;                   NaN if one is NaN
    neg abs sqrt sign reciprocal of one;                   sign(NaN) is 0
    lerp a b w                   w < 1/2: a + w (b - a), else b - (b - a) (1 - w)
    bf16, f16                    of one: rounded to that dtype (to nearest, ties to even) and back
    gt ge lt le                  of two: a truth;          false if one is NaN
    and or not isfinite          truths
    where t a b                  a where the truth t holds, else b

The order of operations is torch's and stays (no fused multiply-add, no reordering): addcmul is x + (value a) b, addcdiv
x + (value a) / b, add with alpha x + alpha o. `Write(tensor, value, noisy)`: conversion to the storage dtype rounds to
nearest; noisy ones, into bfloat16 and codes, round stochastically with the bits of `evaluate.noise`. Compensation
(Kahan) is spelled out in ops. A pass reads every tensor of `tensors` and writes those in `writes`; nothing writes g.

**A program without tensors** is a scalar one: `control`, `scalars`, `derive` as one piece of straight code in float64.
`numbers` are its inputs, `writes` its outputs (truths as 1.0 and 0.0), `sums` and `terms` are empty.

`hf_optim.engine.reference` runs either kind with torch: the reference for emitters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from hf_optim.core.hooks import Numbers, RuleError, gradient_written
from hf_optim.core.vocabulary import BINARY, UNARY, Operand
from hf_optim.engine.int8_codes import CODED
from hf_optim.errors import UserError

Ref = int | float


class Untraceable(Exception):
    """The function does something that a kernel cannot say; the message is a user's line."""


@dataclass(frozen=True)
class Op:
    """One operation; see the module."""

    name: str
    arguments: tuple[Ref, ...]


@dataclass(frozen=True)
class Write:
    """`value` goes into `tensor`; noisy: rounded stochastically."""

    tensor: str
    value: Ref
    noisy: bool = False


@dataclass(frozen=True)
class Program:
    """See the module."""

    dtype: torch.dtype
    tensors: tuple[tuple[str, torch.dtype], ...]
    numbers: tuple[str, ...]
    sums: tuple[str, ...]
    ops: tuple[Op, ...]
    writes: tuple[Write, ...]
    terms: tuple[Ref, ...]

    @property
    def inputs(self) -> int:
        """The number of values that are there before the first op."""
        return len(self.tensors) + len(self.numbers) + len(self.sums)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names."""
        return tuple(name for name, _ in self.tensors)

    @property
    def coded(self) -> tuple[str, ...]:
        """Names of the tensors that are codes. Tables hold the addresses of their scales, in this order, last."""
        return tuple(name for name, dtype in self.tensors if dtype in CODED)

    @property
    def written(self) -> tuple[str, ...]:
        """Names of what it writes."""
        return tuple(write.tensor for write in self.writes)


#: operations whose value is a truth
TRUTHS = frozenset({"gt", "ge", "lt", "le", "and", "or", "not", "isfinite"})


# --- symbols ---------------------------------------------------------------------------------------------------------


class _Builder:
    """Values under construction; equal operations are one value."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.ops: list[Op] = []
        self._known: dict[Op, int] = {}

    def value(self, name: str, *arguments: Ref) -> int:
        op = Op(name, tuple(arguments))
        if any(isinstance(a, float) and a != a for a in arguments):  # NaN differs from itself
            self.ops.append(op)
            return self.inputs + len(self.ops) - 1
        if op not in self._known:
            self.ops.append(op)
            self._known[op] = self.inputs + len(self.ops) - 1
        return self._known[op]


class Symbol(Operand):
    """A number that every element of a tensor has in common, or the base of `Element`. It never changes."""

    def __init__(self, builder: _Builder, ref: Ref, truth: bool = False) -> None:
        self._builder, self._ref, self._truth = builder, ref, truth

    def _new(self, name: str, *arguments: Any) -> Symbol:
        kind = Element if any(isinstance(a, Element) for a in arguments) else Symbol
        if any(isinstance(a, Term) for a in arguments):
            raise Untraceable("a sum is known only after the pass: multiply or divide it by numbers")
        refs = [_ref(a) for a in arguments]
        return kind(self._builder, self._builder.value(name, *refs), name in TRUTHS)

    @classmethod
    def function(cls, name: str, *arguments: Any) -> Any:
        some = next(a for a in arguments if isinstance(a, Symbol))
        if name == "where":
            condition, a, b = arguments
            if not isinstance(condition, Symbol):
                raise Untraceable(f"where() cannot choose by {condition!r}")
            if not condition._truth:  # a truth of the step's numbers
                condition = some._new("gt", condition, 0.0)
            return some._new("where", condition, a, b)
        return some._new(name, *arguments)

    @classmethod
    def foreign(cls, word: str) -> Exception:
        if word.endswith("_()") and cls is not Element:
            return RuleError(f"{word} writes a number of c, which tensors share: use the method without _ at its end")
        return Untraceable(f"{word} is no word of the vocabulary of rules (hf_optim.core.vocabulary)")

    def add(self, o: Any, alpha: Any = 1) -> Any:
        return self._new("add", self, o if _is_one(alpha) else self._new("mul", o, alpha))

    def sub(self, o: Any, alpha: Any = 1) -> Any:
        return self._new("sub", self, o if _is_one(alpha) else self._new("mul", o, alpha))

    def lerp(self, o: Any, w: Any) -> Any:
        return self._new("lerp", self, o, w)

    def addcmul(self, a: Any, b: Any, value: Any = 1) -> Any:
        return self.add(self._new("mul", a if _is_one(value) else self._new("mul", a, value), b))

    def addcdiv(self, a: Any, b: Any, value: Any = 1) -> Any:
        return self.add(self._new("div", a if _is_one(value) else self._new("mul", a, value), b))

    def clamp(self, min: Any, max: Any) -> Any:
        return self._new("minimum", self._new("maximum", self, min), max)

    def clone(self) -> Any:
        return type(self)(self._builder, self._ref, self._truth)

    def __rtruediv__(self, o: Any) -> Any:
        return self.reciprocal() if _is_one(o) else self._new("div", o, self)

    def __pow__(self, o: Any) -> Any:
        return self._new("pow", self, o)

    def __rpow__(self, o: Any) -> Any:
        return self._new("pow", o, self)

    def __gt__(self, o: Any) -> Any:
        return self._new("gt", self, o)

    def __ge__(self, o: Any) -> Any:
        return self._new("ge", self, o)

    def __lt__(self, o: Any) -> Any:
        return self._new("lt", self, o)

    def __le__(self, o: Any) -> Any:
        return self._new("le", self, o)

    def __and__(self, o: Any) -> Any:
        return self._new("and", self, o) if not isinstance(o, bool) else self if o else False

    def __or__(self, o: Any) -> Any:
        return self._new("or", self, o) if not isinstance(o, bool) else True if o else self

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Any:
        return self._new("not", self)


def _ref(value: Any) -> Ref:
    if isinstance(value, Symbol):
        return value._ref
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Untraceable(f"a rule computes with its tensors and numbers, not with {type(value).__name__}")
    return float(value)


def _is_one(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 1


def _operation(name: str) -> Callable[..., Any]:
    return lambda self, *others: self._new(name, self, *others)


for _name in (*BINARY[2:], *UNARY):
    setattr(Symbol, _name, _operation(_name))


class Element(Symbol):
    """An element of a tensor. Its methods with `_` give it another value, as they write a tensor."""

    changed = False
    constant = False

    def _become(self, value: Any) -> Element:
        if self.constant:
            raise gradient_written("a rule")
        self._ref, self.changed = _ref(value), True
        return self

    def copy_(self, o: Any) -> Element:
        return self._become(o)

    def zero_(self) -> Element:
        return self._become(0.0)

    def clone(self) -> Element:
        return Element(self._builder, self._ref, self._truth)

    def reduce(self, _: Any, terms: Callable[..., Any], *others: Element) -> Term:
        """What there is to add up: `terms` of the elements."""
        if terms is torch.ones_like:
            return Term(self._builder, 1.0)
        name = {torch.mul: "mul", torch.abs: "abs"}.get(terms)
        if name is None:
            raise Untraceable(f"a kernel cannot add up {getattr(terms, '__name__', terms)}")
        return Term(self._builder, _ref(self._new(name, self, *others)))


def _in_place(name: str) -> Callable[..., Any]:
    return lambda self, *others, **more: self._become(getattr(self, name)(*others, **more))


for _name in (*BINARY, *UNARY, "lerp", "addcmul", "addcdiv", "clamp"):
    if _name not in ("maximum", "minimum"):
        setattr(Element, _name + "_", _in_place(_name))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(Element, f"__i{_name}__", getattr(Element, {"truediv": "div"}.get(_name, _name) + "_"))


class Term(Symbol):
    """A sum over a tensor's elements, not yet added up: numbers may multiply and divide it, another may be added."""

    def _new(self, name: str, *arguments: Any) -> Term:
        linear = name in ("add", "sub") or (name in ("mul", "div") and sum(isinstance(a, Term) for a in arguments) == 1)
        kinds = (Term,) if name in ("add", "sub") else (Term, int, float, Symbol)
        if name == "neg" or (
            linear
            and all(isinstance(a, kinds) and not isinstance(a, Element) for a in arguments)
            and isinstance(arguments[0], Term)
        ):
            return Term(self._builder, self._builder.value(name, *map(_ref, arguments)))
        raise Untraceable("a sum is known only after the pass: multiply or divide it by numbers")


# --- tracing ---------------------------------------------------------------------------------------------------------


@cache
def arguments(f: Callable[..., Any]) -> frozenset[str]:
    """What a rule's function wants, by name."""
    return frozenset(inspect.signature(f).parameters)


def trace(
    call: Callable[..., Any],
    tensors: Mapping[str, torch.dtype],
    c: Mapping[str, Any],
    sums: Sequence[str],
    dtype: torch.dtype,
    noisy: Iterable[str] = (),
) -> Program:
    """The program of call(**tensors, c=c).

    Args:
        call: a rule's `update` or `measure` with its gradient arguments bound.
        tensors: names and storage dtypes; with `compensation`, x is the sum of both (Kahan).
        c: the step's scalars: floats become numbers, everything else selects code.
        sums: names in `c` of what was derived from sums.
        dtype: in which to compute.
        noisy: names of bfloat16 tensors and codes that are rounded stochastically.

    Raises:
        Untraceable: call uses what a kernel cannot say.
        RuleError: call sums a tensor up by itself, writes its gradient, or asks for what is not there.
    """
    numbers = tuple(k for k, v in c.items() if isinstance(v, float))
    builder = _Builder(len(tensors) + len(numbers) + len(sums))
    elements = {k: Element(builder, i) for i, k in enumerate(tensors)}
    values = dict(c) | {k: Symbol(builder, len(tensors) + i) for i, k in enumerate((*numbers, *sums))}
    if "g" in elements:
        elements["g"].constant = True
    lost = elements.pop("compensation", None)
    if lost is not None:
        elements["x"]._ref = builder.value("add", _ref(elements["x"]), _ref(lost))
    try:
        out = call(**elements, c=Numbers(**values))
    except UserError:
        raise
    except (TypeError, AttributeError, NotImplementedError, ValueError) as e:
        raise Untraceable(str(e)) from e
    terms = tuple(_term(term) for term in out or ())
    writes = [Write(k, e._ref, k in set(noisy)) for k, e in elements.items() if e.changed]
    if lost is not None and elements["x"].changed:
        exact = elements["x"]._ref
        stored = builder.value("bf16", exact)
        writes = [Write("x", stored) if w.tensor == "x" else w for w in writes]
        writes.append(Write("compensation", builder.value("sub", exact, stored)))
    ops, outputs = tuple(builder.ops), tuple(writes)
    return _pruned(Program(dtype, tuple(tensors.items()), numbers, tuple(sums), ops, outputs, terms))


def _term(term: Any) -> Ref:
    if not isinstance(term, Term):
        raise Untraceable("what measure returns must be sums: dot(a, b), l1(a), count(a), times numbers")
    return term._ref


def trace_scalars(call: Callable[[dict[str, Any]], Mapping[str, Any]], inputs: Sequence[str]) -> Program:
    """The scalar program of a function that takes {input: symbol} and returns {output: symbol or float}.

    Raises:
        Untraceable: call uses what a kernel cannot say.
    """
    builder = _Builder(len(inputs))
    try:
        out = call({k: Symbol(builder, i) for i, k in enumerate(inputs)})
        writes = tuple(Write(k, float(v) if isinstance(v, bool) else _ref(v)) for k, v in out.items())
    except (TypeError, AttributeError, ValueError) as e:
        raise Untraceable(str(e)) from e
    return _pruned(Program(torch.float64, (), tuple(inputs), (), tuple(builder.ops), writes, ()))


def _pruned(program: Program) -> Program:
    """Without operations whose value nobody uses."""
    used = {ref for ref in (*(w.value for w in program.writes), *program.terms) if isinstance(ref, int)}
    start = program.inputs
    for k in reversed(range(len(program.ops))):
        if start + k in used:
            used |= {a for a in program.ops[k].arguments if isinstance(a, int)}
    kept = [k for k in range(len(program.ops)) if start + k in used]
    new = {i: i for i in range(start)} | {start + k: start + i for i, k in enumerate(kept)}

    def moved(ref: Ref) -> Ref:
        return new[ref] if isinstance(ref, int) else ref

    return Program(
        program.dtype,
        program.tensors,
        program.numbers,
        program.sums,
        tuple(Op(program.ops[k].name, tuple(map(moved, program.ops[k].arguments))) for k in kept),
        tuple(Write(w.tensor, moved(w.value), w.noisy) for w in program.writes),
        tuple(map(moved, program.terms)),
    )
