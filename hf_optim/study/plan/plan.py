"""Expands a study's YAML into run specifications, each frozen and content-hashed.

The YAML (all keys; * required):

    name: quickstart            # * letters, digits, "-", "_" and "."; also the default folder studies/<name>
    title: Digits in 5 minutes  # the report's heading (default: the name)
    baseline: adamw             # the label every other optimizer is compared with (default: the first optimizer)
    seeds: 3                    # * 3 means 0, 1, 2; a list such as [5, 10] are looks; see `units`
    tasks:                      # *
      - task: vision            # * a task's name, or file.py:NAME
        label: MLP on digits    # what tables call it (default: task/model/size); unique
        model: mlp              # default: the task's first model
        size: small             # smoke, small or paper (default: small)
        data: emoji             # an embedded set, or a path to your own data (looked for beside the YAML first)
        schedule: {name: cosine}
        overrides: {epochs: 4}
        options: {hidden_size: 64}
        hyper:                  # hyper-parameters for this task alone, by the optimizer's label
          SMARAN: {lr: 0.05}
        schedules:              # the schedule of one optimizer, where it is not the task's
          adamw: {name: multistep, at: [0.5, 0.75]}
        only: [adamw, SMARAN]   # these optimizers alone, by label (default: all)
        settings: MLP           # with tuning: nothing is tuned here, the settings chosen on that task are used
    ladder: {...}               # in place of tasks: sizes x token budgets of a language model, see `ladder`
    optimizers:                 # *
      - adamw                   # a name, with its defaults
      - {name: smaran, lr: 0.1, label: SMARAN}          # label: default the name, for a wrapper name(base); unique
      - {name: tlr, gamma: 0.33, base: {name: sgd, lr: 0.1}}
    tuning: {...}               # tune every optimizer first, with an equal budget; see `tuning`
    sensitivity: {...}          # a grid of one hyper-parameter, see `sensitivity`
    variance: {...}             # where the spread comes from, see `variance`
    margin: 0.005               # the smallest difference that matters, see `criteria`
    targets: {...}              # what is to be reached, for time-to-target, see `criteria`
    speedup: {...}              # the baseline at several budgets, see `speedup`
    family: tasks               # what is corrected together: comparisons on tasks (default with one or two), or the
                                # score of each optimizer over all tasks (default from three)

Every optimizer runs with the same seeds, hence the same initial weights and batches: the runs are paired. A score adds
up tasks as independent ones, so under it each task shifts all its seeds by a number of its own (`units`). Under
`tuning` the judged runs are not known before the trials have records: `stages` says what follows from those.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.core.safe_text import is_plain
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec, check_parts
from hf_optim.study.plan import criteria as stated
from hf_optim.study.plan import entries, extent, ladder, sensitivity, speedup, stored, tuning, units, variance
from hf_optim.study.plan.entries import merged, optimizer_label, plain, split_setting
from hf_optim.study.plan.source import Source

__all__ = ["Plan", "Run", "expand", "flatten", "make_run", "optimizer_label", "plain"]
FORMAT = 1
BLOCKS = ("tuning", "sensitivity", "variance", "margin", "targets", "speedup", "ladder")
KEYS = ("name", "title", "baseline", "seeds", "family", "tasks", "optimizers", *BLOCKS)
FAMILIES = ("tasks", "score")
#: names of settings, of figures in records or in histories of a study, each a column of a table; ours have some dozens
MOST_NAMES = 5000
#: and of so many cells such a table is at most, unless it is one of hundreds of columns anyway
MOST_CELLS, FEW_NAMES = 5_000_000, 300
#: what a report would show under the settings of the rule that is called so
OTHER_RULE = "hyper names another rule, or another base, than {} is: list it under optimizers, with a label of its own"
TASKS_FOR_SCORE = 3  # so many tasks and more are judged by one score an optimizer, unless the YAML says otherwise


@dataclass(frozen=True)
class Run:
    """One planned run: where it stands in the study, and its specification."""

    id: str
    task: str
    optimizer: str
    seed: int
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A study, expanded. `tasks` and `optimizers` keep the YAML's order; an optimizer has label, spec and defaults.

    `runs` are the judged runs. `tuning`, `sensitivity` and so on hold the checked blocks of the YAML, where it has
    them; under `tuning`, `runs` is empty in plan.json and filled in by `stages` from the records of the trials. `seeds`
    are the judged ones of all units, `per_unit` of each; `looks` the numbers of units after which verdicts are planned.
    """

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    tasks: tuple[Mapping[str, Any], ...]
    optimizers: tuple[Mapping[str, Any], ...]
    runs: tuple[Run, ...]
    origin: str = ""
    tuning: Mapping[str, Any] | None = None
    sensitivity: Mapping[str, Any] | None = None
    variance: Mapping[str, Any] | None = None
    margin: Mapping[str, float] | None = None
    targets: Mapping[str, Mapping[str, Any]] | None = None
    speedup: Mapping[str, Any] | None = None
    ladder: Mapping[str, Any] | None = None
    looks: tuple[int, ...] = ()
    per_unit: int = 1
    family: str = "tasks"

    @property
    def repetitions(self) -> bool:
        """Whether a unit is a repetition of the tuning; else it is a seed, and verdicts hold with these settings."""
        return self.tuning is not None and self.tuning.get("repetitions") is not None

    def unit_seeds(self, unit: int) -> tuple[int, ...]:
        """The judged seeds of a unit, counted from 0."""
        return self.seeds[unit * self.per_unit : (unit + 1) * self.per_unit]

    def tuning_seed(self, unit: int) -> int:
        """The tuning seed by which a unit's settings are chosen."""
        first = int(self.tuning["seed"]) if self.tuning else units.FIRST_TUNING_SEED
        return first + unit if self.repetitions else first

    def cells(self) -> Iterator[tuple[Mapping[str, Any], str, dict[str, Any]]]:
        """Every (task, optimizer's label, optimizer's specification on that task), in the YAML's order."""
        for task in self.tasks:
            for optimizer in self.optimizers:
                if optimizer["label"] in task["only"]:
                    yield task, optimizer["label"], cell_spec(task, optimizer)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for plan.json."""
        return {
            "format": FORMAT,
            "name": self.name,
            "title": self.title,
            "origin": self.origin,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "looks": list(self.looks),
            "per_unit": self.per_unit,
            "family": self.family,
            "tasks": [dict(t) for t in self.tasks],
            "optimizers": [dict(o) for o in self.optimizers],
            "runs": [
                {"id": r.id, "task": r.task, "optimizer": r.optimizer, "seed": r.seed, "spec": dict(r.spec)}
                for r in (self.runs if self.tuning is None else ())
            ],
            **{key: dict(block) for key in BLOCKS if (block := getattr(self, key)) is not None},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str) -> Plan:
        """The inverse of `to_dict`; a file of another format or a damaged one is a UserError naming `file`."""
        try:
            if data["format"] != FORMAT:
                raise UserError(
                    f"{file}: written by another version (format {data['format']}, this one reads {FORMAT})"
                )
            stored.check_stored(data, file)
            extent.check_stored(data, file)
            most = most_names(len(data["runs"]))
            if len({name for run in data["runs"] for name in flatten(run["spec"])}) > most:
                raise UserError(f"{file}: its runs have more than {most:,} names of settings")
            plan = cls(
                name=data["name"],
                title=data["title"],
                baseline=data["baseline"],
                seeds=tuple(data["seeds"]),
                tasks=tuple(data["tasks"]),
                optimizers=tuple(data["optimizers"]),
                runs=tuple(Run(**run) for run in data["runs"]),
                origin=data["origin"],
                # Folders of before looks had one, at the end.
                looks=tuple(data.get("looks", (len(data["seeds"]),))),
                per_unit=data.get("per_unit", 1),
                family=data.get("family", "tasks"),
                **{key: data[key] for key in BLOCKS if key in data},
            )
            check_runs(plan, file)
            return plan
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: not the plan of a study ({type(error).__name__}: {error})") from None


def expand(
    source: Source,
    *,
    seeds: int | None = None,
    origin: str = "",
    overrides: Mapping[str, Any] | None = None,
    data: str | None = None,
) -> Plan:
    """The plan of a study's YAML. `seeds` replaces the number of seeds (0 .. n - 1) that the file asks for, each of
    `overrides` that of every task, and `data` (a name or a path) the data of every task.

    Raises UserError with the file and line for unknown keys, wrong types, unknown optimizers or hyper-parameters,
    duplicate labels, unknown tasks, models or sizes, and empty lists.
    """
    top = source.check_keys((), source.value, KEYS, ("name", "optimizers"))
    name = source.check_type(("name",), top["name"], str, "a text")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise source.error(("name",), f"name must be made of letters, digits, '-', '_' and '.', got {name!r}")
    title = source.check_type(("title",), top.get("title", name), str, "a text")
    for key, text, most in (("name", name, 80), ("title", title, 200)):
        if not is_plain(text) or len(text) > most:
            raise source.error((key,), f"{key} must have 1 to {most} characters in one line")
    chance = units.read(source, top, seeds)
    seed_list = chance.seeds
    optimizers = entries.optimizers(source, top["optimizers"])
    labels = [o["label"] for o in optimizers]
    baseline = str(source.check_type(("baseline",), top.get("baseline", labels[0]), str, "an optimizer's label"))
    if baseline not in labels:
        near, valid = closest(baseline, labels), ", ".join(labels)
        raise source.error(("baseline",), f"baseline {baseline!r} is no optimizer's label{near}; labels: {valid}")
    blocks: dict[str, Any] = {}
    if ("tasks" in top) == ("ladder" in top):
        raise source.error((), "a study has either tasks: or a ladder:")
    listed = top.get("tasks")
    if "ladder" in top:
        listed, blocks["ladder"] = ladder.expand(source, top["ladder"], baseline, top.get("tuning") is not None)
    tasks = entries.tasks(source, entries.with_data(listed, data), labels)
    ladder.check_settings(source, tasks, top.get("tuning") is not None)
    if overrides:
        if "ladder" in blocks:
            ladder.check_overrides(source, overrides)
        tasks = [{**task, "overrides": {**(task.get("overrides") or {}), **overrides}} for task in tasks]
    family = top.get("family", "score" if len(tasks) >= TASKS_FOR_SCORE else "tasks")
    source.check_choice(("family",), family, FAMILIES)
    if family == "score":
        units.set_apart(source, tasks, chance, top.get("tuning"))
    extent.check(source, ("optimizers",), len(labels), most=extent.MOST_OPTIMIZERS, what="optimizers")
    extent.check(source, (), len(tasks), len(labels), most=extent.MOST_CELLS, what=extent.CELLS)
    extent.check(source, (), sum(len(task["only"]) for task in tasks), len(seed_list))
    extent.check(source, (), extent.pairs(tasks), most=extent.MOST_PAIRS, what="pairs of optimizers")
    extent.check(source, (), extent.looked(tasks, chance.looks), most=extent.MOST_LOOKED, what="units at looks")
    cells = list(_checked_cells(source, tasks, optimizers))
    if whose := extent.longest(tasks, {(c.task["label"], c.optimizer): c.spec for c in cells}, None):
        raise source.error((), f"the settings of {whose} are longer than {extent.LONGEST_SETTINGS:,} characters")
    # Under tuning two optimizers may differ in what is searched alone.
    runs = _runs(source, cells, seed_list) if top.get("tuning") is None else ()
    if top.get("tuning") is not None:
        blocks["tuning"] = tuning.read(source, top["tuning"], cells, chance)
    if top.get("sensitivity") is not None:
        blocks["sensitivity"] = sensitivity.read(source, top["sensitivity"], cells, seed_list)
    if top.get("variance") is not None:
        blocks["variance"] = variance.read(source, top["variance"], cells, labels, seed_list, blocks.get("tuning"))
        if tuning.SOURCE in blocks["variance"]["sources"]:
            blocks["tuning"] = variance.with_tuning_seeds(source, blocks["tuning"], blocks["variance"], cells)
    if top.get("margin") is not None:
        blocks["margin"] = stated.margins(source, top["margin"], tasks)
    if top.get("targets") is not None:
        blocks["targets"] = stated.targets(source, top["targets"], tasks)
    if top.get("speedup") is not None:
        blocks["speedup"] = speedup.read(source, top["speedup"], [t for t in tasks if baseline in t["only"]])
        extent.check(source, ("speedup",), len(blocks["speedup"]["budgets"]), len(tasks), len(seed_list))
        if "tuning" in blocks:
            blocks["tuning"] = tuning.with_budgets(source, blocks["tuning"], blocks["speedup"], cells, baseline)
    shown = tuple({k: v for k, v in t.items() if k != "where"} for t in tasks)
    known = tuple({k: v for k, v in o.items() if k != "where"} for o in optimizers)
    return Plan(
        name, title, baseline, seed_list, shown, known, runs, origin, **blocks,
        looks=chance.looks, per_unit=chance.per_unit, family=family,
    )  # fmt: skip


def cell_spec(task: Mapping[str, Any], optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's specification on a task: its own with the task's `hyper` for its label."""
    return merged(optimizer["spec"], task["hyper"].get(optimizer["label"], {}))


def make_run(
    task: Mapping[str, Any],
    optimizer: str,
    spec: Mapping[str, Any],
    seed: int,
    overrides: Mapping[str, Any] | None = None,
    pruning: Sequence[Sequence[float]] = (),
) -> Run:
    """The run of a task's entry with an optimizer; raises the UserErrors of `RunSpec`. `seed` is the study's, which the
    task may shift.

    What a setting says of the run itself (`run: {batch_size: ...}`, see `tuning`) is taken out of `spec`; another batch
    size keeps the number of samples, so that no setting is paid by more data.
    """
    spec, run = split_setting(spec)
    given = {**(task.get("overrides") or {}), **(overrides or {})}
    if "batch_size" in run and not stored.is_count(run["batch_size"]):
        raise UserError(f"run.batch_size must be a whole number above 0, got {run['batch_size']!r}")
    if "batch_size" in run and not stored.is_count(task.get("batch")):
        raise UserError(f"{task['label']!r} says no batch size of its own (batch), and {optimizer!r} has another one")
    if "batch_size" in run and (steps := given.get("steps", task["steps"])) is not None:
        given["steps"] = max(1, round(steps * task["batch"] / run["batch_size"]))
    given |= {key: run[key] for key in ("batch_size", "max_grad_norm") if key in run}
    run_spec = RunSpec(
        task=task["task"],
        model=task["model"],
        size=task["size"],
        optimizer=spec,
        seed=units.shifted(task, seed),
        data=task["data"],
        schedule=run.get("schedule", (task.get("schedules") or {}).get(optimizer, task.get("schedule"))),
        overrides=given,
        options=dict(task.get("options") or {}),
        pruning=[list(pair) for pair in pruning],
    )
    return Run(run_spec.id, task["label"], optimizer, seed, plain(run_spec.to_dict()))


def check_runs(plan: Plan, where: str) -> None:
    """Raise a UserError that begins with `where` unless each planned run is the one that its labels and its seed say,
    and no other is: else a report would show one optimizer's numbers under the settings of another.
    """
    tasks = {task["label"]: task for task in plan.tasks}
    specs = {(task["label"], optimizer): spec for task, optimizer, spec in plan.cells()}
    rules = {optimizer["label"]: entries.rules(optimizer["spec"]) for optimizer in plan.optimizers}
    for (task, label), spec in specs.items():
        if entries.rules(spec) != rules[label]:
            raise UserError(f"{where}: {task!r}: {OTHER_RULE.format(repr(label))}")
    for spec in (*specs.values(), *(optimizer["spec"] for optimizer in plan.optimizers)):  # also of those without runs
        check_parts(spec)
    alone = {("no task", optimizer["label"]): optimizer["spec"] for optimizer in plan.optimizers}
    if whose := extent.longest(plan.tasks, specs | alone, plan.tuning):
        raise UserError(f"{where}: the settings of {whose} are longer than {extent.LONGEST_SETTINGS:,} characters")
    alike: dict[str, str] = {}  # as in a YAML: what is tuned alike is one optimizer, and has the same runs
    for cell in plan.tuning["cells"] if plan.tuning else ():
        task, label = cell["task"], cell["optimizer"]
        key = json.dumps([task, cell["seed"], cell.get("budget", 1), specs[task, label], cell["space"]], sort_keys=True)
        if (other := alike.setdefault(key, label)) != label:
            raise UserError(f"{where}: tuning: {label!r} on {task!r} is the same as {other!r} and has the same space")
    seeds, seen, twins = set(plan.seeds), set[tuple[str, str, int]](), dict[str, Run]()
    for run in plan.runs:
        cell = run.task, run.optimizer
        place = f"{where}: {run.optimizer!r} on {run.task!r}, seed {run.seed},"
        if cell not in specs or run.seed not in seeds or (*cell, run.seed) in seen:
            raise UserError(f"{place} is not planned, or planned twice")
        seen.add((*cell, run.seed))
        try:
            meant = make_run(tasks[run.task], run.optimizer, specs[cell], run.seed)
        except UserError as error:
            raise UserError(f"{place} {error}") from None
        if meant.id != run.id:
            raise UserError(f"{place} is planned with other settings than its task and its optimizer have")
        if (twin := twins.setdefault(run.id, run)) is not run:
            raise UserError(f"{place} is the same run as {twin.optimizer!r} on {twin.task!r}")


def most_names(runs: int) -> int:
    """How many names the settings of so many runs may have, or the figures of their records: each is a column of a
    table with a row a run, which one record with thousands would make a hundred times as large as the study.
    """
    return max(FEW_NAMES, min(MOST_NAMES, MOST_CELLS // max(1, runs)))


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _checked_cells(
    source: Source, tasks: Iterable[Mapping[str, Any]], optimizers: Sequence[Mapping[str, Any]]
) -> Iterator[entries.PlanCell]:
    for task in tasks:
        for optimizer in optimizers:
            label, where = optimizer["label"], optimizer["where"]
            if label not in task["only"]:
                continue
            spec = cell_spec(task, optimizer)
            if label in task["hyper"]:
                where = (*task["where"], "hyper", label)
                entries.check_entry(source, where, spec)
                if entries.rules(spec) != entries.rules(optimizer["spec"]):
                    raise source.error(where, OTHER_RULE.format(repr(label)))
            try:
                make_run(task, label, spec, 0)
            except UserError as error:
                # Its messages begin with the key they are about: "overrides: unknown key ...".
                key = str(error).partition(":")[0]
                raise source.error((*task["where"], key), str(error)) from None
            yield entries.PlanCell(task, label, spec, where)


def _runs(source: Source, cells: Sequence[entries.PlanCell], seeds: Iterable[int]) -> tuple[Run, ...]:
    """Seed-major: an interrupted study has every optimizer on the first seeds, not some optimizers on all."""
    runs = tuple(make_run(c.task, c.optimizer, c.spec, seed) for seed in seeds for c in cells)
    seen: dict[str, Run] = {}
    for run in runs:
        if (twin := seen.setdefault(run.id, run)) is not run:
            same = f"{run.optimizer!r} on {run.task!r} is the same run as {twin.optimizer!r} on {twin.task!r}"
            raise source.error((), same)
    return runs
