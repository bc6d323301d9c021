"""Ctrl-C while a step is taken: nearly all of a step is one call into a kernel, after which Python raises what came
meanwhile. Parameters would have moved, and their step not be counted.
"""

from __future__ import annotations

import _signal  # what `signal` wraps in enumerations, which takes longer than the rest of a small step
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def _main() -> bool:
    """Whether this is the thread that signals are for."""
    return threading.current_thread() is threading.main_thread()


class Uninterrupted:
    """Within the block a KeyboardInterrupt waits for its end. A handler of SIGINT that is not Python's own stays."""

    def __enter__(self) -> None:
        self._came = False
        ours = _main() and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
        self._before = _signal.signal(_signal.SIGINT, self.note) if ours else None

    def note(self, *_: object) -> None:
        self._came = True

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            _signal.signal(_signal.SIGINT, self._before)
            if self._came:
                raise KeyboardInterrupt


def interruptible(f: Function) -> Function:
    """f, which runs a model and may never end: a KeyboardInterrupt waits for no `Uninterrupted` meanwhile."""

    @functools.wraps(f)
    def asked(*args: Any, **kwargs: Any) -> Any:
        waiting = _signal.getsignal(_signal.SIGINT) if _main() else None
        if getattr(waiting, "__func__", None) is not Uninterrupted.note:
            return f(*args, **kwargs)
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
        try:
            return f(*args, **kwargs)
        finally:
            _signal.signal(_signal.SIGINT, waiting)

    return asked  # type: ignore[return-value]


def uninterrupted(step: Function) -> Function:
    """A wrapper's `step`, `Uninterrupted` but for its closure and evaluations."""

    @functools.wraps(step)
    def whole(self: Any, closure: Any = None, *, loss: Any = None, evaluate: Any = None) -> Any:
        given = [interruptible(f) if callable(f) else f for f in (closure, evaluate)]
        with Uninterrupted():
            return step(self, given[0], loss=loss, evaluate=given[1])

    return whole  # type: ignore[return-value]
