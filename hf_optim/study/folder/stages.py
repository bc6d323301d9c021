"""What a study has to run up to so many units, as a function of its plan and the records there are.

Without tuning there is one stage. With it the trials come first; when each has its record, the best setting of every
optimizer on every task, in every repetition, is chosen by the validation split alone, and the judged runs follow.
Nothing about this is remembered: it is worked out from the records again and again, so that a study may be killed at
any moment, and several launchers may work in one folder. How many units there are to be, `standing` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.folder.searches import Key, Search, key_of, known_searches, searched_cells
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan import sensitivity, speedup, tuning, variance
from hf_optim.study.plan.plan import Plan, Run, make_run


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
    are empty until all trials are in (`settled`); where a trial cannot be read, they are those that have a record.
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
    searches = tuple(known_searches(plan, store, units, before.searches))
    chosen = Chosen({key_of(search): search.choice.spec for search in searches if search.choice})
    if len(chosen) < len(searches):
        return State(searches, False, (), (), ())
    after = _after(plan, searches, chosen, units, before)
    return after if all(search.complete for search in searches) else _on_record(after, store)


def _on_record(state: State, store: RecordStore) -> State:
    """What was run after trials of which one cannot be read any more: of the rest nobody knows what is to be run."""

    def there(run: Run) -> bool:
        return store.record(run.id) is not None or run.id in store.unreadable

    return replace(
        state,
        settled=False,
        runs=tuple(filter(there, state.runs)),
        grid=tuple(entry for entry in state.grid if there(entry.run)),
        variations=tuple(entry for entry in state.variations if there(entry.run)),
        budgets=tuple(entry for entry in state.budgets if there(entry.run)),
        carried=tuple(entry for entry in state.carried if there(entry.run)),
    )


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
    for cell in searched_cells(plan, units):
        most = len(cell["points"])
        if plan.tuning and plan.tuning["steps"] and plan.tuning["prune"] == "none":
            most = min(most, plan.tuning["steps"] // lengths[cell["task"]])
        trials[cell["task"]] += most
        key = cell["task"], cell["optimizer"]
        first = cell["points"][0] if cell["points"] else {}
        chosen[*key, cell["seed"], cell.get("budget", 1.0)] = tuning.assign(specs[key], first)
    return trials, _after(plan, (), chosen, units, _NOTHING)


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
