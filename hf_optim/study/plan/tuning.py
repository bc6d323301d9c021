"""The YAML's block `tuning`: every optimizer's search space, and the settings that are tried in it.

    tuning:
      trials: 8               # * settings tried for each optimizer on each task, in each repetition
      repetitions: [5, 10]    # the whole tuning so often, with looks after 5 and 10; see `units` (default: once)
      seeds: 2                # judged seeds of each repetition (default 1)
      steps: 20000            # stop an optimizer's trials before they would cost more optimizer steps than this
      seed: 1000              # of the settings and of the trials' weights and batches (default 1000); no judged seed
      sampler: qmc            # quasi-random (default), or random
      prune: median           # stop hopeless trials early, see `pruning` (default: none)
      space:                  # in place of the space that an optimizer's file declares, by label
        SMARAN: {lr: [0.003, 1.0, log]}                        # log or linear
        tlr(sgd): {gamma: [0.2, 0.5, linear], base: {lr: {choices: [0.03, 0.1, 0.3]}}}
        sls: {}               # is not tuned
        adamw: {lr: [1e-4, 0.1, log], run: {schedule: {choices: [{name: cosine}, {name: cosine, warmup: 0.1}]}}}

Under `run` the run itself is searched: schedule (with its warm-up), max_grad_norm (clipping) and batch_size, which
keeps the number of samples; runs of different batch sizes share their initial weights alone.

A hyper-parameter that the YAML gives a value is fixed and not searched. A wrapper's space is its own and its base's.
The steps are those of the optimizer; what a line search evaluates in between is not counted.

Trial i of an optimizer depends on its specification, its space, the seed and i alone (in repetitions on the task, too):
more trials extend fewer, and two optimizers with the same space try the same values. Without repetitions a study finds
out which *settings* are better: the luck of finding them is in no verdict.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim import registry
from hf_optim.core import validate
from hf_optim.core.catalogue import Info
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.study.plan import extent, speedup
from hf_optim.study.plan.entries import MOST, PlanCell, check_entry, merged, plain
from hf_optim.study.plan.source import Source, Where, describe
from hf_optim.study.plan.units import FIRST_TUNING_SEED, Units

KEYS = ("trials", "repetitions", "seeds", "steps", "seed", "sampler", "prune", "space")
RUN_KEYS = ("schedule", "max_grad_norm", "batch_size")
SAMPLERS = ("qmc", "random")
PRUNERS = ("none", "median")
SOURCE = "tuning"  # its name among the sources of variance
Space = dict[str, list[Any]]  # "base.lr": ["log", low, high] or ["linear", low, high] or ["choice", [values]]


def read(source: Source, value: Any, cells: Sequence[PlanCell], units: Units) -> dict[str, Any]:
    """The block, checked, with the settings of all trials under "cells"; plain data for plan.json."""
    here: Where = ("tuning",)
    block = source.check_keys(here, value, KEYS, ("trials",))
    for key in ("trials", "steps", "seed"):
        if block.get(key) is not None:
            source.check_type((*here, key), block[key], int, "a whole number")
            if key == "trials" and block[key] > MOST:
                raise source.error((*here, key), f"trials must be at most {MOST}, got {block[key]}")
            if block[key] < (0 if key == "seed" else 1):
                raise source.error((*here, key), f"{key} must be at least 1, got {block[key]}")
    for key, valid in (("sampler", SAMPLERS), ("prune", PRUNERS)):
        if key in block:
            source.check_choice((*here, key), block[key], valid)
    tuned: dict[str, Any] = {
        "trials": block["trials"],
        "repetitions": list(units.looks) if block.get("repetitions") is not None else None,
        "steps": block.get("steps"),
        "seed": FIRST_TUNING_SEED if block.get("seed") is None else block["seed"],
        "sampler": block.get("sampler", "qmc"),
        "prune": block.get("prune", "none"),
    }
    seeds = list(range(tuned["seed"], tuned["seed"] + (units.looks[-1] if tuned["repetitions"] else 1)))
    for seed in seeds:
        _check_seed(source, seed, units.seeds)
    given = block.get("space") or {}
    source.check_type((*here, "space"), given, dict, "a mapping from labels to search spaces")
    labels = list(dict.fromkeys(c.optimizer for c in cells))
    for label in given:
        if label not in labels:
            raise source.error(
                (*here, "space", label), f"space: no optimizer has the label {label!r}; labels: {', '.join(labels)}"
            )
    # A task that takes its settings from another one is not tuned.
    cells = [cell for cell in cells if cell.task.get("settings") is None]
    extent.check(source, here, len(cells), len(seeds), tuned["trials"])
    tuned["cells"] = [make_cell(source, tuned, cell, given, seed) for seed in seeds for cell in cells]
    seen: dict[str, str] = {}
    for cell, tuned_cell in zip(cells, tuned["cells"], strict=False):
        if tuned["steps"] is not None:
            _check_steps(source, cell, tuned["steps"], tuned_cell["space"])
        key = json.dumps([cell.task["label"], plain(cell.spec), tuned_cell["space"]], sort_keys=True)
        if key in seen:
            raise source.error(cell.where, f"{cell.optimizer!r} is the same as {seen[key]!r} and has the same space")
        seen[key] = cell.optimizer
    tuned["space"] = plain(given)
    return tuned


def make_cell(
    source: Source, block: Mapping[str, Any], cell: PlanCell, given: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """The space of one optimizer on one task, and its points for one tuning seed."""
    from hf_optim.study.plan.tuning_points import draw

    space = space_of(source, cell, given)
    # A score adds up tasks, so in repetitions the luck of tuning must be another one on each.
    own = _mixed(seed, cell.task["label"]) if block["repetitions"] else seed
    points = draw(space, block["sampler"], own, block["trials"]) if space else []
    return {"task": cell.task["label"], "optimizer": cell.optimizer, "seed": seed, "space": space, "points": points}


def _mixed(seed: int, task: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {task}".encode()).digest()[:4], "big")


def with_budgets(
    source: Source, tuned: Mapping[str, Any], block: Mapping[str, Any], cells: Sequence[PlanCell], baseline: str
) -> dict[str, Any]:
    """The tuning block with the baseline's searches at the further budgets of `speedup`, a search for each seed."""
    seeds = [tuned["seed"] + unit for unit in range(tuned["repetitions"][-1] if tuned["repetitions"] else 1)]
    extent.check(source, ("speedup",), len(speedup.others(block)), len(seeds), len(cells), tuned["trials"])
    budget_cells = [
        {**make_cell(source, tuned, cell, tuned["space"], seed), "budget": budget}
        for budget in speedup.others(block)
        for seed in seeds
        for cell in cells
        if cell.optimizer == baseline and cell.task.get("settings") is None
    ]
    return {**tuned, "cells": [*tuned["cells"], *budget_cells]}


def distinct(points: Sequence[Mapping[str, Any]]) -> int:
    """How many different settings were drawn: a space of few choices repeats them."""
    return len({json.dumps(point, sort_keys=True) for point in points})


def space_of(source: Source, cell: PlanCell, given: Mapping[str, Any]) -> Space:
    """What is searched for `cell`: `given` for its label, or what is declared without what the YAML fixes."""
    fixed = set(_flat(cell.spec))
    if cell.optimizer in given:
        where: Where = ("tuning", "space", cell.optimizer)
        space = _read_space(source, where, given[cell.optimizer], "")
        for key, bounds in space.items():
            place = (*where, *key.split("."))
            if key in fixed:
                raise source.error(place, f"{key} is searched here, but fixed where {cell.optimizer!r} is listed")
            if key.startswith("run."):
                _check_run(source, place, cell, key, bounds)
            else:
                check_entry(
                    source, place, assign(cell.spec, {key: bounds[1] if bounds[0] != "choice" else bounds[1][0]})
                )
        return dict(sorted(space.items()))
    try:
        known = declared(cell.spec)
    except UserError as error:
        raise source.error(cell.where, str(error)) from None
    space = {key: bounds for key, bounds in sorted(known.items()) if key not in fixed}
    if not space:
        raise source.error(
            cell.where,
            f"{cell.optimizer!r} has nothing to tune: give a space under tuning: space: (compare: --space), as "
            f"{{{cell.optimizer}: {{lr: [1e-4, 0.1, log]}}}}, or {{}} there to leave it so; a class of your own may "
            'declare search_space = {"lr": ("log", 1e-4, 0.1)}',
        )
    return space


def declared(spec: Mapping[str, Any]) -> Space:
    """The search space that an optimizer's file declares, the user's own too, with its base's as "base.lr".

    Raises:
        UserError: one of the user's own that is none; one that is known only to code that is not to be run.
    """
    info = registry.about(spec["name"])
    if ":" in spec["name"]:
        check_declared(info)
    space = {key: plain(list(bounds)) for key, bounds in info.search_space.items()}
    if info.family == "wrapper" and (inner := registry.inner(info, spec.get("base"))) is not None:
        space |= {f"base.{key}": bounds for key, bounds in declared(inner).items()}
    return space


def check_declared(info: Info) -> None:
    """Raise a `UserError` for a declared search space that is none."""
    for key, bounds in info.search_space.items():
        validate.unknown(f"{info.name}: search_space", [key], [*info.required, *info.defaults])
        kind, *ends = bounds if isinstance(bounds, (tuple, list)) and bounds else ("",)
        ranged = len(ends) == 2 and all(isinstance(v, (int, float)) for v in ends) and ends[0] < ends[1]
        chosen = kind == "choice" and len(ends) == 1 and isinstance(ends[0], (tuple, list)) and ends[0]
        if not chosen and not (ranged and (kind == "linear" or (kind == "log" and ends[0] > 0))):
            raise UserError(
                f"{info.name}: search_space of {key} must be ('log', low, high) above 0, ('linear', low, high) or "
                f"('choice', values), got {bounds!r}"
            )


def assign(spec: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with the values of `point`, whose keys are dotted: {"base.lr": 0.1}."""
    for key, value in point.items():
        *outer, last = key.split(".")
        change: dict[str, Any] = {last: value}
        for name in reversed(outer):
            change = {name: change}
        spec = merged(spec, change)
    return dict(spec)


def edges(space: Mapping[str, Sequence[Any]], point: Mapping[str, Any], margin: float = 0.05) -> list[str]:
    """The searched values of `point` within `margin` of an end of their range (of its logarithm, where it is one)."""
    notes = []
    for key, (kind, *bounds) in space.items():
        if kind == "choice" or key not in point:
            continue
        scale = math.log if kind == "log" else float
        low, high = scale(bounds[0]), scale(bounds[1])
        place = (scale(point[key]) - low) / (high - low)
        if place <= margin or place >= 1 - margin:
            end = "lower" if place <= margin else "upper"
            notes.append(f"{key} = {point[key]:.4g} lies at the {end} end of [{bounds[0]:.4g}, {bounds[1]:.4g}]")
    return notes


def _check_seed(source: Source, seed: int, judged: Sequence[int]) -> None:
    where: Where = ("tuning", "seed")
    if seed >= 2**32:
        raise source.error(where, f"a seed lies between 0 and 4294967295, got {seed}")
    if seed in judged:
        raise source.error(where, f"the tuning seed {seed} is also a judged seed: judged runs need seeds of their own")


def _check_steps(source: Source, cell: PlanCell, steps: int, space: Space) -> None:
    length = cell.task["steps"]
    if "run.batch_size" in space:
        raise source.error(
            ("tuning", "steps"),
            f"steps counts those of the task, and {cell.optimizer!r} is tuned over the batch size, which changes them: "
            "leave one of the two out (trials: gives every optimizer the same number)",
        )
    if length is None:
        raise source.error(
            ("tuning", "steps"),
            f"{cell.task['label']!r} is measured in epochs: give it overrides: {{steps: N}}, or leave steps out here",
        )
    if length > steps:
        raise source.error(("tuning", "steps"), f"one run of {cell.task['label']!r} takes {length} steps already")


def _check_run(source: Source, where: Where, cell: PlanCell, key: str, bounds: Sequence[Any]) -> None:
    """The values of a searched property of the run, by the rules of a run's specification."""
    from hf_optim.experiment.spec import RunSpec

    name = key.removeprefix("run.")
    if name not in RUN_KEYS:
        near = closest(name, RUN_KEYS)
        raise source.error(where, f"run: unknown key {name!r}{near}; valid keys: {', '.join(RUN_KEYS)}")
    if name != "max_grad_norm" and bounds[0] != "choice":
        raise source.error(where, f"{name} is searched among {{choices: [...]}}")
    for value in bounds[1] if bounds[0] == "choice" else bounds[1:]:
        try:
            more = {"schedule": value} if name == "schedule" else {"overrides": {name: value}}
            RunSpec(task=cell.task["task"], optimizer={"name": "sgd"}, **more)
        except UserError as error:
            raise source.error(where, str(error)) from None


def _flat(spec: Mapping[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in spec.items():
        if key != "name":
            keys += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return keys


def _read_space(source: Source, where: Where, value: Any, prefix: str) -> Space:
    source.check_type(where, value, dict, "a mapping from hyper-parameters to ranges, such as {lr: [1e-4, 0.1, log]}")
    space: Space = {}
    for key, entry in value.items():
        here = (*where, key)
        if key == "name":
            raise source.error(here, "name is no setting: list each optimizer by itself, under a label of its own")
        if key == "base" or (key == "run" and not prefix):
            space |= _read_space(source, here, entry, f"{prefix}{key}.")
        elif isinstance(entry, dict):
            source.check_keys(here, entry, ("choices",), ("choices",))
            options = source.check_type((*here, "choices"), entry["choices"], list, "a list of values")
            if not options or any(option in options[:i] for i, option in enumerate(options)):
                raise source.error((*here, "choices"), "choices must be a list of different values")
            space[prefix + key] = ["choice", plain(options)]
        else:
            space[prefix + key] = _read_range(source, here, entry)
    return space


def _read_range(source: Source, where: Where, value: Any) -> list[Any]:
    valid = isinstance(value, list) and len(value) == 3 and value[2] in ("log", "linear")
    if not valid or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value[:2]):
        expected = "[low, high, log], [low, high, linear] or {choices: [...]}"
        raise source.error(where, f"{where[-1]} must be {expected}, got {describe(value)}")
    low, high, kind = value
    if kind == "log" and low <= 0:
        raise source.error(where, f"{where[-1]}: a log range must lie above 0, got {describe(value)}")
    if not is_range(kind, low, high):
        raise source.error(where, f"{where[-1]}: the lower end must be below the upper one, got {describe(value)}")
    return [kind, float(low), float(high)]


def is_range(kind: str, low: float, high: float) -> bool:
    """Whether there is anything between the ends; two that differ in the last digit have one logarithm."""
    return -math.inf < low < high < math.inf and (kind == "linear" or 0 < low and math.log(low) < math.log(high))
