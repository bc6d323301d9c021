"""The searches of a study's tuning: each optimizer's trials on a task, and the setting that they choose.

All of it is worked out from the plan and the records, as everything in `stages` is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.folder import pruning
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan import speedup, tuning, variance
from hf_optim.study.plan.plan import Plan, Run, make_run

Key = tuple[str, str, int, float]  # task's label, optimizer's label, tuning seed, budget (1 but for a speed-up's)

#: units whose runs are asked which setting they have, where a trial cannot be read
MOST_ASKED = 20


@dataclass(frozen=True)
class Trial:
    """One setting of an optimizer on a task. `status` is "ok", "failed", "pruned" or "" (no record yet).

    `value` and `loss` are of the validation split at the end of training, NaN unless ok; `steps` those that were made.
    """

    number: int
    point: Mapping[str, Any]
    run: Run
    status: str
    value: float
    loss: float
    steps: int | None


@dataclass(frozen=True)
class Choice:
    """The setting of one optimizer on one task: `trial` is None where nothing was tuned or every trial failed."""

    spec: Mapping[str, Any]
    trial: Trial | None
    edges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """The trials of one optimizer on one task for one tuning seed, as far as they are known; `choice` when all are in,
    or one cannot be read. `budget` is 1 but where the baseline is tuned at another one (`speedup`).

    `waiting` counts trials whose specification depends on the records of earlier ones (pruning).
    """

    task: str
    optimizer: str
    seed: int
    space: Mapping[str, Sequence[Any]]
    trials: tuple[Trial, ...]
    waiting: int
    choice: Choice | None
    budget: float = 1.0

    @property
    def complete(self) -> bool:
        """Whether every trial has its record."""
        return not self.waiting and all(trial.status for trial in self.trials)


def key_of(search: Search) -> Key:
    return search.task, search.optimizer, search.seed, search.budget


def searched_cells(plan: Plan, units: int) -> Iterator[Mapping[str, Any]]:
    """The searches of the first so many units, and those of other blocks."""
    if plan.tuning is None:
        return
    later = {plan.tuning_seed(unit) for unit in range(units, plan.looks[-1])} if plan.repetitions else set()
    later -= {varied.tuning_seed for varied in variance.settings(plan.variance)} if plan.variance else set()
    yield from (cell for cell in plan.tuning["cells"] if cell["seed"] not in later)


def known_searches(plan: Plan, store: RecordStore, units: int, before: Sequence[Search] = ()) -> Iterator[Search]:
    """The searches of the first so many units, from the records; those of `before` are not worked out anew."""
    entry = {(task["label"], label): (task, spec) for task, label, spec in plan.cells()}
    known = {key_of(search): search for search in before}
    for cell in searched_cells(plan, units):
        if over := known.get((cell["task"], cell["optimizer"], cell["seed"], cell.get("budget", 1.0))):
            yield over
            continue
        assert plan.tuning is not None
        task, spec = entry[cell["task"], cell["optimizer"]]
        trials, waiting = _trials(plan.tuning, cell, task, spec, store)
        search = Search(
            cell["task"], cell["optimizer"], cell["seed"], cell["space"], tuple(trials), waiting, None,
            cell.get("budget", 1.0),
        )  # fmt: skip
        if search.complete:
            best = best_trial(trials, task["primary"]["greater_is_better"])
        elif any(trial.run.id in store.unreadable for trial in trials):
            best = _as_run(plan, cell, task, spec, search, store)
        else:
            yield search
            continue
        point = best.point if best else cell["points"][0] if cell["points"] else {}
        edges = tuple(tuning.edges(cell["space"], point)) if best else ()
        yield replace(search, choice=Choice(tuning.assign(spec, point), best, edges))


def _as_run(
    plan: Plan,
    cell: Mapping[str, Any],
    task: Mapping[str, Any],
    spec: Mapping[str, Any],
    search: Search,
    store: RecordStore,
) -> Trial | None:
    """The trial whose setting the runs after a search have, of which a trial cannot be read; None without such runs."""
    over = speedup.steps_at(task, search.budget)
    units = [unit for unit in range(plan.looks[-1]) if plan.tuning_seed(unit) == search.seed]
    places = [(seed, over) for unit in units[:MOST_ASKED] for seed in plan.unit_seeds(unit)]
    varied = variance.settings(plan.variance) if plan.variance else ()
    places += [(v.seed, dict(v.overrides)) for v in varied if v.tuning_seed == search.seed]
    told = {trial.number: trial for trial in search.trials}
    for seed, overrides in places:
        for i, point in enumerate(cell["points"]):
            run = make_run(task, search.optimizer, tuning.assign(spec, point), seed, overrides)
            if store.record(run.id) is not None:
                return told.get(i) or Trial(i, point, run, "", math.nan, math.nan, None)
    return None


def check_measured(plan: Plan, searches: Sequence[Search], store: RecordStore) -> None:
    """Raise UserError where a search's trials do not record what they are chosen by: no further run would either. Who
    reads a study takes such a trial for one that failed, as one among others is.
    """
    metrics = {task["label"]: validation_metric(task) for task in plan.tasks}
    for search in searches:
        metric = metrics[search.task]
        if any(trial.status == "ok" for trial in search.trials):
            continue
        for run in (trial.run for trial in search.trials if trial.status == "failed"):
            record = store.record(run.id)
            if record is not None and record["status"] == "ok" and metric not in record["metrics"]:
                raise UserError(f"{run.task} records no {metric}, so that it cannot be tuned: remove runs/{run.id}")


def best_trial(trials: Sequence[Trial], greater: bool) -> Trial | None:
    """The trial with the best validation value (then the lower loss, then the earlier); None if none trained."""
    fine = [trial for trial in trials if trial.status == "ok"]
    return min(
        fine,
        key=lambda t: (-t.value if greater else t.value, math.inf if math.isnan(t.loss) else t.loss, t.number),
        default=None,
    )


def _trials(
    block: Mapping[str, Any],
    cell: Mapping[str, Any],
    task: Mapping[str, Any],
    spec: Mapping[str, Any],
    store: RecordStore,
) -> tuple[list[Trial], int]:
    """The trials that can be told now, and how many points wait for the records of these."""
    trials: list[Trial] = []
    spent, greater = 0, task["primary"]["greater_is_better"]
    metric = validation_metric(task)
    over = speedup.steps_at(task, cell.get("budget", 1.0))
    length = over.get("steps", task["steps"])
    most = None if block["steps"] is None else block["steps"] * cell.get("budget", 1.0)
    medians: Sequence[Sequence[float]] = ()
    for i, point in enumerate(cell["points"]):
        if block["prune"] == "median" and i == pruning.FIRST:
            if not all(trial.status for trial in trials):
                return trials, len(cell["points"]) - i
            whole = [store.history(t.run.id) if t.status == "ok" else None for t in trials]
            medians = pruning.thresholds(whole, metric, greater, len(cell["points"]))
        if most is not None and spent + length > most:
            # A trial that is not finished counts as whole here: if it is stopped early, the next ones fit after all.
            open_ = any(not trial.status for trial in trials)
            return trials, len(cell["points"]) - i if open_ else 0
        run = make_run(task, cell["optimizer"], tuning.assign(spec, point), cell["seed"], over, medians)
        trial = _outcome(i, point, run, metric, store.record(run.id))
        trials.append(trial)
        if block["steps"] is not None:
            early = trial.steps if trial.status in ("failed", "pruned") else None
            spent += length if early is None else early
    return trials, 0


def _outcome(i: int, point: Mapping[str, Any], run: Run, metric: str, record: Mapping[str, Any] | None) -> Trial:
    if record is None:
        return Trial(i, point, run, "", math.nan, math.nan, None)
    count = number((record.get("time") or {}).get("steps"))
    steps = None if math.isnan(count) else int(count)
    if record.get("status") != "ok":
        return Trial(i, point, run, "pruned" if record.get("pruned") else "failed", math.nan, math.nan, steps)
    value, loss = number(record["metrics"].get(metric)), number(record["metrics"].get("validation_loss"))
    return Trial(i, point, run, "failed" if math.isnan(value) else "ok", value, loss, steps)


def validation_metric(task: Mapping[str, Any]) -> str:
    """The task's primary metric on the validation split."""
    return f"validation_{str(task['primary']['name']).removeprefix('test_')}"
