"""Small tensors of a model, updated as one.

A call costs more than the arithmetic on a bias. Small tensors on a CPU therefore run together: their states lie side
by side in one tensor a slot (what `optimizer.state` holds are views of it), their parameters and gradients are laid
side by side for the length of a call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hf_optim.cell import Cell, Way, alone, batches, flat, foreach, prepared
from hf_optim.scratch import scratch


class Pack:
    """Cells whose states lie side by side, in the order of the cells."""

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells
        sizes = [cell.size for cell in cells]
        self.length = sum(sizes)
        self.sizes = sizes
        self.lengths = torch.tensor(sizes)
        self.slots: dict[str, torch.Tensor] = {}
        for k in cells[0].kept:
            entries = [cell.kept[k] for cell in cells]
            side = torch.cat([e.as_strided((e.numel(),), (1,)) for e in entries])
            for cell, entry, piece in zip(cells, entries, side.split([e.numel() for e in entries]), strict=True):
                cell.state[k] = cell.kept[k] = piece.as_strided(entry.shape, entry.stride(), piece.storage_offset())
            self.slots[k] = side
        for cell in cells:
            cell.counter = None
            cell.show()
        cells[0].counter = self.slots["step"]

    def tensors(self, names: list[str]) -> dict[str, torch.Tensor]:
        """Flat tensors of all cells, by name."""
        return {k: self.slots[k] if k in self.slots else self._side_by_side(k) for k in names}

    def _side_by_side(self, name: str) -> torch.Tensor:
        each = [cell.tensors[name] for cell in self.cells]
        return torch.cat(each, out=scratch(name, each[0], self.length))

    def sums(self) -> dict[str, torch.Tensor]:
        """The cells' own as rows, an entry an element; what all have in common as it is."""
        found = {}
        for k, first in self.cells[0].sums.items():
            each = [cell.sums[k] for cell in self.cells]
            found[k] = first
            if any(one is not first for one in each):
                found[k] = torch.stack(each).repeat_interleave(self.lengths, output_size=self.length)
        return found

    def run(self, f: Callable[..., None], way: Way) -> None:
        """Run an update over all cells."""
        first = self.cells[0]
        call, names = prepared(first, f, raw=False)
        tensors = self.tensors(names)
        sums = self.sums()
        # rows would make another graph of the rule, for the few blocks that small matrices fill
        compile = way.compiles(first.c) and all(v.dim() == 0 for v in sums.values())
        flat(call, tensors, first.c, sums, first.dtype, way, compile)
        if "x" in tensors:
            torch._foreach_copy_([cell.tensors["x"] for cell in self.cells], tensors["x"].split(self.sizes))


class Packs:
    """The packs of one optimizer: those of the last step, made anew where their cells have changed."""

    def __init__(self) -> None:
        self._by_first: dict[Cell, Pack] = {}

    def run(self, cells: list[Cell], f: Callable[..., None], way: Way) -> None:
        """Run an update over all cells."""

        def share(cell: Cell) -> bool:
            if cell.blocked:
                return cell.small and cell.movable
            return cell.plain and (cell.small or not way.compiles(cell.c))

        before, self._by_first = self._by_first, {}
        for members in batches(cells, share):
            some = [cells[i] for i in members]
            if len(some) > 1 and some[0].blocked:
                pack = before.get(some[0])
                if pack is None or pack.cells != some:
                    pack = Pack(some)
                self._by_first[some[0]] = pack
                pack.run(f, way)
                continue
            if len(some) > 1:
                foreach(some, f)
            else:
                alone(some[0], f, way)
            for cell in some:
                cell.counter = cell.kept["step"]


def count(cells: list[Cell]) -> None:
    """Count the step in every cell's state."""
    torch._foreach_add_([cell.counter for cell in cells if cell.counter is not None], 1)
