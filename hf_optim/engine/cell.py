"""One parameter in one step, and how a rule's functions run over many of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.core.reduce import local
from hf_optim.core.rule import Transform
from hf_optim.engine import blocks as execute
from hf_optim.errors import UserError

#: kinds of cells seen so far, numbered: a number is hashed faster than what it stands for
_KINDS: dict[tuple[Any, ...], int] = {}


class Scalars(SimpleNamespace):
    """The numbers of a step for a group's cells with the same t; they share one object."""

    __slots__ = ("_parts", "tables")

    #: where an accelerator finds them, step after step: a captured graph reads them there
    tables: dict[Any, torch.Tensor]

    def parts(self, dtype: torch.dtype, device: torch.device) -> tuple[tuple[str, ...], torch.Tensor, tuple[Any, ...]]:
        """What a compiled graph takes: names of the numbers, the numbers as a column, and what selects code."""
        known = getattr(self, "_parts", None)
        if known is None or known[0] != (dtype, device):
            numbers = {k: v for k, v in vars(self).items() if isinstance(v, float)}
            statics = tuple((k, v) for k, v in vars(self).items() if k not in numbers)
            table = self._table(tuple(numbers), torch.tensor(list(numbers.values()), dtype=dtype), device)
            known = self._parts = (dtype, device), (tuple(numbers), table.unsqueeze(1), statics)
        return known[1]  # type: ignore[no-any-return]

    def _table(self, names: tuple[str, ...], values: torch.Tensor, device: torch.device) -> torch.Tensor:
        if device.type in execute.BLOCKED:
            return values
        key = names, values.dtype, device
        if key not in self.tables:
            if execute.capturing():
                raise UserError("take a few steps before one is captured in a CUDA graph")
            self.tables[key] = values.to(device)
        elif not execute.capturing():
            self.tables[key].copy_(values, non_blocking=True)
        return self.tables[key]


#: the scalars of a cell before anything of the step is known; never written
NOTHING = Scalars()
NOTHING.tables = {}


@dataclass(slots=True, eq=False)
class Cell:
    """A parameter and its group: flat local views of x and its slots, kept from step to step as long as they fit,
    and what is a step's own: the view of g, the step count t, the transform in force, and its numbers."""

    p: torch.Tensor
    group: dict[str, Any]
    #: the optimizer's state of p, whose entries `kept` the views show
    state: dict[str, Any]
    kept: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype
    t: int = 0
    transform: Transform | None = None
    #: the scalars, one object for all cells of a group with the same t
    c: Scalars = field(default_factory=lambda: NOTHING)
    #: what was derived from sums, 0-d: this tensor's own or of all
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    #: elements, and whether they are few enough to share a call
    size: int = field(init=False)
    small: bool = field(init=False)
    #: runs over cache-sized blocks (a CPU) instead of foreach lists
    blocked: bool = field(init=False)
    #: whether it may become a part of a pack
    packs: bool = field(init=False)
    #: whether everything is stored in the dtype of the arithmetic; without gaps
    plain: bool = field(init=False)
    dense: bool = field(init=False)
    #: what cells of one call have in common
    kind: int = field(init=False)
    #: where all this lay when the views were made
    places: list[Any] = field(init=False)
    contiguous: bool = field(init=False)

    def __post_init__(self) -> None:
        x = self.tensors["x"]
        self.size = x.numel()
        self.small = self.size <= execute.SMALL
        self.blocked = x.device.type in execute.BLOCKED
        self.contiguous = local(self.p).is_contiguous()
        sharded = any(hasattr(t, "to_local") for t in (self.p, *self.kept.values()))
        self.packs = self.blocked and self.small and self.contiguous and not sharded
        self.plain = all(t.dtype is self.dtype for t in self.tensors.values())
        self.dense = all(t.is_contiguous() for t in self.tensors.values())
        kind = (self.dtype, x.device, *((k, t.dtype) for k, t in self.tensors.items() if k != "g"))
        self.kind = _KINDS.setdefault(kind, len(_KINDS))
        self.places = self._places()

    def _places(self) -> list[Any]:
        # the shape, too: p.data = p.data[:4] keeps the address
        return [local(t).data_ptr() for t in (self.p, *self.kept.values())] + [self.p.shape, self.p.stride()]

    @property
    def params(self) -> list[torch.Tensor]:
        """What its sums are sums of, row by row."""
        return [self.p]

    @property
    def counter(self) -> torch.Tensor:
        """Where its steps are counted."""
        return self.kept["step"]

    def fits(self, group: dict[str, Any], state: dict[str, Any]) -> bool:
        """Whether the views still show the parameter's and the state's memory."""
        return (
            self.group is group
            and self.state is state
            and all(state.get(k) is t for k, t in self.kept.items())
            and self._places() == self.places
        )

    def begin(self, transform: Transform | None) -> None:
        """See this step's gradient, the local part."""
        self.transform, self.c, self.sums = transform, NOTHING, {}
        assert self.p.grad is not None
        grad = local(self.p.grad)
        if transform is not None and not transform.blockwise:
            grad = transform.apply(grad, NOTHING)
        if self.contiguous and grad.is_contiguous():
            self.tensors["g"] = grad.view(-1)
            return
        x = local(self.p)
        g = execute.flat(grad, x)
        if g is None:  # another layout than the parameter's
            g = execute.flat(torch.empty_like(x, dtype=grad.dtype).copy_(grad))
            assert g is not None
        self.tensors["g"] = g

    def move(self, slots: dict[str, torch.Tensor]) -> None:
        """Keep the state in these pieces of memory from now on."""
        for k, piece in slots.items():
            entry = self.kept[k]
            self.state[k] = self.kept[k] = piece.as_strided(entry.shape, entry.stride(), piece.storage_offset())
            if k != "step":
                self.tensors[k] = piece
        self.places = self._places()

    def measured(self, f: Callable[..., Any], way: Way, raw: bool = False) -> torch.Tensor:
        """Local sums of f, one row; `raw` leaves the transform out."""
        call, names = prepared(self.transform, self.tensors, f, raw)
        streams = execute.STREAMS if self.blocked and names == ["g"] else 1
        found = [
            torch.stack(list(sums))
            for sums in self._call(call, names, way, self.size // streams > execute.STREAM, streams)
        ]
        return (found[0] if len(found) == 1 else torch.stack(found).sum(0)).unsqueeze(0)

    def run(self, f: Callable[..., None], way: Way) -> None:
        """Update."""
        self._call(*prepared(self.transform, self.tensors, f), way)

    def _call(
        self, call: Callable[..., Any], names: list[str], way: Way, long: bool = True, streams: int = 1
    ) -> list[Any]:
        tensors = {k: self.tensors[k] for k in names}
        if way.compiles(self.c) and self.dense and long and not self.small:
            return compiled(call, tensors, self.c, self.sums, self.dtype, way, streams)
        return over_blocks(call, tensors, self.c, self.sums, self.dtype, way)


@dataclass(frozen=True)
class Way:
    """How to run: as a compiled graph or not, and the noise source where states are rounded stochastically."""

    compile: bool = False
    generator: torch.Generator | None = None

    def compiles(self, c: Scalars) -> bool:
        """Whether a step with these scalars may run as a graph; small tensors run together instead of each in one."""
        return self.compile and self.generator is None and not getattr(c, "first", False)


@cache
def arguments(f: Callable[..., Any]) -> frozenset[str]:
    """What a rule's function wants, by name."""
    return frozenset(inspect.signature(f).parameters)


@cache
def bound(f: Callable[..., Any], apply: Callable[..., Any] | None, all_moments: bool) -> Callable[..., Any]:
    """f with its gradient arguments filled in: `g` transformed by `apply`, `raw` as the moments ask."""
    wants = arguments(f)
    if apply is None and not {"raw", "given"} & wants:
        return f

    def call(g: Any, c: Any, **rest: Any) -> Any:
        new = g if apply is None else apply(g, c)
        if "raw" in wants:
            rest["raw"] = new if all_moments else g
        if "given" in wants:
            rest["given"] = g
        if "g" in wants:
            rest["g"] = new
        return f(c=c, **rest)

    return call


def prepared(
    transform: Transform | None, there: Iterable[str], f: Callable[..., Any], raw: bool = False
) -> tuple[Callable[..., Any], list[str]]:
    """f as it is called under this transform, and which of the tensors that are there it gets."""
    applied = transform.apply if transform is not None and transform.blockwise and not raw else None
    call = bound(f, applied, getattr(transform, "moments", "all") == "all")
    wants = arguments(f) | {"g"} if call is not f else arguments(f)
    if "x" in wants:
        wants |= {"compensation"}
    return call, [k for k in there if k in wants]


def over_blocks(
    call: Callable[..., Any],
    tensors: Mapping[str, torch.Tensor],
    c: Scalars,
    sums: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    way: Way,
) -> list[Any]:
    """Run block by block; what the calls returned."""
    own = SimpleNamespace(**vars(c), **sums) if sums else c
    written = [k for k in tensors if k != "g"]
    return execute.over_blocks(lambda **blocks: call(**blocks, c=own), tensors, written, dtype, way.generator)


def compiled(
    call: Callable[..., Any],
    tensors: Mapping[str, torch.Tensor],
    c: Scalars,
    sums: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    way: Way,
    streams: int = 1,
) -> list[Any]:
    """Run as one graph, and what is left of a length that is no multiple of `streams` as a block."""
    # The graph writes its arguments back in their order: x last, so that a slot that copies x gets the old x.
    names = sorted(tensors, key=lambda k: k == "x")
    some = tensors[names[0]]
    numbers, table, statics = c.parts(dtype, some.device)
    kernel = execute.compiled(call, tuple(names), numbers, statics, tuple(sums), dtype, streams)
    n = some.numel() - some.numel() % streams
    out = [
        kernel(
            _bare(table, (len(numbers), n), (1, 0)),
            *(_bare(v.clone(), (n,), (0,)) for v in sums.values()),  # its own: offsets would be guarded, too
            *(_bare(tensors[k], (n,), (1,)) for k in names),
        )
    ]
    if n < some.numel():
        out += over_blocks(call, {k: t[n:] for k, t in tensors.items()}, c, sums, dtype, way)
    if "x" in tensors:
        torch.autograd.graph.increment_version(tensors["x"])  # autograd must notice, as of any other write
    return out


def _bare(t: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """The same memory without a base: of views, dynamo guards the shape of the base, so that every rank would be
    compiled for itself, and every call be checked in Python."""
    return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), size, stride)


def foreach(cells: Sequence[Cell], f: Callable[..., Any], way: Way, raw: bool = False) -> torch.Tensor | None:
    """Run f over all cells, one foreach call an operation, or all in one graph; local sums, a row a cell."""
    first = cells[0]
    call, names = prepared(first.transform, first.tensors, f, raw)
    if way.compiles(first.c):
        names.sort(key=lambda k: k == "x")  # as in `compiled`
        numbers, table, statics = first.c.parts(first.dtype, first.tensors["x"].device)
        kernel = execute.compiled_list(
            call, tuple(names), numbers, statics, tuple(first.sums), first.dtype, tuple(cell.size for cell in cells)
        )
        sums = kernel(
            table,
            *(
                t
                for cell in cells
                for t in (*cell.sums.values(), *(_bare(cell.tensors[k], (cell.size,), (1,)) for k in names))
            ),
        )
        if "x" in names:
            torch.autograd.graph.increment_version([cell.p for cell in cells])
        return sums  # type: ignore[no-any-return]
    own = {k: execute.Lists([cell.sums[k] for cell in cells]) for k in first.sums}
    c = SimpleNamespace(**vars(first.c), **own)
    out = call(**{k: execute.Lists([cell.tensors[k] for cell in cells]) for k in names}, c=c)
    return torch.stack([torch.stack(column.value) for column in out], 1) if out else None
