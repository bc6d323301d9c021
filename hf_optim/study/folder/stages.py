"""What a study has to run up to so many units, as a function of its plan and the records there are.

Without tuning there is one stage. With it the trials come first; when each has its record, the best setting of every
optimizer on every task, in every repetition, is chosen by the validation split alone, and the judged runs follow.
Nothing about this is remembered: it is worked out from the records again and again, so that a study may be killed at
any moment, and several launchers may work in one folder. How many units there are to be, `standing` says.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.folder import pruning
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan import sensitivity, speedup, tuning, variance
from hf_optim.study.plan.plan import Plan, Run, make_run

Key = tuple[str, str, int, float]  # task's label, optimizer's label, tuning seed, budget (1 but for a speed-up's)


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
    `budget` is 1 but where the baseline is tuned at another one (`speedup`).

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
class BudgetRun:
    """A judged run of the baseline at another budget."""

    budget: float
    run: Run


@dataclass(frozen=True)
class CarriedRun:
    """A run of a ladder's larger rung with the settings that were chosen at the smallest size."""

    unit: int
    run: Run


@dataclass(frozen=True)
class State:
    """A study up to so many units. `runs` are the judged ones; these, `grid`, `variations`, `budgets` and `carried`
    are empty until all trials are in (`settled`).
    """

    searches: tuple[Search, ...]
    settled: bool
    runs: tuple[Run, ...]
    grid: tuple[GridRun, ...]
    variations: tuple[Variation, ...]
    budgets: tuple[BudgetRun, ...] = ()
    carried: tuple[CarriedRun, ...] = ()
    #: of which everything is settled
    units: int = 0

    @property
    def after_tuning(self) -> tuple[Run, ...]:
        """Everything but trials, each run once: the judged runs first."""
        further: tuple[BudgetRun | CarriedRun | GridRun | Variation, ...] = (
            *self.budgets, *self.carried, *self.grid, *self.variations,
        )  # fmt: skip
        every = [*self.runs, *(entry.run for entry in further)]
        return tuple({run.id: run for run in every}.values())


_NOTHING = State((), False, (), (), ())


class Chosen(dict[Key, Mapping[str, Any]]):
    """What each search has chosen; a plan that asks for the choice of a search that it has not is a damaged one."""

    def __missing__(self, key: Key) -> Mapping[str, Any]:
        task, optimizer, seed, _ = key
        raise UserError(f"plan.json: tuning: the cell of {optimizer!r} on {task!r} with seed {seed} is missing")


def state(plan: Plan, store: RecordStore, units: int | None = None, before: State | None = None) -> State:
    """The trials of the first so many units (default: of all), the choices if every trial has its record, and what
    follows from them. What is settled of fewer units, the state `before`, is not worked out anew: hundreds of looks
    would each go through all trials.
    """
    units, before = plan.looks[-1] if units is None else units, before or _NOTHING
    searches = tuple(_searches(plan, store, units, before))
    if not all(search.choice for search in searches):
        return State(searches, False, (), (), ())
    chosen = Chosen({_key(search): search.choice.spec for search in searches if search.choice})
    return _after(plan, searches, chosen, units, before)


def _key(search: Search) -> Key:
    return search.task, search.optimizer, search.seed, search.budget


def _after(
    plan: Plan, searches: tuple[Search, ...], chosen: Mapping[Key, Mapping[str, Any]], units: int, before: State
) -> State:
    new = range(before.units, units)
    return State(
        searches, True, _judged(plan, chosen, units, before), before.grid or tuple(_grid(plan, chosen)),
        before.variations or tuple(_variations(plan, chosen)), (*before.budgets, *_budget_runs(plan, chosen, new)),
        (*before.carried, *_carried(plan, chosen, new)), units,
    )  # fmt: skip


def _judged(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]], units: int, before: State) -> tuple[Run, ...]:
    """Seed-major: an interrupted study has every optimizer on the first seeds, not some optimizers on all."""
    if plan.tuning is None:
        if units >= plan.looks[-1]:
            return plan.runs
        seeds = set(plan.seeds[: units * plan.per_unit])
        return tuple(run for run in plan.runs if run.seed in seeds)
    cells = [(task, label) for task, label, _ in plan.cells()]
    return before.runs + tuple(
        make_run(task, label, chosen[_home(task), label, plan.tuning_seed(unit), 1.0], seed)
        for unit in range(before.units, units)
        for seed in plan.unit_seeds(unit)
        for task, label in cells
    )


def _budget_runs(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]], new: range) -> Iterator[BudgetRun]:
    specs = [(task, spec) for task, label, spec in plan.cells() if label == plan.baseline]
    for unit in new:
        for seed in plan.unit_seeds(unit):
            for budget in speedup.others(plan.speedup):
                for task, spec in specs:
                    setting = chosen.get((_home(task), plan.baseline, plan.tuning_seed(unit), budget), spec)
                    over = speedup.steps_at(task, budget)
                    yield BudgetRun(budget, make_run(task, plan.baseline, setting, seed, over))


def _home(task: Mapping[str, Any]) -> str:
    """The label of the task whose settings a task takes: mostly its own."""
    return str(task.get("settings") or task["label"])


def _carried(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]], new: range) -> Iterator[CarriedRun]:
    """Where a ladder asks for it: what was tuned, at each larger size, with the settings of the smallest one."""
    if plan.ladder is None or plan.ladder["rates"] != "both":
        return
    searched = {(c["task"], c["optimizer"]) for c in (plan.tuning or {})["cells"] if c["points"]}
    smallest = {rung["task"]: rung["smallest"] for rung in plan.ladder["rungs"] if rung["all"]}
    for unit in new:
        for seed in plan.unit_seeds(unit):
            for task, label, _ in plan.cells():
                home = smallest.get(task["label"], task["label"])
                if home != task["label"] and (home, label) in searched:
                    setting = chosen[home, label, plan.tuning_seed(unit), 1.0]
                    yield CarriedRun(unit, make_run(task, label, setting, seed))


def trial_runs(plan: Plan) -> tuple[Run, ...]:
    """Every trial of the plan as it is before pruning."""
    entry = {(task["label"], label): (task, spec) for task, label, spec in plan.cells()}
    trials: list[Run] = []
    for cell in plan.tuning["cells"] if plan.tuning else ():
        task, spec = entry[cell["task"], cell["optimizer"]]
        label, over = cell["optimizer"], speedup.steps_at(task, cell.get("budget", 1.0))
        trials += (make_run(task, label, tuning.assign(spec, p), cell["seed"], over) for p in cell["points"])
    return tuple(trials)


def planned(plan: Plan) -> tuple[int, int, int]:
    """How many trials, judged runs, and further runs of the other blocks the study has at most: at its last look."""
    return planned_to(plan, plan.looks[-1])


def planned_to(plan: Plan, units: int) -> tuple[int, int, int]:
    """The same for the first so many units."""
    trials, whole = _whole(plan, units)
    judged = len(whole.runs)
    return sum(trials.values()), judged, len(whole.after_tuning) - len({run.id for run in whole.runs})


def planned_on(plan: Plan) -> Counter[str]:
    """How many runs, of every kind, each task has at most, by its label."""
    trials, whole = _whole(plan, plan.looks[-1])
    return trials + Counter(run.task for run in whole.runs) + Counter(
        run.task for run in whole.after_tuning[len({run.id for run in whole.runs}) :]
    )  # fmt: skip


def _whole(plan: Plan, units: int) -> tuple[Counter[str], State]:
    """The trials on each task, and what follows from them whatever they find, up to so many units."""
    specs = {(task["label"], label): spec for task, label, spec in plan.cells()}
    lengths = {task["label"]: task.get("steps") for task in plan.tasks}
    trials: Counter[str] = Counter()
    # Only how many runs there are counts here, so any setting will do for the chosen one.
    chosen: dict[Key, Mapping[str, Any]] = {(*key, plan.tuning_seed(0), 1.0): spec for key, spec in specs.items()}
    for cell in _cells(plan, units):
        most = len(cell["points"])
        if plan.tuning and plan.tuning["steps"] and plan.tuning["prune"] == "none":
            most = min(most, plan.tuning["steps"] // lengths[cell["task"]])
        trials[cell["task"]] += most
        key = cell["task"], cell["optimizer"]
        first = cell["points"][0] if cell["points"] else {}
        chosen[*key, cell["seed"], cell.get("budget", 1.0)] = tuning.assign(specs[key], first)
    return trials, _after(plan, (), chosen, units, _NOTHING)


def _cells(plan: Plan, units: int) -> Iterator[Mapping[str, Any]]:
    """The searches of the first so many units, and those of other blocks."""
    if plan.tuning is None:
        return
    later = {plan.tuning_seed(unit) for unit in range(units, plan.looks[-1])} if plan.repetitions else set()
    later -= {varied.tuning_seed for varied in variance.settings(plan.variance)} if plan.variance else set()
    yield from (cell for cell in plan.tuning["cells"] if cell["seed"] not in later)


def _searches(plan: Plan, store: RecordStore, units: int, before: State) -> Iterator[Search]:
    entry = {(task["label"], label): (task, spec) for task, label, spec in plan.cells()}
    known = {_key(search): search for search in before.searches}
    for cell in _cells(plan, units):
        if over := known.get((cell["task"], cell["optimizer"], cell["seed"], cell.get("budget", 1.0))):
            yield over
            continue
        assert plan.tuning is not None
        task, spec = entry[cell["task"], cell["optimizer"]]
        trials, waiting = _trials(plan.tuning, cell, task, spec, store)
        choice = None
        if not waiting and all(trial.status for trial in trials):
            best = best_trial(trials, task["primary"]["greater_is_better"])
            point = best.point if best else cell["points"][0] if cell["points"] else {}
            choice = Choice(tuning.assign(spec, point), best, tuple(tuning.edges(cell["space"], point)) if best else ())
        yield Search(
            cell["task"], cell["optimizer"], cell["seed"], cell["space"], tuple(trials), waiting, choice,
            cell.get("budget", 1.0),
        )  # fmt: skip


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


def run_count(plan: Plan) -> int:
    """How many runs the study has in all, at most: a look may decide it, and a budget end its trials, earlier."""
    return sum(planned(plan))


def _grid(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]]) -> Iterator[GridRun]:
    if plan.sensitivity is None:
        return
    for task, label, spec in plan.cells():
        setting = chosen.get((_home(task), label, plan.tuning_seed(0), 1.0), spec)
        for place, value in sensitivity.grid(plan.sensitivity, setting):
            for seed in plan.seeds[: plan.sensitivity["seeds"]]:
                yield GridRun(value, make_run(task, label, tuning.assign(setting, {place: value}), seed))


def _variations(plan: Plan, chosen: Mapping[Key, Mapping[str, Any]]) -> Iterator[Variation]:
    if plan.variance is None:
        return
    for task, label, spec in plan.cells():
        if label in plan.variance["optimizers"]:
            for varied in variance.settings(plan.variance):
                setting = chosen.get((_home(task), label, varied.tuning_seed, 1.0), spec)
                yield Variation(varied.source, make_run(task, label, setting, varied.seed, overrides=varied.overrides))
