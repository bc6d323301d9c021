"""Gradient transforms that any rule can take as `grad_transform=`: one file each, the stem is the name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from hf_optim import validate
from hf_optim.errors import UserError
from hf_optim.rule import Transform


def names() -> list[str]:
    """Names of the transforms of this library."""
    return sorted(f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_"))


def make(given: Any) -> Transform:
    """A transform from an instance, a name, or a mapping such as `{"name": "agr", "steps": 1000}`."""
    if isinstance(given, Transform):
        return given
    spec = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, dict) else {}
    name = spec.pop("name", None)
    if name not in names():
        raise UserError(f"grad_transform {name or given!r} is unknown{validate.closest(str(name), names())}; "
                        f"there are: {', '.join(names())}")
    made = importlib.import_module(f"{__name__}.{name}").TRANSFORM
    validate.unknown(f"grad_transform {name}", spec, inspect.signature(made).parameters)
    return made(**spec)
