"""The YAML's block `speedup`: the baseline at several complete budgets, for how much faster the others are.

    speedup: {budgets: [0.5, 1, 2, 4]}     # factors of the task's steps, 1 among them
    speedup: {budgets: [0.5, 1, 2, 4], in: passes}    # of its passes, or seconds, which its overrides must give

At each budget but 1 the baseline is tuned and judged as in the study itself, with its schedule over the whole of it:
nothing is read off within a run. The other optimizers run at budget 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.study.plan.source import Source, Where, describe

UNITS = ("steps", "passes", "seconds")


def read(source: Source, value: Any, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The block, checked; plain data for plan.json."""
    here: Where = ("speedup",)
    block = source.check_keys(here, value, ("budgets", "in"), ("budgets",))
    budgets = source.check_type((*here, "budgets"), block["budgets"], list, "a list of factors")
    for i, budget in enumerate(budgets):
        source.check_type((*here, "budgets", i), budget, (int, float), "a number")
    if len(budgets) < 2 or 1 not in budgets or min(budgets) <= 0 or sorted(set(budgets)) != budgets:
        raise source.error((*here, "budgets"), f"budgets ascend, and 1 is among them; got {describe(budgets)}")
    unit = source.check_choice((*here, "in"), block.get("in", "steps"), UNITS)
    for task in tasks:
        if task["steps"] is None:
            raise source.error(
                here, f"{task['label']!r} is measured in epochs: give it overrides: {{steps: N}} for a speed-up"
            )
        given = (task.get("overrides") or {}).get(unit, task["steps"] if unit == "steps" else None)
        if given is None:
            raise source.error(
                (*here, "in"), f"{task['label']!r} has no {unit} to multiply: give it overrides: {{{unit}: N}}"
            )
        if unit == "passes" and 2 * task["steps"] < given:
            raise source.error(
                (*here, "in"),
                f"{task['label']!r} ends after {task['steps']} steps, which can cost less than its {given} passes: "
                f"give it overrides: {{steps: {-(-given // 2)}}} at least",
            )
    return {"budgets": [float(b) for b in budgets], **({"in": unit} if unit != "steps" else {})}


def steps_at(task: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """The overrides of a task's steps, and of its passes and seconds, at a budget; nothing at budget 1."""
    if budget == 1:
        return {}
    given = task.get("overrides") or {}
    overrides: dict[str, Any] = {"steps": max(1, round(budget * task["steps"]))}
    overrides |= {"passes": max(1, round(budget * given["passes"]))} if "passes" in given else {}
    return overrides | ({"seconds": budget * given["seconds"]} if "seconds" in given else {})


def others(block: Mapping[str, Any] | None) -> list[float]:
    """The budgets that the baseline is run at besides the study's own."""
    return [b for b in block["budgets"] if b != 1] if block else []
