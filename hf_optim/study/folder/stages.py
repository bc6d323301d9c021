"""What a study has to run next, as a function of its plan and the records there are.

Without tuning there is one stage. With it the trials come first; when each has its record, the best setting of every
optimizer on every task is chosen by the validation split alone, and the judged runs follow. Nothing about this is
remembered: it is worked out from the records again and again, so that a study may be killed at any moment, and several
launchers may work in one folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.folder import pruning
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan import sensitivity, tuning, variance
from hf_optim.study.plan.plan import Plan, Run, make_run

Key = tuple[str, str, int]  # task's label, optimizer's label, tuning seed


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
    """The trials of one optimizer on one task for one tuning seed, as far as they are known; `choice` when all are in.

    `waiting` counts trials whose specification depends on the records of earlier ones (pruning).
    """

    task: str
    optimizer: str
    seed: int
    space: Mapping[str, Sequence[Any]]
    trials: tuple[Trial, ...]
    waiting: int
    choice: Choice | None


@dataclass(frozen=True)
class GridRun:
    """A run of the sensitivity block: the value of its hyper-parameter, and whose it is."""

    value: float
    run: Run


@dataclass(frozen=True)
class Variation:
    """A run of the variance block: which source is varied, "" for the one that belongs to all."""

    source: str
    run: Run


@dataclass(frozen=True)
class State:
    """Where a study stands. `runs` are the judged ones; these, `grid` and `variations` are empty until all trials are
    in (`settled`).
    """

    searches: tuple[Search, ...]
    settled: bool
    runs: tuple[Run, ...]
    grid: tuple[GridRun, ...]
    variations: tuple[Variation, ...]

    @property
    def after_tuning(self) -> tuple[Run, ...]:
        """Everything but trials, each run once: the judged runs first."""
        every = [*self.runs, *(one.run for one in self.grid), *(one.run for one in self.variations)]
        return tuple({run.id: run for run in every}.values())


def state(plan: Plan, store: RecordStore) -> State:
    """The trials, the choices if every trial has its record, and what follows from them."""
    searches = tuple(_searches(plan, store))
    if not all(search.choice for search in searches):
        return State(searches, False, (), (), ())
    chosen = {(s.task, s.optimizer, s.seed): s.choice.spec for s in searches if s.choice}
    return State(searches, True, _judged(plan, chosen), tuple(_grid(plan, chosen)), tuple(_variations(plan, chosen)))


def _judged(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]]) -> tuple[Run, ...]:
    """Seed-major, as without tuning."""
    if plan.tuning is None:
        return plan.runs
    cells = [(task, label, chosen[task["label"], label, plan.tuning["seed"]]) for task, label, _ in plan.cells()]
    return tuple(make_run(task, label, spec, seed) for seed in plan.seeds for task, label, spec in cells)


def settled(plan: Plan, folder: Path) -> Plan:
    """`plan` with its judged runs, as far as the records in `folder` decide them."""
    return plan if plan.tuning is None else replace(plan, runs=state(plan, RecordStore(folder)).runs)


def with_known_runs(plan: Plan, folder: Path) -> Plan:
    """`plan` with all that may not change while a study grows: the trials (as they are before pruning) and, once they
    are in, the judged runs.
    """
    if plan.tuning is None:
        return plan
    entry = {(task["label"], label): (task, spec) for task, label, spec in plan.cells()}
    trials: list[Run] = []
    for cell in plan.tuning["cells"]:
        task, spec = entry[cell["task"], cell["optimizer"]]
        made = (make_run(task, cell["optimizer"], tuning.assign(spec, p), cell["seed"]) for p in cell["points"])
        trials += made
    return replace(plan, runs=(*trials, *settled(plan, folder).runs))


def stopped_early(run: Run, folder: Path) -> bool:
    """Whether a run's record says that it was pruned: it is no failure."""
    return bool((RecordStore(folder).record(run.id) or {}).get("pruned"))


def planned(plan: Plan) -> tuple[int, int, int]:
    """How many trials (at most), judged runs, and further runs of the other blocks the study has."""
    specs = {(task["label"], label): spec for task, label, spec in plan.cells()}
    lengths = {task["label"]: task["steps"] for task in plan.tasks}
    trials = 0
    # Only how many runs there are counts here, so any setting will do for the chosen one.
    chosen: dict[Key, Mapping[str, Any]] = {(*key, _main_seed(plan)): spec for key, spec in specs.items()}
    for cell in plan.tuning["cells"] if plan.tuning else ():
        most = len(cell["points"])
        if plan.tuning and plan.tuning["steps"] and plan.tuning["prune"] == "none":
            most = min(most, plan.tuning["steps"] // lengths[cell["task"]])
        trials += most
        key = cell["task"], cell["optimizer"]
        chosen[*key, cell["seed"]] = tuning.assign(specs[key], cell["points"][0] if cell["points"] else {})
    judged = _judged(plan, chosen)
    every = State((), True, judged, tuple(_grid(plan, chosen)), tuple(_variations(plan, chosen))).after_tuning
    return trials, len(judged), len(every) - len({run.id for run in judged})


def _main_seed(plan: Plan) -> int:
    return int(plan.tuning["seed"]) if plan.tuning else tuning.SEED


def _searches(plan: Plan, store: RecordStore) -> Iterator[Search]:
    if plan.tuning is None:
        return
    entry = {(task["label"], label): (task, spec) for task, label, spec in plan.cells()}
    for cell in plan.tuning["cells"]:
        task, spec = entry[cell["task"], cell["optimizer"]]
        trials, waiting = _trials(plan.tuning, cell, task, spec, store)
        choice = None
        if not waiting and all(trial.status for trial in trials):
            best = best_trial(trials, task["primary"]["greater_is_better"])
            point = best.point if best else cell["points"][0] if cell["points"] else {}
            choice = Choice(tuning.assign(spec, point), best, tuple(tuning.edges(cell["space"], point)) if best else ())
        yield Search(cell["task"], cell["optimizer"], cell["seed"], cell["space"], tuple(trials), waiting, choice)


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
    medians: Sequence[Sequence[float]] = ()
    for i, point in enumerate(cell["points"]):
        if block["prune"] == "median" and i == pruning.FIRST:
            if not all(trial.status for trial in trials):
                return trials, len(cell["points"]) - i
            whole = [store.history(t.run.id) if t.status == "ok" else None for t in trials]
            medians = pruning.thresholds(whole, metric, greater)
        if block["steps"] is not None and spent + task["steps"] > block["steps"]:
            # A trial that is not finished counts as whole here: if it is stopped early, the next ones fit after all.
            open_ = any(not trial.status for trial in trials)
            return trials, len(cell["points"]) - i if open_ else 0
        run = make_run(task, cell["optimizer"], tuning.assign(spec, point), cell["seed"], pruning=medians)
        trial = _outcome(i, point, run, metric, store.record(run.id))
        trials.append(trial)
        if block["steps"] is not None:
            early = trial.steps if trial.status in ("failed", "pruned") else None
            spent += task["steps"] if early is None else early
    return trials, 0


def _outcome(i: int, point: Mapping[str, Any], run: Run, metric: str, record: Mapping[str, Any] | None) -> Trial:
    if record is None:
        return Trial(i, point, run, "", math.nan, math.nan, None)
    made = number((record.get("time") or {}).get("steps"))
    steps = None if math.isnan(made) else int(made)
    if record.get("status") != "ok":
        return Trial(i, point, run, "pruned" if record.get("pruned") else "failed", math.nan, math.nan, steps)
    value, loss = number(record["metrics"].get(metric)), number(record["metrics"].get("validation_loss"))
    if metric not in record["metrics"]:
        raise UserError(f"{run.task} records no {metric}, so that it cannot be tuned: runs/{run.id}/record.json")
    return Trial(i, point, run, "failed" if math.isnan(value) else "ok", value, loss, steps)


def validation_metric(task: Mapping[str, Any]) -> str:
    """The task's primary metric on the validation split."""
    return f"validation_{str(task['primary']['name']).removeprefix('test_')}"


def _grid(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]]) -> Iterator[GridRun]:
    if plan.sensitivity is None:
        return
    for task, label, spec in plan.cells():
        setting = chosen.get((task["label"], label, _main_seed(plan)), spec)
        for place, value in sensitivity.grid(plan.sensitivity, setting):
            for seed in plan.seeds[: plan.sensitivity["seeds"]]:
                yield GridRun(value, make_run(task, label, tuning.assign(setting, {place: value}), seed))


def _variations(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]]) -> Iterator[Variation]:
    if plan.variance is None:
        return
    for task, label, spec in plan.cells():
        if label in plan.variance["optimizers"]:
            for one in variance.settings(plan.variance):
                setting = chosen.get((task["label"], label, one.tuning_seed), spec)
                yield Variation(one.source, make_run(task, label, setting, one.seed, overrides=one.overrides))


def run_count(plan: Plan) -> int:
    """How many runs the study has in all (at most, where a budget may end the trials earlier)."""
    return sum(planned(plan))


def known(plan: Plan, store: RecordStore) -> list[Run]:
    """Every run that can be told now: the trials, and what follows from their records once all are in."""
    now = state(plan, store)
    trials = [trial.run for search in now.searches for trial in search.trials]
    return list({run.id: run for run in (*trials, *now.after_tuning)}.values())


def pending(plan: Plan, store: RecordStore) -> list[Run]:
    """The runs that can be executed now: those without a record."""
    return [run for run in known(plan, store) if store.record(run.id) is None]
