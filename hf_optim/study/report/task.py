"""The report's section on one task: the result under every baseline and metric, the curves, the costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.core.safe_text import html as escape
from hf_optim.core.wording import counted
from hf_optim.study.findings import naming, table
from hf_optim.study.findings.cells import cost_text, head, headed, result_cells, spread
from hf_optim.study.findings.curves import Curve, Histories
from hf_optim.study.findings.spending import AXES
from hf_optim.study.findings.table import COSTS, Row, TaskTable
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.entries import declared, is_share
from hf_optim.study.report import charts, differs, forest, recipe, sections, views
from hf_optim.study.report.pieces import figure, file_name, html_table, name_cell, scroll, swatch
from hf_optim.study.report.summary import words

#: what a reader looks for first stands first, behind the name; of all columns these alone change with the baseline
FRONT = ("verdict", "metric", "difference", "interval of the difference", "p", "P(better)")
#: how many places of a curve say where a step stands on another axis
KNOTS = 13
#: characters of all curves of single seeds in a report, about
SINGLES = 260_000


def section(
    results: Results,
    task: Mapping[str, Any],
    task_table: TaskTable,
    styles: Mapping[str, str],
    name: str,
    metrics: Sequence[str],
    dropped: int = 0,
) -> tuple[str, dict[str, Any]]:
    """The section as HTML, and the data to show it differently; `name` is the task's own among the page's anchors and
    files, `metrics` are those to choose from, and so many were `dropped` for the size of the page.
    """
    data: dict[str, Any] = {"columns": _columns(task_table), "metrics": []}
    marks = _forest(results, task, task_table, task_table)
    parts = [
        f'<section class="task" id="{anchor(name)}" data-task="{name}" aria-labelledby="{anchor(name)}-title">',
        f'<h2 id="{anchor(name)}-title">{escape(task_table.task + task_table.suffix)}</h2>',
        f'<p class="facts">{escape(recipe.line(results, task))}</p>',
    ]
    if marks:
        parts.append(_controls(task_table, metrics) + _too_many(results, dropped))
        rows, left, right = marks
        drawing = scroll(forest.draw(rows, left, right, styles), f"{task_table.task}: the plot of the result")
        parts.append(figure("Result", "", drawing, f"{name}-result"))
    parts.append(_result_table(task_table, styles))
    for number, view in views.variants(results, task, task_table, list(metrics)) if metrics else ():
        shared, own = _view(results, task, task_table, view)
        if number == len(data["metrics"]):
            data["metrics"].append(shared)
        data["metrics"][number]["bases"].append(own)
    charts_, data["axes"] = _curves(results, task, task_table, styles, name)
    parts.append(charts_)
    parts.append(
        f'<div class="more">{_others(task, task_table, styles)}{_costs(task_table, styles)}</div>'
        f"{differs.on_task(results, task)}{sections.extra(results, task, task_table)}"
        f"{sections.samples(results, task)}</section>"
    )
    return "".join(parts), data


def anchor(name: str) -> str:
    """The place of a task's section."""
    return f"task-{name}"


# --- the result ------------------------------------------------------------------------------------------------------


def _controls(task_table: TaskTable, metrics: Sequence[str]) -> str:
    """What the page can change in place, said to be exploratory where it is."""
    if not metrics:
        return ""
    against = "".join(
        f'<option value="{i}"{" selected" if r.optimizer == task_table.baseline else ""}>{escape(r.optimizer)}</option>'
        for i, r in enumerate(task_table.rows)
    )
    judged = "".join(
        f'<option value="{i}"{" selected" if name == task_table.metric else ""}>{escape(words(name))}</option>'
        for i, name in enumerate(metrics)
    )
    return (
        f'<p class="controls"><label>against <select data-set="baseline">{against}</select></label>'
        f'<label>judged by <select data-set="metric">{judged}</select></label>'
        '<span class="asked" role="status" hidden>Exploratory: the registered question is against '
        f"{escape(task_table.baseline)} by {escape(words(task_table.metric))}. "
        '<button type="button">back to it</button></span></p>'
    )


def _too_many(results: Results, dropped: int) -> str:
    if not dropped:
        return ""
    some = f"{counted(dropped, 'further metric')} cannot be chosen here"
    return (
        f'<p class="soft">{some}, since the page would get too large: '
        "<code>hf-optim results</code> has them, and so has runs.csv.</p>"
    )


def _cells(view: TaskTable, row: Row) -> dict[str, str]:
    """The cells of a row, those that are read first in front."""
    cells = {**result_cells(view, row), "P(better)": _win_rate(row)}
    return {key: cells[key] for key in dict.fromkeys(("optimizer", *FRONT, *cells))}


def _heads(view: TaskTable, keys: Sequence[str]) -> list[str]:
    return [words(head(view, key)) if key == "metric" else head(view, key) for key in keys]


def _columns(task_table: TaskTable) -> list[str]:
    return list(_cells(task_table, task_table.rows[0])) if task_table.rows else []


def _kind(row: Row, text: str) -> str:
    kinds = {"better": "better", "worse": "worse", "equivalent": "equivalent"}
    return "bad" if row.state and text == row.state else kinds.get(text, "")


def _result_table(task_table: TaskTable, styles: Mapping[str, str]) -> str:
    if not task_table.rows:
        return ""
    columns = _columns(task_table)
    lines = []
    for row in task_table.rows:
        cells = _cells(task_table, row)
        line = name_cell(row.optimizer, styles[row.optimizer])
        for key in columns[1:]:
            kind = _kind(row, cells[key])
            line += f'<td class="{kind}">{escape(cells[key])}</td>' if kind else f"<td>{escape(cells[key])}</td>"
        lines.append(f'<tr class="base">{line}</tr>' if row.optimizer == task_table.baseline else f"<tr>{line}</tr>")
    caption = f"{task_table.task}{task_table.suffix}: {words(task_table.metric)} of every optimizer"
    return html_table(_heads(task_table, columns), lines, caption, keys=columns, kind="result")


def _forest(
    results: Results, task: Mapping[str, Any], order: TaskTable, view: TaskTable
) -> tuple[list[forest.ForestRow], forest.Panel, forest.Panel] | None:
    """The plot of a view, its rows in the order of the registered table."""
    by = {row.optimizer: row for row in view.rows}
    rows = [
        forest.ForestRow(
            row.optimizer,
            list(row.units.values()),
            row.mean,
            row.comparison.difference if row.comparison else None,
            row.comparison.verdict if row.comparison else "",
            "" if row.mean.n else row.state,
        )
        for row in (by[ordered.optimizer] for ordered in order.rows)
    ]
    left = forest.means(rows, words(view.metric), naming.unit(results.plan), is_share(task, view.metric))
    return None if left is None else (rows, left, forest.differences(rows, view.baseline))


def _view(
    results: Results, task: Mapping[str, Any], task_table: TaskTable, view: TaskTable
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one metric and one baseline show, as texts and marks: what all baselines of the metric share, which is kept
    once and takes theirs as `bases`, and the baseline's own."""
    marks = _forest(results, task, task_table, view)
    left, right = map(dataclasses.asdict, marks[1:]) if marks else (None, None)
    by = {row.optimizer: row for row in view.rows}
    rows = [(row, _cells(view, row)) for row in (by[known.optimizer] for known in task_table.rows)]
    columns = _columns(task_table)

    def texts(keys: Sequence[str]) -> list[list[list[str]]]:
        return [[[cells.get(key, "–"), _kind(row, cells.get(key, ""))] for key in keys] for row, cells in rows]

    shared = {"left": left, "rows": texts([key for key in columns if key not in ("optimizer", *FRONT)]), "bases": []}
    return shared, {"heads": _heads(view, columns), "right": right, "rows": texts(FRONT)}


def _win_rate(row: Row) -> str:
    c = row.comparison
    return "–" if c is None or math.isnan(c.better) else f"{c.better:.2f} [{c.better_low:.2f}, {c.better_high:.2f}]"


# --- curves ----------------------------------------------------------------------------------------------------------


def _curves(
    results: Results, task: Mapping[str, Any], task_table: TaskTable, styles: Mapping[str, str], name: str
) -> tuple[str, dict[str, Any]]:
    """The curves of a task over steps, and what turns steps into passes, tokens, FLOPs and seconds."""
    histories, stem = Histories(results, task), task_table.metric.removeprefix("test_")
    asked = {
        "train_loss": ("Training loss", ""),
        "validation_loss": ("Validation loss", ""),
        f"validation_{stem}": (
            f"Validation {words(stem)}",
            "higher is better" if task_table.greater else "lower is better",
        ),
        "effective_lr": ("Effective learning rate", "the rate times what the rule itself adapts"),
    }
    curves = {key: histories.curves(key) for key in asked}
    end = max((c.steps[-1] for some in curves.values() for c in some), default=0.0)
    runs = max(1, len(results.plan.runs))
    points = min(40, max(8, SINGLES // (runs * 3 * 8)))
    drawn = []
    for key, (title, note) in asked.items():
        drawing = charts.lines(
            f"{title} of {task_table.task}",
            curves[key],
            styles,
            share=is_share(task, key),
            log=key == "effective_lr",
            end=end,
            singles=None if key == "effective_lr" else histories.singles(key, points),
        )
        drawn.append(figure(title, note, drawing, f"{name}-{file_name(key)}"))
    axes = {key: _axis(histories.spent(key), word, styles, end) for key, word in AXES.items()}
    axes = {key: value for key, value in axes.items() if value}
    if not any(drawn):
        return "", {}
    over = "".join(f'<option value="{key}">{word}</option>' for key, word in {"step": "steps", **_named(axes)}.items())
    controls = (
        f'<p class="controls"><label>over <select data-set="axis">{over}</select></label>'
        '<label><input type="checkbox" data-set="seeds"> single seeds</label>'
        '<small class="soft">or click a curve for the seeds of one optimizer</small></p>'
    )
    return f'<div class="curves"><h3>Curves</h3>{controls}<div class="grid2">{"".join(drawn)}</div></div>', axes


def _named(axes: Mapping[str, Any]) -> dict[str, str]:
    return {key: value["name"] for key, value in axes.items()}


def _axis(spent: Mapping[str, Curve], name: str, styles: Mapping[str, str], end: float) -> dict[str, Any] | None:
    """Where a step's pixel stands on another axis, at a few knots for each optimizer; None where nothing was logged."""
    whole = {label: curve for label, curve in spent.items() if len(curve.steps) > 1 and curve.mean[-1] > 0}
    if not whole:
        return None
    steps, scale = charts.x_scale(end), charts.x_scale(max(curve.mean[-1] for curve in whole.values()))
    keys = {label: i for i, label in enumerate(styles)}
    knots = {}
    for label, curve in whole.items():
        at = sorted({round(i * (len(curve.steps) - 1) / (KNOTS - 1)) for i in range(KNOTS)})
        pairs = [(0.0, 0.0)] if curve.steps[0] > 0 else []
        pairs += [(curve.steps[i], curve.mean[i]) for i in at]
        knots[str(keys[label])] = [[round(steps(s), 1) for s, _ in pairs], [round(scale(v), 1) for _, v in pairs]]
    return {"name": name, "end": scale.high, "svg": charts.x_axis(scale, name), "knots": knots}


# --- figures beside the result ---------------------------------------------------------------------------------------


def _others(task: Mapping[str, Any], task_table: TaskTable, styles: Mapping[str, str]) -> str:
    shown = [
        name
        for name in table.OTHERS
        if name != task_table.metric and any(row.others[name].n for row in task_table.rows)
    ]
    if not shown:
        return ""
    lines = [
        f"<tr>{name_cell(row.optimizer, styles[row.optimizer])}"
        + "".join(f"<td>{spread(row.others[n], task_table.decimals_of(n))}</td>" for n in shown)
        + "</tr>"
        for row in task_table.rows
    ]
    note = (
        "Gaps are test minus train for losses and train minus test for accuracies, the train side in evaluation mode."
    )
    heads = [headed(words(name), declared(task, name)) for name in shown]
    content = html_table(
        ["optimizer", *heads], lines, f"{task_table.task}: losses and gaps", keys=["optimizer", *map(words, shown)]
    )
    return f'<h3>Losses and gaps</h3>{content}<p class="soft">{note}</p>'


def _costs(task_table: TaskTable, styles: Mapping[str, str]) -> str:
    keys = table.measured_costs(task_table)
    if not keys:
        return ""
    most = {k: max(row.costs[k] for row in task_table.rows if not math.isnan(row.costs[k])) for k in keys}
    differing = [k for k in keys if len({cost_text(k, row.costs[k]) for row in task_table.rows}) > 1]
    lines = []
    for row in task_table.rows:
        line = name_cell(row.optimizer, styles[row.optimizer])
        for k in keys:
            value = row.costs[k]
            share = value / most[k] if value >= 0 and most[k] > 0 else 0.0
            bar = f'<span class="bar"><i style="width:{100 * share:.0f}%"></i></span>' if k in differing else ""
            line += f"<td>{cost_text(k, value)}{bar}</td>"
        lines.append(f"<tr>{line}</tr>")
    content = html_table(["optimizer", *(COSTS[k][2] for k in keys)], lines, f"{task_table.task}: time and memory")
    return (
        f"<h3>Time and memory</h3>{content}"
        '<p class="soft">Medians over seeds. Runs may have shared the machine: compare within this table only. '
        "A plain step is one forward and one backward pass; peaks are the most memory held at a time.</p>"
    )


def legend(styles: Mapping[str, str]) -> str:
    """A button an optimizer, which hides and shows it everywhere."""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-k="{i}">{swatch(style)}{escape(label)}</button>'
        for i, (label, style) in enumerate(styles.items())
    )
    told = "Click: hide or show. Double click: this one alone."
    return f'<div class="legend" role="group" aria-label="Optimizers shown" title="{told}">{buttons}</div>'
