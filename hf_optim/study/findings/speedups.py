"""How much faster than the baseline, where the study runs the baseline at several budgets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_optim.core.numerals import decimal
from hf_optim.core.wording import counted
from hf_optim.study.findings import spending
from hf_optim.study.folder.outcomes import Arm, arms
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.plan import Run
from hf_optim.study.statistics.speedup import SpeedUp, invert


@dataclass(frozen=True)
class Row:
    """The factor of one optimizer on one task: how many times the budget, in `unit`, the baseline needs to do as well.
    `short` counts the runs of both that their steps ended before their passes or seconds were spent.
    """

    task: str
    optimizer: str
    factor: SpeedUp
    unit: str = "steps"
    short: int = 0


def speedups(results: Results) -> list[Row]:
    """Every optimizer on every task, from the units whose runs at all budgets have a record.

    A failed run counts as the worst finished one of the two arms, at whatever budget.
    """
    plan, now = results.plan, results.standing.state
    if plan.speedup is None or not now.budgets:
        return []
    budgets = list(plan.speedup["budgets"])
    runs: dict[float, list[Run]] = {budget: [] for budget in budgets if budget != 1}
    for budgeted in now.budgets:
        runs[budgeted.budget].append(budgeted.run)
    at = {budget: arms(plan, some, results.store) for budget, some in runs.items()}
    unit = str(plan.speedup.get("in", "steps"))
    # A task without the baseline has nothing to be faster than, and need not say how much of the unit its runs have.
    tasks = {task["label"]: task for task in plan.tasks if plan.baseline in task["only"]}
    every = [*now.runs, *(budgeted.run for budgeted in now.budgets)] if unit != "steps" else []
    ended = Counter((run.task, run.optimizer) for run in every if run.task in tasks and _unspent(results, run, unit))
    rows = []
    for task in tasks.values():
        key = task["label"], plan.baseline
        base = {b: results.standing.arms.get(key, Arm()) if b == 1 else at[b].get(key, Arm()) for b in budgets}
        for label in task["only"]:
            if label != plan.baseline:
                other = results.standing.arms.get((task["label"], label), Arm())
                speedup = factor(task, base, other, plan.per_unit)
                short = ended[key] + ended[task["label"], label]
                rows.append(Row(task["label"], label, speedup, unit, short))
    return rows


def _unspent(results: Results, run: Run, unit: str) -> bool:
    """Whether a finished run left some of its passes or seconds, as its steps were over before."""
    record = results.store.record(run.id) or {}
    time = record.get("time") or {}
    spent = number(time.get("train_seconds")) if unit == "seconds" else spending.spent(time, unit)
    return record.get("status") == "ok" and spent < 0.99 * float(run.spec["overrides"][unit])


def factor(task: Mapping[str, Any], base: Mapping[float, Arm], other: Arm, per_unit: int) -> SpeedUp:
    """How much faster `other` is than the baseline, whose arms stand by budget, in units of the other's, ascending."""
    greater = bool(task["primary"]["greater_is_better"])
    units = [u for u in other.values if all(u in arm.values for arm in base.values())]
    every = [v for arm in (*base.values(), other) for u in units for v in arm.values[u] if not math.isnan(v)]
    worst = (min if greater else max)(every, default=math.nan)

    def value(arm: Arm, unit: int) -> float:
        runs = [worst if math.isnan(v) else v for v in arm.values[unit]]
        return math.fsum(runs) / len(runs) * (1 if greater else -1)

    curves = np.array([[value(arm, u) for arm in base.values()] for u in units]).reshape(len(units), len(base))
    least = max(arm.grain for arm in (*base.values(), other)) / 2 / math.sqrt(per_unit)
    return invert(curves, [value(other, u) for u in units], list(base), least)


def said(row: Row) -> str:
    """The factor as text, and what limits it."""
    if not row.short:
        return text(row.factor)
    return f"{text(row.factor)} (steps ended {counted(row.short, 'run')} before the {row.unit}: give more steps)"


def text(factor: SpeedUp) -> str:
    """1.40 [1.20, 1.71]; "more than" and "less than" at ends that the budgets leave open."""
    if factor.n < 2:
        return "–"
    if factor.low == factor.most or factor.high == factor.least:
        return f"more than {factor.most:.3g}" if factor.low == factor.most else f"less than {factor.least:.3g}"
    low = f"less than {factor.least:.3g}" if math.isnan(factor.low) else decimal(factor.low, 2)
    high = f"more than {factor.most:.3g}" if math.isnan(factor.high) else decimal(factor.high, 2)
    value = "–" if math.isnan(factor.value) else decimal(factor.value, 2)
    return f"{value} [{low}, {high}]"
