"""What an optimizer says of itself as it is made: once in a run, though a search may make it a thousand times."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import lru_cache

log = logging.getLogger("hf_optim")


@lru_cache(maxsize=4096)
def once(text: str, about: Hashable = None) -> None:
    """Warn of `text`, unless it was said of the same before: `about` tells apart what the text does not. A process that
    makes several runs, each with a log of its own, begins each with `once.cache_clear()`."""
    log.warning("%s", text)
