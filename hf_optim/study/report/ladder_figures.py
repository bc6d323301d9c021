"""A ladder's charts by matplotlib, for a paper: loss against tokens, and the speed-up against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_optim.core.safe_text import plot
from hf_optim.study.findings.ladder import Ladder
from hf_optim.study.report import figure_texts as texts
from hf_optim.study.report.ladder import MOST
from hf_optim.study.report.ladder_charts import short, ticks
from hf_optim.study.report.summary import words
from hf_optim.study.statistics.intervals import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: of each kind of line
MARKERS = {"-": "o", "--": "s", ":": "^"}


def draw(ladder: Ladder, chart: str, styles: Mapping[str, tuple[str, str]], *, axes: Axes) -> None:
    """Draws one of `CHARTS`; `styles`: colour and dashes by optimizer."""
    CHARTS[chart](axes, ladder, styles)
    texts.legend(axes)
    axes.spines[["top", "right"]].set_visible(False)


def loss(axes: Axes, ladder: Ladder, styles: Mapping[str, tuple[str, str]]) -> None:
    """A ladder's loss against the tokens of training: means over units with their intervals, and the fitted laws."""
    for label, (colour, dash) in styles.items():
        points = [(p.tokens, p.loss) for p in ladder.points if p.optimizer == label]
        points.sort(key=lambda point: point[0])
        for line in (line for line in ladder.lines if (line.optimizer, line.axis) == (label, "tokens")):
            axes.plot(line.x, [y.value for y in line.y], dash, color=colour, linewidth=1)
        _points(axes, points, MARKERS[dash], colour, label)
    _log(axes)
    axes.set_xlabel("tokens of training")
    axes.set_ylabel(plot(words(ladder.metric)) + " ↓")


def speedup(axes: Axes, ladder: Ladder, styles: Mapping[str, tuple[str, str]]) -> None:
    """How many times its tokens the baseline needs to do as well, by the fitted laws, against size; what lies beyond
    1 / `MOST` and `MOST` leaves the chart."""
    for label, (colour, dash) in styles.items():
        speeds = [s for s in ladder.speeds if s.optimizer == label and s.fitted.value > 0]
        points = [(float(s.rung["parameters"]), s.fitted) for s in speeds]
        _points(axes, points, MARKERS[dash] + dash, colour, label)
    axes.axhline(1, color="0.5", linewidth=0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 1 / MOST), min(high, MOST))
    _log(axes)
    axes.set_xlabel("parameters")
    axes.set_ylabel(plot(f"speed-up in tokens over {ladder.baseline} ↑"))


def _points(axes: Axes, points: Sequence[tuple[float, Estimate]], marks: str, colour: str, label: str) -> None:
    if not points:
        return
    x, estimates = zip(*points, strict=True)
    ends = [[e.value if end != end else end for end in (e.low, e.high)] for e in estimates]  # NaN: no interval
    away = [[abs(e.value - end[i]) for e, end in zip(estimates, ends, strict=True)] for i in (0, 1)]
    look: dict[str, Any] = {"fmt": marks, "color": colour, "markersize": 3.5, "linewidth": 1, "label": plot(label)}
    axes.errorbar(x, [e.value for e in estimates], away, **look)


def _log(axes: Axes) -> None:
    """Both axes logarithmic, with round numbers written out as the report writes them."""
    for axis, scale, limits in (
        (axes.xaxis, axes.set_xscale, axes.get_xlim),
        (axes.yaxis, axes.set_yscale, axes.get_ylim),
    ):
        scale("log")
        at = [value for value in ticks(*limits()) if limits()[0] <= value <= limits()[1]]
        axis.set_ticks(at, [short(value) for value in at])
        axis.set_ticks([], minor=True)


#: what is exported of a ladder, by the end of the file's name
CHARTS = {"loss": loss, "speedup": speedup}
