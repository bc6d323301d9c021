"""How the result of tuning depends on its budget: the expected best of k trials, from the trials that were made.

Two estimators, since the literature is of two minds. The usual one (Dodge et al. 2019) draws k of the n trials with
replacement; it is biased towards too little (Tang et al. 2020). Without replacement it is unbiased; a later study
(Dodge et al. 2021) drew more wrong conclusions with that one. Where they disagree about who leads, nobody does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_optim.study.folder.grouping import by_cell
from hf_optim.study.folder.searches import Search, Trial, validation_metric
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan.plan import Plan, Run

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One optimizer on one task: what k = 1, 2, ... trials give, on average over the repetitions of the tuning.

    `unbiased` and `biased` estimate the best validation value; `test` is the test value, on the tuning seed, of the
    setting that k trials would choose (NaN if they may all fail). A trial that failed or was stopped early counts as
    the model before training or as the worst of the others, whichever is worse. `judged` is the mean test value of the
    chosen settings over the judged seeds, NaN before they are in.
    """

    task: str
    optimizer: str
    failed: int
    pruned: int
    unbiased: tuple[float, ...]
    biased: tuple[float, ...]
    test: tuple[float, ...]
    judged: float


def unbiased_weights(n: int, k: int) -> Array:
    """The probability that the i-th worst of n values is the best of k drawn without replacement, i = 1 .. n."""
    # C(i - 1, k - 1) / C(n, k), from the last, k / n, downwards: the binomials of thousands have thousands of digits.
    i = np.arange(n, 1, -1)
    return np.cumprod(np.concatenate(([k / n], np.maximum(i - k, 0) / (i - 1))), dtype=np.float64)[::-1]


def biased_weights(n: int, k: int) -> Array:
    """The same with replacement."""
    below: Array = (np.arange(n + 1) / n) ** k
    return below[1:] - below[:-1]


def curves(plan: Plan, searches: Sequence[Search], reader: RecordStore) -> list[Curve]:
    """The curve of every optimizer whose trials are all in: the mean over the repetitions that all on its task have."""
    if plan.tuning is None:
        return []
    tasks = {task["label"]: task for task in plan.tasks}
    own = {plan.tuning_seed(unit) for unit in range(plan.looks[-1])}
    drawn: dict[str, dict[str, dict[int, Curve]]] = {}
    judged = by_cell(plan.runs)
    for search in searches:
        if search.complete and search.trials and search.seed in own and search.budget == 1:
            runs = judged.get((search.task, search.optimizer), [])
            curve = _curve(tasks[search.task], search, runs, reader)
            drawn.setdefault(search.task, {}).setdefault(search.optimizer, {})[search.seed] = curve
    shared = {task: set.intersection(*map(set, mine.values())) for task, mine in drawn.items()}
    return [
        _over_repetitions([each[seed] for seed in sorted(shared[task])])
        for task, mine in drawn.items()
        for each in mine.values()
        if shared[task]
    ]


def _over_repetitions(each: Sequence[Curve]) -> Curve:
    """The mean curve, as far as every repetition has trials."""

    def mean(columns: Sequence[Sequence[float]]) -> tuple[float, ...]:
        return tuple(math.fsum(column) / len(column) for column in zip(*columns, strict=False))

    return replace(
        each[0],
        failed=sum(c.failed for c in each),
        pruned=sum(c.pruned for c in each),
        unbiased=mean([c.unbiased for c in each]),
        biased=mean([c.biased for c in each]),
        test=mean([c.test for c in each]),
    )


def _curve(task: Mapping[str, Any], search: Search, runs: Sequence[Run], reader: RecordStore) -> Curve:
    greater = bool(task["primary"]["greater_is_better"])
    before = reader.untrained_of((t.run.id for t in search.trials if t.status), validation_metric(task))
    known = [t.value for t in search.trials if t.status == "ok"] + ([] if math.isnan(before) else [before])
    floor = (min if greater else max)(known, default=math.nan)
    rows = [(t.value if t.status == "ok" else floor, t) for t in search.trials]
    # From worst to best as the choice sees it: among equal values the lower loss, then the earlier trial is better.
    rows.sort(key=lambda r: (r[0] if greater else -r[0], r[1].status == "ok", _loss_rank(r[1]), -r[1].number))
    values = np.array([value for value, _ in rows])
    test = np.array([_test(task, t, reader) for _, t in rows])
    n = len(rows)
    unbiased, biased, tested = zip(*(_estimates(n, k, values, test) for k in range(1, n + 1)), strict=True)
    return Curve(
        task=search.task,
        optimizer=search.optimizer,
        failed=sum(t.status == "failed" for t in search.trials),
        pruned=sum(t.status == "pruned" for t in search.trials),
        unbiased=unbiased,
        biased=biased,
        test=tested,
        judged=_judged(task, runs, reader),
    )


def _loss_rank(trial: Trial) -> float:
    return -math.inf if math.isnan(trial.loss) else -trial.loss


def _estimates(n: int, k: int, values: Array, test: Array) -> tuple[float, float, float]:
    """Of k of n trials, from worst to best: both estimates of the best value, and the test value that it comes with."""
    unbiased, biased = unbiased_weights(n, k), biased_weights(n, k)
    return _sum(unbiased, values), _sum(biased, values), _sum(unbiased, test)


def _sum(weights: Array, values: Array) -> float:
    return float(np.dot(weights[weights > 0], values[weights > 0]))


def _test(task: Mapping[str, Any], trial: Trial, reader: RecordStore) -> float:
    record = reader.record(trial.run.id) if trial.status == "ok" else None
    return number(record["metrics"].get(task["primary"]["name"])) if record else math.nan


def _judged(task: Mapping[str, Any], runs: Sequence[Run], reader: RecordStore) -> float:
    records = [reader.record(run.id) for run in runs]
    values = [number(record["metrics"].get(task["primary"]["name"])) for record in records if record]
    return math.fsum(values) / len(values) if runs and len(values) == len(runs) else math.nan
