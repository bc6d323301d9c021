"""The forest plot: every unit, the mean and its interval, and the paired difference to the baseline with its own.

A row's marks are drawn around zero and moved to their place, so that the page can put another view's marks there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_optim.core.safe_text import html as escape
from hf_optim.study.report.charts import Scale, choose, shorten, tick_text
from hf_optim.study.statistics.paired import Summary

WIDTH, LINE, TOP = 900, 24, 30
LEFT, RIGHT = (140.0, 500.0), (530.0, 880.0)


@dataclass(frozen=True)
class ForestRow:
    """A row of the forest plot; `difference` is None for the baseline, `note` stands where there is no mean."""

    label: str
    values: Sequence[float]
    mean: Summary
    difference: Summary | None
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One half of the plot as SVG: its heading, its scale's lines, and the marks of each row."""

    head: str
    axis: str
    marks: list[str]


def means(rows: Sequence[ForestRow], metric: str, units: str, share: bool) -> Panel | None:
    """The left half: each unit (`units` is the word for them), the mean and its interval; None without any value."""
    values = [v for row in rows for v in row.values]
    if not values:
        return None
    # Intervals have room as far as they do not squeeze the values.
    low, high = min(values), max(values)
    ends = [end for row in rows for end in (row.mean.low, row.mean.high) if not math.isnan(end)]
    fitting = [end for end in ends if low - (high - low) / 3 <= end <= high + (high - low) / 3]
    x = choose([*values, *fitting], *LEFT, share=share)
    marks = []
    for row in rows:
        seeds = "".join(f'<circle class="seed" cx="{x(v):.1f}" cy="0" r="3.2"/>' for v in row.values)
        marks.append(seeds + ("" if row.note else _whisker(x, row.mean)))
    scale = " (log error)" if x.kind == "accuracy" else ""
    return Panel(f"{metric}: {units}, mean and 95 % interval{scale}", _axis(x, len(rows)), marks)


def differences(rows: Sequence[ForestRow], baseline: str) -> Panel:
    """The right half: the paired difference to the baseline with its interval; empty where the baseline is alone."""
    if all(row.difference is None for row in rows):
        return Panel("", "", [""] * len(rows))
    known = [row.difference for row in rows if row.difference and row.difference.n]
    spans = [max(abs(d.low), abs(d.high)) for d in known if not math.isnan(d.low)]
    points = [abs(d.mean) for d in known]
    # One hopeless optimizer, or one wide interval, must not squeeze all others: what leaves the panel gets an arrow.
    limit = min(max([*spans, *points, 0.0]), 3 * _median([*spans, *points])) or 1.0
    z = Scale("linear", -limit * 1.08, limit * 1.08, *RIGHT)
    marks = []
    for row in rows:
        if row.note:
            marks.append(f'<text class="note" x="{RIGHT[0]:.0f}" y="4">{escape(row.note)}</text>')
        elif row.difference is None:
            marks.append(f'<text class="note" x="{z(0) + 8:.0f}" y="4">baseline</text>')
        elif row.difference.n:
            sure = "sure" if row.verdict in ("better", "worse") else "open"
            marks.append(f'<g class="{sure}">{_whisker(z, row.difference)}</g>')
        else:
            marks.append("")
    return Panel(f"paired difference to {shorten(baseline, 20)}", _axis(z, len(rows), zero=True), marks)


def draw(rows: Sequence[ForestRow], left: Panel, right: Panel, styles: Mapping[str, str]) -> str:
    """Both halves as one SVG."""
    height = TOP + LINE * len(rows) + 34
    keys = {label: i for i, label in enumerate(styles)}
    spoken = f"{'; '.join(filter(None, (left.head, right.head)))}: the table below has the numbers"
    out = [f'<svg class="forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(spoken)}">']
    for number, (panel, at) in enumerate(((left, LEFT), (right, RIGHT))):
        out.append(f'<text class="head h{number}" x="{at[0]:.0f}" y="14">{escape(panel.head)}</text>')
        out.append(f'<g class="a{number}">{panel.axis}</g>')
    for i, row in enumerate(rows):
        name = f'<text class="row" x="{LEFT[0] - 10:.0f}" y="4">{escape(shorten(row.label, 18))}</text>'
        place = f"translate(0 {TOP + LINE * i + LINE / 2:g})"
        out.append(
            f'<g class="s {styles[row.label]}" data-k="{keys[row.label]}" transform="{place}">'
            f'{name}<g class="m0">{left.marks[i]}</g><g class="m1">{right.marks[i]}</g></g>'
        )
    return "".join(out) + "</svg>"


def _axis(scale: Scale, rows: int, zero: bool = False) -> str:
    bottom = TOP + LINE * rows
    parts = []
    for tick in scale.ticks():
        at = scale(tick)
        strong = " zero" if zero and tick == 0 else ""
        parts.append(
            f'<path class="grid{strong}" d="M{at:.1f} {TOP - 6}V{bottom}"/>'
            f'<text class="tick mid" x="{at:.1f}" y="{bottom + 17}">{tick_text(tick)}</text>'
        )
    return "".join(parts)


def _whisker(scale: Scale, summary: Summary) -> str:
    """The interval and the mean; an arrow at an end that the panel cuts off, or alone where all of it lies outside."""
    if math.isnan(summary.mean):
        return ""
    low, high = (summary.mean, summary.mean) if math.isnan(summary.low) else (summary.low, summary.high)
    if high < scale.low or low > scale.high:
        at, turn, anchor = (scale.start, 1, "start") if high < scale.low else (scale.end, -1, "end")
        text = f'<text class="note {anchor}" x="{at + 12 * turn:.1f}" y="4">{summary.mean:+.3g}</text>'
        return _arrow(at, turn) + text
    a, b = scale(low), scale(high)
    text = f'<path class="ci" d="M{a:.1f} 0H{b:.1f}"/>' if b > a else ""
    text += _arrow(a, 1) if low < scale.low else ""
    # A share cannot exceed 1, so an interval that does is no news.
    text += _arrow(b, -1) if high > scale.high and scale.kind != "accuracy" else ""
    if scale.low <= summary.mean <= scale.high:
        text += f'<path class="mean" d="M{scale(summary.mean):.1f} -6v12"/>'
    return text


def _arrow(x: float, turn: int) -> str:
    return f'<path class="arrow" d="M{x + 5 * turn:.1f} -4L{x:.1f} 0l{5 * turn} 4"/>'


def _median(values: Sequence[float]) -> float:
    ordered = sorted(v for v in values if v > 0)
    return ordered[len(ordered) // 2] if ordered else 0.0
