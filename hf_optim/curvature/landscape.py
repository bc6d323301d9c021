"""The loss along random directions and between two solutions (Li et al. 2018: filter-normalised directions)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_optim.curvature.solution import Solution
from hf_optim.errors import UserError

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Surface:
    """Losses over a grid of steps along one or two directions: `loss[i][j]` at (`first[i]`, `second[j]`)."""

    first: tuple[float, ...]
    second: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]


def filter_normalised(parameters: Sequence[Tensor], seed: int) -> list[Tensor]:
    """A random direction whose every filter (row of a weight) has the norm of the parameters' own filter.

    Parameters of one dimension (biases, norms) are left where they are, as the method's authors do.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = []
    for parameter in parameters:
        direction = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.dim() < 2:
            directions.append(torch.zeros_like(direction))
            continue
        filters, own = direction.flatten(1), parameter.detach().flatten(1)
        scale = own.norm(dim=1, keepdim=True) / filters.norm(dim=1, keepdim=True).clamp_min(1e-12)
        directions.append((filters * scale).view_as(parameter))
    return directions


def surface(
    solution: Solution,
    *,
    points: int = 11,
    distance: float = 1.0,
    dimensions: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Surface:
    """The loss over [-distance, distance] along one or two filter-normalised directions; the middle is the solution.

    Args:
        points: a direction; odd, so that the solution itself is among them.
        distance: 1.0 is a step as long as the weights themselves.
        dimensions: 1 or 2.
        seed: of the directions; the same for solutions that are to be compared.
        progress: called with points done and all points.
    """
    if points < 3 or points % 2 == 0:
        raise UserError(f"points: take an odd number of at least 3, got {points}")
    if dimensions not in (1, 2):
        raise UserError(f"dimensions: 1 or 2, got {dimensions}")
    steps = [distance * (2 * i / (points - 1) - 1) for i in range(points)]
    parameters = solution.parameters
    directions = [filter_normalised(parameters, 2 * seed + i) for i in range(dimensions)]
    across = steps if dimensions == 2 else [0.0]
    rows = []
    with _kept(parameters) as origin:
        for i, a in enumerate(steps):
            row = []
            for j, b in enumerate(across):
                for p, start, *moves in zip(parameters, origin, *directions, strict=True):
                    moved = start + sum(
                        (step * move for step, move in zip((a, b), moves, strict=False)), torch.zeros_like(start)
                    )
                    p.data.copy_(moved)
                row.append(solution.loss())
                if progress:
                    progress(i * len(across) + j + 1, len(steps) * len(across))
            rows.append(tuple(row))
    return Surface(tuple(steps), tuple(across), tuple(rows))


def between(first: Solution, second: Solution, *, points: int = 25, beyond: float = 0.5) -> list[tuple[float, float]]:
    """(share, loss) on the straight line from the first solution (0) to the second (1), and `beyond` each of them.

    The first solution's batches are used; running averages (batch norm) move with the parameters.

    Raises:
        UserError: the two are not the same model.
    """
    mine, other = first.model.state_dict(), second.model.state_dict()
    if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in other.items()}:
        raise UserError("interpolation: the two checkpoints are not of the same model")
    if points < 3:
        raise UserError(f"points: take at least 3, got {points}")
    start = {key: value.clone() for key, value in mine.items()}
    heights = []
    try:
        for i in range(points):
            share = -beyond + (1 + 2 * beyond) * i / (points - 1)
            for key, value in mine.items():
                if value.is_floating_point():
                    value.copy_(torch.lerp(start[key], other[key].to(value), share))
            heights.append((share, first.loss()))
    finally:
        first.model.load_state_dict(start)
    return heights


@contextmanager
def _kept(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters as they are, which they are again afterwards."""
    origin = [p.detach().clone() for p in parameters]
    try:
        yield origin
    finally:
        for p, start in zip(parameters, origin, strict=True):
            p.data.copy_(start)
