"""The settings that tuning tries: a pure function of space, sampler, seed and number."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 4  # significant ones: a setting can be written down, and loses nothing by it


def distributions(space: Mapping[str, Sequence[Any]]) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions, sorted by name; choices as JSON, since Optuna stores plain ones only."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    ranges: dict[str, BaseDistribution] = {}
    for key, (kind, *bounds) in sorted(space.items()):
        if kind == "choice":
            ranges[key] = CategoricalDistribution([json.dumps(value) for value in bounds[0]])
        else:
            ranges[key] = FloatDistribution(bounds[0], bounds[1], log=kind == "log")
    return ranges


def encode(space: Mapping[str, Sequence[Any]], point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as Optuna's parameters."""
    return {key: json.dumps(value) if space[key][0] == "choice" else value for key, value in point.items()}


def draw(space: Mapping[str, Sequence[Any]], sampler: str, seed: int, number: int) -> list[dict[str, Any]]:
    """The first `number` points of the sequence that belongs to `seed`; a longer one begins with the shorter."""
    if sampler == "qmc":
        return [_point(space, row) for row in _sobol(len(space), seed, number)]
    import optuna

    ranges = distributions(space)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        asked = [study.ask(ranges).params for _ in range(number)]
    finally:
        optuna.logging.set_verbosity(before)
    return [{key: _value(space[key], params[key]) for key in ranges} for params in asked]


def _sobol(dimensions: int, seed: int, number: int) -> list[list[float]]:
    """Points in the unit cube: those of Optuna's QMCSampler, which scrambles the sequence anew for each of them."""
    from scipy.stats import qmc

    with warnings.catch_warnings():
        # SciPy would like powers of two, and is about to rename the keyword.
        warnings.simplefilter("ignore")
        engine = qmc.Sobol(dimensions, seed=seed, scramble=True)
        points: list[list[float]] = engine.random(number).tolist()
    return points


def _point(space: Mapping[str, Sequence[Any]], row: Sequence[float]) -> dict[str, Any]:
    point = {}
    for (key, bounds), u in zip(sorted(space.items()), row, strict=True):
        if bounds[0] == "choice":
            point[key] = bounds[1][int(u * len(bounds[1]))]
            continue
        low, high = (math.log(v) if bounds[0] == "log" else v for v in bounds[1:])
        at = low + u * (high - low)
        point[key] = _value(bounds, math.exp(at) if bounds[0] == "log" else at)
    return point


def _value(bounds: Sequence[Any], drawn: Any) -> Any:
    if bounds[0] == "choice":
        return json.loads(drawn)
    return min(max(float(f"{drawn:.{DIGITS}g}"), bounds[1]), bounds[2])
