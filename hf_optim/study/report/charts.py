"""Charts as SVG text: learning curves with bands and direct labels, and forest plots. No dependency, no network.

Colours come from the page's style sheet (classes k0 to k7, dashes d0 to d2), so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_optim.core.text import html as escape
from hf_optim.study.findings.curves import Curve
from hf_optim.study.statistics.paired import Summary

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 54, 116, 12, 40
LABEL_HEIGHT = 13.5
COLOURS, DASHES = 8, 3


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels. `kind`: linear, log, or accuracy (log of 1 - value, which spreads 0.9 to 0.999)."""

    kind: str
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        a, b = forward(self.kind, self.low), forward(self.kind, self.high)
        share = (forward(self.kind, min(max(value, self.low), self.high)) - a) / (b - a)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values, at least 24 pixels apart."""
        if self.kind == "linear":
            candidates = _linear_ticks(self.low, self.high)
        elif self.kind == "log":
            candidates = _log_ticks(self.low, self.high)
        else:
            errors = [1.0] + [m * 10.0**-e for e in range(1, 7) for m in (5, 2, 1)]
            candidates = [t for t in (round(1 - e, 8) for e in errors) if self.low <= t <= self.high]
        if len(candidates) < 3:
            candidates = _linear_ticks(self.low, self.high)
        kept: list[float] = []
        for tick in candidates:
            if not kept or abs(self(tick) - self(kept[-1])) >= 24:
                kept.append(tick)
        return kept


def forward(kind: str, value: float) -> float:
    """The scale's function."""
    return math.log10(value) if kind == "log" else -math.log10(1 - value) if kind == "accuracy" else value


def choose(values: Sequence[float], start: float, end: float, *, share: bool = False, log: bool = False) -> Scale:
    """A scale that fits `values`: accuracy for a `share` (0 to 1) that gets beyond 0.9, log for what spans a factor of
    20 or when `log` asks, else linear."""
    low, high = min(values), max(values)
    if share and 0.9 < high <= 1 and low >= 0:
        errors = [1 - v for v in values if v < 1]
        # A perfect score has no logarithm: it is drawn at half the smallest error seen.
        top = 1 - 0.8 * min(errors) if high < 1 else 1 - (0.5 * min(errors) if errors else 0.001)
        return Scale("accuracy", max(0.0, low - 0.02), top, start, end)
    if low > 0 and (log or high / low > 20):
        return Scale("log", low / 1.15 if low < high else low / 2, high * 1.15 if low < high else high * 2, start, end)
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Scale("linear", low - pad, high + pad, start, end)


def tick_text(value: float) -> str:
    """A tick's label: 0.95, 1e-05, 2000."""
    if value == 0:
        return "0"
    plain = 1e-3 <= abs(value) < 1e5
    return f"{value:.6g}" if plain else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def style_of(order: Sequence[str]) -> dict[str, str]:
    """The classes of each optimizer: eight colours, then the same dashed, then dotted."""
    return {label: f"k{i % COLOURS} d{(i // COLOURS) % DASHES}" for i, label in enumerate(order)}


def lines(
    name: str,
    curves: Sequence[Curve],
    styles: Mapping[str, str],
    *,
    share: bool = False,
    log: bool = False,
    x_name: str = "step",
    start: float = 0.0,
) -> str:
    """Curves over steps (or `x_name`, from `start`): mean lines, bands from the lowest to the highest seed, failed runs
    thin with a cross.
    """
    whole = [c for c in curves if not c.failed] or list(curves)
    if not whole:
        return ""
    end = max(c.steps[-1] for c in curves)
    x = Scale("linear", start, end if end > start else start + 1.0, LEFT, WIDTH - RIGHT)
    y = choose([v for c in whole for v in (*c.low, *c.high)], HEIGHT - BOTTOM, TOP, share=share, log=log)
    keys = {label: i for i, label in enumerate(styles)}
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}" '
        f'data-kind="{y.kind}" data-name="{escape(x_name)}" '
        f'data-y="{y.low:.8g} {y.high:.8g} {y.start} {y.end}" data-x="{x.low:g} {x.high:g} {x.start} {x.end}">'
    ]
    parts += _axes(x, y, x_name)
    labels: list[tuple[float, float, float, str]] = []
    for curve in curves:
        points = [f"{x(s):.1f} {y(v):.2f}" for s, v in zip(curve.steps, curve.mean, strict=True)]
        classes = f'class="s {styles[curve.optimizer]}" data-k="{keys[curve.optimizer]}"'
        if curve.failed:
            last = f"{x(curve.steps[-1]):.1f} {y(curve.mean[-1]):.1f}"
            cross = f'<path class="cross" d="M{last}m-4-4l8 8m0-8l-8 8"/>'
            parts.append(f'<g {classes}><path class="failed" d="M{"L".join(points)}"/>{cross}</g>')
            continue
        band = ""
        if curve.runs > 1 and len(curve.steps) > 1:
            top = [f"{x(s):.0f} {y(v):.1f}" for s, v in zip(curve.steps, curve.high, strict=True)]
            bottom = [f"{x(s):.0f} {y(v):.1f}" for s, v in zip(curve.steps, curve.low, strict=True)]
            band = f'<path class="band" d="M{"L".join(top + bottom[::-1])}Z"/>'
        dot = ""
        if len(points) == 1:
            dot = f'<circle class="dot" cx="{x(curve.steps[0]):.1f}" cy="{y(curve.mean[0]):.1f}" r="3"/>'
        parts.append(f'<g {classes}>{band}<path class="line" d="M{"L".join(points)}"/>{dot}</g>')
        labels.append((x(curve.steps[-1]), y(curve.mean[-1]), y(curve.mean[-1]), curve.optimizer))
    for x_end, y_end, y_label, label in _dodge(labels):
        parts.append(
            f'<g class="s tag {styles[label]}" data-k="{keys[label]}">'
            f'<path class="lead" d="M{x_end + 2:.1f} {y_end:.1f}L{WIDTH - RIGHT + 10} {y_label:.1f}"/>'
            f'<text x="{WIDTH - RIGHT + 13}" y="{y_label + 4:.1f}">{escape(shorten(label, 15))}</text></g>'
        )
    parts.append('<line class="hair" y1="12" y2="300" visibility="hidden"/></svg>')
    return "".join(parts)


def _axes(x: Scale, y: Scale, name: str) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(
            f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{at + 4:.1f}">{tick_text(tick)}</text>'
        )
    for tick in x.ticks():
        parts.append(f'<text class="tick mid" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 17}">{tick_text(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text class="tick mid" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}">{escape(name)}</text>')
    return parts


def _dodge(labels: Sequence[tuple[float, float, float, str]]) -> list[tuple[float, float, float, str]]:
    """Moves labels apart until none overlaps: neighbours that collide form a block around their mean."""
    ordered = sorted(labels, key=lambda item: (item[1], item[3]))
    blocks: list[list[int]] = []
    centre: list[float] = []
    for i, (_, want, _, _) in enumerate(ordered):
        blocks.append([i])
        centre.append(want)
        while len(blocks) > 1 and _top(blocks[-1], centre[-1]) < _bottom(blocks[-2], centre[-2]):
            merged = blocks[-2] + blocks[-1]
            blocks[-2:], centre[-2:] = [merged], [sum(ordered[j][1] for j in merged) / len(merged)]
            centre[-1] = min(max(centre[-1], TOP + _half(merged)), HEIGHT - BOTTOM + 8 - _half(merged))
    placed = []
    for block, middle in zip(blocks, centre, strict=True):
        first = middle - _half(block) + LABEL_HEIGHT / 2
        for offset, i in enumerate(block):
            x_end, y_end, _, label = ordered[i]
            placed.append((x_end, y_end, first + offset * LABEL_HEIGHT, label))
    return placed


def _half(block: Sequence[int]) -> float:
    return len(block) * LABEL_HEIGHT / 2


def _top(block: Sequence[int], centre: float) -> float:
    return centre - _half(block)


def _bottom(block: Sequence[int], centre: float) -> float:
    return centre + _half(block)


@dataclass(frozen=True)
class ForestRow:
    """A row of the forest plot; `difference` is None for the baseline, `note` stands where there is no mean."""

    label: str
    values: Sequence[float]
    mean: Summary
    difference: Summary | None
    verdict: str
    note: str = ""


def forest(rows: Sequence[ForestRow], styles: Mapping[str, str], metric: str, baseline: str, share: bool) -> str:
    """Two panels: each seed and the mean with its interval; the paired difference to the baseline with its interval."""
    width, line, top = 900, 24, 30
    height = top + line * len(rows) + 34
    keys = {label: i for i, label in enumerate(styles)}
    left = (140.0, 500.0)
    right = (530.0, 880.0)
    values = [v for r in rows for v in r.values]
    if not values:
        return ""
    x = choose(values, *left, share=share)
    differences = [r.difference for r in rows if r.difference and r.difference.n]
    spans = [max(abs(d.low), abs(d.high)) for d in differences if not math.isnan(d.low)]
    points = [abs(d.mean) for d in differences]
    # One hopeless optimizer, or one wide interval, must not squeeze all others: what leaves the panel gets an arrow.
    limit = min(max([*spans, *points, 0.0]), 3 * _median([*spans, *points])) or 1.0
    z = Scale("linear", -limit * 1.08, limit * 1.08, *right)
    heads = (f"{metric}: seeds, mean and 95 % interval", f"paired difference to {shorten(baseline, 20)}, 95 % interval")
    out = [f'<svg class="forest" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(heads[0])}">']
    out += [
        f'<text class="head" x="{panel[0]:.0f}" y="14">{escape(head)}</text>'
        for panel, head in zip((left, right), heads, strict=True)
    ]
    bottom = top + line * len(rows)
    for scale in (x, z):
        for tick in scale.ticks():
            at = scale(tick)
            strong = " zero" if scale is z and tick == 0 else ""
            out.append(
                f'<path class="grid{strong}" d="M{at:.1f} {top - 6}V{bottom}"/>'
                f'<text class="tick mid" x="{at:.1f}" y="{bottom + 17}">{tick_text(tick)}</text>'
            )
    for i, row in enumerate(rows):
        y = top + line * i + line / 2
        out.append(f'<g class="s {styles[row.label]}" data-k="{keys[row.label]}">')
        out.append(f'<text class="row" x="{left[0] - 10:.0f}" y="{y + 4:.1f}">{escape(shorten(row.label, 18))}</text>')
        out += [f'<circle class="seed" cx="{x(v):.1f}" cy="{y:.1f}" r="3.2"/>' for v in row.values]
        if row.note:
            out.append(f'<text class="note" x="{right[0]:.0f}" y="{y + 4:.1f}">{escape(row.note)}</text>')
        else:
            out.append(_whisker(x, row.mean, y))
            if row.difference is None:
                out.append(f'<text class="note" x="{z(0) + 8:.0f}" y="{y + 4:.1f}">baseline</text>')
            elif row.difference.n:
                out.append(f'<g class="{"sure" if row.verdict in ("better", "worse") else "open"}">')
                out.append(_whisker(z, row.difference, y) + "</g>")
        out.append("</g>")
    return "".join(out) + "</svg>"


def _whisker(scale: Scale, summary: Summary, y: float) -> str:
    """The interval and the mean; an arrow at an end that the panel cuts off, or alone where all of it lies outside."""
    if math.isnan(summary.mean):
        return ""
    low, high = (summary.mean, summary.mean) if math.isnan(summary.low) else (summary.low, summary.high)
    if high < scale.low or low > scale.high:
        at, turn, anchor = (scale.start, 1, "start") if high < scale.low else (scale.end, -1, "end")
        text = f'<text class="note {anchor}" x="{at + 12 * turn:.1f}" y="{y + 4:.1f}">{summary.mean:+.3g}</text>'
        return _arrow(at, y, turn) + text
    a, b = scale(low), scale(high)
    text = f'<path class="ci" d="M{a:.1f} {y:.1f}H{b:.1f}"/>' if b > a else ""
    text += _arrow(a, y, 1) if low < scale.low else ""
    # A share cannot exceed 1, so an interval that does is no news.
    text += _arrow(b, y, -1) if high > scale.high and scale.kind != "accuracy" else ""
    if scale.low <= summary.mean <= scale.high:
        text += f'<path class="mean" d="M{scale(summary.mean):.1f} {y - 6:.1f}v12"/>'
    return text


def _arrow(x: float, y: float, turn: int) -> str:
    return f'<path class="arrow" d="M{x + 5 * turn:.1f} {y - 4:.1f}L{x:.1f} {y:.1f}l{5 * turn} 4"/>'


def _median(values: Sequence[float]) -> float:
    ordered = sorted(v for v in values if v > 0)
    return ordered[len(ordered) // 2] if ordered else 0.0


def _linear_ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 2.5 else (1,)
    stride = max(1, round(decades / 6))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in exponents if e % stride == 0 for m in factors if low <= m * 10.0**e <= high]


def shorten(text: str, length: int) -> str:
    """`text` in at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"
