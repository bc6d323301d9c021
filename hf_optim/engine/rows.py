"""What a step runs over: parameters, their state and their gradients, in tables.

`Rows` keeps tables of the parameters that have a state and looks, before every step, whether each parameter, each entry
of its state and each gradient is where and what it was; only what changed is looked at closely. Nothing that a kernel
cannot take reaches one: it is repacked, goes the fallback's way, or is refused in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from operator import attrgetter, is_not, itemgetter
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from hf_optim.core import validate
from hf_optim.core.reduce import first_element
from hf_optim.core.rule import Rule
from hf_optim.engine import int8_codes
from hf_optim.engine.passes import Cohort, Sums, Table, flat, transformed
from hf_optim.engine.watch import Watch, hollow, overlapping, same
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

    def kept_as(self, name: str, p: torch.Tensor) -> torch.dtype | None:
        """As which codes a slot of a parameter is kept; None if it is kept as numbers."""


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


class Rows:
    """What the steps of one optimizer run over.

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
        self._mortal = type(host).lifetime is not Rule.lifetime
        self._hyper, self._entry_names, self._make_state = hyper, entries, make_state
        self._all, self._arranged = list[torch.Tensor](), tuple[Any, ...]()
        self.groups: list[dict[str, Any]] = []
        self._rows, self._members = list[_Row](), list[list[_Row]]()
        self.tables: list[Table] = []
        self.parts: list[Part] = []
        self._steps, self._counted = torch.zeros(0), 0
        self._key: Any = None
        self.sums: list[Sums] = []
        self._sliced: dict[int, Table] = {}

    # --- before a step -----------------------------------------------------------------------------------------------

    def begin(self) -> list[Part]:
        """See parameters, state and gradients as they are now; the parts that this step moves."""
        params = [p for group in self._host.param_groups for p in group["params"]]
        grads = list(map(_grad, params))
        if not any(map(is_not, grads, repeat(None))):
            self.parts = []
            return self.parts
        if not self._as_before(params, grads):
            self._rebuild(params, grads)
        for row in (row for row in self._hollow if grads[row.index] is not None):
            self._check_filled("state of a parameter", row.p, row.local)
        self._divide(tuple(map(is_not, self._of_rows(grads)[:-1], repeat(None))))
        if not self._see(grads):  # gradients of another dtype
            self._rebuild(params, grads)
            self._divide(tuple(map(is_not, self._of_rows(grads)[:-1], repeat(None))))
            self._see(grads)
        self.sums = [Sums() for _ in self.tables]
        return self.parts

    def restarts(self) -> bool:
        """Whether a state may begin anew."""
        return self._mortal and any(self._host.lifetime(self._hyper(g)) for g in self._host.param_groups)

    def look_again(self) -> None:
        """Trust nothing seen before: which state there shall be has changed."""
        self._all = []

    def _as_before(self, params: list[torch.Tensor], grads: list[Any]) -> bool:
        """Whether the tables still show the parameters and their state."""
        host = self._host
        if not (same(params, self._all) and same(host.param_groups, self.groups)):
            return False
        if self._arrangement() != self._arranged:
            return False
        if self.restarts() or any(grads[i] is not None for i in self._unknown):  # a first gradient
            return False
        if not (same(list(host.state), self._keys) and same(list(host.state.values()), self._values)):
            return False
        try:
            entries = {k: list(map(itemgetter(k), holders)) for k, holders in self._holders.items()}
            steps = list(map(itemgetter("step"), self._states))
        except KeyError:
            return False
        if not (same(steps, self._views) and list(map(_place, steps)) == self._counts):  # a new `.data`
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

    def _arrangement(self) -> tuple[Any, ...]:
        """Which group each of `_all` belongs to, and whether kernels are wanted."""
        return self._host.without_kernels, *(len(group["params"]) for group in self._host.param_groups)

    def _rebuild(self, params: list[torch.Tensor], grads: list[Any]) -> None:
        """Tables of everything that has a state, or gets one now."""
        host = self._host
        groups = [group for group in host.param_groups for _ in group["params"]]
        rows, self._unknown = [], []
        for i, (p, grad, group) in enumerate(zip(params, grads, groups, strict=True)):
            if grad is not None:
                self._check_layout(grad)
                self._check_movable(p)
                state = host.state[p]
                if not state:
                    self._make_state(p, state, group)
                elif self._mortal and int(state["step"]) == host.lifetime(self._hyper(group)):
                    state.clear()
                    self._make_state(p, state, group)
            state = host.state[p] if p in host.state else {}
            if state:
                rows.append(self._row(p, group, state, i))
            else:
                self._unknown.append(i)
        self._all, self.groups, self._rows, self._arranged = params, list(host.param_groups), rows, self._arrangement()
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
        self._hollow = [row for row in rows if any(map(hollow, row.local.values()))]
        self._written = [row.local["x"] for row in rows]  # what autograd may have saved

    def _check_filled(self, what: str, p: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> None:
        for name in (name for name, t in tensors.items() if hollow(t)):
            raise UserError(
                f"{self._rule}: the {what} of shape {tuple(p.shape)}, {name!r}, has lost its memory (its storage was "
                "resized, as sharding does between steps): bring it back before step()"
            )

    def _check_movable(self, p: torch.Tensor) -> None:
        """A tensor that was handed over frozen may be of any kind, until it is given a gradient."""
        if why := validate.unmovable(p):
            raise UserError(f"{self._rule}: a parameter of shape {tuple(p.shape)} {why}")
        self._check_filled("parameter", p, {"x": local(p)})

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
                fault = f"lacks its {k!r}" if value is None else f"has a {type(value).__name__} as its {k!r}"
                raise UserError(f"{rule}: the state of a parameter of shape {shape} {fault}")
            if value.shape != p.shape or value.device != p.device or local(value).shape != x.shape:
                raise UserError(
                    f"{rule}: the state {k!r} of a parameter of shape {shape} on {p.device} has shape "
                    f"{tuple(value.shape)} on {value.device}"
                )
            if value.dtype in int8_codes.CODED:
                columns[k + int8_codes.SCALE] = self._scales(k, p, state)
            if value.layout is not torch.strided or value.is_neg() or flat(local(value), x) is None:
                if local(value) is not value:
                    raise UserError(f"{rule}: the state {k!r} of a sharded parameter of shape {shape} lies otherwise")
                value = state[k] = torch.empty_like(x, dtype=value.dtype).copy_(value)
            columns[k] = local(value)
        if not isinstance(state.get("step"), torch.Tensor) or state["step"].numel() != 1:
            raise UserError(f"{rule}: the state of a parameter of shape {shape} lacks its 'step'")
        return _Row(p, group, state, columns, index)

    def _scales(self, k: str, p: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        """The scales of a slot's codes, if both are what this rule makes of them."""
        scales, slot = state.get(k + int8_codes.SCALE), f"the state {k!r} of a parameter of shape {tuple(p.shape)}"
        if state[k].dtype is not self._host.kept_as(k, p):
            raise UserError(f"{self._rule}: {slot} is in {state[k].dtype}, which it shall not be")
        if flat(state[k], p) is None:
            raise UserError(f"{self._rule}: {slot} is in int8, in another memory format than its parameter")
        form = (torch.Tensor, torch.float32, (int8_codes.blocks(p.numel()),), p.device)
        if scales is None or (type(scales), scales.dtype, scales.shape, scales.device) != form:
            raise UserError(f"{self._rule}: {slot} lacks the scales of its blocks")
        return scales

    def _count_together(self) -> None:
        """All counts lie in one vector, so that one addition counts them."""
        counts = [row.state["step"] for row in self._rows]
        self._steps = torch.tensor([float(count) for count in counts], dtype=torch.float32, device="cpu")
        self._views = [self._steps[i : i + 1].view(count.shape) for i, count in enumerate(counts)]
        for row, view in zip(self._rows, self._views, strict=True):
            row.state["step"] = view
        self._counts = list(map(_place, self._views))
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
            origin = [(first_element(row.p), row.index) for row in rows]
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
            self._mask = torch.tensor(active, dtype=torch.float32, device="cpu")
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
                        own[i] = transformed(part.transform.apply, own[i], SimpleNamespace())
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
            if min(places) < 4096:  # nobody's memory: of an empty tensor, or of one that lost its own
                for row in (row for row in rows if grads[row.index] is not None):
                    self._check_filled("gradient of a parameter", row.p, {"g": local(grads[row.index])})
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


def takes_part(transform: Any, group: dict[str, Any]) -> bool:
    """Whether a group's parameters see the transform."""
    return bool(not transform.opt_out or group.get(transform.opt_out, True))


def _why_not(row: _Row, met: set[int]) -> str | None:
    """Why no kernel may take a parameter."""
    if any(v.data_ptr() in met for v in row.local.values() if v.numel()):
        return "tensors share memory"
    for t in (row.p, *row.local.values()):
        if type(t) not in (torch.Tensor, torch.nn.Parameter) and not hasattr(t, "_local_tensor"):
            return f"a parameter or its state is a {type(t).__name__}"
    return None
