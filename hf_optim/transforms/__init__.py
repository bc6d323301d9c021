"""Gradient transforms that any rule can take as `grad_transform=`: one file each, the stem is the name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from hf_optim.core import validate
from hf_optim.core.importing import import_path
from hf_optim.core.rule import Transform
from hf_optim.errors import UserError


def names() -> list[str]:
    """Names of the transforms of this library."""
    return sorted(f.stem for f in Path(__file__).parent.glob("*.py") if not f.stem.startswith("_"))


def make(given: Any) -> Transform:
    """A transform from an instance, a name or import path, or a mapping such as `{"name": "agr", "steps": 1000}`."""
    if isinstance(given, Transform):
        return given
    spec = {"name": given} if isinstance(given, str) else dict(given) if isinstance(given, dict) else {}
    name = spec.pop("name", None)
    if isinstance(name, str) and ":" in name:
        cls = import_path(name)
        if not (isinstance(cls, type) and issubclass(cls, Transform)):
            raise UserError(f"grad_transform {name} is not a hf_optim.Transform class")
    elif name in names():
        cls = importlib.import_module(f"{__name__}.{name}").TRANSFORM
    else:
        raise UserError(
            f"grad_transform {name or given!r} is unknown{validate.closest(str(name), names())}; "
            f"there are: {', '.join(names())}"
        )
    validate.unknown(f"grad_transform {name}", spec, inspect.signature(cls).parameters)
    transform: Transform = cls(**spec)
    return transform
