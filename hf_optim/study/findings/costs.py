"""What a step costs: forward and backward passes, and seconds, which are measured and stand apart."""

from __future__ import annotations

import math

from hf_optim.study.findings.table import Row, TaskTable


def sentence(table: TaskTable, row: Row) -> str:
    """What a step of an optimizer and of the baseline cost: "a step costs 3.5 forward and 1 backward passes (...)"."""
    base = next((r for r in table.rows if r.baseline), None)
    if base is None or math.isnan(row.costs["forward"]) or math.isnan(base.costs["forward"]):
        return ""
    times = [side.costs["step_ms"] for side in (row, base)]
    timed = [f" in {t:.3g} ms" if not any(map(math.isnan, times)) else "" for t in times]
    return f"a step costs {_passes(row)}{timed[0]} ({table.baseline}: {_passes(base)}{timed[1]})"


def _passes(row: Row) -> str:
    forward, backward = (row.costs[kind] for kind in ("forward", "backward"))
    return f"{forward:.3g} forward and {backward:.3g} backward passes"
