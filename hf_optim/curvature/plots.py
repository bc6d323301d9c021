"""Landscapes and interpolations as PNG, by matplotlib."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

from hf_optim.curvature.landscape import Surface


def draw(name: str, measured: Any, file: BinaryIO) -> None:
    """One picture of a `Surface` or of an interpolation's (share, loss) pairs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if name == "interpolation":
        axes.plot([share for share, _ in measured], [loss for _, loss in measured], marker=".")
        for share, text in ((0, "first"), (1, "second")):
            axes.axvline(share, color="0.6", linewidth=1)
            axes.annotate(
                text, (share, 1), xycoords=("data", "axes fraction"), xytext=(3, -12), textcoords="offset points"
            )
        axes.set(xlabel="share of the way", ylabel="loss", title="Between two solutions")
    elif len(measured.second) == 1:
        axes.plot(measured.first, [row[0] for row in measured.loss], marker=".")
        axes.set(xlabel="step along a filter-normalised direction", ylabel="loss", title="Loss landscape")
    else:
        _contours(figure, axes, measured)
    figure.savefig(file, dpi=120, format="png")


def _contours(figure: Any, axes: Any, surface: Surface) -> None:
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
    bar = figure.colorbar(drawn, ax=axes, label="loss", format="%.3g")
    bar.minorticks_off()
