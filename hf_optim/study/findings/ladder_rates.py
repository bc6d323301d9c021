"""The learning rates of a ladder: the best one at each size, and what it costs to carry the smallest size's over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hf_optim.study.findings.ladder_laws import exponential
from hf_optim.study.folder.grouping import by_cell
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.sensitivity import rate_key
from hf_optim.study.plan.tuning import edges
from hf_optim.study.statistics.intervals import Estimate
from hf_optim.study.statistics.paired import summarise


@dataclass(frozen=True)
class Rate:
    """The rate of a tuned optimizer on a rung: `best` is the geometric mean over repetitions of the chosen one, with
    its interval; `tried` has (rate, validation loss) of every trial that trained, `at_edge` counts the repetitions
    whose choice lies at an end of the range.
    """

    rung: Mapping[str, Any]
    optimizer: str
    best: Estimate
    chosen: tuple[float, ...]
    tried: tuple[tuple[float, float], ...]
    at_edge: int


@dataclass(frozen=True)
class Carried:
    """A larger rung with the settings of the smallest size: the loss there with them and with its own, by unit, and
    the mean difference (positive: carrying costs) with its interval. `failed` counts carried runs that failed.
    """

    rung: Mapping[str, Any]
    optimizer: str
    own: Estimate
    carried: Estimate
    costs: Estimate
    failed: int


def rates(results: Results) -> Iterator[Rate]:
    """In the order of rungs and optimizers, from the searches whose trials are all in."""
    plan = results.plan
    searches = by_cell(search for search in results.standing.state.searches if search.budget == 1)
    specs = {(task["label"], label): spec for task, label, spec in plan.cells()}
    for rung in plan.ladder["rungs"] if plan.ladder else ():
        for label in (o["label"] for o in plan.optimizers):
            key = rate_key(specs[rung["task"], label], "lr") if (rung["task"], label) in specs else None
            if key is None:
                continue
            # Among choices there may be 0, or none for a rate of the rule's own, of which there is no logarithm.
            mine = [
                s for s in searches.get((rung["task"], label), ())
                if s.choice and s.choice.trial and key in s.space and number(s.choice.trial.point[key]) > 0
            ]  # fmt: skip
            if not mine:
                continue
            choices = [s.choice.trial.point for s in mine if s.choice and s.choice.trial]
            chosen = [float(point[key]) for point in choices]
            best = exponential([math.log(v) for v in chosen])
            trials = [t for s in mine for t in s.trials if t.status == "ok" and number(t.point[key]) > 0]
            tried = [(float(t.point[key]), t.loss) for t in trials]
            ends = sum(bool(edges({key: s.space[key]}, p)) for s, p in zip(mine, choices, strict=True))
            yield Rate(rung, label, best, tuple(chosen), tuple(sorted(tried)), ends)


def carried(results: Results, own: Mapping[tuple[str, str], Mapping[int, float]]) -> Iterator[Carried]:
    """From the runs of `rates: both`; `own` has the losses of the rungs' own settings by task and optimizer."""
    plan = results.plan
    losses: dict[tuple[str, str], dict[int, list[float]]] = {}
    failed: dict[tuple[str, str], int] = {}
    primary = plan.tasks[0]["primary"]["name"]
    for carried_run in results.standing.state.carried:
        record = results.store.record(carried_run.run.id)
        if record is None:
            continue
        key = carried_run.run.task, carried_run.run.optimizer
        value = number((record.get("metrics") or {}).get(primary)) if record["status"] == "ok" else math.nan
        failed[key] = failed.get(key, 0) + math.isnan(value)
        if not math.isnan(value):
            losses.setdefault(key, {}).setdefault(carried_run.unit, []).append(value)
    for rung in plan.ladder["rungs"] if plan.ladder else ():
        for label in (o["label"] for o in plan.optimizers):
            key = rung["task"], label
            units = [u for u in losses.get(key, {}) if u in own.get(key, {})]
            if not units:
                continue
            with_them = [math.fsum(losses[key][u]) / len(losses[key][u]) for u in units]
            without = [own[key][u] for u in units]
            costs = [a - b for a, b in zip(with_them, without, strict=True)]
            yield Carried(rung, label, _estimate(without), _estimate(with_them), _estimate(costs), failed[key])


def _estimate(values: list[float]) -> Estimate:
    summary = summarise(values)
    return Estimate(summary.mean, summary.low, summary.high)
