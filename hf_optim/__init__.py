"""Any paper's optimizer in your Hugging Face run with one line, and an honest testbed that tells whether it is better.

Importing this package imports nothing else; names are found when they are first used. `__init__.pyi` tells them to
editors and type checkers.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: what there is beside the optimizers' classes -> where it is defined
FUNCTIONS = {
    "create": "hf_optim.registry",
    "list_optimizers": "hf_optim.registry",
    "info": "hf_optim.registry",
    "attach": "hf_optim.hub",
    "factory": "hf_optim.hub",
    "Session": "hf_optim.hub",
    "Monitor": "hf_optim.hub",
    "Callback": "hf_optim.hub",
    "Optimizer": "hf_optim.bases.optimizer",
    "Transform": "hf_optim.core.rule",
    "Wrapper": "hf_optim.bases.wrapper",
    "UserError": "hf_optim.errors",
    "MissingLoss": "hf_optim.errors",
    "BadLoss": "hf_optim.errors",
    "BadCheckpoint": "hf_optim.errors",
}
#: packages that are found without an import of their own
PACKAGES = ("check", "metrics", "study")


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted([*FUNCTIONS, *_classes()])
    if name in FUNCTIONS:
        return getattr(importlib.import_module(FUNCTIONS[name]), name)
    if name in PACKAGES:
        return importlib.import_module(f"hf_optim.{name}")
    if name[:1].isupper() and (home := _classes().get(name)):
        return getattr(importlib.import_module(home[0]), home[1])
    raise AttributeError(f"module 'hf_optim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTIONS, *PACKAGES, *_classes()])


def _classes() -> dict[str, tuple[str, str]]:
    return importlib.import_module("hf_optim.registry").classes()  # type: ignore[no-any-return]
