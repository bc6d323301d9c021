"""How a step is done: now, or as what a CUDA graph will do; see `hf_optim.engine.capture`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


class Another(Exception):
    """A step is another one than that for which tables were prepared."""


@dataclass(frozen=True)
class Mode:
    """What launches and uploads do."""

    #: whether kernels are launched
    launches: bool = True
    #: "new" puts numbers into new tensors, "keep" leaves those that are there as they are, "into" writes into them
    uploads: str = "new"
    #: rows are -1: whatever runs with these tables does nothing
    idle: bool = False
    #: what was launched, in its order
    log: list[Any] | None = None


_mode: ContextVar[Mode | None] = ContextVar("mode", default=None)


def mode() -> Mode:
    """The mode in force."""
    return _mode.get() or Mode()


@contextlib.contextmanager
def using(wanted: Mode) -> Iterator[None]:
    """Another mode within a `with` statement."""
    token = _mode.set(wanted)
    try:
        yield
    finally:
        _mode.reset(token)
