"""Whether every optimizer of a study can be made, before anything runs: values out of range, rates that are texts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hf_optim import registry
from hf_optim.core.importing import Untrusted, paths
from hf_optim.errors import UnknownName, UserError, one_line
from hf_optim.study.plan import sensitivity, tuning
from hf_optim.study.plan.entries import plain, split_setting
from hf_optim.study.plan.plan import Plan
from hf_optim.study.plan.source import Source, Where


def check_values(plan: Plan, source: Source) -> list[str]:
    """Makes each optimizer on one small tensor. Gives a line for each entry of foreign code that cannot be made (its
    runs will fail, and the study goes on) or was not tried, because its code is not to be run. Imports torch.

    Raises UserError, with the file and the line, for what comes with the package.
    """
    said: dict[str, None] = {}
    tried: set[str] = set()
    for where, label, spec in _specifications(plan):
        own, _ = split_setting(spec)
        text = json.dumps(plain(own), sort_keys=True)
        if text in tried:
            continue
        tried.add(text)
        foreign = paths(spec)
        try:
            registry.check_names(json.loads(text))
            registry.check_values(json.loads(text))
        except Untrusted:
            said[f"not checked: {label}: {', '.join(foreign)} is code, which was not run (--trust runs it)"] = None
        except UserError as error:
            if not foreign or isinstance(error, UnknownName):  # which every run would fail by, whosever the class is
                raise source.error(_place(where, spec, str(error)), _named(label, str(error))) from None
            said[f"cannot be made: {label}: {one_line(error)}; its runs will fail"] = None
        except Exception as error:
            if not foreign:
                raise
            said[f"cannot be made: {label}: {one_line(error)}; its runs will fail"] = None
    return list(said)


def _specifications(plan: Plan) -> Iterator[tuple[Where, str, Mapping[str, Any]]]:
    """Every specification that is known before anything has run, with its place and label."""
    labels = [optimizer["label"] for optimizer in plan.optimizers]
    tasks = [task["label"] for task in plan.tasks]
    known: dict[tuple[str, str], tuple[Where, Mapping[str, Any]]] = {}
    for task, label, spec in plan.cells():
        here: Where = ("optimizers", labels.index(label))
        if label in task["hyper"]:
            here = ("tasks", tasks.index(task["label"]), "hyper", label)
        known[task["label"], label] = here, spec
        yield here, label, spec
        if plan.sensitivity is not None:
            for place, value in sensitivity.grid(plan.sensitivity, spec):
                yield ("sensitivity", "values"), label, tuning.assign(spec, {place: value})
    for cell in plan.tuning["cells"] if plan.tuning else ():
        fixed = known[cell["task"], cell["optimizer"]][1]
        for point in cell["points"]:
            yield ("tuning", "space", cell["optimizer"]), cell["optimizer"], tuning.assign(fixed, point)


def _named(label: str, message: str) -> str:
    return message if label in message else f"{label}: {message}"


def _place(where: Where, spec: Mapping[str, Any], message: str) -> Where:
    """The line of the hyper-parameter that the message names, where there is one."""
    for key, value in spec.items():
        if key == "base" and isinstance(value, Mapping):
            inner = _place((*where, "base"), value, message)
            if inner != (*where, "base"):
                return inner
        elif key != "name" and re.search(rf"\b{re.escape(key)}\b", message):
            return (*where, key)
    return where
