"""Without kernels: a rule runs as it is written, over blocks that fit the cache (a CPU) or lists (an accelerator).

On a CPU it is called with flat pieces of 64 K elements a thread, so that what it computes on the way stays in the
cache. On an accelerator it is called with `Lists`, which forward each method to one `torch._foreach_*` call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from hf_optim.core.hooks import Numbers, RuleError, gradient_written
from hf_optim.core.vocabulary import BINARY, UNARY, Operand
from hf_optim.engine.int8_codes import BLOCK, CODED, SCALE, decode, encode
from hf_optim.engine.stochastic_rounding import noise, round_stochastically


@dataclass(frozen=True)
class Limits:
    """What the engine holds itself to."""

    #: whether kernels may run
    kernels: bool = True
    #: elements that a thread works on at once
    block: int = 1 << 16
    #: threads beyond which blocks do not grow
    threads: int = 16
    #: types of devices on which the fallback takes blocks; on others it takes lists
    blocked: frozenset[str] = frozenset({"cpu"})


_DEFAULTS = Limits()
_limits: ContextVar[Limits] = ContextVar("limits", default=_DEFAULTS)


def current() -> Limits:
    """The limits in force."""
    return _limits.get()


@contextlib.contextmanager
def limits(**changes: Any) -> Iterator[None]:
    """Other limits within a `with` statement, for tests and checks."""
    token = _limits.set(replace(_limits.get(), **changes))
    try:
        yield
    finally:
        _limits.reset(token)


# --- lists -----------------------------------------------------------------------------------------------------------


def _unwrap(value: Any) -> Any:
    return value.value if isinstance(value, Lists) else value


class Lists(Operand):
    """A list of tensors that behaves as one in a rule: every method is one foreach call."""

    def __init__(self, value: Sequence[torch.Tensor]) -> None:
        self.value = list(value)

    @classmethod
    def function(cls, name: str, *arguments: Any) -> Lists:
        length = next(len(a.value) for a in arguments if isinstance(a, Lists))
        rows = zip(*(a.value if isinstance(a, Lists) else [a] * length for a in arguments), strict=True)
        if name == "where":
            return cls([torch.where(*row) for row in rows])
        if name == "isfinite":
            return cls([torch.isfinite(*row) for row in rows])
        a, b = arguments if isinstance(arguments[0], Lists) else reversed(arguments)
        return getattr(a, name)(b)  # type: ignore[no-any-return]

    @classmethod
    def foreign(cls, word: str) -> Exception:
        return RuleError(
            f"{word} is no word of the vocabulary of rules (hf_optim.core.vocabulary): it cannot run on an accelerator "
            "without kernels, where x, g and slots are lists of tensors"
        )

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

    def _compare(self, o: Any, f: Callable[..., torch.Tensor]) -> Lists:
        others = o.value if isinstance(o, Lists) else [o] * len(self.value)
        return Lists([f(a, b) for a, b in zip(self.value, others, strict=True)])

    def __gt__(self, o: Any) -> Lists:
        return self._compare(o, torch.gt)

    def __ge__(self, o: Any) -> Lists:
        return self._compare(o, torch.ge)

    def __lt__(self, o: Any) -> Lists:
        return self._compare(o, torch.lt)

    def __le__(self, o: Any) -> Lists:
        return self._compare(o, torch.le)

    def __and__(self, o: Any) -> Lists:
        return self._compare(o, torch.logical_and)

    def __or__(self, o: Any) -> Lists:
        return self._compare(o, torch.logical_or)

    def __invert__(self) -> Lists:
        return Lists([torch.logical_not(t) for t in self.value])


def _foreach(name: str) -> Callable[..., Any]:
    kernel = getattr(torch, f"_foreach_{name}")

    def method(self: Lists, *others: Any) -> Lists:
        out = kernel(self.value, *(_unwrap(o) for o in others))
        return self if name.endswith("_") else Lists(out)

    return method


for _name in (*BINARY[2:], *UNARY):
    setattr(Lists, _name, _foreach(_name))
    if _name not in ("maximum", "minimum"):
        setattr(Lists, _name + "_", _foreach(_name + "_"))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(Lists, f"__i{_name}__", getattr(Lists, {"truediv": "div"}.get(_name, _name) + "_"))


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounding:
    """How bfloat16 tensors and codes of one parameter are stored: `noisy` ones stochastically, by this key's bits."""

    noisy: frozenset[str] = frozenset()
    key: int = 0
    #: the number of the first element in the whole parameter
    first: int = 0
    #: the tensors' numbers in the program
    slots: tuple[str, ...] = ()


def run(
    call: Callable[..., Any],
    columns: Mapping[str, Sequence[torch.Tensor]],
    c: Mapping[str, Any],
    sums: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    roundings: Sequence[Rounding],
) -> torch.Tensor | None:
    """Call a rule's function over flat tensors, in place.

    Args:
        columns: of each name one tensor a parameter; of codes, their scales besides.
        sums: of each name one entry a parameter.
        dtype: in which to compute.
        roundings: one a parameter.

    Returns:
        What it added up, a row a parameter, in float64; None if it adds up nothing.
    """
    some = next(iter(columns.values()))
    plain = all(t.dtype is dtype for column in columns.values() for t in column)
    if plain and some[0].device.type not in current().blocked:
        own: dict[str, Any] = {k: Lists(list(v.to(dtype).unbind())) for k, v in sums.items()}
        out = _called(call, {k: Lists(v) for k, v in columns.items()}, Numbers(**{**c, **own}))
        return torch.stack([torch.stack(column.value).double() for column in out], 1) if out else None
    rows = []
    for i in range(len(some)):
        own = {k: v[i].to(dtype) for k, v in sums.items()}
        tensors = {k: column[i] for k, column in columns.items()}
        rows.append(_blocks(call, tensors, Numbers(**{**c, **own}), dtype, roundings[i]))
    return None if rows[0] is None else torch.stack(rows)  # type: ignore[arg-type]


def _called(call: Any, tensors: Mapping[str, Any], c: Any) -> Any:
    """call(**tensors, c=c), which has to leave the gradient as it came."""
    before = _versions(tensors.get("g"))
    out = call(**tensors, c=c)
    if _versions(tensors.get("g")) != before:
        raise gradient_written(call.__qualname__)
    return out


def _versions(g: Any) -> int:
    """How often it was written, of tensors that count that."""
    tensors = g.value if isinstance(g, Lists) else [] if g is None else [g]
    return sum(t._version for t in tensors if not t.is_inference())


def _blocks(call: Any, tensors: Mapping[str, torch.Tensor], c: Any, dtype: torch.dtype, how: Rounding) -> Any:
    """One parameter, block by block; on an accelerator, where a call costs more than memory, as a whole. Its sums."""
    some = next(iter(tensors.values()))
    limit = current()
    size = limit.block * min(torch.get_num_threads(), limit.threads)
    if some.device.type not in limit.blocked:
        size = max(1, some.numel())
    coded = [k for k, t in tensors.items() if t.dtype in CODED]
    if coded:
        size = -(-size // BLOCK) * BLOCK
    total: Any = None
    sizes = dict.fromkeys(tensors, size) | {k + SCALE: size // BLOCK for k in coded}
    pieces = [t.split(sizes[k]) if some.numel() else (t,) for k, t in tensors.items()]
    for number, row in enumerate(zip(*pieces, strict=True)):
        blocks = dict(zip(tensors, row, strict=True))
        out = _block(call, blocks, c, dtype, replace(how, first=how.first + number * size))
        if out:
            out = torch.stack(list(out)).double()
            total = out if total is None else total + out
    return total


def _block(call: Any, blocks: dict[str, torch.Tensor], c: Any, dtype: torch.dtype, how: Rounding) -> Any:
    """With a tensor `compensation` x is the sum of both: it keeps what rounding takes from x (Kahan)."""
    scales = {k: blocks[k + SCALE] for k, b in blocks.items() if b.dtype in CODED}
    work = {k: b.to(dtype) for k, b in blocks.items() if k not in scales and k.removesuffix(SCALE) not in scales}
    work |= {k: decode(blocks[k], scale).to(dtype) for k, scale in scales.items()}
    unwritten = {k: work[k]._version for k in scales}
    lost = work.pop("compensation", None)
    if lost is not None:
        work["x"].add_(lost)
    out = _called(call, work, c)
    if lost is not None:
        exact = work.pop("x")
        blocks["x"].copy_(exact)
        blocks["compensation"].copy_(exact.sub_(blocks["x"]))
    for k, value in work.items():
        if blocks[k].dtype is dtype or k == "g" or value._version == unwritten.get(k):
            continue
        if k in how.noisy:
            element = torch.arange(how.first, how.first + len(value), device=value.device)
            bits = noise(element, how.key, how.slots.index(k))
            if k in scales:
                value, scale = encode(value.float(), bits, blocks[k].dtype)
                scales[k].copy_(scale)
            else:
                value = round_stochastically(value, bits)
        blocks[k].copy_(value)
    return out
