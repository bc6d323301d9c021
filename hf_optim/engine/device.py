"""A rule's numbers computed on the device: `prepare`, `control`, `scalars` and `derive` as scalar programs.

The host writes down what it knows before a step (hyper-parameters, step counts: `given`), launches, and waits for
nothing: sums, the loss, the memory and everything that follows from them stay on the device. A hyper-parameter is a
symbol there, so that a schedule changes no code; where its value decides (`h.weight_decay != 0`), the host decides, and
the program is taken again only while every decision comes out as before.

    given    (1 + R, ...)   the first group's row, then a row for each group and step count
    memory   (1, M)         what the rule remembers
    shared   (1, S)         what `control` returned
    kept     (1, 3)         halt, skipped, bad loss: while halt is not 0, passes and memory stand still; skipped counts
                            the steps that were halted, by which the host's step counts are too large

A bad loss therefore moves nothing, and the host learns of it when it looks (`Device.notice`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.core.hooks import Shared, called
from hf_optim.core.vocabulary import isfinite, where
from hf_optim.engine.known_numbers import Decision, Known, flattened, symbolic
from hf_optim.engine.launch_triton import Place, Scalars, up
from hf_optim.engine.mode import Mode, mode, using
from hf_optim.engine.passes import Sums
from hf_optim.engine.trace import Symbol, trace_scalars

_HALT, _SKIPPED, _BAD = (Place("kept", i, 3, common=True) for i in range(3))


# --- hooks as programs -----------------------------------------------------------------------------------------------


class Later(float):
    """A number that is computed on the device; the host has NaN in its place."""

    def __new__(cls) -> Later:
        return super().__new__(cls, "nan")


@dataclass
class _Hook:
    """A hook, traced for some choices."""

    #: what it returned: NaN for numbers, and what selects code
    c: dict[str, Any]
    numbers: tuple[str, ...]
    decisions: list[Decision]
    run: Scalars


def _common(table: str, names: Sequence[str], prefix: str) -> dict[str, Place]:
    """Places of names that lie in a table's only row."""
    return {prefix + k: Place(table, i, len(names), common=True) for i, k in enumerate(names)}


class Device:
    """The numbers of one optimizer's steps, on its first accelerator.

    Args:
        host: whose hooks these are.
        hyper: a group's hyper-parameters.
        device: where.
        skip: whether a bad loss halts its own step, or all until somebody has noticed.
    """

    def __init__(
        self, host: Any, hyper: Callable[[dict[str, Any]], SimpleNamespace], device: torch.device, skip: bool
    ) -> None:
        self._host, self._hyper, self.device, self._skip = host, hyper, device, skip
        self.memory = self._zeros(len(host.memory))
        self._kept = self._zeros(3)
        #: what `control` returned: names of its numbers and where they lie; and what selects code
        self._shared_names: tuple[str, ...] = ()
        self._shared = self._zeros(1)
        self._statics: dict[str, Any] = {}
        self._hooks: dict[Any, list[_Hook]] = {}
        self._judge = self._make_judge()
        #: where numbers of a step were put the last time
        self.there: dict[str, torch.Tensor] = {}
        self._told: tuple[torch.Tensor, Any] | None = None

    def _zeros(self, columns: int, rows: int = 1) -> torch.Tensor:
        return torch.zeros(rows, max(1, columns), dtype=torch.float64, device=self.device)

    def _empty(self, columns: int, rows: int) -> torch.Tensor:
        return torch.empty(rows, max(1, columns), dtype=torch.float64, device=self.device)

    def _up(self, name: str, values: Any) -> torch.Tensor:
        self.there[name] = up(values, torch.float64, self.device, self.there.get(name))
        return self.there[name]

    @property
    def halt(self) -> torch.Tensor:
        """What passes look at before they move anything."""
        return self._kept[0, :1]

    # --- a step ------------------------------------------------------------------------------------------------------

    def begin(self, parts: Sequence[Any], first: dict[str, Any]) -> None:
        """Write down what the host knows of this step: of the first group, and of every group and step count."""
        rows: dict[tuple[int, int], int] = {}
        self._groups = [self._hyper(first)]
        times = [max(part.t for part in parts)]
        for part in parts:
            key = id(part.group), part.t
            if key not in rows:
                rows[key] = len(times)
                self._groups.append(self._hyper(part.group))
                times.append(part.t)
            part.row = rows[key]
        self._values = [
            {f"h_{k}": v for k, v in flattened(h)[0].items()} | {"t": float(t)}
            for h, t in zip(self._groups, times, strict=True)
        ]
        if mode().idle:
            self._values = [{**row, "t": 0.0} for row in self._values]
        self._columns = list(dict.fromkeys(k for row in self._values for k in row))
        self._given = self._up("given", [[row.get(k, 0.0) for k in self._columns] for row in self._values])

    def judge(self, loss: torch.Tensor | float, floor: float) -> None:
        """Halt what follows if the loss is bad, on every rank if it is on one."""
        there = isinstance(loss, torch.Tensor) and loss.device == self.device
        self._loss = loss.detach().double() if there else self._up("loss", float(loss))  # type: ignore[union-attr]
        self._judge(1, 1, loss=self._loss, floor=self._up("floor", floor), kept=self._kept)
        if not mode().launches:
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._kept[0, :1], torch.distributed.ReduceOp.MAX)

    def _make_judge(self) -> Scalars:
        def call(v: dict[str, Any]) -> dict[str, Any]:
            bad = ~(isfinite(v["loss"]) & (v["loss"] >= v["floor"]))
            halted = where(bad, 1.0, 0.0) if self._skip else where(bad, 1.0, v["halt"])
            return {"halt": halted, "bad": where(bad & (v["halt"] <= 0), v["loss"], v["bad"])}

        reads = {k: Place(k, 0, 1, common=True) for k in ("loss", "floor")} | {"halt": _HALT, "bad": _BAD}
        program = trace_scalars(call, tuple(reads))
        dtypes = dict.fromkeys(("loss", "floor", "kept"), torch.float64)
        return Scalars(program, reads, {"halt": [_HALT], "bad": [_BAD]}, dtypes, alone=True)

    def fill(self, name: str, parts: Sequence[Any]) -> None:
        """Add what `prepare` or `scalars` says to every part's `c`; its numbers come to lie in the part's `numbers`."""
        hooks: list[tuple[_Hook, torch.Tensor | None, torch.Tensor]] = []
        filled: dict[tuple[int, int], tuple[torch.Tensor, dict[str, Any]]] = {}
        for part in parts:
            key = part.row, id(part.c)
            if key not in filled:
                hook = self._filling(name, part)
                numbers = next((n for h, before, n in hooks if h is hook and before is part.numbers), None)
                if numbers is None:
                    numbers = self._empty(len(hook.numbers) + 1, len(self._values))
                    tables = {"given": self._given, "memory": self.memory, "shared": self._shared, "kept": self._kept}
                    before = numbers if part.numbers is None else part.numbers
                    if hook.numbers or self._host.noisy:  # who rounds reads the step count
                        hook.run(len(numbers), 1, **tables, before=before, numbers=numbers)
                    hooks.append((hook, part.numbers, numbers))
                filled[key] = numbers, hook.c
            part.numbers, part.c = filled[key]

    def _filling(self, name: str, part: Any) -> _Hook:
        """`prepare` or `scalars` of a part, after what was said before."""
        host, before = self._host, part.c
        old = [k for k, v in before.items() if isinstance(v, float)]
        shared = _common("shared", self._shared_names, "s_") if name == "scalars" else {}
        reads = self._places() | shared
        reads |= {f"b_{k}": Place("before", i, len(old) + 1) for i, k in enumerate(old)}

        def call(v: dict[str, Any], h: SimpleNamespace) -> dict[str, Any]:
            t, out = v["t"] - v["skipped"], before | {k: v[f"b_{k}"] for k in old}
            if name == "prepare":
                return out | called(host.prepare, h, t, {k: v[f"m_{k}"] for k in host.memory}) | {"": t}
            given = {k: v[f"s_{k}"] for k in self._shared_names}
            return out | called(host.scalars, h, t, Shared(**self._statics, **given)) | {"": t}

        choices = tuple((k, None if k in old else v) for k, v in before.items()), tuple(self._statics.items())
        return self._traced((name, *choices), part.row, call, reads, "numbers")

    def control(self, names: Sequence[str], total: torch.Tensor | None, loss: bool) -> None:
        """The rule's `control`, from the sums over all rows of `total`."""
        host = self._host

        remembered: dict[str, Any] = {}

        def call(v: dict[str, Any], h: SimpleNamespace) -> dict[str, Any]:
            memory = {k: v[f"m_{k}"] for k in host.memory}
            sums = {k: v[f"a_{k}"] for k in names}
            out = called(host.control, h, v["t"] - v["skipped"], sums, v["loss"] if loss else None, memory)
            halted = (v["halt"] > 0) | (v["t"] < 1)  # a captured step that nobody has numbered yet
            kept = {f"m_{k}": where(halted, v[f"m_{k}"], new) for k, new in memory.items()}
            remembered.update(kept, skipped=v["skipped"] + v["halt"])
            numbers = {k: x for k, x in out.items() if isinstance(x, (Symbol, float)) and f"s_{k}" in reads}
            return out | {k: where(halted, v[f"s_{k}"], x) for k, x in numbers.items()}  # type: ignore[no-any-return]

        reads = self._places() | {"halt": _HALT, "loss": Place("loss", 0, 1, common=True)}
        reads |= {f"a_{k}": Place("total", i, len(names), summed=True) for i, k in enumerate(names)}
        reads |= _common("shared", self._shared_names, "s_")
        hook = self._traced(("control", tuple(names), loss), 0, call, reads, "shared", remembered)
        if hook.numbers != self._shared_names:  # now that their names are known, a halted step can leave them
            self._shared_names, self._shared = hook.numbers, self._zeros(len(hook.numbers))
            self.control(names, total, loss)
            return
        self._statics = {k: v for k, v in hook.c.items() if not isinstance(v, float)}
        rows = 1 if total is None else len(total)
        hook.run(
            1, rows, given=self._given, memory=self.memory, kept=self._kept, shared=self._shared,
            total=self._given if total is None else total, loss=self._loss if loss else self._kept,
        )  # fmt: skip

    def derive(
        self,
        key: Any,
        call: Callable[..., Mapping[str, Any]],
        names: Sequence[str],
        own: torch.Tensor,
        every: torch.Tensor,
        h: bool,
        later: bool,
    ) -> Sums:
        """What follows from sums for every row.

        Args:
            key: stands for `call`.
            call: (h of the first group, own sums, sums of all rows of `every`) -> what a pass reads.
            names: of the sums.
            own: float64 (rows, names).
            every: float64 (any rows, names).
            h: whether call reads it.
            later: leave it to the pass that reads it, where `own` sums alone decide.
        """
        reads = {f"o_{k}": Place("own", i, len(names)) for i, k in enumerate(names)}
        reads |= {f"a_{k}": Place("every", i, len(names), summed=True) for i, k in enumerate(names)}
        if h:
            reads |= {k: replace(place, common=True) for k, place in self._places().items() if k[:2] == "h_"}

        def sums(v: dict[str, Any], h: SimpleNamespace) -> Mapping[str, Any]:
            return call(h, {k: v[f"o_{k}"] for k in names}, {k: v[f"a_{k}"] for k in names})

        hook = self._traced(("derive", key, tuple(names)), 0 if h else None, sums, reads, "derived")

        def derived() -> Sums:
            into, given = self._empty(len(hook.numbers), len(own)), self._given if h else own
            hook.run(len(own), len(every), given=given, own=own, every=every, derived=into)
            return Sums(hook.numbers, into)

        program = hook.run.program
        refs = {a for op in program.ops for a in op.arguments} | {write.value for write in program.writes}
        read = {k for i, k in enumerate(program.numbers) if i in {a for a in refs if isinstance(a, int)}}
        if later and all(k.startswith("o_") for k in read):
            return Sums(hook.numbers, own, program, derived)
        return derived()

    # --- tracing -----------------------------------------------------------------------------------------------------

    def _places(self) -> dict[str, Place]:
        """Where everything lies that any hook may read."""
        given = {k: Place("given", i, len(self._columns)) for i, k in enumerate(self._columns)}
        return given | {"skipped": _SKIPPED} | _common("memory", tuple(self._host.memory), "m_")

    def _traced(
        self,
        key: Any,
        row: int | None,
        call: Callable[..., Mapping[str, Any]],
        reads: dict[str, Place],
        into: str,
        remembered: Mapping[str, Any] | None = None,
    ) -> _Hook:
        """A hook for what is known in a row: its program of the past, if every decision comes out as it did then.
        What it returns goes `into` a table, and what it has `remembered` by then where it was read."""
        h, values = (SimpleNamespace(), {}) if row is None else (self._groups[row], self._values[row])
        key = (*key, flattened(h)[1], tuple(reads.items()))
        hooks = self._hooks.setdefault(key, [])
        for hook in hooks:
            if all(decision.holds(values) for decision in hook.decisions):
                return hook
        decisions: list[Decision] = []
        returned: dict[str, Any] = {}

        def numbers(v: dict[str, Any]) -> dict[str, Any]:
            known = {k[2:]: Known(v[k], k, values[k], decisions) for k in values if k in reads and k[:2] == "h_"}
            returned.update(call(v, symbolic(h, known)))
            out = {f"r_{k}": v for k, v in returned.items() if isinstance(v, (Symbol, float))}
            return out | dict(remembered or {})

        program = trace_scalars(numbers, tuple(reads))
        own = [w.tensor for w in program.writes if w.tensor[:2] == "r_"]
        stores = {k: [Place(into, i, len(own), common=into == "shared")] for i, k in enumerate(own)}
        stores |= {k: [reads[k]] for k in remembered or {}}
        tables = {
            "prepare": ("given", "memory", "shared", "kept", "before", "numbers"),
            "scalars": ("given", "memory", "shared", "kept", "before", "numbers"),
            "control": ("given", "memory", "kept", "shared", "total", "loss"),
            "derive": ("given", "own", "every", "derived"),
        }[key[0]]
        run = Scalars(program, reads, stores, dict.fromkeys(tables, torch.float64), alone=key[0] == "control")
        c = {k: Later() if isinstance(v, (Symbol, float)) else v for k, v in returned.items() if k}
        hook = _Hook(c, tuple(k[2:] for k in own if k != "r_"), decisions, run)
        hooks.append(hook)
        return hook

    # --- what the host wants to know ---------------------------------------------------------------------------------

    def remember(self, memory: Mapping[str, float]) -> None:
        """Take these numbers for the rule's memory."""
        if memory:
            with using(Mode()):
                self.memory.copy_(up([list(memory.values())], torch.float64, self.device))

    def figures(self) -> dict[str, float]:
        """The memory and what `control` returned; waits for the device."""
        memory = dict(zip(self._host.memory, self.memory[0].tolist(), strict=False))
        return memory | dict(zip(self._shared_names, self._shared[0].tolist(), strict=False))

    def tell(self) -> None:
        """Begin to bring the host what `notice` asks for."""
        if self.device.type != "cuda":
            self._told = self._kept[0].clone(), None
            return
        with torch.cuda.device(self.device):
            there = torch.empty(3, dtype=torch.float64, device="cpu", pin_memory=True)
            there.copy_(self._kept[0], non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._told = there, event

    def notice(self, wait: bool = False) -> tuple[int, float] | None:
        """How many steps were halted since this was last asked, and the first bad loss; None if none, or if the device
        has not said yet. Without `wait`, nothing waits unless there was one."""
        if self._told is None:
            return None
        there, event = self._told
        if event is not None:
            if wait:
                event.synchronize()
            elif not event.query():
                return None
        self._told = None
        if there[1] == 0:
            return None
        _, skipped, bad = self._kept[0].tolist()
        self._kept.zero_()
        return int(skipped), bad
