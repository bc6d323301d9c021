"""Test functions of two variables, for `hf-optim landscape`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Surface:
    """A function of (x, y), elementwise on tensors.

    Args:
        title: its name and formula.
        f: the function.
        start: where trajectories begin.
        box: x_low, x_high, y_low, y_high of the plot.
        minima: all global minima, where f is 0; () for none, then f falls without end.
        rate: the rate of optimizers without one, where no lowest value can choose it.
    """

    title: str
    f: Function = field(repr=False)
    start: tuple[float, float]
    box: tuple[float, float, float, float]
    minima: tuple[tuple[float, float], ...]
    rate: float | None = None


SURFACES: dict[str, Surface] = {
    "beale": Surface(
        "Beale: (1.5 - x + xy)² + (2.25 - x + xy²)² + (2.625 - x + xy³)²",
        lambda x, y: (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2,
        (1.0, 1.5),
        (-1.0, 4.5, -2.0, 2.0),
        ((3.0, 0.5),),
    ),
    "rosenbrock": Surface(
        "Rosenbrock: (1 - x)² + 100 (y - x²)²",
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        (-1.2, 1.0),
        (-2.0, 2.0, -1.0, 3.0),
        ((1.0, 1.0),),
    ),
    "rastrigin": Surface(
        "Rastrigin: 20 + x² + y² - 10 (cos 2πx + cos 2πy)",
        lambda x, y: 20 + x**2 + y**2 - 10 * ((2 * math.pi * x).cos() + (2 * math.pi * y).cos()),
        (-2.3, 1.7),
        (-3.5, 3.5, -3.5, 3.5),
        ((0.0, 0.0),),
    ),
    "himmelblau": Surface(
        "Himmelblau: (x² + y - 11)² + (x + y² - 7)²",
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        (0.0, -0.5),
        (-5.5, 5.5, -5.5, 5.5),
        (
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.779310253377747, -3.283185991286170),
            (3.584428340330492, -1.848126526964404),
        ),
    ),
    "quadratic": Surface(
        "Convex quadratic: (x² + 25 y²) / 2",
        lambda x, y: (x**2 + 25 * y**2) / 2,
        (-4.0, 1.5),
        (-5.0, 5.0, -2.5, 2.5),
        ((0.0, 0.0),),
    ),
    "saddle": Surface(
        "Saddle: x² - y²",
        lambda x, y: x**2 - y**2,
        (-1.5, 0.01),
        (-2.0, 2.0, -2.0, 2.0),
        (),
        rate=0.03,
    ),
}
