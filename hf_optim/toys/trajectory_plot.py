"""Plots of trajectories: a PNG by matplotlib, and one HTML file with inline SVG that needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_optim.core import extras
from hf_optim.core.numerals import decimal
from hf_optim.core.safe_text import html as escape

if TYPE_CHECKING:
    import numpy as np

    from hf_optim.toys.surfaces import Surface
    from hf_optim.toys.trajectory import Trajectory

#: Okabe and Ito's colours without black and yellow, which the minimum's star and a white page need; dark enough to read
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
#: beyond six optimizers the colours come again with other strokes
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (7, 2, 1.5, 2))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
SIZE = 161
#: values of f below are drawn as this
LEAST = 1e-12


def check_plotting() -> None:
    """Raise MissingExtra if matplotlib is missing."""
    with extras.needed("a plot (--no-plots draws none)", "study"):
        import matplotlib  # noqa: F401


def grid(surface: Surface) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x (SIZE,), y (SIZE,), f (SIZE, SIZE) and contour levels: even steps of log f, of f where it has both signs."""
    import numpy as np
    import torch

    x = torch.linspace(*surface.box[:2], SIZE, dtype=torch.float64)
    y = torch.linspace(*surface.box[2:], SIZE, dtype=torch.float64)
    f = surface.f(x[None, :], y[:, None]).expand(SIZE, SIZE).numpy()
    if f.min() < 0:
        levels = np.linspace(f.min(), f.max(), 16)
    else:
        levels = np.geomspace(max(float(np.quantile(f, 0.002)), 1e-3), f.max(), 16)
        f = np.maximum(f, levels[0] / 2)  # a logarithm is taken
    return x.numpy(), y.numpy(), f, levels


def style(i: int) -> tuple[str, tuple[float, ...], str]:
    """Colour, dashes and marker of the i-th trajectory."""
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)], MARKERS[i % len(MARKERS)]


def png(file: BinaryIO, surface: Surface, paths: Sequence[Trajectory]) -> None:
    """Contours with the trajectories, and f by step beside them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure

    x, y, f, levels = grid(surface)
    figure = Figure(figsize=(13, 6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    norm = Normalize(levels[0], levels[-1]) if f.min() < 0 else LogNorm(levels[0], levels[-1])
    left.contourf(x, y, f, levels=levels, cmap="Greys", norm=norm, alpha=0.45, extend="both")
    left.contour(x, y, f, levels=levels, colors="#777777", linewidths=0.5, linestyles="solid")
    for i, path in enumerate(paths):
        colour, dashes, marker = style(i)
        line: Any = (0, dashes) if dashes else "solid"
        xs, ys = zip(*path.points, strict=True)
        every = max(1, len(xs) // 8)
        left.plot(
            xs,
            ys,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            label=path.label,
            marker=marker,
            markersize=4.5,
            markevery=every,
            zorder=4,
        )
        left.plot(xs[-1], ys[-1], color=colour, marker=marker, markersize=10, markeredgecolor="white", zorder=5)
        right.plot(
            [max(v, LEAST) for v in path.values] if surface.minima else path.values,
            color=colour,
            linestyle=line,
            linewidth=1.8,
            marker=marker,
            markersize=4.5,
            markevery=max(1, len(path.values) // 8),
        )
    start = paths[0].points[0]
    left.plot(*start, "o", color="black", markersize=8, markeredgecolor="white", zorder=6, label="start")
    for i, minimum in enumerate(surface.minima):
        left.plot(
            *minimum,
            "*",
            color="white",
            markersize=15,
            markeredgecolor="black",
            markeredgewidth=1.2,
            zorder=7,
            label="minimum" if i == 0 else None,
        )
    left.set(xlim=surface.box[:2], ylim=surface.box[2:], xlabel="x", ylabel="y")
    left.legend(loc="upper left", bbox_to_anchor=(0, -0.1), ncols=4, frameon=False)
    if surface.minima:
        right.set_yscale("log")
    right.set_ylim(*value_range(paths, bool(surface.minima)))
    right.set(xlabel="step", ylabel="f(x, y)")
    right.grid(color="#dddddd", linewidth=0.6)
    figure.suptitle(surface.title)
    figure.savefig(file, dpi=130, format="png")


def value_range(paths: Sequence[Trajectory], log: bool) -> tuple[float, float]:
    """What the plot of f shows: a run that climbs is cut, and below 1e-12 all is one."""
    start = paths[0].values[0]
    values = [v for path in paths for v in path.values]
    if log:
        bottom, top = max(min(values), LEAST) / 2, min(2 * max(values), 30 * max(start, 1e-9))
        return bottom, max(top, 4 * bottom)  # of a run that begins where it ends, too
    span = abs(start) + 4
    low, high = max(min(values), -3 * span), min(max(values), 3 * span)
    margin = 0.05 * (high - low) + 1e-9 * max(1, abs(low), abs(high))
    return low - margin, high + margin


# --- HTML ------------------------------------------------------------------------------------------------------------

W, H, CURVES = 720, 540, 420
_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff }
body { max-width: 1200px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 } p { color: #555; margin: .3rem 0 1rem }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start } svg { max-width: 100%; height: auto }
table { border-collapse: collapse; margin-top: 1rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd } th { font-weight: 600 }
td:not(:last-child) { white-space: nowrap } tr[data-i] { cursor: pointer } tr.off { opacity: .4 }
.swatch { vertical-align: middle; margin-right: .5rem }
.hidden { display: none } text { font: 13px system-ui, sans-serif; fill: #444 }
text.star { font-size: 24px; fill: #fff; stroke: #000; stroke-width: 1.2px; pointer-events: none }
"""
_JS = """
document.querySelectorAll('tr[data-i]').forEach(function (row) {
  row.addEventListener('click', function () {
    row.classList.toggle('off');
    var drawn = document.querySelectorAll('g[data-i="' + row.dataset.i + '"]');
    drawn.forEach(function (g) { g.classList.toggle('hidden') });
  });
});
"""


def page(name: str, surface: Surface, paths: Sequence[Trajectory], notes: Sequence[str]) -> str:
    """The whole HTML file."""
    from hf_optim.toys.trajectory import CLOSE

    cells = []
    for i, path in enumerate(paths):
        row = path.row(surface)
        swatch = f'<svg class="swatch" width="44" height="14">{_line([(2, 7), (42, 7)], i)}{_mark(i, 22, 7)}</svg>'
        values = [row["lr"], None, row["f"], row["distance"], row["steps"]]
        shown = ["–" if v is None else f"{v:.4g}" for v in values]
        shown[1] = f"({decimal(row['x'], 4)}, {decimal(row['y'], 4)})"
        cells.append(
            f'<tr data-i="{i}"><td>{swatch}{escape(path.label)}</td>'
            + "".join(f"<td>{s}</td>" for s in shown)
            + f"<td>{escape(row['note'])}</td></tr>"
        )
    heads = ("optimizer", "lr", "final point", "f", "distance to minimum", f"steps to {CLOSE:g}", "")
    start = paths[0].points[0]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head><body>'
        f"<h1>{escape(surface.title)}</h1><p>From ({start[0]:g}, {start[1]:g}). Point at a line for its steps; "
        f'click a row of the table to hide or show one.</p><div class="plots">{_map(surface, paths)}'
        f"{_curves(surface, paths)}</div>"
        f"<table><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr>{''.join(cells)}</table>"
        + "".join(f"<p>{escape(note)}</p>" for note in notes)
        + f"<script>{_JS}</script></body></html>\n"
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in points)


def _line(points: Sequence[tuple[float, float]], i: int) -> str:
    colour, dashes, _ = style(i)
    stroke = f' stroke-dasharray="{" ".join(str(2 * d) for d in dashes)}"' if dashes else ""
    return f'<polyline points="{_points(points)}" fill="none" stroke="{colour}" stroke-width="2.2"{stroke}/>'


def _mark(i: int, x: float, y: float, r: float = 4.5) -> str:
    colour, _, marker = style(i)
    sides = {
        "s": (4, 45),
        "^": (3, -90),
        "D": (4, 0),
        "v": (3, 90),
        "P": (8, 22.5),
        "X": (6, 0),
        "<": (3, 180),
        ">": (3, 0),
        "p": (5, -90),
    }
    drawn = f'fill="{colour}" stroke="#fff"'
    if marker == "o":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}" {drawn}/>'
    n, turn = sides[marker]
    angles = [math.radians(turn + 360 * k / n) for k in range(n)]
    corners = [(x + 1.25 * r * math.cos(a), y + 1.25 * r * math.sin(a)) for a in angles]
    return f'<polygon points="{_points(corners)}" {drawn}/>'


def _trace(points: Sequence[tuple[float, float]], path: Trajectory, i: int) -> str:
    """A trajectory in page coordinates, every point with its step and value on hover."""
    every = max(1, len(points) // 8)
    marks = "".join(_mark(i, *points[k]) for k in range(0, len(points), every)) + _mark(i, *points[-1], r=7)
    spots = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="5" fill="transparent"><title>{escape(path.label)}, step {k}: '
        f"({decimal(path.points[k][0], 4)}, {decimal(path.points[k][1], 4)}), f = {path.values[k]:.4g}</title></circle>"
        for k, (a, b) in enumerate(points)
    )
    return f'<g data-i="{i}">{_line(points, i)}{marks}{spots}</g>'


def _map(surface: Surface, paths: Sequence[Trajectory]) -> str:
    import contourpy

    x, y, f, levels = grid(surface)
    low_x, high_x, low_y, high_y = surface.box
    pad = 40

    def at(point: Sequence[float]) -> tuple[float, float]:
        a = pad + (point[0] - low_x) / (high_x - low_x) * (W - 2 * pad)
        return a, H - pad - (point[1] - low_y) / (high_y - low_y) * (H - 2 * pad)

    generator = contourpy.contour_generator(x, y, f)
    lines = []
    for k, level in enumerate(levels):
        grey = 205 - int(95 * k / len(levels))
        rings = generator.lines(float(level))
        d = "".join("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in map(at, ring)) for ring in rings)
        title = f"<title>f = {level:.3g}</title>"
        lines.append(f'<path d="{d}" fill="none" stroke="rgb({grey},{grey},{grey})">{title}</path>')
    far = 10 * max(W, H)
    traces = "".join(
        _trace([(min(max(a, -far), far), min(max(b, -far), far)) for a, b in map(at, path.points)], path, i)
        for i, path in enumerate(paths)
    )
    sx, sy = at(paths[0].points[0])
    stars = "".join(
        '<text x="{:.1f}" y="{:.1f}" text-anchor="middle" class="star">★</text>'.format(
            *(a + b for a, b in zip(at(m), (0, 8), strict=True))
        )
        for m in surface.minima
    )
    clip = f'<clipPath id="box"><rect x="{pad}" y="{pad}" width="{W - 2 * pad}" height="{H - 2 * pad}"/></clipPath>'
    body = (
        f'{clip}<g clip-path="url(#box)">{"".join(lines)}{traces}{stars}'
        f'<circle cx="{sx:.1f}" cy="{sy:.1f}" r="6" stroke="#fff"><title>start</title></circle></g>'
    )
    caption = "★ minimum, ● start" if stars else "● start"
    return _frame(body, pad, [(low_x, high_x), (low_y, high_y)], ("x", "y"), W, caption)


def _curves(surface: Surface, paths: Sequence[Trajectory]) -> str:
    pad, width = 55, CURVES
    log = bool(surface.minima)
    bottom, top = value_range(paths, log)

    def value(v: float) -> float:
        v = min(max(v, bottom), top)
        return math.log10(v) if log else v

    low, high = value(bottom), value(top)
    n = max(len(path.values) for path in paths) - 1 or 1
    traces = "".join(
        _trace(
            [
                (pad + k / n * (width - pad - 20), H - 40 - (value(v) - low) / (high - low) * (H - 80))
                for k, v in enumerate(path.values)
            ],
            path,
            i,
        )
        for i, path in enumerate(paths)
    )
    return _frame(traces, pad, [(0, n), (low, high)], ("step", "log₁₀ f" if log else "f"), width, "")


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers within the range."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _frame(
    body: str, left: float, ranges: Sequence[tuple[float, float]], names: tuple[str, str], width: float, caption: str
) -> str:
    """An axes box with round ticks."""
    right, top, bottom = width - (40 if width == W else 20), 40, H - 40
    (low_x, high_x), (low_y, high_y) = ranges
    ticks = [
        f'<text x="{left + (right - left) * (v - low_x) / (high_x - low_x):.0f}" y="{bottom + 18}" '
        f'text-anchor="middle">{v:.4g}</text>'
        for v in _ticks(low_x, high_x)
    ]
    ticks += [
        f'<text x="{left - 6}" y="{bottom - (bottom - top) * (v - low_y) / (high_y - low_y) + 4:.0f}" '
        f'text-anchor="end">{v:.4g}</text>'
        for v in _ticks(low_y, high_y)
    ]
    return (
        f'<svg viewBox="0 0 {width} {H}" width="{width}" height="{H}" role="img" '
        f'aria-label="{names[1]} against {names[0]}">'
        f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" fill="none" stroke="#888"/>'
        f"{body}{''.join(ticks)}"
        f'<text x="{(left + right) / 2:.0f}" y="{H - 4}" text-anchor="middle">{names[0]}</text>'
        f'<text x="{left}" y="{top - 10}">{names[1]}</text><text x="{right}" y="{top - 10}" text-anchor="end">'
        f"{caption}</text></svg>"
    )
