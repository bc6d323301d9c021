"""Learning curves as SVG text, with bands, single seeds and direct labels. No dependency, no network.

Colours come from the page's style sheet (classes k0 to k7, dashes d0 to d2), so that one drawing serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_optim.core.safe_text import html as escape
from hf_optim.core.shape import CLOSEST
from hf_optim.study.findings.curves import Curve

WIDTH, HEIGHT = 560, 340
LEFT, RIGHT, TOP, BOTTOM = 54, 132, 12, 40
LABEL_HEIGHT = 13.5
COLOURS, DASHES = 8, 3
#: what an accuracy lacks to 1, as far as it is drawn: of the half of a rounding nothing would be left
LEAST_ERROR = 1e-12


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
        errors = [max(1 - v, LEAST_ERROR) for v in values if v < 1]
        # A perfect score has no logarithm: it is drawn at half the smallest error seen.
        top = 1 - 0.8 * min(errors) if high < 1 else 1 - (0.5 * min(errors) if errors else 0.001)
        return Scale("accuracy", max(0.0, low - 0.02), top, start, end)
    if low > 0 and (log or high / low > 20):
        return Scale("log", low / 1.15 if low < high else low / 2, high * 1.15 if low < high else high * 2, start, end)
    pad = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Scale("linear", low - pad, high + pad, start, end)


def tick_text(value: float) -> str:
    """A tick's label: 0.95, 1e-5, 2000, 1.5e6. All its figures: at 1.5e6 and 2e6 stood the same."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.9g}"
    figures, exponent = f"{value:.8e}".split("e")
    return f"{figures.rstrip('0').rstrip('.')}e{int(exponent)}"


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
    end: float = 0.0,
    singles: Mapping[str, Sequence[Curve]] | None = None,
) -> str:
    """Curves over steps (or `x_name`, from `start`, to `end` at least): mean lines, bands from the lowest to the
    highest seed, failed runs thin with a cross; `singles` are those of single seeds, shown when asked.
    """
    whole = [c for c in curves if not c.failed] or list(curves)
    if not whole:
        return ""
    end = max(end, *(c.steps[-1] for c in curves))
    x = x_scale(end, start)
    y = choose([v for c in whole for v in (*c.low, *c.high)], HEIGHT - BOTTOM, TOP, share=share, log=log)
    keys = {label: i for i, label in enumerate(styles)}
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(name, curves))}" '
        f'data-kind="{y.kind}" data-name="{escape(x_name)}" '
        f'data-y="{y.low:.15g} {y.high:.15g} {y.start} {y.end}" data-x="{x.low:.15g} {x.high:.15g} {x.start} {x.end}">'
    ]
    parts += _y_axis(y) + [f'<g class="xs">{x_axis(x, x_name)}</g>']
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
        seeds = "".join(_single(single, x, y) for single in (singles or {}).get(curve.optimizer, ()))
        parts.append(f'<g {classes}>{band}{seeds}<path class="line" d="M{"L".join(points)}"/>{dot}</g>')
        labels.append((x(curve.steps[-1]), y(curve.mean[-1]), y(curve.mean[-1]), curve.optimizer))
    for x_end, y_end, y_label, label in _dodge(labels):
        parts.append(
            f'<g class="s tag {styles[label]}" data-k="{keys[label]}">'
            f'<path class="lead" d="M{x_end + 2:.1f} {y_end:.1f}L{WIDTH - RIGHT + 10} {y_label:.1f}"/>'
            f'<text x="{WIDTH - RIGHT + 13}" y="{y_label + 4:.1f}">{escape(shorten(label, 16))}</text></g>'
        )
    parts.append('<line class="hair" y1="12" y2="300" visibility="hidden"/></svg>')
    return "".join(parts)


def _single(curve: Curve, x: Scale, y: Scale) -> str:
    points = [f"{x(s):.0f} {y(v):.0f}" for s, v in zip(curve.steps, curve.mean, strict=True)]
    return f'<path class="seed1" d="M{"L".join(points)}"/>' if len(points) > 1 else ""


def _spoken(name: str, curves: Sequence[Curve]) -> str:
    """What a chart says to who does not see it: where every curve ends."""
    ends = [f"{c.optimizer} {'fails at' if c.failed else 'ends at'} {c.mean[-1]:.4g}" for c in curves]
    return f"{name}: {', '.join(ends)}" if len(ends) <= 24 else name


def _y_axis(y: Scale) -> list[str]:
    parts = []
    for tick in y.ticks():
        at = y(tick)
        parts.append(
            f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
            f'<text class="tick end" x="{LEFT - 6}" y="{at + 4:.1f}">{tick_text(tick)}</text>'
        )
    return [*parts, f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']


def x_axis(x: Scale, name: str) -> str:
    """The numbers and the name below a chart."""
    ticks = "".join(
        f'<text class="tick mid" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 17}">{tick_text(tick)}</text>'
        for tick in x.ticks()
    )
    middle = (LEFT + WIDTH - RIGHT) / 2
    return f'{ticks}<text class="tick mid" x="{middle:.0f}" y="{HEIGHT - 6}">{escape(name)}</text>'


def x_scale(end: float, start: float = 0.0) -> Scale:
    """The scale below a chart that ends at `end`."""
    end = end if end - start > CLOSEST else start + max(1.0, abs(start))
    return Scale("linear", start, end, LEFT, WIDTH - RIGHT)


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


def _linear_ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    decimals = 1 - math.floor(math.log10(step))  # of the step, however small a loss is
    return [round(i * step, decimals) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 2.5 else (1,)
    stride = max(1, round(decades / 6))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10.0**e for e in exponents if e % stride == 0 for m in factors if low <= m * 10.0**e <= high]


def shorten(text: str, length: int) -> str:
    """`text` in at most `length` characters: names that begin alike often differ in their last ones."""
    end = length // 3
    return text if len(text) <= length else f"{text[: length - end - 1]}…{text[-end:]}"
