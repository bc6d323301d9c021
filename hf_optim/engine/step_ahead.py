"""A step that is launched ahead of an accelerator: whatever depends on sums or the loss is computed there.

The same order of things as `hf_optim.engine.step.Stepper.control`, with `hf_optim.engine.device.Device` for arithmetic.
The rule's memory lives on the device, and groups show it in 0-d tensors; whoever writes a number into a group replaces
it. A bad loss halts its step on the device; the host counts that step back and speaks of it when it learns of it: at
the next step that finds the news there, or when somebody asks for what may have changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from hf_optim.core.hooks import Shared, called, scalars
from hf_optim.core.rule import Rule
from hf_optim.engine.device import Device
from hf_optim.engine.passes import Sums
from hf_optim.engine.trace import Untraceable
from hf_optim.errors import first_line

if TYPE_CHECKING:
    from hf_optim.engine.step import Stepper


class Ahead:
    """One optimizer's steps on an accelerator.

    Args:
        host: the optimizer.
        hyper: a group's hyper-parameters.
        device: the first one on which it has parameters.
    """

    def __init__(self, host: Any, hyper: Callable[[dict[str, Any]], SimpleNamespace], device: torch.device) -> None:
        self._host, self._hyper = host, hyper
        self.device = Device(host, hyper, device, skip=host.on_bad_loss == "skip")
        self._shown = {k: self.device.memory[0, i] for i, k in enumerate(host.memory)}
        #: steps that were launched since the host last knew of all of them whether they were taken
        self.unknown = 0

    def why_not(self, steps: Stepper) -> str | None:
        """Why the rule's numbers cannot be computed on the device: tried once, on numbers of no consequence."""
        host = self._host
        if type(host).control is Rule.control:
            return None
        h0 = self._hyper(steps.groups[0])
        names = host.measures(h0) if host.scope(h0) == "global" else ()
        loss = "loss" in host.needs
        trial = Device(host, self._hyper, self.device.device, skip=False)
        parts = [replace(part) for part in steps.parts]
        try:
            trial.begin(parts, steps.groups[0])
            if loss:
                trial.judge(1.0, 0.0)
            if names:
                trial.fill("prepare", parts)
            trial.control(names, torch.ones(1, len(names), dtype=torch.float64, device=trial.device), loss)
            trial.fill("scalars", parts)
        except Exception as e:  # whatever a plugin's hook may raise when it is given symbols
            return f"its control needs the host: {first_line(e)}"
        return None

    def control(self, steps: Stepper, loss: Any, floor: float) -> None:
        """Launch everything up to the update, and give every part its `c`."""
        host, device, groups = self._host, self.device, steps.groups
        h0 = self._hyper(groups[0])
        controlled = type(host).control is not Rule.control
        names, everywhere = host.measures(h0), host.scope(h0) == "global"
        self._take_memory(groups)
        for part in steps.parts:
            part.numbers = None
        if controlled or names:
            device.begin(steps.parts, groups[0])
        if loss is not None:
            device.judge(loss, floor)
            self.unknown += 1
        for table in steps.tables:
            table.halt = None if loss is None else device.halt.to(table.device)
        summed = any(part.transform is not None and part.transform.sums for part in steps.parts)
        self._transform(steps, alone=not names)
        if names:
            self._fill(steps, "prepare", controlled)
            measured = steps.measured(h0)
            for table, whole in zip(measured, steps.tables, strict=True):  # slices have tables of their own
                table.halt = whole.halt
            totals = steps.totals(host.measure, len(names), measured)
            if controlled and everywhere:
                device.control(names, self._together(totals), loss is not None)
            else:
                self._derive(
                    steps, "rule", lambda h, own, all: called(host.derive, h, all if everywhere else own),
                    names, totals, later=not summed,
                )  # fmt: skip
        if controlled and not (names and everywhere):
            device.control((), None, loss is not None)
        self._fill(steps, "scalars", controlled)

    def _fill(self, steps: Stepper, hook: str, controlled: bool) -> None:
        """On the device where the hook may ask for what only the device knows."""
        if not controlled:
            host, empty = self._host, Shared()
            if hook == "scalars":
                steps.fill(lambda h, t: scalars(host.scalars, h, t, empty))
            else:
                steps.fill(lambda h, t: called(host.prepare, h, t, {}))
            return
        self.device.fill(hook, steps.parts)
        for part in steps.parts:  # a model on several devices
            assert part.numbers is not None
            part.numbers = part.numbers.to(steps.tables[part.table].device)

    def _transform(self, steps: Stepper, alone: bool) -> None:
        summed = steps.transform_totals()
        if summed is not None:
            transform, totals = summed
            self._derive(
                steps, transform, lambda h, own, all: transform.derive(own, all), transform.measures, totals, alone
            )

    def _derive(
        self,
        steps: Stepper,
        key: Any,
        call: Callable[..., Mapping[str, Any]],
        names: Sequence[str],
        totals: Sequence[torch.Tensor],
        later: bool,
    ) -> None:
        """Give every row of every table what follows from its own sums and from those of all."""
        whole = self._together(totals)
        for i, total in enumerate(totals):
            own = total.to(self.device.device)
            try:
                derived = self.device.derive(key, call, names, own, whole, h=key == "rule", later=later)
            except Untraceable:  # a plugin's, in torch's words: slower, but nothing waits for it either
                derived = _in_torch(call, self._hyper(steps.groups[0]), names, own, whole)
            assert derived.values is not None
            there, before = derived.values.to(total.device), steps.sums[i]
            if before.values is not None:
                there = torch.cat([before.values, there], 1)
            steps.sums[i] = replace(derived, names=(*before.names, *derived.names), values=there)

    def _together(self, totals: Sequence[torch.Tensor]) -> torch.Tensor:
        """The sums of all tables' rows, on one device."""
        there = [total.to(self.device.device) for total in totals]
        return there[0] if len(there) == 1 else torch.cat(there)

    # --- memory and news ---------------------------------------------------------------------------------------------

    def _take_memory(self, groups: list[dict[str, Any]]) -> None:
        """What somebody put into the first group counts: a checkpoint's numbers, or the first ones."""
        first = groups[0]
        if any(first[k] is not v for k, v in self._shown.items()):
            self.device.remember({k: float(first[k]) for k in self._shown})
        for group in groups:
            group.update(self._shown)

    def tell(self) -> None:
        """After the update: ask the device whether the step was taken."""
        if self.unknown:
            self.device.tell()

    def news(self, wait: bool = False) -> tuple[int, float] | None:
        """How many of the last steps were not taken and the bad loss; None if all were, as far as is known."""
        if wait:
            self.tell()
        notice = self.device.notice(wait)
        if wait or notice:
            self.unknown = 0
        return notice


def _in_torch(
    call: Callable[..., Mapping[str, Any]],
    h: SimpleNamespace,
    names: Sequence[str],
    own: torch.Tensor,
    all: torch.Tensor,
) -> Sums:
    """What `Device.derive` gives, in torch's operations."""
    sums = (dict(zip(names, columns.unbind(1), strict=True)) for columns in (own, all.sum(0).expand_as(own)))
    values = call(h, *sums)
    return Sums(tuple(values), torch.stack([v.double().expand(len(own)) for v in values.values()], 1))
