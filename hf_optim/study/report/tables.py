"""Tables as text: Markdown, CSV and the terminal.

The same records give the same bytes. Times differ between two executions of one study, metrics do not: so times and
memory have files of their own, and a study that was interrupted gives the same result table as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_optim.core import safe_text as safe
from hf_optim.study.findings.cells import cost_text, head, result_cells, spread
from hf_optim.study.findings.table import (
    COSTS,
    FEWER_APART,
    OTHERS,
    TaskTable,
    arrow,
    measured_costs,
    worse_and_tied,
)
from hf_optim.study.folder.outcomes import IN_VAIN
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number

#: over pieces that a paper names without a formula
OURS = "Definitions of our own, where the paper names a piece without a formula:"

if TYPE_CHECKING:
    from rich.console import Console


def markdown(tables: Sequence[TaskTable], title: str) -> str:
    """The result tables as Markdown."""
    lines = [f"# {safe.markdown(title)}", ""]
    for table in tables:
        lines += [
            f"## {safe.markdown(table.task)}{table.suffix}",
            "",
            f"{safe.markdown(table.metric)}, {'higher' if table.greater else 'lower'} is better.",
            "",
        ]
        cells = [result_cells(table, row) for row in table.rows]
        lines += markdown_table([{head(table, key): text for key, text in row.items()} for row in cells])
        shown = [name for name in OTHERS if any(row.others[name].n for row in table.rows)]
        if shown:
            lines += markdown_table(
                [
                    {"optimizer": r.optimizer, **{n: spread(r.others[n], table.decimals_of(n)) for n in shown}}
                    for r in table.rows
                ]
            )
    lines += [tables[0].note, ""] if tables else []
    ours = tables[0].ours if tables else ()
    if ours:
        lines += [OURS, "", *(f"- {safe.markdown(line)}" for line in ours), ""]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table, an empty one last; the first column is set to the left."""
    if not rows:
        return []
    names = list(rows[0])

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(safe.markdown, cells)) + " |"

    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(names))) + "|"
    return [line(names), rule, *(line([row[n] for n in names]) for row in rows), ""]


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.12g}"


def csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV text; floats with twelve digits, NaN as an empty cell."""
    return safe.csv_lines([header, *([_csv_cell(cell) for cell in row] for row in rows)])


def result_csv(tables: Sequence[TaskTable]) -> str:
    """The result tables as CSV: a line an optimizer and task; empty cells where a number does not exist."""
    header = [
        "task", "optimizer", "metric", "greater_is_better", "planned", "finished", "failed", "missing", "mean", "sd",
        "ci_low", "ci_high", "baseline", "units", "difference", "difference_low", "difference_high", "p", "p_corrected",
        "p_better", "p_better_low", "p_better_high", "detectable", "verdict", "first_place", "last_place", "margin",
        "p_equivalent", "p_equivalent_corrected", "failed_units", "failed_units_high", "failed_units_baseline",
        "p_failures", "exploratory", "named",
    ]  # fmt: skip
    header += [f"{name}_{part}" for name in OTHERS for part in ("mean", "sd")]
    rows = []
    for t in tables:
        for r in t.rows:
            c, m = r.comparison, r.mean
            first, last = r.place or ("", "")
            line: list[Any] = [
                t.task, r.optimizer, t.metric, int(t.greater), r.planned, len(r.values), r.failed, r.missing, m.mean,
                m.sd, m.low, m.high, t.baseline,
            ]  # fmt: skip
            if c:
                d = c.difference
                mine, other = c.failures or (None, None)
                line += [
                    c.pairs, d.mean, d.low, d.high, c.p, c.adjusted, c.better, c.better_low, c.better_high,
                    c.detectable, r.verdict, first, last, c.margin, c.p_equivalent, c.adjusted_equivalent,
                    mine.count if mine else "", mine.high if mine else "", other.count if other else "",
                    c.failure_test.adjusted if c.failure_test else math.nan, "; ".join(c.exploratory), r.named,
                ]  # fmt: skip
            else:
                line += [0, *[math.nan] * 9, r.verdict, first, last, *[math.nan] * 3, "", "", "", math.nan, "", r.named]
            line += [x for name in OTHERS for x in (r.others[name].mean, r.others[name].sd)]
            rows.append(line)
    return csv_text(header, rows)


def runs_csv(results: Results) -> str:
    """Every judged run up to the look that is aimed at, and all its metrics, without times."""
    head = ["task", "optimizer", "seed", "id", "status", "error"]
    names = sorted({name for record in results.records.values() for name in record["metrics"]}.difference(head))
    rows = []
    for run in results.plan.runs:
        record = results.records.get(run.id)
        metrics = record["metrics"] if record else {}
        status, error = (record["status"], record.get("error") or "") if record else ("missing", "")
        if run.id in results.in_vain:
            status, error = "failed", IN_VAIN
        rows.append(
            [run.task, run.optimizer, run.seed, run.id, status, error, *(number(metrics.get(n)) for n in names)]
        )
    return csv_text([*head, *names], rows)


def costs_csv(tables: Sequence[TaskTable]) -> str:
    """Medians over seeds of time (ms, s) and memory (bytes)."""
    rows = [[t.task, r.optimizer, *(r.costs[key] for key in COSTS)] for t in tables for r in t.rows]
    return csv_text(["task", "optimizer", *COSTS], rows)


def costs_markdown(tables: Sequence[TaskTable], title: str) -> str:
    """Medians over seeds of time and memory, as Markdown."""
    lines = [f"# {safe.markdown(title)}: time and memory", ""]
    for t in tables:
        keys = measured_costs(t)
        cells = [{"optimizer": r.optimizer, **{COSTS[k][2]: cost_text(k, r.costs[k]) for k in keys}} for r in t.rows]
        lines += [f"## {safe.markdown(t.task)}", "", *markdown_table(cells)]
    lines += ["Medians over seeds. Runs shared the machine, so compare times within this table only.", ""]
    return "\n".join(lines)


def show(tables: Sequence[TaskTable], console: Console) -> None:
    """Prints the result tables; on a narrow terminal the less needed columns go."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    colours = {"better": "green", "worse": "red", "equivalent": "cyan"}  # what is exploratory stays plain
    columns: set[str] = set()
    for table in tables:
        rows = [result_cells(table, row) for row in table.rows]
        heads = {key: head(table, key) for key in (rows[0] if rows else ())}
        for droppable in ("95 % CI", "interval of the difference", "place", "p"):
            width = sum(max(len(text), *(len(row[key]) for row in rows)) + 3 for key, text in heads.items())
            if width > console.width:
                heads.pop(droppable, None)
        columns |= set(heads)
        rich_table = RichTable(
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1),
            title=f"{table.task}: {table.metric}{table.suffix}",
            title_justify="left",
            title_style="bold",
        )
        for key, text in heads.items():
            rich_table.add_column(text, justify="left" if key in ("optimizer", "verdict") else "right", no_wrap=True)
        for row in rows:
            rich_table.add_row(*(Text(row[k], style=colours.get(row[k], "") if k == "verdict" else "") for k in heads))
        console.print(rich_table)
    for line in tables[0].ours if tables else ():
        safe.say(console, f"our definition, not the paper's: {line}")
    if columns:
        console.print(_legend(tables, columns), markup=False, style="dim", highlight=False)


def _legend(tables: Sequence[TaskTable], columns: Collection[str]) -> str:
    """What the columns that were shown mean, where their names do not say it."""
    compared = any(row.comparison for table in tables for row in table.rows)
    told = [f"{arrow(up)}: {'higher' if up else 'lower'} is better" for up in dict.fromkeys(t.greater for t in tables)]
    told += ["±: standard deviation"] if any(row.mean.n > 1 for table in tables for row in table.rows) else []
    told += ["p: after correction for all comparisons and looks"] if compared and "p" in columns else []
    told += ["place: where it can stand, ● may be the best"] if "place" in columns else []
    told += [f"worse and ●: {FEWER_APART}"] if "place" in columns and worse_and_tied(tables) else []
    return f"{'; '.join(told)}."
