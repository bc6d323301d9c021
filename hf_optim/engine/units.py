"""What a step runs over: large tensors one by one, small ones in packs, lists of them on an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import is_
from typing import Any

import torch

from hf_optim.engine import blocks as execute
from hf_optim.engine.cell import Cell, Way, foreach
from hf_optim.engine.pack import Pack

#: what has one step count, one transform and one set of numbers
Unit = Cell | Pack


class Units:
    """The units of one optimizer. Packs serve again for as long as nothing about them changes."""

    def __init__(self) -> None:
        self._all: list[Unit] = []
        self._seen: list[list[Any]] = []

    def now(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[torch.Tensor, dict[str, Any]],
        cell: Callable[[torch.Tensor, dict[str, Any]], Cell],
        covers: Callable[[torch.Tensor], bool] | None,
    ) -> list[Unit]:
        """Units of all parameters with a gradient; `cell` finds or makes one of a parameter, and what `covers` tells
        apart is not packed together (None: nothing is packed)."""
        seen = [[group, *(p for p in group["params"] if p.grad is not None and p.numel())] for group in groups]
        unchanged = _same(seen, self._seen) and not any(group.get("restart_every") for group in groups)
        if unchanged and all(unit.fits(state) for unit in self._all if isinstance(unit, Pack)):
            for i, unit in enumerate(self._all):
                if isinstance(unit, Cell):
                    self._all[i] = cell(unit.p, unit.group)
                else:
                    unit.t = int(unit.cells[0].counter.item()) + 1
        else:
            cells = [cell(p, row[0]) for row in seen for p in row[1:]]
            self._all = list(cells) if covers is None else _packed(cells, self._all, covers)
            self._seen = seen
        return self._all


def _same(some: list[list[Any]], others: list[list[Any]]) -> bool:
    """Whether these are the same objects in the same lists."""
    return len(some) == len(others) and all(
        len(a) == len(b) and all(map(is_, a, b)) for a, b in zip(some, others, strict=True)
    )


def _packed(cells: list[Cell], before: list[Unit], covers: Callable[[torch.Tensor], bool]) -> list[Unit]:
    """The cells, small ones that may share a call in packs; a pack of `before` with the same cells is kept."""
    old = {unit.cells[0]: unit for unit in before if isinstance(unit, Pack)}
    units: list[Unit] = [cell for cell in cells if not cell.packs]
    alike: dict[Any, list[Cell]] = {}
    for cell in cells:
        if cell.packs:
            alike.setdefault((id(cell.group), cell.t, cell.kind, covers(cell.p)), []).append(cell)
    for some in alike.values():
        for block in _divided(sorted(some, key=lambda cell: (cell.size, cell.p.shape))):
            pack = old.get(block[0])
            if len(block) == 1:
                units.append(block[0])
            elif pack is not None and pack.cells == block:
                pack.t = block[0].t
                pack.counted()
                units.append(pack)
            else:
                units.append(Pack(block))
    return units


def _divided(cells: list[Cell]) -> Iterator[list[Cell]]:
    """Successive cells that make a block together: what is laid side by side, and temporaries, stay in the cache."""
    some: list[Cell] = []
    size = 0
    for cell in cells:
        if some and size + cell.size > execute.BLOCK:
            yield some
            some, size = [], 0
        some.append(cell)
        size += cell.size
    yield some


def _lists(units: Sequence[Unit], way: Way) -> Iterator[int | list[int]]:
    """Indices of units that run by themselves, and lists of those that run together on an accelerator: with their
    scalars in common and alike."""
    found: dict[Any, list[int]] = {}
    for i, unit in enumerate(units):
        if isinstance(unit, Cell) and not unit.blocked and unit.dense and (unit.plain or way.compiles(unit.c)):
            found.setdefault((id(unit.c), unit.transform is None, unit.kind), []).append(i)
        else:
            yield i
    yield from found.values()


def measure(units: Sequence[Unit], f: Callable[..., Any], way: Way, raw: bool = False) -> torch.Tensor:
    """Local sums, a row a parameter of each unit; `raw` leaves the transform out."""
    rows: dict[int, torch.Tensor] = {}
    for members in _lists(units, way):
        if isinstance(members, int):
            rows[members] = units[members].measured(f, way, raw)
        else:
            sums = foreach([units[i] for i in members], f, way, raw)  # type: ignore[misc]
            assert sums is not None
            rows.update(zip(members, sums.split(1), strict=True))
    return torch.cat([rows[i] for i in range(len(units))])


def add_sums(units: Sequence[Unit], names: Sequence[str], table: torch.Tensor) -> None:
    """Hand out a table with a row a parameter of each unit, an entry a name."""
    rows = [len(unit.params) for unit in units]
    columns = [column.split(rows) for column in table.unbind(1)]
    for unit, *sums in zip(units, *columns, strict=True):
        own = (each.to(unit.dtype) for each in sums)  # parameters of several dtypes share a table
        unit.sums.update(zip(names, (each[0] for each in own) if isinstance(unit, Cell) else own, strict=True))


def update(units: Sequence[Unit], f: Callable[..., None], way: Way) -> None:
    """Run an update over all units."""
    for members in _lists(units, way):
        if isinstance(members, int):
            units[members].run(f, way)
        else:
            foreach([units[i] for i in members], f, way)  # type: ignore[misc]


def count(units: Sequence[Unit]) -> None:
    """Count the step in every parameter's state."""
    torch._foreach_add_([unit.counter for unit in units], 1)
    for unit in units:
        if isinstance(unit, Pack):
            unit.counted()
