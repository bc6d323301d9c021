"""What stands around a chart for a paper: labels and legends that stay within it and cover nothing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: with `text.usetex` in the user's own matplotlibrc, a label would be a program of LaTeX's, which reads files
PLAIN: Any = {"text.usetex": False}
#: so many names stand in a chart
FEW = 5


def below(axes: Axes, text: str) -> None:
    """The label of a chart whose rows have names on the left: from its right edge on, in lines that fit the figure."""
    letters = max(12, _letters(*_size(axes)))
    axes.set_xlabel(textwrap.fill(text, letters), loc="right", multialignment="right")


def legend(axes: Axes) -> None:
    """Inside the chart, or, of more lines than leave it a free corner, above it."""
    labels = axes.get_legend_handles_labels()[1]
    if not labels:  # nothing is drawn
        return
    if len(labels) <= FEW:
        axes.legend(frameon=False)
    else:
        columns = _columns(labels, *_size(axes))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1.02), borderaxespad=0, ncols=columns)


def plain(axes: Axes) -> None:
    """Whoever made the axes: what we have written on them is no LaTeX."""
    legend_texts = shown.get_texts() if (shown := axes.get_legend()) is not None else []
    rows = [text for tick in axes.yaxis.get_major_ticks() for text in (tick.label1, tick.label2)]
    for text in (axes.xaxis.label, axes.yaxis.label, *rows, *legend_texts):
        text.set_usetex(False)


def above(labels: Sequence[str], inches: float, points: float) -> float:
    """Inches of the legend that `legend` puts above a chart of these lines."""
    return 0.0 if len(labels) <= FEW else math.ceil(len(labels) / _columns(labels, inches, points)) * 1.45 * points / 72


def _size(axes: Axes) -> tuple[float, float]:
    """The width of an axes' figure in inches, and its letters in points."""
    figure: Any = axes.figure
    return figure.get_figwidth(), float(axes.xaxis.label.get_fontsize())


def _letters(inches: float, points: float) -> int:
    """How many letters of a usual text stand side by side."""
    return int(inches * 72 / (0.58 * points))


def _columns(labels: Sequence[str], inches: float, points: float) -> int:
    """How many names of a legend, each with its line, stand side by side."""
    return max(1, min(len(labels), _letters(inches, points) // (max(map(len, labels)) + 6)))
