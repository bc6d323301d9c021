"""What a ladder has left open, and how many tokens it would take to find a difference as large as the one seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hf_optim.study.findings import design
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.plan import Run
from hf_optim.study.statistics.looks import detectable_effect

MOST_UNITS = 1000


@dataclass(frozen=True)
class Need:
    """One comparison without a verdict: the advantage seen in deviations of a unit, and the units and tokens at which a
    true difference of that size is found with 80 %; infinite beyond a thousand units.

    It is a guess from few units: what is seen of a difference that is not decided may be far from what it is.
    """

    what: str
    seen: float
    units: float
    tokens: float


@dataclass(frozen=True)
class Cost:
    """What a unit of the study costs in training tokens, all its trials and runs, and what the next units would find:
    differences of `finds` deviations of a unit, from `more` units.
    """

    tokens_a_unit: float
    units: int
    more: int
    finds: float


def cost(results: Results) -> Cost | None:
    """None before the first look, or for a study without a ladder."""
    plan, stands = results.plan, results.standing
    if plan.ladder is None or stands.judgement is None:
        return None
    tokens = {rung["task"]: float(rung["tokens"]) for rung in plan.ladder["rungs"]}
    now = stands.state
    trials: list[Run] = [t.run for s in now.searches for t in s.trials]
    spent = math.fsum(tokens[run.task] for run in (*trials, *now.after_tuning))
    more, finds = design.further(plan, stands.judgement.units)
    return Cost(spent / stands.units, stands.judgement.units, more, finds)


def needs(results: Results) -> list[Need]:
    """The comparisons of the family that are open."""
    plan, judgement, each = results.plan, results.standing.judgement, cost(results)
    if judgement is None or each is None:
        return []
    named = (
        judgement.scores.items()
        if judgement.family == "score"
        else ((f"{label} on {task}", c) for (task, label), c in judgement.comparisons.items())
    )
    still_open = []
    for question, c in named:
        if c.decided or c.reason or c.pairs < 2 or not c.difference.sd > 0:
            continue
        seen = abs(c.difference.mean) / c.difference.sd
        tests = design.comparisons(plan)
        units = next((n for n in range(2, MOST_UNITS) if detectable_effect((n,), tests) <= seen), math.inf)
        still_open.append(Need(question, seen, units, units * each.tokens_a_unit))
    return still_open
