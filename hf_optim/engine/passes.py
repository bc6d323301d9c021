"""One pass of a rule over all tensors at once: tables of addresses, chunks, numbers and sums, and who runs over them.

A `Table` has a row for each parameter and a column for each of x, g and the slots. `Table.run` calls a function of a
rule for all rows: it is traced once, emitted for the device and launched once for each piece of code that occurs (rows
whose numbers have the same names and whose bools and strings are equal share one). Where no kernel can be had, the
function itself runs (`hf_optim.engine.fallback`), and `Table.why` says why.

What a launch reads, all on the table's device (`Launch`):

    table    int64 (names, rows)     addresses; those of scales (`hf_optim.engine.int8_codes`) last
    which    int32 (chunks)          the row of each chunk
    where    int64 (chunks)          its first element
    first    int64 (rows + 1)        each row's first chunk
    sizes    int64 (rows)            elements
    row      int32 (rows)            which row of `numbers` a tensor reads; -1: leave it alone, its sums are 0
    numbers  float64 (rows of numbers, numbers)
    sums     float64 (rows, sums)
    partial  float64 (chunks, terms) what a chunk adds up; `total` (rows, terms) what each tensor's chunks add up to
    keys     int32 (rows)            for stochastic rounding: `evaluate.noise_key`
    origin   int64 (rows)            the number of its first element in the whole parameter
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from hf_optim.core.hooks import RuleError, warn_of_choices
from hf_optim.core.vocabulary import on_pieces
from hf_optim.engine import fallback, kernels
from hf_optim.engine.int8_codes import CODED, SCALE
from hf_optim.engine.launch import Launch, Launcher, on_host
from hf_optim.engine.launchers import launcher
from hf_optim.engine.stochastic_rounding import noise_key
from hf_optim.engine.trace import Program, Untraceable, arguments, trace
from hf_optim.errors import UserError

#: storage dtypes of which a kernel can read and write elements
STORED = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16}) | CODED


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


def _flat(t: torch.Tensor) -> torch.Tensor:
    view = flat(t.detach())
    assert view is not None
    return view


def transformed(apply: Callable[..., Any], g: Any, c: Any) -> Any:
    """What a transform makes of a gradient."""
    new = apply(g, c)
    if new is None:
        raise RuleError(f"{apply.__qualname__} returned nothing: let it return the transformed gradient, a new tensor")
    return new


@cache
def bound(f: Callable[..., Any], apply: Callable[..., Any] | None, all_moments: bool) -> Callable[..., Any]:
    """f with its gradient arguments filled in: `g` transformed by `apply`, `raw` as the moments ask."""
    wants = arguments(f)
    if apply is None and not {"raw", "given"} & wants:
        return f

    def call(g: Any, c: Any, **rest: Any) -> Any:
        new = g if apply is None else transformed(apply, g, c)
        if "raw" in wants:
            rest["raw"] = new if all_moments else g
        if "given" in wants:
            rest["given"] = g
        if "g" in wants:
            rest["g"] = new
        return f(c=c, **rest)

    call.__qualname__ = f.__qualname__  # for messages
    return call


def prepared(transform: Any, there: Iterable[str], f: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """f as it is called under this transform, and which of the tensors that are there it gets."""
    applied = transform.apply if transform is not None and transform.blockwise else None
    call = bound(f, applied, getattr(transform, "moments", "all") == "all")
    wants = arguments(f) | {"g"} if call is not f else arguments(f)
    if "x" in wants:
        wants |= {"compensation"}
    return call, tuple(k for k in there if k in wants)


@dataclass(eq=False)
class Cohort:
    """Rows of a table that have one set of numbers in a step: of one group, step count and transform."""

    members: list[int]
    #: the step's number, for rounding
    t: int = 0
    #: the step's scalars
    c: dict[str, Any] = field(default_factory=dict)
    transform: Any = None
    #: on an accelerator, where `c` has `device.Later` numbers: the table that holds them, and which row of it
    numbers: torch.Tensor | None = None
    row: int = 0

    def known(self) -> dict[str, Any]:
        """`c` with its numbers, for which this waits."""
        if self.numbers is None:
            return self.c
        values = iter(self.numbers[self.row].tolist())
        return {k: next(values) if isinstance(v, float) else v for k, v in self.c.items()}


@dataclass(frozen=True)
class Sums:
    """What was derived from sums: an entry a name for each row of a table."""

    names: tuple[str, ...] = ()
    #: float64 (rows, names), on the table's device
    values: torch.Tensor | None = None
    #: on an accelerator: the scalar program by which the pass itself derives them from the raw sums, which `values` are
    #: then; and what derives them without it
    recipe: Program | None = None
    derived: Callable[[], Sums] | None = None


class Table:
    """Parameters of one device and of the same storage dtypes.

    Args:
        columns: of each name one tensor a parameter; those of a parameter have one shape and layout, without gaps,
            but for the scales of codes.
        dtype: in which to compute; None for that of x, at least float32.
        why_not: why no kernel shall run; None if one may.
        noisy: names of bfloat16 columns that are rounded stochastically.
        origin: the number of each parameter's first element in the whole parameter, and its number among all.
    """

    def __init__(
        self,
        columns: Mapping[str, Sequence[torch.Tensor]],
        dtype: torch.dtype | None = None,
        why_not: str | None = None,
        noisy: frozenset[str] = frozenset(),
        origin: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.columns = {k: list(v) for k, v in columns.items()}
        some = next(iter(self.columns.values()))
        self.rows, self.device = len(some), some[0].device
        self.dtype = dtype or torch.promote_types(some[0].dtype, torch.float32)
        self.dtypes = {k: v[0].dtype for k, v in self.columns.items()}
        self.why = why_not
        coded = (k for k, dtype in self.dtypes.items() if dtype in CODED)
        self.noisy = frozenset(k for k in noisy if self.dtypes.get(k) is torch.bfloat16).union(coded)
        self.origin = list(origin) or [(0, i) for i in range(self.rows)]
        self.lengths = [t.numel() for t in some]
        self.sizes = on_host(self.lengths)
        self.first_element = on_host([a for a, _ in self.origin])
        self.index = on_host([i for _, i in self.origin])
        #: see `Launch.halt`
        self.halt: torch.Tensor | None = None
        self.at = {k: j for j, k in enumerate(self.columns)}
        self.addresses = on_host([[t.data_ptr() for t in column] for column in self.columns.values()])
        #: counts changes of `addresses`
        self.version = 0
        self._codes: dict[Any, Code] = {}

    def move(self, name: str, places: Sequence[int]) -> None:
        """A column's tensors are at these addresses now."""
        self.addresses[self.at[name]] = on_host(places)
        self.version += 1

    def run(
        self, f: Callable[..., Any], cohorts: Sequence[Cohort], sums: Sums | None = None, raw: bool = False
    ) -> torch.Tensor | None:
        """Call f for every row of the cohorts.

        Args:
            f: a rule's `update` or `measure`.
            cohorts: rows and their numbers; rows of no cohort are left alone.
            sums: what f reads in `c` besides.
            raw: leave the transforms out.

        Returns:
            What f adds up: float64 (rows, terms), on the table's device, 0 where it did not run; None if nothing.
        """
        sums = sums or Sums()
        calls: dict[Any, list[Cohort]] = {}
        for cohort in cohorts:
            statics = tuple((k, v) for k, v in cohort.c.items() if not isinstance(v, float))
            numbers = tuple(k for k, v in cohort.c.items() if isinstance(v, float))
            key = f, None if raw else cohort.transform, statics, numbers, sums.names
            calls.setdefault((key, id(cohort.numbers)), []).append(cohort)
        total: torch.Tensor | None = None
        for (key, _), some in calls.items():
            code = self._codes.get(key)
            if code is None:
                warn_of_choices(f, [dict(k[2]) for k in (*self._codes, key) if k[0] == f])
                code = self._codes[key] = Code(self, f, key[1], some[0].c, sums.names)
            out = code.run(some, sums)
            if out is not None:
                total = out if total is None else total + out
        return total

    def refuse(self, why: str) -> None:
        """No kernels from now on."""
        self.why = why


# --- one piece of code over the rows of a table ----------------------------------------------------------------------


class Code:
    """A function with one set of choices, over those rows of a table that ever took it."""

    def __init__(
        self, table: Table, f: Callable[..., Any], transform: Any, c: Mapping[str, Any], sums: tuple[str, ...]
    ) -> None:
        self.table = table
        self.call, self.names = prepared(transform, table.columns, f)
        self._c, self._sums = dict(c), sums
        self._looked = f.__name__ != "update"  # other passes do sum
        self._launcher: Launcher | None = None
        self._members: set[int] = set()
        self._cohorts: list[Cohort] = []
        self._chunks_version = self._rows_version = 0
        self._table_version = -1
        self._scales = [k + SCALE for k in self.names if table.dtypes[k] in CODED]
        self._own = [table.at[k] for k in (*self.names, *self._scales)]
        self._addresses = self._which = self._where = self._first = self._row = torch.empty(0)

    def forget(self) -> None:
        """See `Launcher.forget`."""
        if self._launcher is not None:
            self._launcher.forget()

    def start(self) -> Launcher:
        """Trace, and begin to build.

        Raises:
            Untraceable, Unbuildable: there will be no kernel.
        """
        if self._launcher is None:
            kind = launcher(self.table.device)
            dtypes = {k: self.table.dtypes[k] for k in self.names}
            if not STORED.issuperset(dtypes.values()):
                other = next(d for d in dtypes.values() if d not in STORED)
                raise kernels.Unbuildable(f"kernels store no {str(other).removeprefix('torch.')}")
            program = trace(self.call, dtypes, self._c, self._sums, self.table.dtype, self.table.noisy)
            self._launcher = kind(program)
        return self._launcher

    def run(self, cohorts: list[Cohort], sums: Sums) -> torch.Tensor | None:
        """Over the rows of these cohorts."""
        table = self.table
        if table.why is None and fallback.current().kernels:
            try:
                return self._launch(self.start(), cohorts, sums)
            except (Untraceable, kernels.Unbuildable) as e:
                table.refuse(str(e))
        return self._without(cohorts, sums)

    def _launch(self, launcher: Launcher, cohorts: list[Cohort], sums: Sums) -> torch.Tensor | None:
        table = self.table
        same = len(cohorts) == len(self._cohorts) and all(a is b for a, b in zip(cohorts, self._cohorts, strict=True))
        if not same:
            self._place(cohorts, launcher.chunk)
        if self._table_version != table.version:
            self._table_version = table.version
            self._addresses = table.addresses[self._own].contiguous()
        numbers: Any = cohorts[0].numbers
        if numbers is None:
            numbers = [[v for v in cohort.c.values() if isinstance(v, float)] for cohort in cohorts]
        return launcher.launch(
            Launch(
                self._addresses, self._which, self._where, self._first, table.sizes, self._row, numbers,
                sums.values, self._keys(cohorts), table.first_element,
                (self._table_version, self._chunks_version, self._rows_version),
                table.device, [cohort.t for cohort in cohorts], table.index, sums.recipe, table.halt,
            )
        )  # fmt: skip

    def _place(self, cohorts: list[Cohort], chunk: int) -> None:
        """Which row of numbers each tensor reads; chunks of those that come for the first time."""
        self._cohorts = list(cohorts)
        row = [-1] * self.table.rows
        for k, cohort in enumerate(cohorts):
            for i in cohort.members:
                row[i] = k if cohort.numbers is None else cohort.row
        self._row = on_host(row).to(torch.int32)
        self._rows_version += 1
        new = {i for cohort in cohorts for i in cohort.members} - self._members
        if new:
            self._members |= new
            members = on_host(sorted(self._members))
            counts = torch.zeros_like(self.table.sizes)
            counts[members] = (self.table.sizes[members] + chunk - 1) // chunk
            self._first = torch.cat([on_host([0]), counts.cumsum(0)])
            which = torch.repeat_interleave(counts)
            self._where = (torch.ones_like(which).cumsum(0) - 1 - self._first[which]) * chunk
            self._which = which.to(torch.int32)
            self._chunks_version += 1

    def _keys(self, cohorts: list[Cohort]) -> torch.Tensor | None:
        if not self.table.noisy:
            return None
        keys = [0] * self.table.rows
        for cohort in cohorts:
            for i in cohort.members:
                keys[i] = noise_key(0, cohort.t, self.table.origin[i][1])
        return on_host(keys).to(torch.int32)

    def _without(self, cohorts: list[Cohort], sums: Sums) -> torch.Tensor | None:
        """No kernel: the function itself."""
        table, total = self.table, None
        sums = sums.derived() if sums.derived is not None else sums
        if table.halt is not None and float(table.halt) != 0:
            cohorts = []
        for cohort in cohorts:
            if not cohort.members:
                continue
            c = cohort.known()
            columns = {k: [_flat(table.columns[k][i]) for i in cohort.members] for k in (*self.names, *self._scales)}
            own: dict[str, torch.Tensor] = {}
            if sums.values is not None:
                own = dict(zip(sums.names, sums.values[cohort.members].unbind(1), strict=True))
            roundings = [
                fallback.Rounding(table.noisy, noise_key(0, cohort.t, index), first, self.names)
                for first, index in (table.origin[i] for i in cohort.members)
            ]
            call = self.call if self._looked else on_pieces(self.call)
            out = fallback.run(call, columns, c, own, table.dtype, roundings)
            self._looked = True
            if out is not None:
                if total is None:
                    total = torch.zeros(table.rows, out.shape[1], dtype=torch.float64, device=table.device)
                total[cohort.members] = out
        return total


# --- passes over tensors of no optimizer -----------------------------------------------------------------------------


def once(
    f: Callable[..., Any],
    columns: Mapping[str, Sequence[torch.Tensor]],
    numbers: Sequence[Mapping[str, Any]],
    why_not: str | None = None,
) -> torch.Tensor | None:
    """Call f(**tensors, c=numbers) for parameters of any devices, dtypes and layouts, in place; its sums.

    Args:
        f: in the vocabulary of rules.
        columns: of each name one tensor a parameter (shards: their local parts), of one shape.
        numbers: the `c` of each parameter; equal mappings may be one object.

    Returns:
        float64 (parameters, sums) on the CPU; None if f adds up nothing.
    """
    kinds: dict[Any, list[int]] = {}
    rows: list[dict[str, torch.Tensor]] = []
    copies: list[tuple[torch.Tensor, torch.Tensor]] = []
    for i, tensors in enumerate(zip(*columns.values(), strict=True)):
        row = {k: t.detach() for k, t in zip(columns, tensors, strict=True)}
        first = next(iter(row.values()))
        if len(shapes := {tuple(t.shape) for t in row.values()}) > 1:  # kernels would go beyond the smaller one
            raise UserError(f"a parameter and what is kept of it have several shapes: {sorted(shapes)}")
        if any(flat(t, first) is None for t in row.values()):  # gaps, overlaps or different layouts
            copied = {k: t.clone(memory_format=torch.contiguous_format) for k, t in row.items()}
            copies += [(row[k], copied[k]) for k in row]
            row = copied
        rows.append(row)
        kinds.setdefault((first.device, *(v.dtype for v in row.values())), []).append(i)
    total: torch.Tensor | None = None
    for members in kinds.values():
        table = Table({k: [rows[i][k] for i in members] for k in columns}, why_not=why_not)
        cohorts: dict[int, Cohort] = {}
        for place, i in enumerate(members):
            cohorts.setdefault(id(numbers[i]), Cohort([], c=dict(numbers[i]))).members.append(place)
        out = table.run(f, list(cohorts.values()))
        if out is not None:
            total = out.new_zeros(len(rows), out.shape[1], device="cpu") if total is None else total
            total[members] = out.cpu()
    for tensor, copy in copies:
        tensor.copy_(copy)
    torch.autograd.graph.increment_version([t for column in columns.values() for t in column])
    return total
