"""What is said once: what an optimizer says of itself as it is made, and why nothing moves at a terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from hf_optim.core.safe_text import terminal

log = logging.getLogger("hf_optim")
#: seconds of silence after which somebody at a terminal is told what is being done
PATIENCE = 2.0


@lru_cache(maxsize=4096)
def once(text: str, about: Hashable = None) -> None:
    """Warn of `text`, unless it was said of the same before: `about` tells apart what the text does not. A process that
    makes several runs, each with a log of its own, begins each with `once.cache_clear()`."""
    log.warning("%s", text)


@contextmanager
def waiting(text: str, busy: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Print `text` to a terminal if what stands within takes longer than `PATIENCE`, once; nothing elsewhere.

    Args:
        busy: whether it is at that still, asked some times a second: the time that counts is that in one go.
    """
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def watch() -> None:
        waited, tick = 0.0, PATIENCE / 8
        while waited < PATIENCE:
            if over.wait(tick):
                return
            waited = waited + tick if busy() else 0.0
        print(terminal(text), file=sys.stderr, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
