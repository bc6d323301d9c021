"""A study's result as a paper's table: an optimizer a row, a task a column, in LaTeX (booktabs), Markdown and CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.core import safe_text as safe
from hf_optim.core.numerals import decimal
from hf_optim.core.wording import either
from hf_optim.study.findings.table import EXPLORATORY, FEWER_APART, Row, TaskTable, arrow, worse_and_tied
from hf_optim.study.report.summary import words
from hf_optim.study.statistics.paired import ROUNDING, Summary

FORMATS = ("latex", "markdown", "csv")
#: what stands behind a number for a verdict against the baseline, as text and in LaTeX; in brackets where exploratory
MARKS = {"better": ("†", r"\dagger"), "worse": ("‡", r"\ddagger"), "equivalent": ("§", r"\S")}
#: the report's own mark of those that may be the best
MAY_BE_BEST = ("●", r"\bullet")
#: what a number without a mark of a verdict may be; none of them is a tie
UNMARKED = {
    "undecided": "undecided, which is no tie",
    "described": "judged by the score over all tasks",
    "no verdict": "no verdict",
    "not yet": "not judged yet",
}


@dataclass(frozen=True)
class Cell:
    """One optimizer on one task: mean and deviation as texts and of how many units, whether it has the best mean,
    whether it may be the best (None: that was not asked), its verdict as the report says it, and its name as a verdict
    gives it.
    """

    mean: str
    deviation: str
    n: int = 0
    best: bool = False
    may_be_best: bool | None = None
    verdict: str = ""
    note: str = ""
    named: str = ""

    @property
    def word(self) -> str:
        """The verdict alone, whether exploratory or not."""
        return self.verdict.removesuffix(EXPLORATORY)

    def marks(self, latex: bool = False) -> str:
        """The marks behind the number."""
        given = [MAY_BE_BEST[latex]] if self.may_be_best else []
        if self.word in MARKS:
            mark = MARKS[self.word][latex]
            given.append(mark if self.word == self.verdict else f"({mark})")
        return "".join(given)


def digits(summary: Summary) -> int | None:
    """The decimals that a mean and its deviation are good for: one figure of the deviation, two where it begins with
    1; None without a deviation.
    """
    if summary.n < 2 or not summary.sd > ROUNDING * abs(summary.mean):
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
    return Cell(
        decimal(row.mean.mean, decimals),
        decimal(row.mean.sd, decimals) if row.mean.n > 1 else "",
        row.mean.n,
        not row.failed and math.isclose(row.mean.mean, best, rel_tol=ROUNDING),
        row.tied if row.place else None,
        "baseline" if row.baseline else row.verdict,
        row.state,
        row.named,
    )


def _labels(tables: Sequence[TaskTable]) -> list[str]:
    return list(dict.fromkeys(row.optimizer for table in tables for row in table.rows))


def _named(label: str, tables: Sequence[TaskTable]) -> str:
    return f"{label} (baseline)" if label == tables[0].baseline else label


def legend(tables: Sequence[TaskTable]) -> list[str]:
    """What the table shows and what its marks mean, as sentences; only those that are used."""
    every = [cell for table in tables for cell in cells(table).values() if cell.n]
    counts = sorted({cell.n for cell in every})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    unit = tables[0].unit if counts[-1:] != [1] else tables[0].unit.removesuffix("s")
    spread = "mean ± standard deviation" if any(cell.deviation for cell in every) else "mean"
    ways = " ".join(
        f"{arrow(greater)} {'higher' if greater else 'lower'} is better."
        for greater in {t.greater: None for t in tables}
    )
    among = ", of optimizers without a failed run," if any(row.failed for table in tables for row in table.rows) else ""
    said = [f"Each number is the {spread} over n = {n} {unit}. {ways} The best mean of a column{among} is bold."]
    if any(cell.may_be_best for cell in every):
        said.append(f"{MAY_BE_BEST[0]} may be the best, as far as paired tests of all pairs tell.")
    if worse_and_tied(tables):
        said.append(f"What is {MARKS['worse'][0]} may have {MAY_BE_BEST[0]}: {FEWER_APART}.")
    used = {cell.word for cell in every}
    named = [f"{MARKS[word][0]} {word}" for word in MARKS if word in used]
    against = f"against {tables[0].baseline}, by the paired test of the study"
    bare = [text for word, text in UNMARKED.items() if word in used]
    if named:
        said.append(f"{', '.join(named)} {against}.")
    if bare:
        kind = "such " if named else "other " if any(cell.may_be_best for cell in every) else ""
        said.append(f"No {kind}mark: {either(bare)}{'' if named else f' ({against})'}.")
    if any(cell.word != cell.verdict for cell in every):
        said.append("In brackets: exploratory.")
    if tables[0].suffix:
        said.append("Verdicts hold with these settings.")
    if any(cell.note for cell in every):
        said.append("Runs that failed are in no mean.")
    return said


def latex(tables: Sequence[TaskTable]) -> str:
    r"""A tabular for `\usepackage{booktabs}`, and below it, as wide as the column, what its marks mean."""
    columns = [cells(table) for table in tables]
    head = [safe.latex(table.task) for table in tables]
    under = [f"{safe.latex(words(table.metric))} {_signs(table.arrow)}" for table in tables]
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(tables)}}}",
        r"\toprule",
        " & ".join(["", *head]) + r" \\",
        " & ".join(["Optimizer", *under]) + r" \\",
        r"\midrule",
    ]
    for label in _labels(tables):
        lines.append(
            " & ".join([safe.latex(_named(label, tables)), *(_latex(column.get(label)) for column in columns)]) + r" \\"
        )
    lines += [
        r"\bottomrule",
        r"\end{tabular}",
        "",
        r"\smallskip",
        r"\noindent\begin{minipage}{\linewidth}\footnotesize",
    ]
    lines += [_signs(safe.latex(sentence)) for sentence in legend(tables)]
    return "\n".join([*lines, r"\end{minipage}", ""])


#: signs of the legend and the heads, which LaTeX writes as formulas
SIGNS = {**dict(MARKS.values()), MAY_BE_BEST[0]: MAY_BE_BEST[1], "±": r"\pm", "↑": r"\uparrow", "↓": r"\downarrow"}


def _signs(text: str) -> str:
    for sign, command in SIGNS.items():
        text = text.replace(sign, f"${command}$")
    return text


def _latex(cell: Cell | None) -> str:
    if cell is None or not cell.n:
        return "--"
    number = rf"\mathbf{{{cell.mean}}}" if cell.best else cell.mean
    spread = rf" \pm {cell.deviation}" if cell.deviation else ""
    marks = f"^{{{given}}}" if (given := cell.marks(latex=True)) else ""
    failed = rf"\textsuperscript{{{safe.latex(cell.note.split()[0])} failed}}" if cell.note else ""
    return f"${number}{spread}{marks}${failed}"


def markdown(tables: Sequence[TaskTable]) -> str:
    """The same as Markdown, with its legend below."""
    columns = [cells(table) for table in tables]
    head = ["optimizer", *(safe.markdown(f"{table.task}, {words(table.metric)} {table.arrow}") for table in tables)]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * len(tables) + "|"]
    for label in _labels(tables):
        lines.append(
            "| "
            + " | ".join([safe.markdown(_named(label, tables)), *(_markdown(c.get(label)) for c in columns)])
            + " |"
        )
    return "\n".join([*lines, "", " ".join(map(safe.markdown, legend(tables))), ""])


def _markdown(cell: Cell | None) -> str:
    if cell is None or not cell.n:
        return "–"
    number = f"**{cell.mean}**" if cell.best else cell.mean
    marks = f" {given}" if (given := cell.marks()) else ""
    return (
        number + (f" ± {cell.deviation}" if cell.deviation else "") + marks + (f" ({cell.note})" if cell.note else "")
    )


def csv(tables: Sequence[TaskTable]) -> str:
    """The same as CSV: a line an optimizer and task, with the marks as words, those of the report. `may_be_best` is
    empty where no tests of all pairs were made.
    """
    head = ["optimizer", "task", "metric", "better_is", "n", "mean", "sd", "best", "may_be_best", "verdict", "note"]
    lines: list[list[str]] = [[*head, "named"]]
    for table in tables:
        for label, cell in cells(table).items():
            mean = cell.mean if cell.n else ""
            way = "higher" if table.greater else "lower"
            marks = ["" if mark is None else "yes" if mark else "no" for mark in (cell.best, cell.may_be_best)]
            given = [label, table.task, table.metric, way, f"{cell.n}", mean, cell.deviation, *marks, cell.verdict]
            lines.append([*given, cell.note, cell.named])
    return safe.csv_lines(lines)
