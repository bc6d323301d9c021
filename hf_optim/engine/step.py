"""How a step runs: what it runs over, its passes, its numbers, its count. The rule and the state are somebody else's.

A `Stepper` keeps tables of the parameters that have a state and looks, before every step, whether each parameter, each
entry of its state and each gradient is where and what it was; only what changed is looked at closely. Nothing that a
kernel cannot take reaches one: it is repacked, goes the fallback's way, or is refused in words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, is_not, itemgetter
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from hf_optim.core import reduce
from hf_optim.core.rule import Rule
from hf_optim.engine import passes
from hf_optim.engine.mode import mode
from hf_optim.engine.passes import Cohort, Sums, Table, flat
from hf_optim.engine.watch import Watch, overlapping, same
from hf_optim.errors import UserError

_grad, _place = attrgetter("grad"), torch.Tensor.data_ptr


class Host(Protocol):
    """Whose steps these are: a rule, whose hooks are called on it, with groups and state."""

    param_groups: list[dict[str, Any]]
    state: Any
    transform: Any

    @property
    def without_kernels(self) -> str | None:
        """Why it wants no kernels; None if it wants them."""

    @property
    def noisy(self) -> frozenset[str]:
        """Slots that are rounded stochastically."""


@dataclass(eq=False)
class Part(Cohort):
    """The rows of a table that share group, step count and transform."""

    table: int = 0
    group: dict[str, Any] = field(default_factory=dict)
    #: whether the transform is for them, when it is active
    covered: bool = False
    #: it is only counted
    idle: bool = False
    #: numbers that each of them keeps, the same for all
    own: dict[str, float] = field(default_factory=dict)
    #: where the count of one of them stands
    number: int = 0


@dataclass(eq=False)
class _Row:
    """A parameter that has a state."""

    p: torch.Tensor
    group: dict[str, Any]
    state: dict[str, Any]
    #: x and the state's entries, of a shard the local part
    local: dict[str, torch.Tensor]
    #: its number among all parameters, and where it stands in which table
    index: int = 0
    table: int = 0
    place: int = 0


def local(t: torch.Tensor) -> torch.Tensor:
    """A DTensor's part in this process, any other tensor as it is; without what autograd would need."""
    return getattr(t, "_local_tensor", t)


class Stepper:
    """The steps of one optimizer.

    Args:
        host: the optimizer.
        rule: its rule's name in errors.
        hyper: a group's hyper-parameters.
        entries: names of a parameter's state of one number an element.
        make_state: puts first values into a parameter's state, `step` among them.
    """

    def __init__(
        self,
        host: Any,
        rule: str,
        hyper: Callable[[dict[str, Any]], SimpleNamespace],
        entries: Callable[[torch.Tensor, dict[str, Any]], list[str]],
        make_state: Callable[[torch.Tensor, dict[str, Any], dict[str, Any]], None],
    ) -> None:
        self._host, self._rule = host, rule
        self._hyper, self._entry_names, self._make_state = hyper, entries, make_state
        self._all: list[torch.Tensor] = []
        self.groups: list[dict[str, Any]] = []
        self._rows: list[_Row] = []
        self._members: list[list[_Row]] = []
        self.tables: list[Table] = []
        self.parts: list[Part] = []
        self._steps = torch.zeros(0)
        self._counted = 0
        self._key: Any = None
        self.sums: list[Sums] = []
        self._sliced: dict[int, Table] = {}

    # --- before a step -----------------------------------------------------------------------------------------------

    def begin(self) -> list[Part]:
        """See parameters, state and gradients as they are now; the parts that this step moves."""
        host = self._host
        params = [p for group in host.param_groups for p in group["params"]]
        grads = list(map(_grad, params))
        if not any(map(is_not, grads, repeat(None))):
            self.parts = []
            return self.parts
        if not self._as_before(params, grads):
            self._rebuild(params, grads)
        self._divide(tuple(map(is_not, self._of_rows(grads)[:-1], repeat(None))))
        if not self._see(grads):  # gradients of another dtype
            self._rebuild(params, grads)
            self._divide(tuple(map(is_not, self._of_rows(grads)[:-1], repeat(None))))
            self._see(grads)
        self.sums = [Sums() for _ in self.tables]
        return self.parts

    def look_again(self) -> None:
        """Trust nothing seen before: which state there shall be has changed."""
        self._all = []

    def _as_before(self, params: list[torch.Tensor], grads: list[Any]) -> bool:
        """Whether the tables still show the parameters and their state."""
        host = self._host
        if not (same(params, self._all) and same(host.param_groups, self.groups)):
            return False
        if any(group.get("restart_every") for group in host.param_groups):
            return False  # a state may begin anew
        if any(grads[i] is not None for i in self._unknown):
            return False  # a first gradient
        if not (same(list(host.state), self._keys) and same(list(host.state.values()), self._values)):
            return False
        try:
            entries = {k: list(map(itemgetter(k), holders)) for k, holders in self._holders.items()}
            steps = list(map(itemgetter("step"), self._states))
        except KeyError:
            return False
        if not same(steps, self._views):
            return False
        if not all(same(entries[k], known) for k, known in self._entries.items()):
            return False
        tensors = [t for some in (self._params, *entries.values()) for t in some]
        if self._sharded:
            tensors = list(map(local, tensors))
        if not (self._watch.holds(tensors) and list(map(_place, tensors)) == self._places):
            return False
        if self._steps._version != self._counted:  # somebody else has counted
            self._counted, self._key = self._steps._version, None
        return True

    def _rebuild(self, params: list[torch.Tensor], grads: list[Any]) -> None:
        """Tables of everything that has a state, or gets one now."""
        host = self._host
        groups = [group for group in host.param_groups for _ in group["params"]]
        rows, self._unknown = [], []
        for i, (p, grad, group) in enumerate(zip(params, grads, groups, strict=True)):
            if grad is not None:
                self._check_layout(grad)
                state = host.state[p]
                if not state:
                    self._make_state(p, state, group)
                elif group.get("restart_every") and int(state["step"]) == group["restart_every"]:
                    state.clear()
                    self._make_state(p, state, group)
            state = host.state[p] if p in host.state else {}
            if state:
                rows.append(self._row(p, group, state, i))
            else:
                self._unknown.append(i)
        self._all, self.groups, self._rows = params, list(host.param_groups), rows
        self._params, self._states = [row.p for row in rows], [row.state for row in rows]
        self._keys, self._values = list(host.state), list(host.state.values())
        self._of_rows = itemgetter(*(row.index for row in rows), 0)  # one more, so that it is always a tuple
        self._sharded = any(hasattr(p, "_local_tensor") for p in self._params)
        self._count_together()
        self._tabulate()
        names = dict.fromkeys(k for row in rows for k in row.local if k != "x")
        self._holders = {k: [row.state for row in rows if k in row.local] for k in names}
        self._entries = {k: [state[k] for state in holders] for k, holders in self._holders.items()}
        tensors = [local(t) for some in (self._params, *self._entries.values()) for t in some]
        self._watch, self._places = Watch(tensors), list(map(_place, tensors))
        self._written = [row.local["x"] for row in rows]  # what autograd may have saved

    def _row(self, p: torch.Tensor, group: dict[str, Any], state: dict[str, Any], index: int) -> _Row:
        """A parameter with its state, if they fit each other."""
        rule, x = self._rule, local(p)
        shape = tuple(p.shape)
        if flat(x) is None:
            raise UserError(
                f"{rule}: a parameter of shape {shape} has gaps or overlaps in memory; replace it by p.contiguous()"
            )
        columns = {"x": x}
        for k in self._entry_names(p, group):
            value = state.get(k)
            if not isinstance(value, torch.Tensor):
                what = f"lacks its {k!r}" if value is None else f"has a {type(value).__name__} as its {k!r}"
                raise UserError(f"{rule}: the state of a parameter of shape {shape} {what}")
            if value.shape != p.shape or value.device != p.device or local(value).shape != x.shape:
                raise UserError(
                    f"{rule}: the state {k!r} of a parameter of shape {shape} on {p.device} has shape "
                    f"{tuple(value.shape)} on {value.device}"
                )
            if value.layout is not torch.strided or value.is_neg() or flat(local(value), x) is None:
                if local(value) is not value:
                    raise UserError(f"{rule}: the state {k!r} of a sharded parameter of shape {shape} lies otherwise")
                value = state[k] = torch.empty_like(x, dtype=value.dtype).copy_(value)
            columns[k] = local(value)
        if not isinstance(state.get("step"), torch.Tensor) or state["step"].numel() != 1:
            raise UserError(f"{rule}: the state of a parameter of shape {shape} lacks its 'step'")
        return _Row(p, group, state, columns, index)

    def _count_together(self) -> None:
        """All counts lie in one vector, so that one addition counts them."""
        counts = [row.state["step"] for row in self._rows]
        self._steps = torch.tensor([float(count) for count in counts])
        self._views = [self._steps[i : i + 1].view(count.shape) for i, count in enumerate(counts)]
        for row, view in zip(self._rows, self._views, strict=True):
            row.state["step"] = view
        self._counted = self._steps._version

    def _tabulate(self) -> None:
        """Rows that one kernel can take share a table."""
        met = overlapping(
            (v.data_ptr(), v.data_ptr() + v.numel() * v.element_size())
            for row in self._rows
            for v in row.local.values()
        )
        kinds: dict[Any, list[_Row]] = {}
        for row in self._rows:
            grad = row.p.grad
            dtypes = tuple((k, v.dtype) for k, v in row.local.items())
            dtype = row.p.dtype if grad is None else grad.dtype
            kinds.setdefault((row.local["x"].device, dtype, dtypes, _why_not(row, met)), []).append(row)
        self.tables, self._members = [], list(kinds.values())
        self._grad_watch: list[Any] = [None] * len(kinds)
        self._grad_places: list[list[int]] = [[] for _ in kinds]
        for (_, dtype, _, why), rows in kinds.items():
            for place, row in enumerate(rows):
                row.table, row.place = len(self.tables), place
            columns = {k: [row.local[k] for row in rows] for k in rows[0].local}
            columns["g"] = [torch.empty(0, dtype=dtype, device=v.device) for v in columns["x"]]
            origin = [(_first_element(row.p), row.index) for row in rows]
            why = why or self._host.without_kernels
            self.tables.append(Table(columns, why_not=why, noisy=self._host.noisy, origin=origin))
        self._key = None
        self._sliced = {}

    def _divide(self, active: tuple[bool, ...]) -> None:
        """Parts of the rows that have a gradient, with their step counts and the transform in force."""
        transform = self._host.transform
        takes = tuple(transform is not None and takes_part(transform, group) for group in self.groups)
        if (active, takes) != self._key:
            self._key = active, takes
            self._all_active = all(active)
            self._mask = torch.tensor(active, dtype=torch.float32)
            taking = {id(group) for group, take in zip(self.groups, takes, strict=True) if take}
            parts: dict[Any, Part] = {}
            for i, (row, count) in enumerate(zip(self._rows, self._steps.tolist(), strict=True)):
                if active[i]:
                    covered = id(row.group) in taking and transform.covers(row.p)
                    key = row.table, id(row.group), count, covered, *self._numbers(row).values()
                    if key not in parts:
                        parts[key] = Part([], table=row.table, group=row.group, covered=covered, number=i)
                    parts[key].members.append(row.place)
            self.parts = list(parts.values())
        counts = self._steps.tolist()
        for part in self.parts:
            part.t = int(counts[part.number]) + 1
            part.transform = transform if part.covered and transform.active(part.t) else None
            part.own = self._numbers(self._rows[part.number])
            part.idle = bool(self._host.idle(self._hyper(part.group)))
            part.c = {}

    def _numbers(self, row: _Row) -> dict[str, float]:
        """A parameter's own numbers."""
        return {name: float(row.state[name]) for name in self._host.scalar_slots}

    # --- gradients ---------------------------------------------------------------------------------------------------

    def _check_layout(self, grad: torch.Tensor) -> None:
        if grad.layout is not torch.strided:
            raise UserError(f"{self._rule} cannot use sparse gradients: build the embedding with sparse=False")

    def _see(self, grads: list[Any]) -> bool:
        """Put this step's gradients into the tables; False if one has another dtype than its table's."""
        for number, (table, rows) in enumerate(zip(self.tables, self._members, strict=True)):
            own = [grads[row.index] for row in rows]
            if self._sharded:
                own = [g if g is None else local(g) for g in own]
            for part in self.parts:
                if part.table == number and part.transform is not None and not part.transform.blockwise:
                    for i in part.members:
                        own[i] = part.transform.apply(own[i], SimpleNamespace())
            missing = not all(map(is_not, own, repeat(None)))  # `in` would compare elements
            there = [g for g in own if g is not None] if missing else own
            known = self._grad_watch[number]
            if known is None or known[0] != missing or not known[1].holds(there):
                if any(g.dtype is not table.dtypes["g"] for g in there):
                    return False
                usable = [g if g is None else self._usable(g, row) for g, row in zip(own, rows, strict=True)]
                as_they_come = all(a is b for a, b in zip(own, usable, strict=True))
                self._grad_watch[number] = (missing, Watch(there)) if as_they_come else None
                own = usable
            if missing:  # nothing reads it
                own = [row.local["x"] if g is None else g for g, row in zip(own, rows, strict=True)]
            places = list(map(_place, own))
            table.columns["g"] = own
            if places != self._grad_places[number]:
                self._grad_places[number] = places
                table.move("g", places)
        return True

    def _usable(self, grad: torch.Tensor, row: _Row) -> torch.Tensor:
        """A gradient laid out as its parameter; a copy if it is not."""
        x = row.local["x"]
        self._check_layout(grad)
        if grad.shape != x.shape or grad.device != x.device:
            raise UserError(
                f"{self._rule}: the gradient of a parameter of shape {tuple(x.shape)} on {x.device} has shape "
                f"{tuple(grad.shape)} on {grad.device}"
            )
        if type(grad) is torch.Tensor and not grad.is_neg() and flat(grad, x) is not None:
            return grad
        return torch.empty_like(x, dtype=grad.dtype).copy_(grad)

    # --- a step ------------------------------------------------------------------------------------------------------

    def control(self, loss: float | None, memory: dict[str, float]) -> dict[str, float]:
        """Fill every part's `c`: sums over tensors and shards, shared numbers, the group's scalars. What the rule's
        `control` returned; it may write `memory`."""
        host = self._host
        controlled = type(host).control is not Rule.control
        h0 = self._hyper(self.groups[0])
        self._transform_sums()
        names, everywhere = host.measures(h0), host.scope(h0) == "global"
        floats: dict[str, float] = {}
        if names:
            self.fill(lambda h, t: host.prepare(h, t, memory))
            totals = self.totals(host.measure, len(names), self.measured(h0))
            if everywhere:
                total = _added(totals)
                if controlled or total.device.type == "cpu":
                    floats = dict(zip(names, total.tolist(), strict=True))
                else:
                    derived = host.derive(h0, dict(zip(names, total.unbind(), strict=True)))
                    for i, table in enumerate(self.tables):
                        own = {k: v.to(table.device) for k, v in derived.items()}
                        self.sums[i] = _with(self.sums[i], own, table.rows)
            else:
                for i, sums in enumerate(totals):
                    own = host.derive(h0, dict(zip(names, sums.unbind(1), strict=True)))
                    self.sums[i] = _with(self.sums[i], own, self.tables[i].rows)
        shared: dict[str, float] = {}
        if controlled:
            shared = host.control(h0, max(part.t for part in self.parts), floats, loss, memory)
        elif floats:
            derived = host.derive(h0, floats)
            self.fill(lambda h, t: derived)
        self.fill(lambda h, t: host.scalars(h, t, SimpleNamespace(**shared)))
        return shared

    def update(self) -> None:
        """The rule's update."""
        self.run(self._host.update)

    def holds(self) -> bool:
        """Whether the tables still show the parameters and their state."""
        params = [p for group in self._host.param_groups for p in group["params"]]
        return self._as_before(params, list(map(_grad, params)))

    def again(self, active: tuple[bool, ...]) -> None:
        """A step over the gradients of the last one."""
        self._divide(active)
        self.sums = [Sums() for _ in self.tables]

    @property
    def active(self) -> tuple[bool, ...]:
        """Which of the parameters that have a state take part in this step."""
        return self._key[0]  # type: ignore[no-any-return]

    @property
    def as_they_come(self) -> bool:
        """Whether kernels read the gradients themselves, none of them in a copy."""
        return all(watch is not None for watch in self._grad_watch)

    def forget_gradients(self) -> None:
        """See where the gradients lie with the next step."""
        self._grad_places = [[] for _ in self.tables]

    @property
    def whole(self) -> bool:
        """Whether every parameter takes part in this step."""
        return self._all_active

    def accelerator(self) -> torch.device | None:
        """The device ahead of which steps may be launched: None unless kernels of accelerators run all of them."""
        ahead = all(table.why is None and passes.ahead(table.device) for table in self.tables)
        return self.tables[0].device if ahead else None

    def count(self, steps: int = 1) -> None:
        """Count the step in every parameter's state, and let go of the gradients."""
        self._steps.add_(steps if self._all_active else self._mask * steps)
        self._counted = self._steps._version
        for name in self._host.scalar_slots:  # what `scalars` made of them
            for part in self.parts:
                kept = [self._members[part.table][i].state[name] for i in part.members]
                torch._foreach_copy_(kept, [torch.tensor(part.c[name], dtype=torch.float32)] * len(kept))
        torch.autograd.graph.increment_version(self._written)
        self.let_go()

    def let_go(self) -> None:
        """Hold no gradient."""
        for table in self.tables:
            table.columns["g"] = []

    # --- passes ------------------------------------------------------------------------------------------------------

    def fill(self, numbers: Callable[[SimpleNamespace, int], dict[str, Any]]) -> None:
        """Add numbers(h, t) to every part's `c`, once for a group and step count."""
        made: dict[Any, dict[str, Any]] = {}
        for part in self.parts:
            key = (id(part.group), part.t, *part.own.values())
            if key not in made:
                h = self._hyper(part.group)
                vars(h).update(part.own)
                made[key] = part.c | numbers(h, part.t)
            part.c = made[key]

    def run(self, f: Callable[..., Any], tables: Sequence[Table] | None = None, raw: bool = False) -> list[Any]:
        """Call f for all parts; what each table's rows add up to."""
        out = []
        for i, table in enumerate(tables or self.tables):
            parts = [part for part in self.parts if part.table == i and not part.idle]
            out.append(table.run(f, parts, self.sums[i], raw) if parts else None)
        return out

    def totals(
        self, f: Callable[..., Any], width: int, tables: Sequence[Table] | None = None, raw: bool = False
    ) -> list[torch.Tensor]:
        """f's sums over all shards: float64 (rows, width) for each table, 0 where it did not run."""
        found = self.run(f, tables, raw)
        sums = [
            torch.zeros(t.rows, width, dtype=torch.float64, device=t.device) if s is None else s
            for s, t in zip(found, self.tables, strict=True)
        ]
        if not (reduce.distributed() and mode().launches):
            return sums
        whole = torch.cat([s.to(sums[0].device) for s in sums])
        whole = reduce.combine(whole, [row.p for rows in self._members for row in rows])
        return [s.to(t.device) for s, t in zip(whole.split([t.rows for t in self.tables]), self.tables, strict=True)]

    def transform_totals(self) -> tuple[Any, list[torch.Tensor]] | None:
        """The transform that needs sums, if one does, and the totals of what it measures."""
        chosen = [part for part in self.parts if part.transform is not None and part.transform.sums]
        if not chosen:
            return None
        transform, parts = chosen[0].transform, self.parts
        self.parts = chosen
        try:
            return transform, self.totals(transform.measure, len(transform.measures), raw=True)
        finally:
            self.parts = parts

    def _transform_sums(self) -> None:
        found = self.transform_totals()
        if found is None:
            return
        transform, totals = found
        everything = _added(totals)
        for i, sums in enumerate(totals):
            own = dict(zip(transform.measures, sums.unbind(1), strict=True))
            total = dict(zip(transform.measures, everything.to(sums.device).unbind(), strict=True))
            self.sums[i] = _with(self.sums[i], transform.derive(own, total), self.tables[i].rows)

    def measured(self, h: SimpleNamespace) -> list[Table]:
        """The tables that `measure` sees: whole parameters, or every stride-th element of each."""
        stride = self._host.stride(h)
        if stride == 1:
            return self.tables
        for i, (table, rows) in enumerate(zip(self.tables, self._members, strict=True)):
            columns = {k: [_slice(v, row, stride) for v, row in zip(table.columns[k], rows, strict=True)] for k in "xg"}
            if i not in self._sliced:
                for k in self._host.sliced:
                    columns[k] = [row.state[f"{k}_slice"] for row in rows]
                self._sliced[i] = Table(columns, why_not=table.why, noisy=table.noisy, origin=table.origin)
            for k in "xg":
                self._sliced[i].columns[k] = columns[k]
                self._sliced[i].move(k, list(map(_place, columns[k])))
        return [self._sliced[i] for i in range(len(self.tables))]

    def now(self) -> list[tuple[torch.Tensor, dict[str, Any], torch.Tensor, torch.Tensor]]:
        """(parameter, group, local x, local g) of every parameter of this step."""
        found = []
        for part in self.parts:
            columns, rows = self.tables[part.table].columns, self._members[part.table]
            found += [(rows[i].p, part.group, columns["x"][i], columns["g"][i]) for i in part.members]
        return found

    def why(self) -> list[tuple[int, str]]:
        """(tensors, why no kernel takes them), of what goes the fallback's way."""
        return [(table.rows, table.why) for table in self.tables if table.why is not None]


def takes_part(transform: Any, group: dict[str, Any]) -> bool:
    """Whether a group's parameters see the transform."""
    return not transform.weights_only or group.get("agr", True)


def _why_not(row: _Row, met: set[int]) -> str | None:
    """Why no kernel may take a parameter."""
    if any(v.data_ptr() in met for v in row.local.values() if v.numel()):
        return "tensors share memory"
    for t in (row.p, *row.local.values()):
        if type(t) not in (torch.Tensor, torch.nn.Parameter) and not hasattr(t, "_local_tensor"):
            return f"a parameter or its state is a {type(t).__name__}"
    return None


def _first_element(p: torch.Tensor) -> int:
    """The number of a shard's first element in the whole parameter."""
    if not hasattr(p, "_local_tensor"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)  # type: ignore[attr-defined]
    number = 0
    for size, at in zip(p.shape, offset, strict=True):
        number = number * size + at
    return int(number)


def _slice(t: torch.Tensor, row: _Row, stride: int) -> torch.Tensor:
    """The elements 0, stride, 2 stride, ... in the order of the flattened parameter."""
    return t.detach().flatten()[::stride].contiguous()


def _added(totals: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sums over all tensors, on the first device."""
    total = totals[0].sum(0)
    for more in totals[1:]:
        total = total + more.sum(0).to(total.device)
    return total


def _with(sums: Sums, more: dict[str, torch.Tensor], rows: int) -> Sums:
    """More names of sums: an entry a row, or one for all."""
    columns = [] if sums.values is None else [sums.values]
    columns.append(torch.stack([v.double().expand(rows) for v in more.values()], 1))
    return Sums((*sums.names, *more), torch.cat(columns, 1).contiguous())
