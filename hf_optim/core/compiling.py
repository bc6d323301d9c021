"""`torch.compiler.disable` with types: torch's own makes Any of what it decorates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(f: Function) -> Function:
    """f, which torch.compile then calls as it is instead of tracing it."""
    same: Function = torch.compiler.disable(f)  # type: ignore[no-untyped-call]
    return same
