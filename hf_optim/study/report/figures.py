"""A study's charts by matplotlib, for a notebook and for a paper."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_optim.core import numerals
from hf_optim.core.safe_text import plot
from hf_optim.core.validate import closest, no_choice
from hf_optim.errors import UserError
from hf_optim.experiment.files import own_folder, whole
from hf_optim.experiment.leftovers import sweep
from hf_optim.study.findings import ladder as ladders
from hf_optim.study.findings import naming
from hf_optim.study.findings.curves import Curve, Histories
from hf_optim.study.findings.spending import AXES
from hf_optim.study.findings.table import TaskTable
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.entries import declared
from hf_optim.study.report import figure_texts as texts
from hf_optim.study.report import ladder_figures
from hf_optim.study.report.pieces import file_name
from hf_optim.study.report.summary import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

log = logging.getLogger("hf_optim")

#: the report's colours, which a colour-blind reader can tell apart, and its dashes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b34a94", "#b88300", "#3a92cd", "#6f6f6f", "#6a4fc0")
DASHES = ("-", "--", ":")
#: inches of a column or a page in what people submit to
WIDTHS = {
    "neurips column": 5.5, "iclr column": 5.5, "icml column": 3.25, "icml page": 6.75, "acl column": 3.03,
    "acl page": 6.3, "ieee column": 3.5, "ieee page": 7.16,
}  # fmt: skip
FORMATS = ("pdf", "svg", "png")
#: letters of a chart's file
LONGEST_NAME = 120
#: charts with a line for each optimizer
ROWS = ("result", "difference")
OVER = {"step": "step", **AXES}


def width_of(text: str) -> float:
    """Inches: a number, or a name such as "icml column". Raises UserError."""
    if text.lower() in WIDTHS:
        return WIDTHS[text.lower()]
    try:
        inches = numerals.number(text)
    except ValueError:
        inches = math.nan
    if not 1 <= inches <= 40:
        near = closest(text, WIDTHS)
        raise UserError(f"--width: inches from 1 to 40, or one of {', '.join(WIDTHS)}; got {text!r}{near}")
    return inches


def draw(
    results: Results,
    tables: Sequence[TaskTable],
    chart: str,
    *,
    task: str | None = None,
    over: str = "step",
    axes: Axes | None = None,
) -> Axes:
    """Draws one chart; see `study.Study.plot`."""
    table = tables[0] if task is None else next((t for t in tables if t.task == task), None)
    if table is None:
        labels = [t.task for t in tables]
        raise UserError(f"no task {task!r}{closest(str(task), labels)}; tasks: {', '.join(labels)}")
    if over not in OVER:
        raise UserError(no_choice("over", over, OVER))
    import matplotlib

    if axes is None:
        from matplotlib import pyplot

        size = (6.4, _height(len(table.rows), 10)) if chart in ROWS else None
        axes = pyplot.subplots(figsize=size, layout="constrained")[1]
    styles = _styles(results)
    with matplotlib.rc_context(texts.PLAIN):
        if chart == "result":
            _result(axes, table, styles, naming.unit(results.plan))
        elif chart in ROWS:
            _difference(axes, table, styles)
        else:
            _curves(axes, results, table, chart, over, styles)
    texts.plain(axes)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _styles(results: Results) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each optimizer."""
    return {o["label"]: (COLOURS[i % 8], DASHES[i // 8 % 3]) for i, o in enumerate(results.plan.optimizers)}


def _height(rows: int, font: float) -> float:
    """Inches of a chart with a line for each row."""
    return rows * font / 72 * 1.9 + 0.6


def _result(axes: Axes, table: TaskTable, styles: dict[str, tuple[str, str]], units: str) -> None:
    for y, row in enumerate(reversed(table.rows)):
        colour = styles[row.optimizer][0]
        axes.plot(list(row.units.values()), [y] * len(row.units), "o", color=colour, alpha=0.45, markersize=3.5)
        if row.mean.n > 1 and not math.isnan(row.mean.low):
            axes.plot([row.mean.low, row.mean.high], [y, y], color=colour)
        axes.plot([row.mean.mean], [y], "|", color=colour, markersize=10, markeredgewidth=2)
    axes.set_yticks(range(len(table.rows)), [plot(row.optimizer) for row in reversed(table.rows)])
    axes.set_ylim(-0.5, len(table.rows) - 0.5)
    texts.below(axes, f"{plot(words(table.metric))}: {units}, mean and 95 % interval")


def _difference(axes: Axes, table: TaskTable, styles: dict[str, tuple[str, str]]) -> None:
    rows = [row for row in reversed(table.rows) if row.comparison and row.comparison.pairs]
    axes.axvline(0, color="0.5", linewidth=0.8)
    for y, row in enumerate(rows):
        assert row.comparison is not None
        d, sure = row.comparison.difference, row.comparison.decided
        axes.plot([d.low, d.high], [y, y], color=styles[row.optimizer][0], alpha=1 if sure else 0.5)
        axes.plot([d.mean], [y], "|", color=styles[row.optimizer][0], markersize=10, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [plot(f"{row.optimizer}: {row.verdict}") for row in rows])
    axes.set_ylim(-0.5, max(len(rows), 1) - 0.5)
    texts.below(axes, plot(f"{words(table.metric)}, paired difference to {table.baseline}{table.suffix}"))


def _curves(
    axes: Axes, results: Results, table: TaskTable, key: str, over: str, styles: dict[str, tuple[str, str]]
) -> None:
    task = next(t for t in results.plan.tasks if t["label"] == table.task)
    histories = Histories(results, task)
    curves = histories.curves(key)
    if not curves:
        near = closest(key, [*ROWS, *sorted(histories.keys())])
        raise UserError(f"nothing was logged under {key!r}{near}: result, difference, or a column of study.curves")
    spent = histories.spent(over) if over != "step" else {}
    if over != "step" and not spent:
        raise UserError(f"over: the histories of this study do not say {OVER[over]}")
    for curve in curves:
        if over != "step" and curve.optimizer not in spent:
            continue
        x = _x(curve, spent.get(curve.optimizer))
        colour, dash = styles[curve.optimizer]
        if curve.failed:
            axes.plot(x, curve.mean, color=colour, linewidth=0.7)
            axes.plot(x[-1:], curve.mean[-1:], "x", color=colour)
            continue
        axes.plot(x, curve.mean, dash, color=colour, label=plot(curve.optimizer))
        axes.fill_between(x, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    values = [v for c in curves if not c.failed for v in (*c.low, *c.high)]
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    axes.set_xlabel(OVER[over])
    axes.locator_params("x", integer=over != "seconds")
    better = declared(task, key)
    axes.set_ylabel(plot(words(key)) + ("" if better is None or key == "train_loss" else " ↑" if better[0] else " ↓"))
    texts.legend(axes)


def _x(curve: Curve, spent: Curve | None) -> list[float]:
    return list(curve.steps) if spent is None else np.interp(curve.steps, spent.steps, spent.mean).tolist()


def _dpi(width: float, height: float) -> float:
    """Dots an inch: 300, or as many as a chart of hundreds of rows can have (matplotlib draws 2^16 in a direction)."""
    return min(300.0, 60_000 / max(width, height))


def _new(folder: Path, name: str, kind: str, written: Sequence[Path]) -> Path:
    """A file of this name, or of one like it where labels that differ (in case, in letters of no ASCII, at their end)
    give the same.
    """
    names = [name[:LONGEST_NAME], *(f"{name[:LONGEST_NAME]}-{n}" for n in range(2, len(written) + 2))]
    return next(path for path in (folder / f"{name}.{kind}" for name in names) if path not in written)


def write_all(
    results: Results,
    tables: Sequence[TaskTable],
    folder: Path,
    below: str = "",
    *,
    kind: str = "pdf",
    width: float = 5.5,
    font: float = 9,
) -> list[Path]:
    """Writes every chart of every task into `folder`, or into the folder `below` it, and gives the files: results,
    differences and curves.

    Args:
        kind: pdf, svg or png.
        width: inches; a chart is as high as its rows need, or 0.62 times as high as wide.
        font: points.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Text stays text, and the same study gives the same bytes.
    settings: Any = {  # matplotlib's own type lists every key
        "font.size": font,
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "0",
        **texts.PLAIN,
    }
    styles = _styles(results)
    curves = 0.62 * width + texts.above(list(styles), width, font)
    charts: list[tuple[str, float, Callable[..., object]]] = []
    for table in tables:
        stem = table.metric.removeprefix("test_")
        for chart in dict.fromkeys([*ROWS, "train_loss", "validation_loss", f"validation_{stem}", "effective_lr"]):
            height = _height(len(table.rows), font) if chart in ROWS else curves
            of_task = partial(draw, results, tables, chart, task=table.task)
            charts.append((file_name(table.task, chart), height, of_task))
    ladder = ladders.build(results)
    if ladder is not None and ladder.points:
        for chart in ladder_figures.CHARTS:
            charts.append((f"ladder-{chart}", curves, partial(ladder_figures.draw, ladder, chart, styles)))
    written: list[Path] = []
    place = own_folder(folder, *([below] if below else []))
    with matplotlib.rc_context(settings), warnings.catch_warnings(record=True) as said:
        for name, height, drawing in charts:
            figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
            try:
                drawing(axes=axes)
            except UserError:  # not logged by this task
                continue
            finally:
                pyplot.close(figure)
            path = _new(place, name, kind, written)
            sweep(place, path.name)
            about = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}[kind]
            with whole(folder, str(path.relative_to(folder))) as file:
                figure.savefig(file, format=kind, dpi=_dpi(*figure.get_size_inches()), metadata=about)
            written.append(path)
    if any("missing from" in str(warning.message) for warning in said):
        log.warning("matplotlib's fonts lack letters of the labels, which are boxes: choose its font.family")
    return written
