"""A study's result as a paper's table: an optimizer a row, a task a column, in LaTeX (booktabs), Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.core import safe_text as safe
from hf_optim.study.findings.table import Row, TaskTable
from hf_optim.study.report.summary import words
from hf_optim.study.statistics.paired import Summary

FORMATS = ("latex", "markdown", "csv")
#: what stands behind a number for a verdict against the baseline
MARKS = {"better": ("†", r"\dagger"), "worse": ("‡", r"\ddagger"), "equivalent": ("§", r"\S")}


@dataclass(frozen=True)
class Cell:
    """One optimizer on one task: mean and deviation as texts, whether it has the best mean, whether it may be the best,
    its verdict, and its name as a verdict gives it.
    """

    mean: str
    deviation: str
    best: bool = False
    tied: bool = False
    verdict: str = ""
    note: str = ""
    named: str = ""


def digits(summary: Summary) -> int | None:
    """The decimals that a mean and its deviation are good for: one figure of the deviation, two where it begins with
    1; None without a deviation.
    """
    if summary.n < 2 or not summary.sd > 0:
        return None
    leading, exponent = f"{summary.sd:.0e}".split("e")  # rounded first: 0.096 is 0.1
    return max(0, -int(exponent) + (leading == "1"))


def cells(table: TaskTable) -> dict[str, Cell]:
    """The column of a task, by optimizer. One number of decimals serves the whole column: that of its widest need."""
    known = [d for row in table.rows if (d := digits(row.mean)) is not None]
    decimals = max(known) if known else table.decimals
    whole = [row for row in table.rows if row.mean.n and not row.failed]
    best = (max if table.greater else min)((row.mean.mean for row in whole), default=math.nan)
    return {row.optimizer: _cell(row, decimals, best) for row in table.rows}


def _cell(row: Row, decimals: int, best: float) -> Cell:
    if not row.mean.n:
        return Cell("–", "", note=row.state, named=row.named)
    deviation = f"{row.mean.sd:.{decimals}f}" if row.mean.n > 1 else ""
    c = row.comparison
    verdict = c.verdict if c is not None and c.decided and not c.exploratory else ""
    leads = not row.failed and row.mean.mean == best
    return Cell(
        f"{row.mean.mean:.{decimals}f}", deviation, leads, row.tied and not leads, verdict, row.state, row.named
    )


def _labels(tables: Sequence[TaskTable]) -> list[str]:
    return list(dict.fromkeys(row.optimizer for table in tables for row in table.rows))


def legend(tables: Sequence[TaskTable]) -> list[str]:
    """What the marks mean, as sentences; only those that are used."""
    every = [cell for table in tables for cell in cells(table).values()]
    used = {cell.verdict for cell in every}
    said = ["Mean and standard deviation; the best mean of a column is bold."]
    if any(cell.tied for cell in every):
        said.append("Underlined: may be the best too, by tests of all pairs.")
    named = [f"{MARKS[word][0]} {word}" for word in MARKS if word in used]
    if named:
        said.append(f"{', '.join(named)}: against {tables[0].baseline}, by the paired test of the study.")
    if tables[0].suffix:
        said.append("Verdicts hold with these settings.")
    if any(cell.note for cell in every):
        said.append("Runs that failed are in no mean.")
    return said


def latex(tables: Sequence[TaskTable]) -> str:
    r"""A tabular for `\usepackage{booktabs}`; its legend stands above it as a comment, to be put into the caption."""
    columns = [cells(table) for table in tables]
    head = [safe.latex(table.task) for table in tables]
    under = [f"{safe.latex(words(table.metric))} {_arrow(table, True)}" for table in tables]
    lines = [
        *(f"% {safe.line(_ascii(sentence))}" for sentence in legend(tables)),
        rf"\begin{{tabular}}{{l{'r' * len(tables)}}}",
        r"\toprule",
        " & ".join(["", *head]) + r" \\",
        " & ".join(["Optimizer", *under]) + r" \\",
        r"\midrule",
    ]
    for label in _labels(tables):
        lines.append(" & ".join([safe.latex(label), *(_latex(column.get(label)) for column in columns)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _ascii(sentence: str) -> str:
    for sign, command in MARKS.values():
        sentence = sentence.replace(sign, f"${command}$")
    return sentence


def _latex(cell: Cell | None) -> str:
    if cell is None or cell.mean == "–":
        return "--"
    number = rf"\mathbf{{{cell.mean}}}" if cell.best else rf"\underline{{{cell.mean}}}" if cell.tied else cell.mean
    spread = rf" \pm {cell.deviation}" if cell.deviation else ""
    mark = f"^{{{MARKS[cell.verdict][1]}}}" if cell.verdict else ""
    failed = rf"\textsuperscript{{{safe.latex(cell.note.split()[0])} failed}}" if cell.note else ""
    return f"${number}{spread}{mark}${failed}"


def markdown(tables: Sequence[TaskTable]) -> str:
    """The same as Markdown, with its legend below."""
    columns = [cells(table) for table in tables]
    head = ["optimizer", *(f"{safe.markdown(table.task)}, {words(table.metric)} {_arrow(table)}" for table in tables)]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * len(tables) + "|"]
    for label in _labels(tables):
        lines.append("| " + " | ".join([safe.markdown(label), *(_markdown(c.get(label)) for c in columns)]) + " |")
    return "\n".join([*lines, "", " ".join(legend(tables)), ""])


def _markdown(cell: Cell | None) -> str:
    if cell is None or cell.mean == "–":
        return "–"
    number = f"**{cell.mean}**" if cell.best else f"<u>{cell.mean}</u>" if cell.tied else cell.mean
    mark = MARKS[cell.verdict][0] if cell.verdict else ""
    return number + (f" ± {cell.deviation}" if cell.deviation else "") + mark + (f" ({cell.note})" if cell.note else "")


def _arrow(table: TaskTable, tex: bool = False) -> str:
    if tex:
        return r"$\uparrow$" if table.greater else r"$\downarrow$"
    return "↑" if table.greater else "↓"


def csv(tables: Sequence[TaskTable]) -> str:
    """The same as CSV: a line an optimizer and task, with the marks as words."""
    head = ["optimizer", "task", "metric", "mean", "sd", "best", "tied", "verdict", "note", "named"]
    lines: list[list[str]] = [head]
    for table in tables:
        for label, cell in cells(table).items():
            mean = "" if cell.mean == "–" else cell.mean
            marks = ["yes" if mark else "no" for mark in (cell.best, cell.tied)]
            lines.append(
                [label, table.task, table.metric, mean, cell.deviation, *marks, cell.verdict, cell.note, cell.named]
            )
    return safe.csv_lines(lines)
