"""How sure a ranking is: the probability of each place, by resampling the seeds. Description, not a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hf_optim.study.statistics.intervals import RESAMPLES, SEED
from hf_optim.study.statistics.ties import block


@dataclass(frozen=True)
class Ranking:
    """Optimizers by mean, best first. `places[label][r]` is the probability of place r + 1, `order` that of exactly
    this whole order; both over resamples of the seeds.
    """

    optimizers: tuple[str, ...]
    places: Mapping[str, tuple[float, ...]]
    order: float
    seeds: int


def ranking(
    tasks: Sequence[tuple[Mapping[str, Mapping[int, float]], bool]], resamples: int = RESAMPLES
) -> Ranking | None:
    """The ranking over tasks, each (values by label and seed, greater is better); over several, by the mean of ranks.

    A resample draws seeds with replacement, the same for all optimizers of a task, as they are paired; tasks are drawn
    apart. Equal means share places at random, evenly. None with fewer than two shared seeds on a task, or where tasks
    do not have the same optimizers.
    """
    blocks = [block(values) for values, _ in tasks]
    labels = blocks[0][0] if blocks else []
    if not labels or any(set(names) != set(labels) or len(table) < 2 for names, table in blocks):
        return None
    rng = np.random.default_rng(SEED)
    drawn = np.zeros((resamples, len(labels)))
    seen = np.zeros((1, len(labels)))
    for (names, table), (_, greater) in zip(blocks, tasks, strict=True):
        scores = (-table if greater else table)[:, [names.index(label) for label in labels]]
        n = len(scores)
        weights = rng.multinomial(n, [1 / n] * n, size=resamples) / n
        # Equal means differ in the last bits once summed in another order.
        means = (np.round(weights @ scores, 12), np.round(scores.mean(axis=0, keepdims=True), 12))
        drawn += _ranked(means[0], several=len(tasks) > 1)
        seen += _ranked(means[1], several=len(tasks) > 1)
    order = np.argsort(seen[0], kind="stable")
    # A random second key breaks ties evenly.
    ranked = np.lexsort((rng.random(drawn.shape), drawn), axis=-1)
    places = {labels[i]: tuple((ranked == i).mean(axis=0).tolist()) for i in order}
    whole = float((ranked == order).all(axis=1).mean())
    return Ranking(tuple(labels[i] for i in order), places, whole, min(len(table) for _, table in blocks))


def _ranked(means: NDArray[Any], *, several: bool) -> NDArray[Any]:
    return stats.rankdata(means, axis=1) if several else means
