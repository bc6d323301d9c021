"""What a study states before it begins, for its statistics: the margin that matters and the targets to reach.

    margin: 0.005                                   # in the unit of the primary metric, for every task
    margin: {MLP on digits: 0.005}                  # or by the task's label
    targets:                                        # by the task's label
      MLP on digits: {metric: validation_accuracy, value: 0.95}
      Words: {metric: validation_perplexity, value: 30, better: lower}

Neither decides a run, so finished runs keep their meaning; but a margin or a target chosen after a look at the results
proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.core.shape import CLOSEST
from hf_optim.core.validate import closest
from hf_optim.study.plan import entries
from hf_optim.study.plan.source import Source, Where, describe

TARGET_KEYS = ("metric", "value", "better")
DIRECTIONS = ("higher", "lower")


def margins(source: Source, value: Any, tasks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The margin of each task that has one, by its label, in the unit of the task's primary metric.

    Raises UserError with the line for anything but a positive number, or a mapping of known labels to such numbers.
    """
    where: Where = ("margin",)
    labels = [task["label"] for task in tasks]
    if not isinstance(value, Mapping):
        return dict.fromkeys(labels, _positive(source, where, value))
    return {label: _positive(source, (*where, _known(source, where, label, labels)), value[label]) for label in value}


def targets(source: Source, value: Any, tasks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The target of each task that has one, by its label: `{"metric", "value", "better": "higher" or "lower"}`.

    `metric` names a value of the history, such as validation_accuracy. The direction need not be given for a metric
    that the task declares. Raises UserError with the line.
    """
    where: Where = ("targets",)
    source.check_type(where, value, dict, "a mapping from a task's label to {metric, value}")
    by_label = {task["label"]: task for task in tasks}
    goals = {}
    for label, entry in value.items():
        here = (*where, _known(source, where, label, list(by_label)))
        source.check_keys(here, entry, TARGET_KEYS, ("metric", "value"))
        metric = source.check_type((*here, "metric"), entry["metric"], str, "a metric of the history")
        goal = source.check_type((*here, "value"), entry["value"], (int, float), "a number")
        if not math.isfinite(goal):
            raise source.error((*here, "value"), f"value must be finite, got {describe(goal)}")
        said = entries.declared(by_label[label], metric)
        better = entry.get("better") or (None if said is None else "higher" if said[0] else "lower")
        if better not in DIRECTIONS:
            why = f"got {describe(better)}" if better else f"its task declares no metric {metric!r}"
            raise source.error((*here, "better" if better else "metric"), f"give better: higher or lower; {why}")
        goals[label] = {"metric": metric, "value": float(goal), "better": better}
    return goals


def _known(source: Source, where: Where, label: Any, labels: Sequence[str]) -> str:
    if label not in labels:
        near = closest(str(label), labels)
        listed = ", ".join(labels)
        raise source.error((*where, label), f"{where[0]}: no task has the label {label!r}{near}; labels: {listed}")
    return str(label)


def _positive(source: Source, where: Where, value: Any) -> float:
    source.check_type(where, value, (int, float), "a positive number, or one for each task's label")
    if not (math.isfinite(value) and value >= CLOSEST):
        raise source.error(where, f"a margin is a positive number, {CLOSEST:g} at least, got {describe(value)}")
    return float(value)
