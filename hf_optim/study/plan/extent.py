"""How many runs and comparisons a study may ask for: a file of some kB can multiply tasks, optimizers, seeds and values
to billions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.plan.source import Source, Where

#: ours have some hundreds
MOST_RUNS = 100_000
#: rungs of a ladder, each of which is a task whose model is worked out
MOST_RUNGS = 1000
#: of each task with each optimizer, whether it runs there or not: what reads a study goes through all of them
MOST_CELLS, CELLS = 10_000, "pairs of a task and an optimizer"
#: optimizers, each of which a report compares by name with all others, whether they run anywhere or not
MOST_OPTIMIZERS = 1000
#: pairs of optimizers on a task, each of which is tested for the places: some 600 optimizers; ours have some tens
MOST_PAIRS = 200_000
#: units of all pairs that are gone through, at each look those of all looks before it, too; minutes of work
MOST_LOOKED = 50_000_000
#: characters, as JSON, of an optimizer's settings, a point of its search or what a task sets: each of the runs that
#: follow from a plan has its own copy; ours have some hundred
LONGEST_SETTINGS = 5000
#: characters of a label, a name and a title in a plan: each pair of optimizers is called by two labels; those of a YAML
#: have 40 and 80
LONGEST_NAME = 200


def check(source: Source, where: Where, *factors: int, most: int = MOST_RUNS, what: str = "runs") -> None:
    """Raise the `source`'s error if that many are asked for at `where`."""
    if (count := math.prod(factors)) > most:
        raise source.error(where, f"asks for {count:,} {what}, and a study has at most {most:,}")


def pairs(tasks: Iterable[Mapping[str, Any]]) -> int:
    """How many pairs of optimizers the tasks of a plan have."""
    return sum(math.comb(len(task["only"]), 2) for task in tasks)


def looked(tasks: Iterable[Mapping[str, Any]], looks: Sequence[int]) -> int:
    """How many units are gone through until the last look is judged, about."""
    return max(1, pairs(tasks)) * len(looks) ** 2 * looks[-1]


def longest(tasks: Sequence[Mapping[str, Any]], specs: Mapping[tuple[str, str], Any], tuned: Any) -> str:
    """Whose settings are longer than `LONGEST_SETTINGS`, in words; empty where nobody's are."""
    parts = [(f"{label!r} on {task!r}", spec) for (task, label), spec in specs.items()]
    for task in tasks:
        schedules = (task.get("schedules") or {}).values()
        for part in (*(task.get(key) for key in ("data", "model", "options", "overrides", "schedule")), *schedules):
            parts.append((repr(task["label"]), part))
    for cell in (tuned or {}).get("cells", ()):
        parts += [(f"{cell['optimizer']!r} on {cell['task']!r}", point) for point in cell["points"]]
    return next((name for name, part in parts if len(json.dumps(part)) > LONGEST_SETTINGS), "")


def check_stored(data: Mapping[str, Any], file: str) -> None:
    """The same for a plan that was read, whose shape is checked."""
    names = [data["name"], data["title"], *(one["label"] for one in (*data["tasks"], *data["optimizers"]))]
    if any(len(name) > LONGEST_NAME for name in names):
        raise UserError(f"{file}: a name, a title or a label is longer than {LONGEST_NAME} characters")
    if (count := len(data["optimizers"])) > MOST_OPTIMIZERS:
        raise UserError(f"{file}: asks for {count:,} optimizers, and a study has at most {MOST_OPTIMIZERS:,}")
    if (count := len(data["tasks"]) * len(data["optimizers"])) > MOST_CELLS:
        raise UserError(f"{file}: asks for {count:,} {CELLS}, and a study has at most {MOST_CELLS:,}")
    cells = sum(len(task["only"]) for task in data["tasks"])
    count = cells * len(data["seeds"])
    if grid := data.get("sensitivity"):
        count += cells * len(grid["values"]) * min(max(grid["seeds"], 0), len(data["seeds"]))
    if varied := data.get("variance"):
        count += cells * len(varied["sources"]) * max(varied["seeds"], 0)
    if budgets := data.get("speedup"):
        count += len(data["tasks"]) * len(budgets["budgets"]) * len(data["seeds"])
    count += sum(len(cell["points"]) for cell in data.get("tuning", {}).get("cells", ()))
    if count > MOST_RUNS:
        raise UserError(f"{file}: asks for {count:,} runs, and a study has at most {MOST_RUNS:,}")
    if (count := pairs(data["tasks"])) > MOST_PAIRS:
        raise UserError(f"{file}: asks for {count:,} pairs of optimizers, and a study has at most {MOST_PAIRS:,}")
    if (count := looked(data["tasks"], data.get("looks") or [1])) > MOST_LOOKED:
        raise UserError(f"{file}: asks for {count:,} units at looks, and a study has at most {MOST_LOOKED:,}")
