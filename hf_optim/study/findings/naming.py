"""What a verdict speaks of: an optimizer with its space and trials, or one with these settings."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.core import importing
from hf_optim.core.wording import counted, plural
from hf_optim.study.plan.plan import Plan, cell_spec, flatten
from hf_optim.study.plan.tuning import distinct
from hf_optim.study.plan.units import SETTINGS

#: below the title of every table and page of a study whose unit is a seed
SCOPE = (
    "Every verdict here holds with these settings and for no others: the luck of finding them is in no interval. "
    "To compare the optimizers themselves, have the tuning repeated: `tuning: {trials: 8, repetitions: 5}`."
)
REPEATED = "A verdict speaks of each optimizer as tuned here: its search space, its trials, all of it repeated."


def scope(plan: Plan) -> str:
    """How far the verdicts of a study reach, in a sentence for every page."""
    return REPEATED if plan.repetitions else SCOPE


def suffix(plan: Plan) -> str:
    """What stands behind the name of a table."""
    return "" if plan.repetitions else f" ({SETTINGS})"


def unit(plan: Plan, count: int = 2) -> str:
    """The word for a unit: "repetitions", "seed"."""
    return plural("repetition" if plan.repetitions else "seed", count)


def named(plan: Plan, label: str) -> str:
    """An optimizer as a verdict names it: never its name alone."""
    keys, trials, different = searched(plan, label)
    if not keys:
        given = [f"{k} {v}" for k, v in settings(plan, label).items()] or [_ungiven(plan)]
        return f"{label} {SETTINGS} ({', '.join([*_rule(plan, label), *given, 'untuned'])})"
    few = f", {counted(different, 'distinct setting')}" if different < trials else ""
    how = f"{counted(trials, 'trial')} over {', '.join(keys)}{few}"
    return f"{label} (tuned: {how})" if plan.repetitions else f"{label} {SETTINGS} (found by one tuning: {how})"


def shown(plan: Plan) -> dict[str, str]:
    """Each label as a table for readers has it: the name alone of what an import path names ("file.py:Mine" is
    "Mine"), unless another optimizer's could be read as the same.
    """
    short = {}
    for optimizer in plan.optimizers:
        name = optimizer["label"]
        for path in importing.paths(optimizer["spec"]):
            name = name.replace(path, path.rpartition(":")[2])
        short[optimizer["label"]] = name
    alike = Counter(name.casefold() for name in short.values())
    return {label: name if alike[name.casefold()] == 1 else label for label, name in short.items()}


def _ungiven(plan: Plan) -> str:
    """What holds where the study gives nothing: a script of one's own may have a rate that is not the rule's."""
    # Of a task its own name alone: this is asked for each optimizer, and a task may set something for a thousand.
    return "nothing given" if any(importing.is_path(task["task"]) for task in plan.tasks) else "defaults"


def _rule(plan: Plan, label: str) -> list[str]:
    """The optimizer's own name where its label is another."""
    name = next(str(o["spec"]["name"]) for o in plan.optimizers if o["label"] == label)
    return [] if re.sub(r"\W|_", "", label).lower() == re.sub(r"\W|_", "", name).lower() else [name]


def settings(plan: Plan, label: str) -> dict[str, str]:
    """What an optimizer is given, in words: "0.1", or where tasks give it other values "0.1 / 0.01 by task"."""
    optimizer = next(o for o in plan.optimizers if o["label"] == label)
    specs = [cell_spec(task, optimizer) for task in plan.tasks if label in task["only"]] or [optimizer["spec"]]
    given = [flatten(_own(spec)) for spec in specs]
    words = {}
    for key in dict.fromkeys(key for values in given for key in values):
        different = list(dict.fromkeys(_short(values[key]) if key in values else "default" for values in given))
        words[key] = different[0] if len(different) == 1 else f"{' / '.join(different)} by task"
    return words


def searched(plan: Plan, label: str) -> tuple[list[str], int, int]:
    """The searched hyper-parameters of an optimizer, its trials on a task (as many as a bound on their steps has room
    for, if none ends early), and how many of them differ at least.
    """
    cells = [c for c in (plan.tuning or {}).get("cells", ()) if c["optimizer"] == label and c["points"]]
    if plan.tuning is None or not cells:
        return [], 0, 0
    keys = list(dict.fromkeys(key for cell in cells for key in cell["space"]))
    lengths, most = {task["label"]: task.get("steps") for task in plan.tasks}, plan.tuning["steps"]
    tried = [c["points"][: most // lengths[c["task"]]] if most else c["points"] for c in cells]
    return keys, max(map(len, tried)), min(map(distinct, tried))


def unlike(plan: Plan, label: str) -> str:
    """Where an optimizer was tuned more or less than the baseline, a sentence that says so; else empty."""
    mine, other = searched(plan, label), searched(plan, plan.baseline)
    if (len(mine[0]), *mine[1:]) == (len(other[0]), *other[1:]):
        return ""
    return f"Not tuned alike: {label} {_effort(*mine)}, {plan.baseline} {_effort(*other)}."


def _effort(keys: Sequence[str], trials: int, different: int) -> str:
    if not keys:
        return "was not tuned"
    few = f", {different} of them distinct" if different < trials else ""
    return f"was tuned with {counted(trials, 'trial')} over {counted(len(keys), 'hyper-parameter')}{few}"


def _own(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "name"}


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
