"""Any paper's optimizer in your Hugging Face run with one line, and an honest testbed that tells whether it is better.

Importing this package imports nothing else; names are found when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_optim.hub import Session as Session
    from hf_optim.hub import attach as attach
    from hf_optim.hub import factory as factory
    from hf_optim.registry import create as create
    from hf_optim.registry import info as info
    from hf_optim.registry import list_optimizers as list_optimizers

__version__ = "0.1.0"

_FUNCTIONS = {
    "create": "hf_optim.registry",
    "list_optimizers": "hf_optim.registry",
    "info": "hf_optim.registry",
    "attach": "hf_optim.hub",
    "factory": "hf_optim.hub",
    "Session": "hf_optim.hub",
    "Optimizer": "hf_optim.bases.optimizer",
    "Transform": "hf_optim.core.rule",
    "Wrapper": "hf_optim.bases.wrapper",
    "UserError": "hf_optim.errors",
    "MissingLoss": "hf_optim.errors",
    "BadLoss": "hf_optim.errors",
    "BadCheckpoint": "hf_optim.errors",
}


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name[:1].isupper():
        from hf_optim.registry import classes

        found = classes().get(name)
        if found is not None:
            return getattr(importlib.import_module(found[0]), found[1])
    raise AttributeError(f"module 'hf_optim' has no attribute {name!r}")


def __dir__() -> list[str]:
    from hf_optim.registry import classes

    return sorted([*globals(), *_FUNCTIONS, *classes()])
