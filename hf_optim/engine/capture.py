"""A step in a CUDA graph: what differs from step to step lies in memory that every replay reads anew.

    for _ in range(3): ...                  # ordinary steps: state, kernels
    with torch.cuda.graph(graph):
        loss = f(model(x)); loss.backward(); optimizer.step(loss=loss)
    for batch in batches:
        x.copy_(batch)
        optimizer.before_replay()           # counts the step, puts its numbers in place
        graph.replay()

Nothing can go up while a graph is recorded, so the tables of a captured step are made before, in an ordinary step
(`prepare`), and their rows say -1: a graph that is replayed without `before_replay` leaves everything alone. Recording
runs the step over those tables (`record`). `renew` goes through the step once more, without launching anything: what
would go up goes into the tables of the graph, and what would be launched must be what was recorded. Ordinary steps and
other graphs have tables of their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import is_
from typing import TYPE_CHECKING, Any

import torch

from hf_optim.core.rule import Rule
from hf_optim.engine.mode import Another, Mode, using
from hf_optim.errors import UserError

if TYPE_CHECKING:
    from hf_optim.engine.step_ahead import Ahead


def capturing() -> bool:
    """Whether what runs now is recorded in a CUDA graph instead of being done."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


class Captured:
    """The tables of one graph, and what was recorded with them.

    Args:
        opt: whose step it is; it has taken one over the same parameters just now.
        loss: of that step.
    """

    def __init__(self, opt: Any, ahead: Ahead, loss: Any) -> None:
        steps = opt._steps
        self._opt, self._ahead, self._tables = opt, ahead, list(steps.tables)
        self._codes: list[dict[Any, Any]] = [{} for _ in self._tables]
        self._places = [(table.addresses, table.version) for table in self._tables]
        self._there: dict[str, torch.Tensor] = {}
        self._recorded: list[Any] = []
        self._active = steps.active
        #: what the graph writes and reads, kept alive
        self._gradients: list[Any] = []
        with self._own(Mode(launches=False, idle=True)):
            steps.again(self._active)
            self._advance(loss)

    def record(self, loss: Any) -> None:
        """Run the step while a graph is recorded: nothing moves, and nothing is counted."""
        opt = self._opt
        opt._steps.begin()
        if not self.fits():
            raise _unprepared(opt)
        if "loss" in opt.needs and not (isinstance(loss, torch.Tensor) and loss.device == self._ahead.device.device):
            raise UserError(f"{opt.rule}: a CUDA graph needs the loss as a tensor on the device: step(loss=loss)")
        if not opt._steps.as_they_come:
            raise UserError(f"{opt.rule}: a CUDA graph needs gradients that are laid out as their parameters")
        self._active = opt._steps.active
        self._gradients = [p.grad for group in opt.param_groups for p in group["params"]]
        self._places = [(table.addresses.clone(), table.version) for table in self._tables]
        with self._own(Mode(uploads="keep", log=self._recorded)):
            try:
                self._advance(loss)
            except Another as e:
                raise _unprepared(opt) from e
        opt._steps.forget_gradients()
        for codes in self._codes:
            for code in codes.values():
                code.forget()

    def renew(self) -> None:
        """Put the numbers of the next step in place, and count it."""
        opt, log = self._opt, []  # type: ignore[var-annotated]
        if not (self.fits() and opt._steps.holds()):
            raise UserError(
                f"{opt.rule}: parameters, state or groups are others than when the graph was captured (a checkpoint "
                "was loaded?): take a step, and capture one again"
            )
        with self._own(Mode(launches=False, uploads="into", log=log)):
            opt._steps.again(self._active)
            try:
                self._advance(self._ahead.device.halt[0])  # any loss: nobody looks at it
                if log != self._recorded:
                    raise Another
            except Another as e:
                raise UserError(
                    f"{opt.rule}: the next step is another one than was captured (another transform, or a "
                    "hyper-parameter that selects code): take a step, and capture one again"
                ) from e
            opt._steps.count()

    def fits(self) -> bool:
        """Whether the tables are still those of the optimizer."""
        tables = self._opt._steps.tables
        return (
            self._opt._ahead is self._ahead and len(tables) == len(self._tables) and all(map(is_, tables, self._tables))
        )

    def _advance(self, loss: Any) -> None:
        self._opt._advance(loss if "loss" in self._opt.needs else None, None)

    @contextlib.contextmanager
    def _own(self, mode: Mode) -> Iterator[None]:
        """With the tables of the graph in the place of those of ordinary steps."""
        device = self._ahead.device
        usual = [(table._codes, table.addresses, table.version) for table in self._tables]
        there, unknown = device.there, self._ahead.unknown
        for table, codes, (addresses, version) in zip(self._tables, self._codes, self._places, strict=True):
            table._codes, table.addresses, table.version = codes, addresses, version
        device.there = self._there
        try:
            with using(mode):
                yield
        finally:
            for table, (codes, addresses, version) in zip(self._tables, usual, strict=True):
                table._codes, table.addresses, table.version = codes, addresses, version
            device.there = there
            if mode.uploads != "into":  # it was no step
                self._ahead.unknown = unknown  # type: ignore[union-attr]


def _unprepared(opt: Any) -> UserError:
    return UserError(f"{opt.rule}: take a few steps before one is captured in a CUDA graph")


def _possible(device: torch.device) -> bool:
    return device.type == "cuda"


def prepare(opt: Any, loss: Any) -> Captured | None:
    """After an ordinary step on a CUDA device: tables for a graph, if this rule's step could be captured."""
    if opt._ahead is None or not _possible(opt._ahead.device.device) or _why_not(opt):
        return None
    return Captured(opt, opt._ahead, loss)


def _why_not(opt: Any) -> str | None:
    """Why a graph cannot hold steps of this optimizer."""
    if not opt.capturable:
        return (
            "its step count chooses what is done with matrices, and a CUDA graph does the same always: capture forward "
            "and backward, and step outside"
        )
    h = opt._hyper(opt.param_groups[0])
    if opt._steps.restarts():
        return "a CUDA graph cannot begin the state anew after so many steps: leave that out"
    if opt.stride(h) > 1:
        return f"a CUDA graph cannot take every {opt.stride(h)}th element of gradients: measure all of them"
    if opt.transform is not None and not opt.transform.blockwise:
        return f"a CUDA graph cannot hold {opt.transform.name}, which makes new gradients"
    if "evaluate" in opt.needs or (opt._on_host is not None and type(opt).control is not Rule.control):
        return "it reads numbers of each step on the host: capture forward and backward, and step outside"
    if opt._ahead is None and opt._steps.tables:
        return f"a captured step needs kernels on a CUDA device, and steps run as: {opt.execution}"
    return None


def record(opt: Any, loss: Any, twin: Captured | None) -> Captured:
    """Record a step over the tables that were prepared for it.

    Raises:
        UserError: a graph cannot hold this step, or nothing was prepared.
    """
    why = _why_not(opt)
    if why is not None:
        raise UserError(f"{opt.rule}: {why}")
    if twin is None or not twin.fits():
        raise _unprepared(opt)
    twin.record(loss)
    return twin


def renew(opt: Any, captured: Captured | None) -> None:
    """Number and count the next replay.

    Raises:
        UserError: no step was captured, or the next one is another than the captured one.
    """
    if captured is None:
        raise UserError(f"{opt.rule}: capture step() in a CUDA graph before it is replayed")
    opt.hear(wait=False)
    if opt._ahead is not None:
        opt._ahead.tell()  # of the last replay
    captured.renew()
