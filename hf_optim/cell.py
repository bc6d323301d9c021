"""One parameter in one step, and how a rule's functions run over many of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim import execute
from hf_optim.reduce import local
from hf_optim.rule import Transform

#: kinds of cells seen so far, numbered: a number is hashed faster than what it stands for
_KINDS: dict[tuple[Any, ...], int] = {}


class Scalars(SimpleNamespace):
    """The numbers of a step for a group's cells with the same t; they share one object."""

    __slots__ = ("_parts",)

    def parts(self, dtype: torch.dtype, device: torch.device) -> tuple[tuple[str, ...], torch.Tensor, tuple[Any, ...]]:
        """What a compiled graph takes: names of the numbers, the numbers as a column, and what selects code."""
        known = getattr(self, "_parts", None)
        if known is None or known[0] != (dtype, device):
            numbers = {k: v for k, v in vars(self).items() if isinstance(v, float)}
            table = torch.tensor(list(numbers.values()), dtype=dtype, device=device).unsqueeze(1)
            statics = tuple((k, v) for k, v in vars(self).items() if k not in numbers)
            known = self._parts = (dtype, device), (tuple(numbers), table, statics)
        return known[1]  # type: ignore[no-any-return]


#: the scalars of a cell before anything of the step is known; never written
NOTHING = Scalars()


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
    #: runs over cache-sized blocks (a CPU) instead of foreach lists
    blocked: bool = field(init=False)
    #: elements, and whether they are few enough to share a call
    size: int = field(init=False)
    small: bool = field(init=False)
    #: whether its state may move into a pack
    movable: bool = field(init=False)
    #: whether everything is stored in the dtype of the arithmetic
    plain: bool = field(init=False)
    #: what cells of one call have in common
    kind: int = field(init=False)
    #: where all this lay when the views were made
    pointer: int = field(init=False)
    entries: list[tuple[str, torch.Tensor, int]] = field(init=False)
    stored: torch.dtype = field(init=False)
    contiguous: bool = field(init=False)
    #: where this step is counted; None: together with another cell's
    counter: torch.Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        x = self.tensors["x"]
        self.blocked = x.device.type in execute.BLOCKED
        self.size = x.numel()
        self.small = self.size <= execute.SMALL
        self.movable = self.blocked and not any(hasattr(t, "to_local") for t in (self.p, *self.kept.values()))
        self.plain = all(t.dtype is self.dtype for t in self.tensors.values())
        kind = (self.dtype, x.device, *((k, t.dtype) for k, t in self.tensors.items() if k != "g"))
        self.kind = _KINDS.setdefault(kind, len(_KINDS))
        self.stored, self.contiguous = self.p.dtype, local(self.p).is_contiguous()
        self.pointer, self.entries = local(self.p).data_ptr(), self._entries()
        self.counter = self.kept["step"]

    def _entries(self) -> list[tuple[str, torch.Tensor, int]]:
        return [(k, t, local(t).data_ptr()) for k, t in self.kept.items()]

    def fits(self, group: dict[str, Any], state: dict[str, Any]) -> bool:
        """Whether the views still show the parameter's and the state's memory."""
        if self.group is not group or self.state is not state or self.p.dtype is not self.stored:
            return False
        if (self.p if self.movable else local(self.p)).data_ptr() != self.pointer:
            return False
        for k, t, pointer in self.entries:
            if state.get(k) is not t or (t if self.movable else local(t)).data_ptr() != pointer:
                return False
        return True

    def see(self, grad: torch.Tensor) -> None:
        """This step's gradient, the local part."""
        if self.transform is not None and not self.transform.blockwise:
            grad = self.transform.apply(grad, NOTHING)
        if self.contiguous and grad.is_contiguous():
            self.tensors["g"] = grad.view(-1)
            return
        x = local(self.p)
        g = execute.flat(grad, x)
        if g is None:  # another layout than the parameter's
            g = execute.flat(torch.empty_like(x, dtype=grad.dtype).copy_(grad))
            assert g is not None
        self.tensors["g"] = g

    def show(self) -> None:
        """Views of the entries of `kept`, which have moved."""
        for k, t in self.kept.items():
            if k != "step":
                self.tensors[k] = t.as_strided((self.size,), (1,))
        self.entries = self._entries()


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


def prepared(cell: Cell, f: Callable[..., Any], raw: bool) -> tuple[Callable[..., Any], list[str]]:
    """f as it is called for this cell and those that run with it, and the names of the tensors it gets."""
    transform = None if raw or cell.transform is None or not cell.transform.blockwise else cell.transform
    call = bound(f, transform.apply if transform else None, getattr(cell.transform, "moments", "all") == "all")
    wants = arguments(f) | {"g"} if call is not f else arguments(f)
    if "x" in wants:
        wants |= {"compensation"}
    return call, [k for k in cell.tensors if k in wants]


def batches(cells: Sequence[Cell], share: Callable[[Cell], bool]) -> list[list[int]]:
    """Indices of cells that run together: those that may share a call, have their scalars in common and are alike.

    On a CPU together they are no larger than a block, so that temporaries stay in the cache there too.
    """
    found: dict[Any, list[int]] = {}
    room: dict[Any, int] = {}
    for i, cell in enumerate(cells):
        if not share(cell):
            found[i] = [i]
            continue
        alike = (id(cell.c), cell.transform is None, cell.kind)
        full = room.get(alike, 0) + (cell.size if cell.blocked else 0)
        room[alike] = full
        found.setdefault((alike, full // execute.BLOCK), []).append(i)
    return list(found.values())


def foreach(cells: Sequence[Cell], f: Callable[..., Any], raw: bool = False) -> Any:
    """Run f over all cells, one foreach call an operation; what it returned, in `Lists`."""
    call, names = prepared(cells[0], f, raw)
    sums = {k: execute.Lists([cell.sums[k] for cell in cells]) for k in cells[0].sums}
    c = SimpleNamespace(**vars(cells[0].c), **sums)
    return call(**{k: execute.Lists([cell.tensors[k] for cell in cells]) for k in names}, c=c)


def alone(cell: Cell, f: Callable[..., Any], way: Way, raw: bool = False) -> list[Any]:
    """Run f over one cell; what the calls returned."""
    call, names = prepared(cell, f, raw)
    tensors = {k: cell.tensors[k] for k in names}
    return flat(call, tensors, cell.c, cell.sums, cell.dtype, way, way.compiles(cell.c) and not cell.small)


def flat(call: Callable[..., Any], tensors: Mapping[str, torch.Tensor], c: Scalars, sums: Mapping[str, torch.Tensor],
         dtype: torch.dtype, way: Way, compile: bool) -> list[Any]:
    """Run over flat tensors of one length, as a graph or block by block; what the calls returned.

    `sums` are 0-d, or rows with an entry an element.
    """
    if compile:
        return [_compiled(call, tensors, c, sums, dtype)]
    written = [k for k in tensors if k != "g"]
    rows = {k: v for k, v in sums.items() if v.dim()}
    own = SimpleNamespace(**vars(c), **sums) if sums else c
    if not rows:
        return execute.over_blocks(lambda **blocks: call(**blocks, c=own), tensors, written, dtype, way.generator)

    def with_rows(**blocks: Any) -> Any:  # cut like the tensors
        vars(own).update({k: blocks.pop(k) for k in rows})
        return call(**blocks, c=own)

    return execute.over_blocks(with_rows, {**tensors, **rows}, written, dtype, way.generator)


def _compiled(call: Callable[..., Any], tensors: Mapping[str, torch.Tensor], c: Scalars,
              sums: Mapping[str, torch.Tensor], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    # The graph writes its arguments back in their order: x last, so that a slot that copies x gets the old x.
    names = sorted(tensors, key=lambda k: k == "x")
    some = tensors[names[0]]
    n = some.numel()
    numbers, table, statics = c.parts(dtype, some.device)
    kernel = execute.compiled(call, tuple(names), numbers, statics, tuple(sums), dtype)
    out = kernel(_bare(table, (len(numbers), n), (1, 0)),
                 *(_bare(v.clone(), (n,), (0,)) for v in sums.values()),  # its own: offsets would be guarded, too
                 *(_bare(tensors[k], (n,), (1,)) for k in names))
    if "x" in tensors:
        torch.autograd.graph.increment_version(tensors["x"])  # autograd must notice, as of any other write
    return out


def _bare(t: torch.Tensor, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """The same memory without a base: of views, dynamo guards the shape of the base, so that every rank would be
    compiled for itself, and every call be checked in Python."""
    return t.new_empty(0).set_(t.untyped_storage(), t.storage_offset(), size, stride)


def partials(cells: list[Cell], f: Callable[..., Any], way: Way, raw: bool = False) -> torch.Tensor:
    """Local sums, a row a cell; `raw` leaves the transform out."""
    order: list[int] = []
    rows: list[torch.Tensor] = []
    for members in batches(cells, lambda cell: cell.plain and (
            cell.small or not cell.blocked and not way.compiles(cell.c))):
        some = [cells[i] for i in members]
        if len(some) > 1:
            rows.append(torch.stack([torch.stack(column.value) for column in foreach(some, f, raw)], 1))
        else:
            parts = [torch.stack(list(part)) for part in alone(some[0], f, way, raw)]
            rows.append((parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)).unsqueeze(0))
        order += members
    table = torch.cat(rows)
    if order == list(range(len(cells))):
        return table
    by_cell = dict(zip(order, table.unbind(), strict=True))
    return torch.stack([by_cell[i] for i in range(len(cells))])
