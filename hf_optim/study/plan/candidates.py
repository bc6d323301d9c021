"""The settings that tuning tries: a pure function of space, sampler, seed and number, by Optuna's samplers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

DIGITS = 4  # significant ones: a setting can be written down, and loses nothing by it


def distributions(space: Mapping[str, Sequence[Any]]) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions, sorted by name; choices as JSON, since Optuna stores plain ones only."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    made: dict[str, BaseDistribution] = {}
    for key, (kind, *bounds) in sorted(space.items()):
        if kind == "choice":
            made[key] = CategoricalDistribution([json.dumps(value) for value in bounds[0]])
        else:
            made[key] = FloatDistribution(bounds[0], bounds[1], log=kind == "log")
    return made


def encode(space: Mapping[str, Sequence[Any]], point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as Optuna's parameters."""
    return {key: json.dumps(value) if space[key][0] == "choice" else value for key, value in point.items()}


def draw(space: Mapping[str, Sequence[Any]], sampler: str, seed: int, number: int) -> list[dict[str, Any]]:
    """The first `number` points of the sequence that belongs to `seed`; a longer one begins with the shorter."""
    import optuna

    made = distributions(space)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            # QMCSampler is marked experimental, and calls SciPy by a keyword that SciPy is about to rename.
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=_sampler(sampler, seed))
            if sampler == "qmc":
                study.ask(made)  # its first answer is a plain random one, from which it takes the space
            asked = [study.ask(made).params for _ in range(number)]
    finally:
        optuna.logging.set_verbosity(before)
    return [{key: _value(space[key], params[key]) for key in made} for params in asked]


def _sampler(name: str, seed: int) -> BaseSampler:
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)


def _value(one: Sequence[Any], drawn: Any) -> Any:
    if one[0] == "choice":
        return json.loads(drawn)
    return min(max(float(f"{drawn:.{DIGITS}g}"), one[1]), one[2])
