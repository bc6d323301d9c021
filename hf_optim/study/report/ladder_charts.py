"""The charts of a ladder: points with intervals and fitted lines on log axes, and factors against size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from hf_optim.core.safe_text import html as escape
from hf_optim.core.shape import FARTHEST
from hf_optim.study.report.charts import Scale, shorten
from hf_optim.study.statistics.intervals import Estimate

LEFT, RIGHT, TOP, BOTTOM = 58, 118, 26, 42
LABEL = 13.0


@dataclass(frozen=True)
class Series:
    """Points of one optimizer as (x, estimate), lines as such sequences with their band, and the word at its end
    (default: its name).
    """

    optimizer: str
    points: Sequence[tuple[float, Estimate]] = ()
    lines: Sequence[Sequence[tuple[float, Estimate]]] = field(default_factory=tuple)
    word: str = ""
    joined: bool = False
    #: classes of its own, where an optimizer has several series
    style: str = ""


def short(value: float) -> str:
    """A tick: 30k, 1.5M, 2e+12, 0.003."""
    if value >= 1e13 or 0 < value < 1e-3:
        return f"{value:.0e}".replace("e+", "e").replace("e-0", "e-")
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"


def ticks(low: float, high: float) -> list[float]:
    """Round values on a log axis: decades, or 1, 2, 5, or as fine as it takes for three of them."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = [m * 10.0**e for e in exponents for m in steps if low <= m * 10.0**e <= high]
        if len(marks) >= 3:
            return marks
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next((m for m in (1, 2, 5) if span / (step * m) <= 6), 10)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def panel(
    name: str,
    series: Sequence[Series],
    styles: Mapping[str, str],
    x_name: str,
    y_name: str,
    *,
    width: int = 560,
    height: int = 350,
    at: float | None = None,
) -> str:
    """One chart as SVG; both axes are logarithmic. `at` draws a horizontal line there, as where a factor is 1."""
    return f'<svg class="ladder" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">' + (
        "".join(drawing(series, styles, x_name, y_name, 0, width, height, at)) + "</svg>"
    )


def drawing(
    series: Sequence[Series],
    styles: Mapping[str, str],
    x_name: str,
    y_name: str,
    left: float,
    width: float,
    height: float,
    at: float | None = None,
    most: float = FARTHEST,
) -> list[str]:
    """The elements of a panel that begins at `left`; what lies beyond 1 / `most` and `most` stands at its edge."""
    # What was not measured, or as 0, has no place on a log axis.
    series = [
        replace(s, points=[(v, e) for v, e in s.points if 0 < v < math.inf and e.value > 0],
                lines=[[(v, e) for v, e in line if e.value > 0] for line in s.lines]) for s in series
    ]  # fmt: skip
    xs = [v for s in series for v, _ in (*s.points, *(p for line in s.lines for p in line))]
    # A wide interval must not squeeze the points: it is cut off at the panel's end.
    centres = [e.value for s in series for _, e in (*s.points, *(p for line in s.lines for p in line))]
    ends = [v for s in series for _, e in s.points for v in (e.low, e.high)]
    ends, centres = ([min(max(v, 1 / most), most) for v in some if 0 < v < math.inf] for some in (ends, centres))
    centres += [at] if at else []
    if not xs or not centres:
        return []
    room = (max(centres) / min(centres)) ** 0.35 * 1.02
    low = max(min([*centres, *ends]), min(centres) / room)
    high = min(max([*centres, *ends]), max(centres) * room)
    x = _scale(min(xs), max(xs), 1.12, left + LEFT, left + width - RIGHT)
    y = _scale(low, high, (high / low) ** 0.06 if high > low else 1.1, height - BOTTOM, TOP)
    parts = _axes(x, y, x_name, y_name, at)
    keys = {label: i for i, label in enumerate(styles)}
    labels = []
    for s in series:
        inside = "".join(_band(x, y, line) + _path(x, y, line) for line in s.lines)
        inside += _path(x, y, s.points) if s.joined and len(s.points) > 1 else ""
        inside += "".join(_point(x, y, v, e, s.word or s.optimizer) for v, e in s.points)
        style = s.style or styles[s.optimizer]
        parts.append(f'<g class="s {style}" data-k="{keys[s.optimizer]}">{inside}</g>')
        last = max([*s.points, *(p for line in s.lines for p in line)], key=lambda p: p[0], default=None)
        if last is not None:
            labels.append((y(last[1].value), x(last[0]), s.word or s.optimizer, style, keys[s.optimizer]))
    labels.sort()
    heights = _spread([want for want, *_ in labels], TOP + 4.0, height - BOTTOM)
    for (want, x_end, word, style, key), at_y in zip(labels, heights, strict=True):
        edge = left + width - RIGHT
        parts.append(
            f'<g class="s tag {style}" data-k="{key}">'
            f'<path class="lead" d="M{x_end + 3:.1f} {want:.1f}L{edge + 6:.1f} {at_y:.1f}"/>'
            f'<text x="{edge + 9:.1f}" y="{at_y + 4:.1f}">{escape(shorten(word, 17))}</text></g>'
        )
    return parts


def _spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights at least LABEL apart and as near to those that are wanted, ascending, as the room allows."""
    heights: list[float] = []
    for want in wanted:
        heights.append(max(want, heights[-1] + LABEL if heights else top))
    for i in range(len(heights) - 1, -1, -1):
        most = bottom if i == len(heights) - 1 else heights[i + 1] - LABEL
        heights[i] = min(heights[i], most)
    return heights


def _scale(low: float, high: float, room: float, start: float, end: float) -> Scale:
    room = room if high > low * (1 + 1e-9) else max(room, 1.3)
    return Scale("log", low / room, high * room, start, end)


def _axes(x: Scale, y: Scale, x_name: str, y_name: str, at: float | None) -> list[str]:
    bottom = y.start
    parts = [
        f'<path class="grid" d="M{x.start:.1f} {y(t):.1f}H{x.end:.1f}"/>'
        f'<text class="tick end" x="{x.start - 6:.1f}" y="{y(t) + 4:.1f}">{short(t)}</text>'
        for t in _apart(y, ticks(y.low, y.high), 20)
    ]
    parts += [
        f'<text class="tick mid" x="{x(t):.1f}" y="{bottom + 17:.1f}">{short(t)}</text>'
        for t in _apart(x, ticks(x.low, x.high), 40)
    ]
    if at is not None and y.low < at < y.high:
        parts.append(f'<path class="grid zero" d="M{x.start:.1f} {y(at):.1f}H{x.end:.1f}"/>')
    parts.append(f'<path class="axis" d="M{x.start:.1f} {TOP}V{bottom:.1f}H{x.end:.1f}"/>')
    middle = (x.start + x.end) / 2
    parts.append(f'<text class="tick mid" x="{middle:.1f}" y="{bottom + 35:.1f}">{escape(x_name)}</text>')
    parts.append(f'<text class="tick" x="{x.start - LEFT + 6:.1f}" y="{TOP - 12:.1f}">{escape(y_name)}</text>')
    return parts


def _apart(scale: Scale, values: Sequence[float], pixels: float) -> list[float]:
    kept: list[float] = []
    for value in values:
        if not kept or abs(scale(value) - scale(kept[-1])) >= pixels:
            kept.append(value)
    return kept


def _path(x: Scale, y: Scale, line: Sequence[tuple[float, Estimate]]) -> str:
    points = "L".join(f"{x(v):.1f} {y(e.value):.1f}" for v, e in line if e.value > 0)
    return f'<path class="line" d="M{points}"/>' if points else ""


def _band(x: Scale, y: Scale, line: Sequence[tuple[float, Estimate]]) -> str:
    if len(line) < 2 or any(math.isnan(e.low) or e.low <= 0 for _, e in line):
        return ""
    there = [f"{x(v):.1f} {y(e.high):.1f}" for v, e in line]
    back = [f"{x(v):.1f} {y(e.low):.1f}" for v, e in reversed(line)]
    return f'<path class="band" d="M{"L".join(there + back)}Z"/>'


def _point(x: Scale, y: Scale, at: float, e: Estimate, name: str) -> str:
    if not e.value > 0:
        return ""
    told = f"<title>{escape(name)}: {e.value:.4g} at {short(at)}</title>"
    text = f'<circle class="dot" cx="{x(at):.1f}" cy="{y(e.value):.1f}" r="3.2">{told}</circle>'
    if not math.isnan(e.low) and e.high > 0:
        low, high = y(max(e.low, y.low)), y(e.high)
        text += f'<path class="ci" style="stroke-width:1.3" d="M{x(at):.1f} {low:.1f}V{high:.1f}"/>'
    return text
