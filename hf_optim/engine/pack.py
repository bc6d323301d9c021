"""Small tensors of a model, updated as one.

A call costs more than the arithmetic on a bias. Small tensors on a CPU therefore run together: their states lie side
by side in one tensor a slot (what `optimizer.state` holds are views of it), their parameters and gradients are laid
side by side for the length of a call. Where a rule asks for sums tensor by tensor, those of one shape are rows of a
matrix. They are not compiled: calling a graph takes as long as it saves on a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch

from hf_optim.core.rule import Transform
from hf_optim.core.scratch import scratch
from hf_optim.engine.cell import NOTHING, Cell, Scalars, Way, over_blocks, prepared

_data_ptr, _stride = torch.Tensor.data_ptr, torch.Tensor.stride
_grad, _layout, _shape = attrgetter("grad"), attrgetter("layout"), attrgetter("shape")


class Pack:
    """Cells of one group, dtype and step count, those of one shape next to each other."""

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells
        self.group, self.dtype = cells[0].group, cells[0].dtype
        self.params = [cell.p for cell in cells]
        self.t = cells[0].t
        self.transform: Transform | None = None
        self.c: Scalars = NOTHING
        #: what was derived from sums: 0-d of all tensors, or an entry a tensor
        self.sums: dict[str, torch.Tensor] = {}
        self.sizes = [cell.size for cell in cells]
        self.length = sum(self.sizes)
        self._states = [cell.state for cell in cells]
        self._x = [cell.tensors["x"] for cell in cells]
        self._rows = list(self._equal())
        self._pieces: tuple[int, tuple[torch.Tensor, ...]] = 0, ()
        self.slots: dict[str, torch.Tensor] = {}
        self._lay()
        self._entries = {k: [state[k] for state in self._states] for k in self.slots}
        self._places = self._look()
        self._grads: list[torch.Tensor] = []
        self.counted()

    def _equal(self) -> Iterator[tuple[slice, slice, torch.Size]]:
        """Runs of one shape: which cells, which elements, the shape."""
        first = start = 0
        for shape, run in groupby(cell.p.shape for cell in self.cells):
            count = len(list(run))
            after = start + count * shape.numel()
            yield slice(first, first + count), slice(start, after), shape
            first, start = first + count, after

    def _lay(self) -> None:
        """Move the states side by side."""
        pieces = []
        for k in self.cells[0].kept:
            entries = [cell.kept[k] for cell in self.cells]
            self.slots[k] = torch.cat([e.as_strided((e.numel(),), (1,)) for e in entries])
            pieces.append(self.slots[k].split([e.numel() for e in entries]))
        for cell, *own in zip(self.cells, *pieces, strict=True):
            cell.move(dict(zip(self.slots, own, strict=True)))

    @property
    def counter(self) -> torch.Tensor:
        """Where its steps are counted."""
        return self.slots["step"]

    # --- from step to step -----------------------------------------------------------------------------------------

    def _look(self) -> list[Any]:
        places = [place for some in (self.params, *self._entries.values()) for place in map(_data_ptr, some)]
        # the shapes, too: p.data = p.data[:4] keeps the address
        return [*places, *map(_shape, self.params), *map(_stride, self.params)]

    def fits(self, state: Mapping[torch.Tensor, dict[str, Any]]) -> bool:
        """Whether parameters and states are where they were, with one step count, and the gradients of a usual kind."""
        if not all(map(is_, map(state.get, self.params), self._states)):
            return False
        for k, entries in self._entries.items():
            try:
                if not all(map(is_, map(itemgetter(k), self._states), entries)):
                    return False
            except KeyError:
                return False
        return (
            self._look() == self._places
            and self.counter._version == self._counted
            and {torch.strided}.issuperset(map(_layout, map(_grad, self.params)))
        )

    def begin(self, transform: Transform | None) -> None:
        """See this step's gradients."""
        self.transform, self.c, self.sums = transform, NOTHING, {}
        self._grads = list(map(_grad, self.params))
        if transform is not None and not transform.blockwise:
            self._grads = [transform.apply(grad, NOTHING) for grad in self._grads]

    def counted(self) -> None:
        """The step has been counted; whoever else writes the count is noticed."""
        self._counted = self.counter._version
        self._grads = []

    # --- a step ----------------------------------------------------------------------------------------------------

    def _side_by_side(self, name: str, each: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        memory = scratch(name, dtype, self.length)
        for cells, elements, shape in self._rows:
            some = each[cells]
            torch.stack(some, out=memory[elements].view(len(some), *shape))
        return memory

    def _tensors(self, names: list[str]) -> dict[str, torch.Tensor]:
        found = {k: self.slots[k] for k in names if k in self.slots}
        if "x" in names:
            found["x"] = self._side_by_side("x", self.params, self.params[0].dtype)
        if "g" in names:
            found["g"] = self._side_by_side("g", self._grads, self.dtype)
        return found

    def _prepared(self, f: Callable[..., Any], raw: bool = False) -> tuple[Callable[..., Any], dict[str, torch.Tensor]]:
        call, names = prepared(self.transform, (*self.slots, "x", "g"), f, raw)
        return call, self._tensors(names)

    def _row_by_row(self, call: Callable[..., Any], tensors: dict[str, torch.Tensor], way: Way) -> Iterator[Any]:
        """Run over matrices with a row a tensor; what the calls returned."""
        for cells, elements, shape in self._rows:
            size = cells.stop - cells.start, shape.numel()
            matrices = {k: v[elements].view(size) for k, v in tensors.items()}
            sums = {k: v[cells].unsqueeze(1) if v.dim() else v for k, v in self.sums.items()}
            yield from over_blocks(call, matrices, self.c, sums, self.dtype, way)

    def measured(self, f: Callable[..., Any], way: Way, raw: bool = False) -> torch.Tensor:
        """Sums of f, a row a tensor; `raw` leaves the transform out."""
        return torch.cat([torch.stack(list(sums), 1) for sums in self._row_by_row(*self._prepared(f, raw), way)])

    def run(self, f: Callable[..., None], way: Way) -> None:
        """Update."""
        call, tensors = self._prepared(f)
        if any(v.dim() for v in self.sums.values()):
            list(self._row_by_row(call, tensors, way))
        else:
            over_blocks(call, tensors, self.c, self.sums, self.dtype, way)
        if "x" in tensors:
            place = tensors["x"].data_ptr()
            if self._pieces[0] != place:
                self._pieces = place, tensors["x"].split(self.sizes)
            torch._foreach_copy_(self._x, self._pieces[1])
