"""Other baselines and other metrics: every verdict that the page can show in place, computed beforehand.

The registered question is one pair of baseline and metric. All other pairs are judged here by the same rule, over the
comparisons of one task, and whatever they decide is called exploratory: nobody asked before the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from hf_optim.study.findings import table
from hf_optim.study.findings.table import TaskTable
from hf_optim.study.folder.judgement import judge
from hf_optim.study.folder.outcomes import arms
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.entries import declared

NOT_ASKED = "not the registered question"
#: bytes of all views of a study: a report of 500 runs stays below 2 MB
MOST_BYTES = 450_000
#: bytes of one optimizer in one view, about
ROW_BYTES = 190


def metrics(results: Results, task: Mapping[str, Any], task_table: TaskTable) -> list[str]:
    """The metrics of a task that every finished run has and whose direction is declared; the registered one first."""
    labels = [row.optimizer for row in task_table.rows if row.values]
    records = [r for label in labels for _, r in results.runs(task["label"], label) if r and r["status"] == "ok"]
    shared = set.intersection(*(set(r["metrics"]) for r in records)) if records else set()
    named = [name for name in sorted(shared) if name.startswith("test_") and declared(task, name) is not None]
    return [task_table.metric, *(name for name in named if name != task_table.metric)]


def fitting(results: Results, tables: list[TaskTable]) -> dict[str, tuple[list[str], int]]:
    """By task, which metrics can be shown with every baseline before the page gets too large, and how many cannot; none
    of both: no views.
    """
    left = MOST_BYTES
    kept: dict[str, list[str]] = {task_table.task: [] for task_table in tables}
    if results.standing.judgement is None:
        return {name: ([], 0) for name in kept}
    known = {
        task_table.task: metrics(results, task, task_table)
        for task, task_table in zip(results.plan.tasks, tables, strict=True)
    }
    for number in range(max(map(len, known.values()), default=0)):
        for task_table in tables:
            cost = ROW_BYTES * len(task_table.rows) ** 2
            if number < len(known[task_table.task]) and cost <= left and len(task_table.rows) > 1:
                kept[task_table.task].append(known[task_table.task][number])
                left -= cost
    several = {task_table.task: len(task_table.rows) > 1 for task_table in tables}
    return {name: (some, (len(known[name]) - len(some)) * several[name]) for name, some in kept.items()}


def variants(
    results: Results, task: Mapping[str, Any], registered: TaskTable, names: list[str]
) -> Iterator[tuple[int, TaskTable]]:
    """(number of the metric, table) of every view of a task, baselines in the order of rows; the registered one as it
    stands."""
    judgement = results.standing.judgement
    assert judgement is not None
    looks = [n for n in results.plan.looks if n <= judgement.units]
    called = {row.optimizer: row.named for row in registered.rows}
    runs = tuple(run for run in results.standing.state.runs if run.task == task["label"])
    for number, metric in enumerate(names):
        better = declared(task, metric)
        assert better is not None
        other = {**task, "primary": {"name": metric, "greater_is_better": better[0]}}
        margin = results.plan.margin if metric == registered.metric else None
        plan = dataclasses.replace(results.plan, tasks=(other,), runs=runs, family="tasks", margin=margin)
        outcomes = arms(plan, runs, results.store)
        for baseline in (row.optimizer for row in registered.rows):
            if (metric, baseline) == (registered.metric, registered.baseline):
                yield number, registered
                continue
            asked = dataclasses.replace(plan, baseline=baseline)
            judged = judge(asked, outcomes, looks, results.standing.register)
            compared = {
                key: dataclasses.replace(c, exploratory=(NOT_ASKED, *c.exploratory))
                for key, c in judged.comparisons.items()
            }
            judged = dataclasses.replace(judged, comparisons=compared)
            standing = dataclasses.replace(results.standing, judgement=judged, arms=outcomes)
            (view,) = table.build(dataclasses.replace(results, plan=asked, standing=standing), called)
            yield number, view
