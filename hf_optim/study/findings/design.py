"""What a study's design can find, and what is doubtful about it, before and after it has run."""

from __future__ import annotations

import math

from hf_optim.core.wording import both, counted
from hf_optim.study.findings import naming
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics.looks import detectable_effect

FEW_TRIALS = 8
#: a design that finds nothing below so many deviations of a unit seldom decides anything
BLUNT = 3.0


def comparisons(plan: Plan) -> int:
    """How many claims the family has."""
    if plan.family == "score":
        return len(plan.optimizers) - 1
    return sum(len(task["only"]) - 1 for task in plan.tasks if plan.baseline in task["only"])


def further(plan: Plan, units: int) -> tuple[int, float]:
    """What more would find: the next number of units, and the difference it finds (in deviations).

    The next planned look, or else twice as many as now.
    """
    more = next((n for n in plan.looks if n > units), 2 * units)
    looks = plan.looks if more in plan.looks else (*plan.looks, more)
    return more, detectable_effect(tuple(looks), comparisons(plan))


def lines(plan: Plan) -> list[str]:
    """What the design finds and what is doubtful about it, a line each."""
    tests, units = comparisons(plan), naming.unit(plan)
    notes = []
    if tests:
        looks = both(map(str, plan.looks))
        effect = detectable_effect(tuple(plan.looks), tests)
        compared = counted(tests, "score" if plan.family == "score" else "comparison")
        if math.isnan(effect):
            notes.append(f"warning: one {naming.unit(plan, 1)} gives no verdict")
        else:
            tasks, where = len(plan.tasks), ""
            if plan.family == "score":
                # A mean over tasks that vary alike varies less by the root of their number.
                effect, where = effect / math.sqrt(tasks), f" on each of {counted(tasks, 'task')} that vary alike"
            notes.append(
                f"finds differences of {effect:.1f} deviations of a {naming.unit(plan, 1)}{where} with 80 % "
                f"({compared}, looks after {looks} {units})"
            )
            if effect > BLUNT:
                notes.append(
                    f"warning: differences below {effect:.1f} deviations of a {naming.unit(plan, 1)} will hardly be "
                    f"decided; plan more {units}"
                )
    if plan.tuning is None or not plan.repetitions:
        notes.append(f"verdicts will hold {naming.SETTINGS} only: tuning: repetitions: compares optimizers")
    if plan.tuning is not None and plan.tuning["trials"] < FEW_TRIALS:
        notes.append(f"warning: few trials, {plan.tuning['trials']}: below {FEW_TRIALS} the luck of tuning is large")
    for optimizer in plan.optimizers:
        _, trials, different = naming.searched(plan, optimizer["label"])
        if different < trials:
            few = f"{different} distinct in {counted(trials, 'trial')}"
            notes.append(f"{optimizer['label']}: its space has few settings: {few}")
        if unlike := naming.unlike(plan, optimizer["label"]):
            notes.append(unlike.rstrip("."))
    return notes
