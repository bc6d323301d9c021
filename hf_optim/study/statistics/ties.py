"""Who is tied with the best: judged over all pairs of the study, so that choosing the best after the fact is paid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hf_optim.study.statistics.paired import ALPHA, holm, paired_p_values


def block(values: Mapping[str, Mapping[int, float]]) -> tuple[list[str], NDArray[np.float64]]:
    """The optimizers' labels and their values over the seeds that all of them have, as a (seeds, optimizers) array."""
    labels = list(values)
    shared = set.intersection(*(set(one) for one in values.values())) if values else set()
    table = [[values[label][s] for label in labels] for s in sorted(shared)]
    return labels, np.array(table, dtype=float).reshape(len(shared), len(labels))


def tied_with_best(tasks: Sequence[tuple[Mapping[str, Mapping[int, float]], bool]]) -> list[set[str]]:
    """For each task the optimizers that no test tells from the one with the best mean, that one included.

    Each task is (values by label and seed, greater is better). An optimizer is told from the best if the paired t-test
    between them stays below 5 % after Holm's correction over all pairs of all tasks. Seeds that two optimizers do not
    share are left out of their pair.
    """
    places: list[tuple[int, str, str]] = []
    p_values: list[float] = []
    for number, (values, _) in enumerate(tasks):
        labels, table = block(values)
        if all(len(one) == len(table) for one in values.values()):
            upper = np.triu_indices(len(labels), 1)
            p_values += paired_p_values((table[:, upper[0]] - table[:, upper[1]]).T).tolist() if len(table) else []
            places += [(number, labels[i], labels[j]) for i, j in zip(*upper, strict=True)] if len(table) else []
            continue
        for i, a in enumerate(labels):
            for b in labels[i + 1 :]:
                d = [[values[a][s] - values[b][s] for s in values[a] if s in values[b]]]
                places.append((number, a, b))
                p_values.append(float(paired_p_values(np.array(d))[0]))
    apart = {place for place, p in zip(places, holm(p_values), strict=True) if p < ALPHA}
    found = []
    for number, (values, greater) in enumerate(tasks):
        means = {label: math.fsum(one.values()) / len(one) for label, one in values.items() if one}
        best = (max if greater else min)(means, key=lambda label: means[label]) if means else ""
        found.append({x for x in means if not {(number, best, x), (number, x, best)} & apart})
    return found
