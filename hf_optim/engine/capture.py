"""A step in a CUDA graph: the numbers of a step lie in memory that every replay reads anew.

for _ in range(3): ...                  # ordinary steps: state, compiled graphs
with torch.cuda.graph(graph):
    loss = f(model(x)); loss.backward(); optimizer.step()
for batch in batches:
    x.copy_(batch)
    optimizer.before_replay()           # counts the step, puts its rate and corrections in place
    graph.replay()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.core.rule import Rule
from hf_optim.engine.cell import NOTHING, Cell
from hf_optim.engine.units import Unit
from hf_optim.errors import UserError


@dataclass(frozen=True)
class Captured:
    """What a graph was made for."""

    parts: list[Unit]
    #: names of the numbers and what selects code, of every unit
    code: list[Any]


def record(opt: Any) -> Captured:
    """Run a step while it is captured: nothing moves, and nothing is counted.

    Raises:
        UserError: the rule reads numbers on the host, or its step would not be compiled as a whole.
    """
    if opt.needs or type(opt).control is not Rule.control:
        raise UserError(
            f"{opt.rule} reads a number of each step on the host: its step() cannot be captured in a CUDA "
            "graph; capture forward and backward, and step outside"
        )
    stale = "a captured step() that is not compiled would repeat this step's rate and count for ever"
    if not opt.compile or opt.state_dtype is torch.bfloat16:
        raise UserError(f"{opt.rule}: {stale}: make the optimizer with compile=True, and without state_dtype")
    if any(group.get("restart_every") for group in opt.param_groups):
        raise UserError(f"{opt.rule}: a CUDA graph cannot restart the state: leave restart_every out")
    parts = opt._begin()
    if not all(isinstance(unit, Cell) and not unit.blocked and unit.dense for unit in parts):
        raise UserError(f"{opt.rule}: a CUDA graph can hold steps of whole, dense parameters on the device only")
    opt._advance(parts, None, None)
    if not all(opt._way.compiles(unit.c) for unit in parts):
        raise UserError(f"{opt.rule}: {stale}, and a first one never is: take a few steps before")
    return Captured(list(parts), _numbered(opt, parts))


def renew(opt: Any, captured: Captured | None) -> None:
    """Put the numbers of the next step where the graph reads them, and count it.

    Raises:
        UserError: no step was captured, or the next one is another than the captured one.
    """
    if captured is None:
        raise UserError(f"{opt.rule}: capture step() in a CUDA graph before it is replayed")
    for unit in captured.parts:
        if not (
            isinstance(unit, Cell)
            and any(unit.group is group for group in opt.param_groups)
            and unit.fits(unit.group, opt.state[unit.p])
        ):
            raise UserError(
                f"{opt.rule}: parameters, state or groups are others than when the graph was captured (a "
                "checkpoint was loaded?): capture a step again"
            )
        unit.t = int(unit.counter.item()) + 1
        if opt._transform_of(unit.params[0], unit.group, unit.t) is not unit.transform:
            raise UserError(
                f"{opt.rule}: the gradient transform of step {unit.t} is another than when the graph was "
                "captured: capture a step again"
            )
    if _numbered(opt, captured.parts) != captured.code:
        raise UserError(
            f"{opt.rule}: a hyper-parameter that selects code has changed since the graph was captured: "
            "capture a step again"
        )
    opt._count(captured.parts)


def _numbered(opt: Any, parts: Sequence[Unit]) -> list[Any]:
    """Give the parts their numbers of the step t; names of the numbers and what selects code, of every part."""
    memory, code = opt._memory, []
    for unit in parts:
        unit.c = NOTHING
    passes: list[Any] = [lambda h, t: opt.scalars(h, t, SimpleNamespace())]
    if opt.measures(opt._hyper(opt.param_groups[0])):
        passes.insert(0, lambda h, t: opt.prepare(h, t, memory))
    for numbers in passes:
        opt._fill(parts, numbers)
        code += [unit.c.parts(unit.dtype, unit.params[0].device)[::2] for unit in parts]
    return code
