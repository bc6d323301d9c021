"""Three ways to run one rule: cache-sized blocks (CPU), foreach lists (GPU), compiled graphs.

A rule's `update` is written once with torch's tensor methods. On a CPU it is called with flat views of 64 K elements a
thread, so that a step's intermediate values stay in the cache and temporaries stay under a megabyte a thread. On a GPU
it is called with `Lists`, which forward each method to a `torch._foreach_*` kernel. Compiled, it is traced with
`Traced`, whose numbers come from one tensor, so that no change of a rate recompiles anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

#: elements that a thread works on at once
BLOCK = 1 << 16
#: threads beyond which blocks do not grow
THREADS = 16
#: tensors up to this size share calls
SMALL = 1 << 14
#: types of devices on which a rule runs over blocks; on others it runs over lists
BLOCKED = frozenset({"cpu"})


def flat(t: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor | None:
    """A one-dimensional view of t in memory order, or None if t has gaps or other strides than `like`."""
    if like is not None and t.stride() != like.stride() and not (t.is_contiguous() and like.is_contiguous()):
        return None
    if t.is_contiguous():
        return t.view(-1)
    expected = 1  # dense in another order of dimensions, e.g. channels last
    for stride, size in sorted((st, si) for st, si in zip(t.stride(), t.shape, strict=True) if si > 1):
        if stride != expected:
            return None
        expected *= size
    return t.as_strided((t.numel(),), (1,))


def capturing() -> bool:
    """Whether what runs now is recorded in a CUDA graph instead of being done."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


# --- the vocabulary of a rule -------------------------------------------------------------------------------------

_BINARY = ("add", "sub", "mul", "div", "pow", "maximum", "minimum")
_UNARY = ("sqrt", "abs", "neg", "sign", "reciprocal")
#: methods an update may call on x, g and its slots; each but maximum and minimum also in place, with `_`
VOCABULARY = (*_BINARY, *_UNARY, "lerp", "addcmul", "addcdiv", "clamp", "copy_", "zero_", "clone")


def _unwrap(value: Any) -> Any:
    return value.value if isinstance(value, (Lists, Traced)) else value


class _Operators:
    """The arithmetic operators in terms of the methods."""

    add: Callable[..., Any]
    sub: Callable[..., Any]
    mul: Callable[..., Any]
    div: Callable[..., Any]
    neg: Callable[..., Any]

    def __add__(self, o: Any) -> Any:
        return self.add(o)

    def __sub__(self, o: Any) -> Any:
        return self.sub(o)

    def __mul__(self, o: Any) -> Any:
        return self.mul(o)

    def __truediv__(self, o: Any) -> Any:
        return self.div(o)

    def __neg__(self) -> Any:
        return self.neg()

    def __rsub__(self, o: Any) -> Any:
        return self.neg().add(o)

    __radd__, __rmul__ = __add__, __mul__


class Lists(_Operators):
    """A list of tensors that behaves as one in a rule: every method is one foreach call."""

    def __init__(self, value: Sequence[torch.Tensor]) -> None:
        self.value = list(value)

    def reduce(self, f: Callable[..., torch.Tensor], _: Any, *others: Lists) -> Lists:
        """f of each tensor, 0-d."""
        return Lists([f(*row) for row in zip(self.value, *(o.value for o in others), strict=True)])

    def add(self, o: Any, alpha: float = 1) -> Lists:
        return self.clone().add_(o, alpha)

    def add_(self, o: Any, alpha: float = 1) -> Lists:
        o = _unwrap(o)
        if isinstance(o, (int, float)):
            torch._foreach_add_(self.value, o * alpha)
        else:
            torch._foreach_add_(self.value, o, alpha=alpha)
        return self

    def sub(self, o: Any, alpha: float = 1) -> Lists:
        return self.clone().add_(o, -alpha)

    def sub_(self, o: Any, alpha: float = 1) -> Lists:
        return self.add_(o, -alpha)

    def lerp(self, o: Lists, w: float) -> Lists:
        return Lists(torch._foreach_lerp(self.value, o.value, w))

    def lerp_(self, o: Lists, w: float) -> Lists:
        torch._foreach_lerp_(self.value, o.value, w)
        return self

    def addcmul(self, a: Lists, b: Lists, value: float = 1) -> Lists:
        return Lists(torch._foreach_addcmul(self.value, a.value, b.value, value))

    def addcmul_(self, a: Lists, b: Lists, value: float = 1) -> Lists:
        torch._foreach_addcmul_(self.value, a.value, b.value, value)
        return self

    def addcdiv(self, a: Lists, b: Lists, value: float = 1) -> Lists:
        return Lists(torch._foreach_addcdiv(self.value, a.value, b.value, value))

    def addcdiv_(self, a: Lists, b: Lists, value: float = 1) -> Lists:
        torch._foreach_addcdiv_(self.value, a.value, b.value, value)
        return self

    def clamp(self, min: float, max: float) -> Lists:
        return self.clone().clamp_(min, max)

    def clamp_(self, min: float, max: float) -> Lists:
        torch._foreach_clamp_min_(self.value, min)
        torch._foreach_clamp_max_(self.value, max)
        return self

    def copy_(self, o: Lists) -> Lists:
        torch._foreach_copy_(self.value, o.value)
        return self

    def zero_(self) -> Lists:
        torch._foreach_zero_(self.value)
        return self

    def clone(self) -> Lists:
        return Lists([t.clone() for t in self.value])


def _foreach(name: str) -> Callable[..., Any]:
    kernel = getattr(torch, f"_foreach_{name}")

    def method(self: Lists, *others: Any) -> Lists:
        out = kernel(self.value, *(_unwrap(o) for o in others))
        return self if name.endswith("_") else Lists(out)

    return method


for _name in (*_BINARY[2:], *_UNARY):
    setattr(Lists, _name, _foreach(_name))
    if _name not in ("maximum", "minimum"):
        setattr(Lists, _name + "_", _foreach(_name + "_"))


class Traced(_Operators):
    """A value inside a compiled graph: in-place methods rebind it, and numbers are rows of equal entries, with which
    loops over elements are vectorised."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value
        self.changed = False

    def reduce(self, _: Any, terms: Callable[..., torch.Tensor], *others: Traced) -> Traced:
        """What there is to add: the graph adds it up at its end."""
        return Traced(terms(self.value, *(o.value for o in others)))

    def clone(self) -> Traced:
        return Traced(self.value)


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "add": lambda x, o, alpha=1: x + o * alpha if isinstance(alpha, torch.Tensor) or alpha != 1 else x + o,
    "sub": lambda x, o, alpha=1: x - o * alpha if isinstance(alpha, torch.Tensor) or alpha != 1 else x - o,
    "mul": lambda x, o: x * o,
    "div": lambda x, o: x / o,
    "pow": lambda x, o: x**o,
    "maximum": lambda x, o: torch.maximum(x, o),
    "minimum": lambda x, o: torch.minimum(x, o),
    "sqrt": lambda x: x.sqrt(),
    "abs": lambda x: x.abs(),
    "neg": lambda x: -x,
    "sign": lambda x: x.sign(),
    "reciprocal": lambda x: 1 / x,
    "lerp": lambda x, o, w: x + w * (o - x),
    "addcmul": lambda x, a, b, value=1: x + value * (a * b),
    "addcdiv": lambda x, a, b, value=1: x + value * (a / b),
    "clamp": lambda x, min, max: x.clamp(min=min, max=max),
    "copy": lambda x, o: o,
    "zero": lambda x: torch.zeros_like(x),
}


def _traced(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    f = _FUNCTIONS[name]

    def value(self: Traced, args: Any, kw: Any) -> torch.Tensor:
        return f(self.value, *map(_unwrap, args), **{k: _unwrap(v) for k, v in kw.items()})

    def out_of_place(self: Traced, *args: Any, **kw: Any) -> Traced:
        return Traced(value(self, args, kw))

    def in_place(self: Traced, *args: Any, **kw: Any) -> Traced:
        self.value = value(self, args, kw)
        self.changed = True
        return self

    return out_of_place, in_place


for _name in _FUNCTIONS:
    _plain, _place = _traced(_name)
    setattr(Traced, _name, _plain)
    setattr(Traced, _name + "_", _place)


# --- storage in another precision than the arithmetic --------------------------------------------------------------


def store(target: torch.Tensor, value: torch.Tensor, generator: torch.Generator | None) -> None:
    """Write a computed block back; with a generator, bfloat16 is rounded stochastically (unbiased)."""
    if generator is None or target.dtype is not torch.bfloat16:
        target.copy_(value)
        return
    noise = torch.empty_like(value, dtype=torch.int32).random_(0, 1 << 16, generator=generator)
    bits = value.float().view(torch.int32).add_(noise).bitwise_and_(-65536)
    rounded = bits.view(torch.float32)
    target.copy_(torch.where(value.isfinite(), rounded, value))


# --- the three ways ------------------------------------------------------------------------------------------------


def over_blocks(
    f: Callable[..., Any],
    tensors: Mapping[str, torch.Tensor],
    written: Sequence[str],
    dtype: torch.dtype,
    generator: torch.Generator | None = None,
) -> list[Any]:
    """Call f(**blocks) on successive pieces of equally long flat tensors; returns what it returned, piece by piece.
    On an accelerator, where a call costs more than memory, there is one piece.

    Tensors stored in another dtype are converted a block at a time, and those in `written` stored back. With a tensor
    `compensation` x is the sum of both: it keeps what rounding takes from x (Kahan).
    """
    out = []
    some = next(iter(tensors.values()))
    block = BLOCK * min(torch.get_num_threads(), THREADS)
    whole = some.numel() <= block or some.device.type not in BLOCKED
    pieces = {k: (t,) if whole else t.split(block) for k, t in tensors.items()}
    converted = [k for k, t in tensors.items() if t.dtype is not dtype]
    for row in zip(*pieces.values(), strict=True):
        blocks = dict(zip(pieces, row, strict=True))
        if not converted:
            out.append(f(**blocks))
            continue
        work = {k: b.to(dtype) if k in converted else b for k, b in blocks.items()}
        lost = work.pop("compensation", None)
        if lost is not None:
            work["x"].add_(lost)
        out.append(f(**work))
        if lost is not None:
            exact = work.pop("x")
            blocks["x"].copy_(exact)
            blocks["compensation"].copy_(exact.sub_(blocks["x"]))
        for k, value in work.items():
            if k in converted and k in written:
                store(blocks[k], value, generator)
    return out


class _Scalars:
    """A namespace that can be made inside a graph."""

    def __init__(self, values: dict[str, Any]) -> None:
        for k, v in values.items():
            setattr(self, k, v)


def _trace(
    f: Callable[..., Any],
    stored: Mapping[str, torch.Tensor],
    values: Mapping[str, torch.Tensor],
    statics: tuple[tuple[str, Any], ...],
    dtype: torch.dtype,
) -> list[torch.Tensor]:
    """Call f inside a graph and write what it changed back; the terms of its sums."""
    traced = {k: Traced(t.to(dtype)) for k, t in stored.items()}
    out = f(**traced, c=_Scalars(dict(statics) | {k: Traced(v) for k, v in values.items()}))
    for k, t in stored.items():
        if k != "g" and traced[k].changed:
            t.copy_(traced[k].value)
    return [_unwrap(term) for term in out or ()]


def _compile(kernel: Any, dynamic: bool) -> Callable[..., Any]:
    # Graphs are cached, counted and limited by code object: every rule gets one of its own.
    made = compiled.cache_info().misses + compiled_list.cache_info().misses
    kernel.__code__ = kernel.__code__.replace(co_name=f"kernel_{made}")
    return torch.compile(kernel, fullgraph=True, dynamic=dynamic)


#: places at which a reading pass reads at once: one stream of reads alone leaves memory waiting
STREAMS = 8
#: shorter streams are not summed in a graph: torch would compile another one for them
STREAM = 4096


def _pieces(t: torch.Tensor, streams: int) -> list[torch.Tensor]:
    return [t] if streams == 1 else list(t.view(streams, -1).unbind())


@cache
def compiled(
    f: Callable[..., Any],
    names: tuple[str, ...],
    numbers: tuple[str, ...],
    statics: tuple[tuple[str, Any], ...],
    sums: tuple[str, ...],
    dtype: torch.dtype,
    streams: int = 1,
) -> Callable[..., Any]:
    """f as one graph: kernel(numbers, *sums, *tensors). Compiled once for all models and all rates.

    It writes what f changed back into the tensors and returns f's own sums, if it returns any. The tensors' length is
    a multiple of `streams`.
    """

    def kernel(table: torch.Tensor, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = dict(zip(sums, args[: len(sums)], strict=True)) | {k: table[i] for i, k in enumerate(numbers)}
        stored = {k: _pieces(t, streams) for k, t in zip(names, args[len(sums) :], strict=True)}
        values = {k: _pieces(t, streams)[0] for k, t in rows.items()}  # all entries of a row are equal
        total: list[torch.Tensor] = []
        for i in range(streams):
            terms = _trace(f, {k: t[i] for k, t in stored.items()}, values, statics, dtype)
            total = [a + b for a, b in zip(total, terms, strict=True)] if total else terms
        return tuple(term.sum() for term in total)

    return _compile(kernel, dynamic=True)


@cache
def compiled_list(
    f: Callable[..., Any],
    names: tuple[str, ...],
    numbers: tuple[str, ...],
    statics: tuple[tuple[str, Any], ...],
    sums: tuple[str, ...],
    dtype: torch.dtype,
    sizes: tuple[int, ...],
) -> Callable[..., Any]:
    """f over many tensors as one graph: kernel(numbers, *(sums and tensors of the first), ...), for an accelerator.

    Compiled once for these sizes; no change of a rate compiles it again. Returns f's sums, a row a tensor.
    """
    width = len(sums) + len(names)

    def kernel(table: torch.Tensor, *args: torch.Tensor) -> torch.Tensor | None:
        values = {k: table[i] for i, k in enumerate(numbers)}
        rows = []
        for i in range(len(sizes)):
            own = dict(zip((*sums, *names), args[i * width : (i + 1) * width], strict=True))
            terms = _trace(f, {k: own[k] for k in names}, values | {k: own[k] for k in sums}, statics, dtype)
            rows.append([term.sum() for term in terms])
        return torch.stack([torch.stack(row) for row in rows]) if rows[0] else None

    return _compile(kernel, dynamic=False)
