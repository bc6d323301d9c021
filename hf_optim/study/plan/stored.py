"""What must hold of a plan that was read from a file, before anybody uses it: shapes, names that agree, ids that are
hashes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hf_optim import registry
from hf_optim.core import shape
from hf_optim.core.shape import Each
from hf_optim.errors import UserError
from hf_optim.experiment.spec import SIZES, RunSpec, check_overrides, id_of
from hf_optim.study.plan import units
from hf_optim.study.plan.entries import MOST, is_setting
from hf_optim.study.plan.extent import LONGEST_SETTINGS
from hf_optim.study.plan.tuning import PRUNERS, SAMPLERS, SOURCE, is_range
from hf_optim.study.plan.variance import SOURCES

_SPEC = {"name": str, "base?": (str, {"name?": str}, None), "run?": ({}, None)}
_TASK = {
    "task": str,
    "label": str,
    "title": str,
    "model": (str, None),
    "size": SIZES,
    "data": (str, None),
    "only": [str],
    "hyper": Each({}),
    "primary": {"name": str, "greater_is_better": bool},
    "metrics?": Each([(bool, str)]),
    "steps?": (int, None),
    "batch?": int,
    "overrides?": (Each((float, bool, str)), None),
    "options?": ({}, None),
    "schedule?": ({"name": str}, None),
    "schedules?": (Each({"name": str}), None),
    "settings?": (str, None),
    "seed_shift?": int,
}
_RUNG = {"task": str, "size": int, "parameters": int, "multiple": float, "tokens": int, "steps": int,
         "batch_size": int,
         "flops": float, "counted": str, "all": bool, "smallest": str}  # fmt: skip
_CELL = {"task": str, "optimizer": str, "seed": int, "points": [{}], "budget?": float,
         "space": Each([(str, float, [(str, float, bool, None, list, {})])])}  # fmt: skip
_PLAN = {
    "format": int,
    "name": str,
    "title": str,
    "origin": str,
    "baseline": str,
    "seeds": [int],
    "tasks": [_TASK],
    "optimizers": [{"label": str, "spec": _SPEC, "defaults": {}}],
    "runs": [{"id": str, "task": str, "optimizer": str, "seed": int, "spec": {"task": str, "optimizer": _SPEC}}],
    "tuning?": {
        "trials": int,
        "steps": (int, None),
        "seed": int,
        "sampler": SAMPLERS,
        "prune": PRUNERS,
        "cells": [_CELL],
    },
    "looks?": [int],
    "per_unit?": int,
    "family?": ("tasks", "score"),
    "speedup?": {"budgets": [float], "in?": ("steps", "passes", "seconds")},
    "sensitivity?": {"key": str, "values": [float], "seeds": int},
    "variance?": {"seeds": int, "sources": [SOURCES], "optimizers": [str], "seed": int, "tuning_seed": int},
    "margin?": Each(float),
    "ladder?": {"rates": ("tuned", "carried", "both"), "rungs": [_RUNG]},
    "targets?": Each({"metric": str, "value": float, "better": ("higher", "lower")}),
}


def check_stored(data: Mapping[str, Any], file: str) -> None:
    """Raise a UserError that names `file` unless `data` is what `Plan.to_dict` gives.

    An id is computed here and never believed: it names a folder, and whoever writes "../.." for one must not be heard.
    """
    shape.check_shape(data, _PLAN, file)
    tasks = [task["label"] for task in data["tasks"]]
    labels = [optimizer["label"] for optimizer in data["optimizers"]]
    for kind, names in (("tasks", tasks), ("optimizers", labels), ("seeds", data["seeds"])):
        if not names or len(set(names)) < len(names):
            raise UserError(f"{file}: {kind} must be different, and at least one")
    if not all(0 <= seed < 2**32 for seed in data["seeds"]):
        raise UserError(f"{file}: a seed lies between 0 and 4294967295")
    if twice := [task["label"] for task in data["tasks"] if len(set(task["only"])) < len(task["only"])]:
        raise UserError(f"{file}: {twice[0]!r} has an optimizer twice")
    named = [data["baseline"], *(label for task in data["tasks"] for label in (*task["only"], *task["hyper"]))]
    named += [run["optimizer"] for run in data["runs"]] + data.get("variance", {}).get("optimizers", [])
    if unknown := set(named) - {*labels}:
        raise UserError(f"{file}: no optimizer has the label {sorted(unknown)[0]!r}")
    places = [run["task"] for run in data["runs"]] + [*data.get("margin", ()), *data.get("targets", ())]
    places += [task["settings"] for task in data["tasks"] if task.get("settings") is not None]
    places += [rung[key] for rung in data.get("ladder", {}).get("rungs", ()) for key in ("task", "smallest")]
    if unknown := set(places) - {*tasks}:
        raise UserError(f"{file}: no task has the label {sorted(unknown)[0]!r}")
    for task in data["tasks"]:
        try:
            check_overrides(task.get("overrides") or {})
        except UserError as error:
            raise UserError(f"{file}: {task['label']!r}: {error}") from None
    _blocks(data, file)
    ways: dict[str, tuple[str, bool]] = {}
    for task in data["tasks"]:  # a run's record says by which it was judged, and not under which label
        way = (task["primary"]["name"], task["primary"]["greater_is_better"])
        if ways.setdefault(task["task"], way) != way:
            raise UserError(f"{file}: {task['label']!r} is judged otherwise than another {task['task']!r} of the plan")
    declared = [two for task in data["tasks"] for two in task.get("metrics", {}).values()]
    if not all(len(two) == 2 and isinstance(two[0], bool) and isinstance(two[1], str) for two in declared):
        raise UserError(f"{file}: a task's metrics have a direction and a unit each")
    each = data.get("per_unit", 1)
    looks = data.get("looks", [len(data["seeds"]) // max(1, each)])
    if each < 1 or not looks or looks != sorted(set(looks)) or looks[0] < 1 or looks[-1] * each != len(data["seeds"]):
        raise UserError(f"{file}: looks ascend, and the last one has all the seeds")
    for optimizer in data["optimizers"]:
        _around(optimizer["spec"], f"{file}: {optimizer['label']!r}")
    if not units.apart(data):
        raise UserError(f"{file}: seeds of judging or tuning belong to two units, or to two tasks of a score")
    _cells(data, file)
    by_label = {task["label"]: task for task in data["tasks"]}
    for run in data["runs"]:
        seed = units.shifted(by_label[run["task"]], run["seed"])
        if run["id"] != id_of(run["spec"]) or run["spec"].get("seed") != seed:
            raise UserError(f"{file}: the id {run['id']!r} is not the hash of its specification")
        _specification(run["spec"], file)


def _blocks(data: Mapping[str, Any], file: str) -> None:
    """Raise UserError unless the numbers of the blocks can be worked with, as those of a YAML's can."""
    if "ladder" in data:
        rungs = data["ladder"]["rungs"]
        if not rungs:
            raise UserError(f"{file}: the ladder has no rungs")
        if data["ladder"]["rates"] != "tuned" and "tuning" not in data:
            raise UserError(f"{file}: the ladder carries rates over, and has no tuning that chooses them")
        if sorted(rung["task"] for rung in rungs) != sorted(task["label"] for task in data["tasks"]):
            raise UserError(f"{file}: the rungs of a ladder are its tasks, each once")
        if not any(rung["all"] for rung in rungs):
            raise UserError(f"{file}: the ladder has no rung for all optimizers")
        counted = ("parameters", "multiple", "tokens", "steps", "batch_size", "flops")
        if not min(rung[key] for rung in rungs for key in counted) > 0:
            raise UserError(f"{file}: what a ladder's rung counts is above 0")
        tasks, first = {task["label"]: task for task in data["tasks"]}, rungs[0]
        for rung in rungs:
            task = tasks[rung["task"]]
            given, options = task.get("overrides") or {}, task.get("options") or {}
            runs = given.get("steps"), given.get("batch_size", task.get("batch")), options.get("parameters")
            if runs != (rung["steps"], rung["batch_size"], rung["size"]):
                raise UserError(f"{file}: the rung {rung['task']!r} has other steps, batches or a size than its runs")
            like = [r for r in rungs if (r["multiple"], r["batch_size"]) == (rung["multiple"], rung["batch_size"])]
            smallest = min(like, key=lambda r: r["size"])["task"]
            if rung["tokens"] * first["steps"] * first["batch_size"] != first["tokens"] * runs[0] * runs[1]:
                raise UserError(f"{file}: the rung {rung['task']!r} has other tokens than its steps and batches give")
            # As the ladder works out the steps of a budget.
            if runs[0] != max(1, round(rung["multiple"] * rung["parameters"] / (rung["tokens"] / runs[0]))):
                raise UserError(f"{file}: the rung {rung['task']!r} has other tokens than its budget asks for")
            if rung["smallest"] != smallest:
                raise UserError(f"{file}: {rung['smallest']!r} is not the smallest rung like {rung['task']!r}")
    if not all(margin >= shape.CLOSEST for margin in data.get("margin", {}).values()):
        raise UserError(f"{file}: a margin is {shape.CLOSEST:g} at least")
    grid = data.get("sensitivity", {"values": [1, 2], "seeds": 1})
    if len(grid["values"]) < 2 or grid["values"] != sorted(set(grid["values"])):
        raise UserError(f"{file}: the values of sensitivity ascend, and are two at least")
    if not 1 <= grid["seeds"] <= len(data["seeds"]):
        raise UserError(f"{file}: the seeds of sensitivity are some of the study's")
    varied = data.get("variance", {"seeds": 2, "sources": ["init"], "optimizers": []})
    if varied["seeds"] < 2 or not varied["sources"] or len(set(varied["sources"])) < len(varied["sources"]):
        raise UserError(f"{file}: variance has two seeds at least, and sources that are named once")
    budgets = data.get("speedup", {"budgets": [1]})["budgets"]
    if 1 not in budgets or budgets != sorted(set(budgets)) or budgets[0] <= 0:
        raise UserError(f"{file}: the budgets of a speed-up ascend, and 1 is among them")
    tuned, unit = data.get("tuning", {"steps": None, "cells": []}), data.get("speedup", {}).get("in", "steps")
    faster = {task["label"] for task in data["tasks"] if "speedup" in data and data["baseline"] in task["only"]}
    counted_on = faster | ({cell["task"] for cell in tuned["cells"]} if tuned["steps"] is not None else set())
    for task in data["tasks"]:
        label, steps = task["label"], task.get("steps", None if data.get("tuning") is None else 0)
        if not is_count(steps) and (steps is not None or label in counted_on):
            raise UserError(f"{file}: the steps of {label!r} are above 0, and given where they are counted on")
        if label in faster and unit not in {"steps", *(task.get("overrides") or ())}:
            raise UserError(f"{file}: {label!r} has no {unit} for a speed-up to multiply")


def _around(spec: Mapping[str, Any], where: str) -> None:
    """Raise UserError if a wrapper of ours wraps nothing; a name that this version does not know is not judged."""
    base = spec.get("base")
    info = registry.info(spec["name"]) if spec["name"] in registry.list_optimizers() else None
    if info and info.family == "wrapper" and base is None and info.base is None:
        raise UserError(f"{where} wraps another optimizer, and none is named")
    if isinstance(base, Mapping) and "name" in base:
        _around(base, where)


def _cells(data: Mapping[str, Any], file: str) -> None:
    """Raise UserError unless each search is one of the plan's, once, with as many trials as all have, in its space."""
    there = {(task["label"], label) for task in data["tasks"] for label in task["only"]}
    if (trials := data.get("tuning", {"trials": 0})["trials"]) > MOST:
        raise UserError(f"{file}: asks for {trials:,} trials of an optimizer, and a study has at most {MOST:,}")
    seen = set[tuple[Any, ...]]()
    budgets = {1.0, *data.get("speedup", {}).get("budgets", ())}
    for cell in data.get("tuning", {}).get("cells", ()):
        space, points = cell["space"], cell["points"]
        if len(json.dumps(space)) > LONGEST_SETTINGS:  # each point is looked for among all choices
            whose = f"{cell['optimizer']!r} on {cell['task']!r}"
            raise UserError(f"{file}: the search space of {whose} is longer than {LONGEST_SETTINGS:,} characters")
        fine = (cell["task"], cell["optimizer"]) in there and all(map(_searched, space.values()))
        fine &= all(map(is_setting, space)) and cell.get("budget", 1.0) in budgets
        fine &= len(points) == (data["tuning"]["trials"] if space else 0)
        fine &= (key := (cell["task"], cell["optimizer"], cell["seed"], cell.get("budget", 1.0))) not in seen
        seen.add(key)
        for point in points if fine else ():
            fine &= set(point) == set(space) and all(_within(space[key], value) for key, value in point.items())
        if not fine:
            raise UserError(f"{file}: tuning: the cell of {cell['optimizer']!r} on {cell['task']!r} is damaged")
    for task, label, seed, budget in _asked_for(data):
        if (task, label, seed, budget) not in seen:
            at = f"seed {seed}" if budget == 1 else f"seed {seed} and budget {budget:g}"
            raise UserError(f"{file}: tuning: the cell of {label!r} on {task!r} with {at} is missing")


def _asked_for(data: Mapping[str, Any]) -> Iterator[tuple[str, str, int, float]]:
    """The searches that the blocks of a plan ask for: task, optimizer, tuning seed and budget."""
    block = data.get("tuning")
    if block is None:
        return
    homes = {task["label"]: task.get("settings") or task["label"] for task in data["tasks"]}
    repeated = len(data["seeds"]) // max(1, data.get("per_unit", 1)) if block.get("repetitions") is not None else 1
    budgets = [budget for budget in data.get("speedup", {}).get("budgets", ()) if budget != 1]
    varied = data.get("variance", {"sources": (), "seeds": 0, "tuning_seed": 0, "optimizers": ()})
    again = varied["seeds"] if SOURCE in varied["sources"] else 1
    for task in data["tasks"]:
        home = homes[task["label"]]
        for label in task["only"]:
            for seed in range(block["seed"], block["seed"] + repeated):
                yield home, label, seed, 1.0
                yield from ((home, label, seed, budget) for budget in budgets if label == data["baseline"])
            if label in varied["optimizers"]:
                yield from ((home, label, varied["tuning_seed"] + i, 1.0) for i in range(again))


def _within(bounds: list[Any], value: Any) -> bool:
    """Whether a point's value is one that the search may draw."""
    kind, *ends = bounds
    return value in ends[0] if kind == "choice" else _numeric(value) and bool(ends[0] <= value <= ends[1])


def _searched(bounds: list[Any]) -> bool:
    """Whether a plan's bounds are what a search can draw from: a kind and two ends, or choices."""
    kind, *told = bounds or [None]
    if kind == "choice":
        return len(told) == 1 and isinstance(told[0], list) and bool(told[0])
    if kind not in ("log", "linear") or len(told) != 2 or not all(map(_numeric, told)):
        return False
    return is_range(kind, *told)


def _numeric(value: Any) -> bool:
    return shape.fits(value, float)


def is_count(value: Any) -> bool:
    """Whether a value is a whole number above 0."""
    return shape.fits(value, int) and value > 0


def _specification(spec: Mapping[str, Any], file: str) -> None:
    try:
        RunSpec.from_dict(spec)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
