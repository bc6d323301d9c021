"""The report's summary in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from hf_optim.core.text import html as escape
from hf_optim.study.findings.table import Row, TaskTable, needed_text, plain_number, signed, spread
from hf_optim.study.findings.verdicts import scope
from hf_optim.study.folder.results import Results


def headline(results: Results) -> str:
    """One line: how much was run, and when."""
    plan = results.plan
    ok = sum(1 for r in results.records.values() if r["status"] == "ok")
    failed = len(results.records) - ok
    parts = [
        _count(len(plan.optimizers), "optimizer"),
        _count(len(plan.tasks), "task"),
        _count(len(plan.seeds), "seed"),
        f"{_count(len(plan.runs), 'run')}: {ok} finished" + (f", {failed} failed" if failed else ""),
    ]
    if missing := len(plan.runs) - len(results.records):
        parts.append(f"{missing} not run yet")
    ends = sorted(str(r["finished"])[:10] for r in results.records.values() if r.get("finished"))
    return " · ".join(parts + ([ends[-1]] if ends else []))


def sentences(results: Results, tables: Sequence[TaskTable]) -> list[str]:
    """A sentence or two a task, as HTML; then what the numbers do not allow to say."""
    found = [sentence for one in tables for sentence in _task(one)]
    if len(results.plan.seeds) == 1:
        found.append("With <b>one seed</b> nothing can be said about differences: run at least three.")
    elif any(row.verdict == "undecided" for one in tables for row in one.rows):
        found.append(
            "“Undecided” does not mean equal: this many seeds cannot tell the difference from chance. The tables say "
            "how many could, if the true difference is the one observed."
        )
    if any(row.verdict in ("better", "worse", "equivalent") for one in tables for row in one.rows):
        found.append(escape(scope(tables)))
    return found


def _task(one: TaskTable) -> list[str]:
    ranked = [row for row in one.rows if row.mean.n]
    name = f"<b>{escape(one.task)}</b>"
    if not ranked:
        return [f"{name}: no optimizer has finished all its runs."]
    best = ranked[0]
    word = "highest" if one.greater else "lowest"
    metric = escape(words(one.metric))
    text = f"{name}: {escape(best.optimizer)} has the {word} mean {metric}, {spread(best.mean, one.decimals)}"
    base = next((row for row in one.rows if row.optimizer == one.baseline), None)
    if base is None or not base.mean.n:
        state = base.state if base else "not run"
        text += f"; there is no baseline to compare with ({escape(one.baseline)}: {escape(state)})."
        return [text, *_failed(one)]
    if best is not base:
        text += f" ({escape(one.baseline)}, the baseline: {plain_number(base.mean.mean, one.decimals)})"
    text += "."
    groups = {v: [r for r in one.rows if r.verdict == v] for v in ("better", "worse", "equivalent", "undecided")}
    told = []
    for verdict in ("better", "worse"):
        if groups[verdict]:
            listed = ", ".join(f"{escape(r.optimizer)} ({_difference(r, one)})" for r in groups[verdict])
            told.append(f'<span class="{verdict}">{verdict.capitalize()}</span> than {escape(one.baseline)}: {listed}')
    if groups["equivalent"]:
        listed = ", ".join(f"{escape(r.optimizer)} ({_difference(r, one)})" for r in groups["equivalent"])
        margin = next(r.comparison.margin for r in groups["equivalent"] if r.comparison)
        told.append(f"Equivalent to {escape(one.baseline)} within the stated margin of {margin:g}: {listed}")
    if groups["undecided"]:
        listed = ", ".join(f"{escape(r.optimizer)}{_needed(r)}" for r in groups["undecided"])
        told.append(f"Undecided (in brackets, how many seeds would decide): {listed}")
    text += "".join(f" {part}." for part in told)
    return [text, *_failed(one)]


def _failed(one: TaskTable) -> list[str]:
    failed = [r for r in one.rows if r.failed]
    if not failed:
        return []
    listed = ", ".join(f"{escape(r.optimizer)} ({r.failed} of {r.planned})" for r in failed)
    return [f'<b>{escape(one.task)}</b>: <span class="bad">failed runs</span>: {listed}; no mean, no verdict.']


def _difference(row: Row, one: TaskTable) -> str:
    return signed(row.comparison.difference.mean, one.decimals) if row.comparison else "–"


def _needed(row: Row) -> str:
    text = needed_text(row.comparison)
    return "" if text == "–" else f" ({text})"


def words(metric: str) -> str:
    """A metric's name in a sentence: "test accuracy"."""
    return metric.replace("_", " ")


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
