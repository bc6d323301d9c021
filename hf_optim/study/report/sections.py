"""Sections of the report beyond the result of a task: statistics, tuning, profiles, samples, extra figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.core.numerals import decimal
from hf_optim.core.safe_text import html as escape
from hf_optim.core.wording import counted
from hf_optim.study.findings import table
from hf_optim.study.findings.analysis import SPEEDUP, Analysis
from hf_optim.study.findings.cells import headed, p_text, plain_number
from hf_optim.study.findings.curves import Curve
from hf_optim.study.findings.profiles import cells as profile_cells
from hf_optim.study.findings.protocol import Chosen, Protocol, share_cells
from hf_optim.study.findings.speedups import said as speedup_text
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.entries import declared
from hf_optim.study.report import charts
from hf_optim.study.report import samples as generated
from hf_optim.study.report.pieces import figure, file_name, html_table, text_row
from hf_optim.study.statistics import intervals
from hf_optim.study.statistics.places import place_text

# What pictures and texts may take of a report; a grid of 64 small images has some 30 kB.
MOST_BYTES = 900_000
MOST_SAMPLES = 12
MOST_CHOICES = 20  # a longer table of choices is folded
EXTRA = ("parameter_norm", "sharpness")


def statistics(analysis: Analysis, decimals: Mapping[str, int]) -> str:
    """Descriptions and effects of every task, folded; all pairs are in statistics.md."""
    parts = []
    for task in analysis.tasks:
        if not task.descriptions:
            continue
        d = decimals.get(task.task, 4)
        head = ["optimizer", "mean", "median", "IQM", "place", "d_z", "d_av", "improvement"]
        lines = []
        for label, description in task.descriptions.items():
            effect = task.effects.get(label)
            cells = [
                intervals.text(description.mean, d),
                plain_number(description.median, d),
                plain_number(description.iqm, d),
            ]
            cells.append(place_text(task.places.get(label)))
            cells += (
                [_plain(effect.d_z, 2), _plain(effect.d_av, 2), intervals.text(effect.improvement, 2)]
                if effect
                else ["–"] * 3
            )
            lines.append(text_row(label, cells))
        content = html_table(head, lines, f"{task.task}{task.suffix}: intervals, effects, places")
        parts.append(f"<h3>{escape(task.task)}{task.suffix}</h3>{content}{_omnibus(task.omnibus)}")
    if not parts:
        return ""
    note = (
        "Intervals of means are 95 % t-intervals. “place” is the set of places that an optimizer can have, from "
        "tests of all pairs. d_z is the mean difference over its standard deviation, d_av over the mean of the two; "
        "“improvement” is P(better) over all combinations. All pairs and the rest: statistics.md."
    )
    body = "".join(parts)
    return f'<details><summary>Intervals, effects, places</summary>{body}<p class="soft">{note}</p></details>'


def speedups(analysis: Analysis) -> str:
    """How many times its budget the baseline needs to do as well; empty without a `speedup` block."""
    if not analysis.speedups:
        return ""
    lines = [text_row(factor.optimizer, [factor.task, speedup_text(factor)]) for factor in analysis.speedups]
    head = ["optimizer", "task", f"times the baseline's {analysis.speedups[0].unit}"]
    table_ = html_table(head, lines, f"Speed-up{analysis.tasks[0].suffix}")
    return f'{table_}<p class="soft">{escape(SPEEDUP)}</p>'


def _omnibus(omnibus: Any) -> str:
    said = []
    if omnibus.anova:
        said.append(f"repeated-measures ANOVA p {p_text(omnibus.anova.p_corrected)}")
    if omnibus.friedman:
        said.append(f"Friedman p {p_text(omnibus.friedman.p)}")
    return f'<p class="soft">Whether any differs: {escape(", ".join(said))}.</p>' if said else ""


def profiles(analysis: Analysis, styles: Mapping[str, str]) -> str:
    """Times to the stated targets and the performance profile; empty where the study states none."""
    if not analysis.targets:
        return ""
    parts = []
    for target in analysis.targets:
        rows = profile_cells(target)
        head = list(rows[0]) if rows else []
        lines = [text_row(row["optimizer"], [row[name] for name in head[1:]]) for row in rows]
        title = f"{escape(target.task)}: {escape(target.metric)} {target.better} {target.value:g}"
        content = html_table(head, lines, f"Time to target: {target.task}")
        parts.append(f"<h3>{title}</h3>{content}")
    profile = analysis.profile
    if profile:
        curves = [
            Curve(label, tuple(profile.taus), tuple(shares), tuple(shares), tuple(shares), 1)
            for label, shares in profile.shares.items()
        ]
        drawing = charts.lines("Performance profile", curves, styles, x_name="times the fastest", start=1.0)
        lines = [text_row(label, [f"{score:.3f}"]) for label, score in profile.scores.items()]
        note = "share of tasks within so many times the fastest"
        parts.append(figure("Performance profile", note, drawing, "performance-profile"))
        parts.append(html_table(["optimizer", "score"], lines, "Scores of the performance profile"))
    return "".join(parts)


def tuning(findings: Protocol, styles: Mapping[str, str]) -> str:
    """What tuning chose and how the verdict depends on its budget; sensitivity."""
    parts = []
    if findings.chosen:
        repeated = any(choice.repetition for choice in findings.chosen)
        lines = [text_row(choice.optimizer, _choice(choice, repeated)) for choice in findings.chosen]
        head = ["optimizer", "task", *(["repetition"] if repeated else []), "trials", "chosen", "validation"]
        table_ = html_table(head, lines, "What tuning chose")
        if len(lines) > MOST_CHOICES:
            table_ = f"<details><summary>{counted(len(lines), 'choice')}</summary>{table_}</details>"
        parts.append(table_)
    if findings.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in findings.notes) + "</ul>")
    for task in dict.fromkeys(curve.task for curve in findings.expected):
        curves = [
            _curve(curve.optimizer, range(1, len(curve.unbiased) + 1), curve.unbiased)
            for curve in findings.expected if curve.task == task
        ]  # fmt: skip
        parts.append(
            _figure(f"Expected best of k trials: {task}", "validation, unbiased estimate", curves, styles, "trials")
        )
    for task in dict.fromkeys(curve.task for curve in findings.sensitivity):
        mine = [curve for curve in findings.sensitivity if curve.task == task]
        log = min(v for curve in mine for v in curve.values) > 0  # a decay or a momentum may be 0
        curves = [_curve(c.optimizer, [math.log10(v) if log else v for v in c.values], c.losses) for c in mine]
        start = min((s for c in curves for s in c.steps), default=0.0)
        name = f"log10 of {mine[0].key}" if log else mine[0].key
        parts.append(_figure(f"Sensitivity: {task}", "validation loss", curves, styles, name, start))
        lines = [text_row(curve.optimizer, [_plain(curve.number, 4)]) for curve in mine]
        parts.append(html_table(["optimizer", "sensitivity (Wortsman)"], lines, f"Sensitivity: {task}"))
    return "".join(parts)


def shares(findings: Protocol) -> str:
    """How much of the variance each thing that was varied makes."""
    if not findings.shares:
        return ""
    lines = [
        text_row(row["optimizer"], [row[key] for key in ("task", "source", "n", "sd", "95 % interval", "share")])
        for row in share_cells(findings.shares)
    ]
    head = ["optimizer", "task", "varied", "n", "standard deviation", "95 % interval", "share"]
    return html_table(head, lines, "Shares of variance")


def _choice(choice: Chosen, repeated: bool) -> list[str]:
    setting = ", ".join(f"{key} {_plain(value, 4)}" for key, value in choice.point.items()) or "not tuned"
    trials = f"{choice.trials}" + (f" ({choice.failed} failed)" if choice.failed else "")
    return [choice.task, *([f"{choice.repetition}"] if repeated else []), trials, setting, _plain(choice.value, 4)]


def _curve(label: str, steps: Any, values: Sequence[float]) -> Curve:
    pairs = [(float(s), v) for s, v in zip(steps, values, strict=True) if not math.isnan(v)]
    xs, ys = tuple(s for s, _ in pairs), tuple(v for _, v in pairs)
    return Curve(label, xs, ys, ys, ys, 1)


def _figure(
    title: str, note: str, curves: Sequence[Curve], styles: Mapping[str, str], x_name: str, start: float = 1.0
) -> str:
    drawing = charts.lines(title, [c for c in curves if c.steps], styles, x_name=x_name, start=start)
    return figure(title, note, drawing, file_name(title))


def extra(results: Results, task: Mapping[str, Any], task_table: table.TaskTable) -> str:
    """Norm and sharpness of the solutions, and the task's further metrics, where the records have them."""
    seen: dict[str, dict[str, list[float]]] = {}
    for row in task_table.rows:
        for _, record in results.runs(task["label"], row.optimizer):
            if record is None or record["status"] != "ok":
                continue
            for key, value in record["metrics"].items():
                wanted = key in EXTRA or (
                    key.startswith("test_") and key != task_table.metric and key not in table.OTHERS
                )
                if wanted and not math.isnan(number(value)):
                    seen.setdefault(key, {}).setdefault(row.optimizer, []).append(number(value))
    if not seen:
        return ""
    lines = [
        text_row(row.optimizer, [_spread(seen[key].get(row.optimizer, [])) for key in seen])
        for row in task_table.rows if any(row.optimizer in values for values in seen.values())
    ]  # fmt: skip
    head = ["optimizer", *(headed(key.replace("_", " "), declared(task, key)) for key in seen)]
    content = html_table(head, lines, f"{task_table.task}: further figures")
    return f"<details><summary>Further figures, mean ± standard deviation</summary>{content}</details>"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    summary = table.summarise(list(values))
    return f"{summary.mean:.4g}" + (f" ± {summary.sd:.2g}" if summary.n > 1 else "")


def samples(results: Results, task: Mapping[str, Any]) -> str:
    """What each optimizer's first seed generated last, as pictures or texts, as far as MOST_BYTES reach."""
    parts, used = [], 0
    for label in task["only"]:
        for run, record in results.runs(task["label"], label):
            if record is None or record["status"] != "ok" or not record.get("samples"):
                continue
            names = [str(name) for name in record["samples"] if "test" not in str(name)] or record["samples"]
            if (sample := generated.read(results, run, sorted(names)[-1], MOST_BYTES - used)) is None:
                break
            file, content = sample
            used += len(content)
            if drawn := generated.picture(file, content, f"samples of {label}"):
                caption = f"<figcaption>{escape(label)}, seed {run.seed}</figcaption>"
                parts.append(f'<figure class="samples">{caption}{drawn}</figure>')
            elif drawn := generated.text(file, content, 4000):
                parts.append(f"<details><summary>{escape(label)}, seed {run.seed}</summary>{drawn}</details>")
            break
        if len(parts) >= MOST_SAMPLES:
            break
    return f'<h3>Samples</h3><div class="grid2">{"".join(parts)}</div>' if parts else ""


def _plain(value: Any, decimals: int) -> str:
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.{decimals}g}" if decimals > 2 else decimal(value, decimals)
