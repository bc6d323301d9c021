"""Landscapes and interpolations as tables, and as PNG by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from hf_optim.curvature.landscape import Surface


class Picture(NamedTuple):
    """A table, the first of whose `rows` is its head, and what draws it into matplotlib's axes."""

    name: str
    rows: list[tuple[Any, ...]]
    draw: Callable[[Any], None]


def landscape(surface: Surface) -> Picture:
    """The loss around a solution."""
    steps = [(a, b, surface.loss[i][j]) for i, a in enumerate(surface.first) for j, b in enumerate(surface.second)]
    draw = _line if len(surface.second) == 1 else _contours
    return Picture("landscape", [("first", "second", "loss"), *steps], partial(draw, surface))


def interpolation(way: Sequence[tuple[float, float]]) -> Picture:
    """The loss between two solutions, from (share, loss) pairs."""
    return Picture("interpolation", [("share", "loss"), *way], partial(_way, way))


def save(picture: Picture, file: BinaryIO) -> None:
    """The picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    picture.draw(figure.add_subplot())
    figure.savefig(file, dpi=120, format="png")


def _way(way: Sequence[tuple[float, float]], axes: Any) -> None:
    axes.plot([share for share, _ in way], [loss for _, loss in way], marker=".")
    for share, text in ((0, "first"), (1, "second")):
        axes.axvline(share, color="0.6", linewidth=1)
        axes.annotate(text, (share, 1), xycoords=("data", "axes fraction"), xytext=(3, -12), textcoords="offset points")
    axes.set(xlabel="share of the way", ylabel="loss", title="Between two solutions")


def _line(surface: Surface, axes: Any) -> None:
    axes.plot(surface.first, [row[0] for row in surface.loss], marker=".")
    axes.set(xlabel="step along a filter-normalised direction", ylabel="loss", title="Loss landscape")


def _contours(surface: Surface, axes: Any) -> None:
    """Levels on a logarithm, since a landscape spans decades; what is not finite stays white."""
    import numpy as np

    loss = np.array(surface.loss, dtype=float).T
    finite = loss[np.isfinite(loss) & (loss > 0)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 10.0)
    levels = np.geomspace(low, high, 16) if high > low * (1 + 1e-9) else [low, low + math.ulp(low) * 8]
    drawn = axes.contourf(
        surface.first, surface.second, np.ma.masked_invalid(loss), levels=levels, cmap="viridis", norm="log"
    )
    axes.contour(
        surface.first, surface.second, np.ma.masked_invalid(loss), levels=levels, colors="white", linewidths=0.4
    )
    axes.plot([0], [0], marker="x", color="white")
    axes.set(xlabel="first direction", ylabel="second direction", title="Loss landscape (filter-normalised directions)")
    axes.set_aspect("equal")
    bar = axes.figure.colorbar(drawn, ax=axes, label="loss", format="%.3g")
    bar.minorticks_off()
