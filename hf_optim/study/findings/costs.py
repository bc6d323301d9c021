"""What a step costs: forward and backward passes, and seconds, which are measured and stand apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_optim.core.wording import plural
from hf_optim.study.findings.table import Row, TaskTable


def over_tasks(tables: Sequence[TaskTable], label: str) -> str:
    """What a step costs on every task, in passes alone: seconds are those of a task. Said once where it is the same."""
    said = {t.task: sentence(t, row, timed=False) for t in tables for row in t.rows if row.optimizer == label}
    several = len(set(said.values())) > 1
    return "; ".join(f"on {task} {text}" for task, text in said.items() if text) if several else min(said.values())


def sentence(table: TaskTable, row: Row, timed: bool = True) -> str:
    """What a step of an optimizer and of the baseline cost: "a step costs 3.5 forward and 1 backward pass (...)"; of
    passes that are the same for both, "a step costs the same passes"."""
    base = next((r for r in table.rows if r.baseline), None)
    if base is None or any(math.isnan(side.costs[kind]) for side in (row, base) for kind in ("forward", "backward")):
        return ""
    times = [side.costs["step_ms"] for side in (row, base)]
    took = [f"{t:.3g} ms" if timed and not any(map(math.isnan, times)) else "" for t in times]
    own, its = _passes(row), _passes(base)
    if own == its:
        return "a step costs the same passes" + (f" in {took[0]} ({table.baseline}: {took[1]})" if took[0] else "")
    own, its = (f"{passes} in {time}" if time else passes for passes, time in zip((own, its), took, strict=True))
    return f"a step costs {own} ({table.baseline}: {its})"


def _passes(row: Row) -> str:
    forward, backward = (row.costs[kind] for kind in ("forward", "backward"))
    return f"{forward:.3g} forward and {backward:.3g} backward {plural('pass', backward)}"
