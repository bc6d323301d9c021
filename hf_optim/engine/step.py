"""How a step runs: its passes, its numbers, its count. The rule and the state are somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.core import reduce
from hf_optim.core.hooks import Shared, called, check_sums, scalars
from hf_optim.core.rule import Rule
from hf_optim.engine import launchers
from hf_optim.engine.mode import mode
from hf_optim.engine.passes import Sums, Table
from hf_optim.engine.rows import Rows

_place = torch.Tensor.data_ptr


class Stepper(Rows):
    """The steps of one optimizer."""

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
            self.fill(lambda h, t: called(host.prepare, h, t, memory))
            totals = self.totals(host.measure, len(names), self.measured(h0))
            if everywhere:
                total = _added(totals)
                if controlled or total.device.type == "cpu":
                    floats = dict(zip(names, total.tolist(), strict=True))
                else:
                    derived = called(host.derive, h0, dict(zip(names, total.unbind(), strict=True)))
                    for i, table in enumerate(self.tables):
                        own = {k: v.to(table.device) for k, v in derived.items()}
                        self.sums[i] = _with(self.sums[i], own, table.rows)
            else:
                for i, sums in enumerate(totals):
                    own = called(host.derive, h0, dict(zip(names, sums.unbind(1), strict=True)))
                    self.sums[i] = _with(self.sums[i], own, self.tables[i].rows)
        shared: dict[str, float] = {}
        if controlled:
            shared = called(host.control, h0, max(part.t for part in self.parts), floats, loss, memory)
        elif floats:
            derived = called(host.derive, h0, floats)
            self.fill(lambda h, t: derived)
        self.fill(lambda h, t: scalars(host.scalars, h, t, Shared(**shared)))
        return shared

    def update(self) -> None:
        """The rule's update."""
        self.run(self._host.update)

    def holds(self) -> bool:
        """Whether the tables still show the parameters and their state."""
        params = [p for group in self._host.param_groups for p in group["params"]]
        return self._as_before(params, [p.grad for p in params])

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
        ahead = all(table.why is None and launchers.ahead(table.device) for table in self.tables)
        return self.tables[0].device if ahead else None

    def count(self, steps: int = 1) -> None:
        """Count the step in every parameter's state, and let go of the gradients."""
        self._steps.add_(steps if self._all_active else self._mask * steps)
        self._counted = self._steps._version
        for name in self._host.scalar_slots:  # what `scalars` made of them
            for part in self.parts:
                kept = [self._members[part.table][i].state[name] for i in part.members]
                torch._foreach_copy_(kept, [torch.tensor(part.c[name], dtype=torch.float32, device="cpu")] * len(kept))
        torch.autograd.graph.increment_version(self._written)
        self.let_go()

    def let_go(self) -> None:
        """Hold no gradient."""
        for table in self.tables:
            table.columns["g"] = []

    # --- passes ------------------------------------------------------------------------------------------------------

    def fill(self, numbers: Callable[[SimpleNamespace, int], dict[str, Any]]) -> None:
        """Add numbers(h, t) to every part's `c`, once for a group and step count."""
        computed: dict[Any, dict[str, Any]] = {}
        for part in self.parts:
            key = (id(part.group), part.t, *part.own.values())
            if key not in computed:
                h = self._hyper(part.group)
                vars(h).update(part.own)
                computed[key] = part.c | numbers(h, part.t)
            part.c = computed[key]

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
        launched = self.run(f, tables, raw)
        for i, s in enumerate(launched):
            if s is not None or any(part.table == i and not part.idle for part in self.parts):
                check_sums(f, None if s is None else s.shape[1], width)
        sums = [
            torch.zeros(t.rows, width, dtype=torch.float64, device=t.device) if s is None else s
            for s, t in zip(launched, self.tables, strict=True)
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
        summed = self.transform_totals()
        if summed is None:
            return
        transform, totals = summed
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
            columns = {k: [_slice(v, stride) for v in table.columns[k]] for k in "xg"}
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
        tensors = []
        for part in self.parts:
            columns, rows = self.tables[part.table].columns, self._members[part.table]
            tensors += [(rows[i].p, part.group, columns["x"][i], columns["g"][i]) for i in part.members]
        return tensors

    def why(self) -> list[tuple[int, str]]:
        """(tensors, why no kernel takes them), of what goes the fallback's way."""
        return [(table.rows, table.why) for table in self.tables if table.why is not None]


def _slice(t: torch.Tensor, stride: int) -> torch.Tensor:
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
