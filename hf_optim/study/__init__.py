"""A study: a YAML of optimizers x tasks x seeds, expanded, run, tabulated and reported. Everything between is files.

`plan` expands the YAML into run specifications, `launch` executes those without a record, `folder` reads them back,
`statistics` and `findings` compare, `report` draws. Each reads only the files of the one before.

In a notebook: `hf_optim.study.run({...})`, `hf_optim.study.load(folder)`, `@hf_optim.study.training(...)`.
"""

from __future__ import annotations

import importlib
from typing import Any

from hf_optim.core import extras

#: found when first used, so that importing the package imports nothing
FUNCTIONS = {
    "run": "hf_optim.study.api",
    "load": "hf_optim.study.api",
    "Study": "hf_optim.study.api",
    "training": "hf_optim.experiment.own_training",
}


def __getattr__(name: str) -> Any:
    if name in FUNCTIONS:
        with extras.needed(f"hf_optim.study.{name}", "study"):
            return getattr(importlib.import_module(FUNCTIONS[name]), name)
    raise AttributeError(f"module 'hf_optim.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *FUNCTIONS])
