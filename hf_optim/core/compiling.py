"""torch's own mark of what torch.compile must not trace, with types: torch's makes Any of what it decorates."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(f: Function) -> Function:
    """f, which torch.compile then calls as it is instead of tracing it.

    As torch marks its own optimizers' methods: `torch.compiler.disable` would import the compiler, 2 s, into every
    process that imports us, whether it compiles or not."""
    same: Function = torch._disable_dynamo(f)  # type: ignore[assignment]
    return same


_MARKED = uncompiled(lambda: None).__code__


def unmarked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method without torch's mark, for where nothing is traced: calling a marked one imports the compiler, too."""
    function = getattr(method, "__func__", None)
    if getattr(function, "__code__", None) is not _MARKED:
        return method
    return functools.partial(function.__wrapped__, method.__self__)  # type: ignore[union-attr, attr-defined]
