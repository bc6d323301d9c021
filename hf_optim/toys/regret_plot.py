"""The figure of `hf_optim.commands.convergence`: regret with its bound, and suboptimality, over T."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_optim.core.shape import CLOSEST, FARTHEST
from hf_optim.toys.trajectory_plot import style

if TYPE_CHECKING:
    from hf_optim.toys.regret import Run


def draw(title: str, by_label: Mapping[str, Sequence[Run]]) -> Any:
    """A matplotlib figure: left R(T), dashed the bound of SMARAN's Theorem 3; right f of the mean iterate minus the
    least f, with a line that falls as 1/sqrt(T). Lines are means over seeds, bands reach from the least to the most.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, name in ((left, "regret"), (right, "excess_of_mean")):
        for i, (label, runs) in enumerate(by_label.items()):
            colour, _, marker = style(i)
            steps, low, mean, high = _spread(runs, name)
            axes.plot(steps, mean, color=colour, marker=marker, markersize=5, label=label)
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
            bounds = [(row["T"], row["bound"]) for run in runs[:1] for row in run.rows if _shown(row["bound"])]
            if name == "regret" and bounds:
                axes.plot(*zip(*bounds, strict=True), color=colour, linestyle=(0, (5, 2)), label=f"{label}: Theorem 3")
        if any(len(line.get_xdata()) for line in axes.lines):  # a rate may be such that nothing is left to show
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
        axes.set_xlabel("T")
        axes.grid(color="#dddddd", linewidth=0.6)
    reference = next((_spread(runs, "excess_of_mean") for runs in by_label.values() if runs and runs[0].rows), None)
    if reference is not None and len(reference[0]) > 1 and reference[2][0] > 0:
        steps, _, mean, _ = reference
        line = [mean[0] / math.sqrt(step / steps[0]) for step in steps]
        right.plot(steps, line, color="#888888", linestyle=(0, (1.5, 1.5)), label="1/sqrt(T)")
    left.set_ylabel("regret R(T)")
    right.set_ylabel("f(mean of the iterates) - f*")
    for axes in (left, right):
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def _shown(value: float) -> bool:
    """Whether an axis of logarithms shows it."""
    return CLOSEST < value < FARTHEST


def _spread(runs: Sequence[Run], name: str) -> tuple[list[int], list[float], list[float], list[float]]:
    """T, and the least, mean and most of a figure over the seeds; what a logarithm does not take is left out."""
    steps, low, mean, high = [], [], [], []
    for rows in zip(*(run.rows for run in runs), strict=False):
        values = [row[name] for row in rows]
        if all(map(_shown, values)):
            steps.append(rows[0]["T"])
            low.append(min(values))
            mean.append(sum(values) / len(values))
            high.append(max(values))
    return steps, low, mean, high
