"""What a run has spent by a row of its history: steps, passes, operations, seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_optim.study.folder.store import number

#: beside steps: what can be spent, and its name. Passes are forward and backward ones together; operations are known
#: where a pass could be counted; seconds are measured, and stand apart
KINDS = {"passes": "passes", "flops": "floating-point operations", "seconds": "seconds of training"}

#: what a curve can stand over in place of steps, as an axis names it
AXES = {"passes": "forward and backward passes", "tokens": "tokens", "flops": "FLOPs", "seconds": "seconds of training"}


def spent(row: Mapping[str, Any], kind: str) -> float:
    """How much of it, "step" or one of KINDS, was spent when the row was logged; NaN where the row does not say."""
    if kind == "passes":
        return number(row.get("forward_passes")) + number(row.get("backward_passes"))
    return number(row.get(kind))
