"""A pass without numbers: its shapes and types are those of the real one, and nothing is computed.

What is counted of a pass (operations, bytes kept) does not depend on its numbers, and a pass of a large model on a CPU
takes minutes. A model that looks at its numbers on the way cannot be imagined and makes its pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)

#: parameters from which imagining is faster than the pass: it costs about a second whatever the size
LARGE = 5_000_000
LOOKED = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)

T = TypeVar("T")
Batch = Mapping[str, Any]


def seen(look: Callable[[nn.Module, Batch], T], model: nn.Module, batch: Batch) -> T:
    """`look(copy of the model, batch)` on the CPU in training mode, imagined where the model is large and allows it."""
    copied = copy.deepcopy(model).cpu().train()
    if sum(p.numel() for p in model.parameters()) >= LARGE:
        mode = FakeTensorMode()
        try:
            with FakeCopyMode(mode):
                shadow = copy.deepcopy(copied)
            inputs = {k: mode.from_tensor(v.cpu()) if isinstance(v, Tensor) else v for k, v in batch.items()}
            with mode:
                return look(shadow, inputs)
        except LOOKED:
            pass
    return look(copied, batch)
