"""The power law of a loss over the rungs of a ladder, and the bands that charts draw of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_optim.study.statistics.intervals import Estimate
from hf_optim.study.statistics.paired import summarise

Rung = Mapping[str, Any]
AXES = ("tokens", "flops", "seconds")
GRID = 24  # points of a drawn line
LARGEST_LOG = 345.0  # of 1e150, beyond which no number is read either (`core.shape`)


@dataclass(frozen=True)
class Point:
    """One optimizer on one rung: the mean loss of each unit that finished, and what a run cost (medians)."""

    rung: Rung
    optimizer: str
    losses: Mapping[int, float]
    tokens: float
    flops: float
    seconds: float

    @property
    def loss(self) -> Estimate:
        """The mean over units with its 95 % t-interval."""
        return estimate(list(self.losses.values()))


@dataclass(frozen=True)
class Line:
    """A fitted line of an optimizer over one of AXES: the loss, with its interval over units, at each `x`; `size` is
    None where it goes through all sizes.
    """

    optimizer: str
    axis: str
    size: int | None
    x: tuple[float, ...]
    y: tuple[Estimate, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over units with its 95 % t-interval."""
    summary = summarise(values)
    return Estimate(summary.mean, summary.low, summary.high)


def exponential(values: Sequence[float]) -> Estimate:
    """The geometric mean of what `values` are the logarithms of, with its interval."""
    estimated = estimate(values)
    return Estimate(*map(power, (estimated.value, estimated.low, estimated.high)))


def power(log: float) -> float:
    """e to the power of `log`, as far as there are numbers: what hardly falls has a slope near 0 to divide by."""
    return math.exp(min(log, LARGEST_LOG))


def shared(points: Sequence[Point]) -> list[int]:
    """The units that finished on every one of the points."""
    return sorted(set.intersection(*(set(p.losses) for p in points))) if points else []


def law(points: Sequence[Point], unit: int) -> tuple[float, float, float, float]:
    """(a, alpha, beta, root mean square of the residuals) of ln loss = a - alpha ln N - beta ln D for one unit.

    An exponent that the rungs cannot tell is 0; where size and tokens only vary together, all of it is in beta.
    """
    n, d = np.log([p.rung["parameters"] for p in points]), np.log([p.tokens for p in points])
    y = np.log([p.losses[unit] for p in points])
    columns, kept = [np.ones(len(points))], []
    for name, x in (("beta", d), ("alpha", n)):
        tried = np.column_stack([*columns, x - x.mean()])
        if np.linalg.matrix_rank(tried, tol=1e-6) == tried.shape[1]:
            columns.append(x)
            kept.append(name)
    design = np.column_stack(columns)
    solved, *_ = np.linalg.lstsq(design, y, rcond=None)
    powers = {name: -float(value) for name, value in zip(kept, solved[1:], strict=True)}
    off = float(np.sqrt(np.mean((design @ solved - y) ** 2)))
    return float(solved[0]), powers.get("alpha", 0.0), powers.get("beta", 0.0), off


def lines(points: Sequence[Point]) -> list[Line]:
    """The lines of one optimizer over each axis: over tokens one for each size, by the law; over FLOPs and seconds one
    through all rungs, ln loss against ln x. None with fewer than two units or places on the axis.
    """
    units, fitted = shared(points), []
    if len(units) < 2:
        return []
    if len({p.tokens for p in points}) > 1:
        laws = [law(points, unit) for unit in units]
        for size in sorted({p.rung["parameters"] for p in points}):
            x = _grid([p.tokens for p in points if p.rung["parameters"] == size])
            said = [[a - alpha * math.log(size) - beta * math.log(v) for v in x] for a, alpha, beta, _ in laws]
            fitted.append(Line(points[0].optimizer, "tokens", size, x, _over_units(said)))
    for axis in ("flops", "seconds"):
        at = [getattr(p, axis) for p in points]
        # what differs in its last digits says nothing about a slope
        if all(0 < v < math.inf for v in at) and max(at) > (1 + 1e-6) * min(at):
            x = _grid(at)
            fits = [np.polyfit(np.log(at), np.log([p.losses[u] for p in points]), 1) for u in units]
            said = [np.polyval(fit, np.log(x)).tolist() for fit in fits]
            fitted.append(Line(points[0].optimizer, axis, None, x, _over_units(said)))
    return fitted


def _grid(values: Sequence[float]) -> tuple[float, ...]:
    low, high = min(values), max(values)
    return tuple(np.geomspace(low, high, GRID).tolist()) if high > low else (low,)


def _over_units(logs: Sequence[Sequence[float]]) -> tuple[Estimate, ...]:
    return tuple(exponential([float(v) for v in column]) for column in zip(*logs, strict=True))
