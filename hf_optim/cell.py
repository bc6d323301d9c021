"""One parameter in one step, and how a rule's functions run over many of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim import execute
from hf_optim.reduce import local
from hf_optim.rule import Transform


@dataclass(slots=True, eq=False)
class Cell:
    """A parameter and its group: flat local views of x and its slots, kept from step to step as long as they fit,
    and what is a step's own: the view of g, the step count t, the transform in force, and the scalars c."""

    p: torch.Tensor
    group: dict[str, Any]
    slots: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    dtype: torch.dtype
    t: int = 0
    transform: Transform | None = None
    c: SimpleNamespace = field(default_factory=SimpleNamespace)
    #: on a CPU, and small enough to share a call
    cpu: bool = field(init=False)
    small: bool = field(init=False)
    pointer: int = field(init=False)

    def __post_init__(self) -> None:
        x = self.tensors["x"]
        self.pointer, self.cpu = x.data_ptr(), x.device.type == "cpu"
        self.small = x.numel() <= execute.SMALL

    def fits(self, group: dict[str, Any], state: dict[str, Any]) -> bool:
        """Whether the views still show the parameter's and the state's memory."""
        return (self.group is group and local(self.p).data_ptr() == self.pointer
                and self.dtype is torch.promote_types(self.p.dtype, torch.float32)
                and all(state.get(k) is t for k, t in self.slots.items()))


@dataclass(frozen=True)
class Way:
    """How to run: as a compiled graph or not, and the noise source where states are rounded stochastically."""

    compile: bool = False
    generator: torch.Generator | None = None

    def compiles(self, cell: Cell) -> bool:
        """Small tensors share a foreach call, which costs less than a call of the graph for each."""
        return self.compile and not cell.small and self.generator is None and not getattr(cell.c, "first", False)


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


def _batches(cells: list[Cell], way: Way) -> list[list[int]]:
    """Indices of cells that run together: on accelerators, and for small tensors, one foreach call serves many.

    On a CPU together they are no larger than a block, so that temporaries stay in the cache there too.
    """
    batches: dict[Any, list[int]] = {}
    room: dict[Any, int] = {}
    for i, cell in enumerate(cells):
        key: Any = i
        if (cell.small or not cell.cpu) and not way.compiles(cell):
            if all(t.dtype is cell.dtype for t in cell.tensors.values()):
                x = cell.tensors["x"]
                kind = (id(cell.group), cell.t, cell.transform is None, cell.dtype, x.device)
                room[kind] = room.get(kind, 0) + (x.numel() if cell.cpu else 0)
                key = (*kind, room[kind] // execute.BLOCK)
        batches.setdefault(key, []).append(i)
    return list(batches.values())


def _run(cells: list[Cell], f: Callable[..., Any], way: Way, raw: bool) -> list[list[Any]]:
    """Run f over one batch of cells; for each cell the list of what f returned, block by block."""
    first = cells[0]
    transform = None if raw or first.transform is None or not first.transform.blockwise else first.transform
    call = bound(f, transform.apply if transform else None, getattr(first.transform, "moments", "all") == "all")
    wants = arguments(f) | {"g"} if call is not f else arguments(f)
    names = [k for k in first.tensors if k in wants]
    if len(cells) > 1:
        c = SimpleNamespace(**vars(first.c))
        for k, v in vars(c).items():
            if isinstance(v, torch.Tensor):
                setattr(c, k, execute.Lists([getattr(cell.c, k) for cell in cells]))
        out = call(**{k: execute.Lists([cell.tensors[k] for cell in cells]) for k in names}, c=c)
        return [] if out is None else [[part] for part in zip(*(o.value for o in out), strict=True)]
    tensors = {k: first.tensors[k] for k in names}
    written = tuple(k for k in names if k != "g")
    if way.compiles(first):
        return [[_run_compiled(call, tensors, written, first)]]
    c = first.c
    return [execute.over_blocks(lambda **blocks: call(**blocks, c=c), tensors, written, first.dtype, way.generator)]


def _run_compiled(call: Callable[..., Any], tensors: dict[str, torch.Tensor], written: tuple[str, ...],
                  cell: Cell) -> tuple[torch.Tensor, ...]:
    values = vars(cell.c)
    numbers = {k: v for k, v in values.items() if isinstance(v, float)}
    sums = {k: v for k, v in values.items() if isinstance(v, torch.Tensor)}
    statics = tuple((k, v) for k, v in values.items() if k not in numbers and k not in sums)
    # The graph writes its arguments back in their order: x last, so that a slot that copies x gets the old x.
    tensors = dict(sorted(tensors.items(), key=lambda item: item[0] == "x"))
    written = tuple(k for k in tensors if k in written)
    kernel = execute.compiled(call, tuple(tensors), written, tuple(numbers), statics, tuple(sums), cell.dtype)
    n, device = cell.tensors["x"].numel(), cell.tensors["x"].device
    table = torch.tensor(list(numbers.values()), dtype=cell.dtype, device=device)
    return kernel(table.unsqueeze(1).expand(-1, n), *(v.expand(n) for v in sums.values()), *tensors.values())


def run_all(cells: list[Cell], f: Callable[..., Any], way: Way) -> None:
    """Run an update over all cells."""
    for members in _batches(cells, way):
        _run([cells[i] for i in members], f, way, raw=False)


def partials(cells: list[Cell], f: Callable[..., Any], way: Way, raw: bool = False) -> list[torch.Tensor]:
    """Local sums of each cell, a row a cell; `raw` leaves the transform out."""
    rows: list[torch.Tensor] = [torch.empty(0)] * len(cells)
    for members in _batches(cells, way):
        results = _run([cells[i] for i in members], f, way, raw)
        for i, result in zip(members, results, strict=True):
            rows[i] = torch.stack([torch.stack(list(part)) for part in result]).sum(0)
    return rows
