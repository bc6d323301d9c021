"""How many seeds the published effects would need: what a stand-in can decide, said before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.claims.claim import Claim
from hf_optim.claims.statement import Statement, concerns
from hf_optim.core.wording import counted
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics.paired import ALPHA, MOST_UNITS, detectable, units_needed

#: rules that set no difference of a metric against its noise
NO_DIFFERENCE = ("bounded", "diverges", "sooner", "throughout", "smoother", "keeps", "at_most")


@dataclass(frozen=True)
class Outlook:
    """What a study can be expected to say of a statement.

    needed: seeds that find the published effect with 80 % power, MOST_UNITS + 1 where that many do not; None where the
    paper prints no effect or the noise is not known. visible: the least true effect that the planned seeds find.
    """

    statement: Statement
    seeds: int
    needed: int | None
    visible: float | None

    @property
    def decides(self) -> bool | None:
        """Whether the planned seeds are enough; None where nothing is known beforehand."""
        return None if self.needed is None else self.needed <= self.seeds

    def sentence(self) -> str:
        """In words."""
        claimed = (self.statement.reading or self.statement.says).removesuffix(".")
        if self.needed is None and self.visible is None:
            return f"{claimed}: no published effect or no measured noise, so nothing can be said beforehand"
        if self.needed is None:
            seeds = counted(self.seeds, "seed")
            return f"{claimed}: no effect is printed; with {seeds} one of {self.visible:.2g} or more is found"
        count = counted(self.needed, "seed") if self.needed <= MOST_UNITS else f"more than {MOST_UNITS} seeds"
        return f"{claimed}: the published effect of {self.statement.effect:g} needs {count}, planned: {self.seeds}"


def outlooks(claim: Claim, size: str, plan: Plan) -> list[Outlook]:
    """One for each statement that the study's records judge."""
    noise = claim.settings[size].noise
    labels = {task["label"] for task in plan.tasks}
    expected = []
    for statement in claim.judged():
        if statement.keys is None or statement.on_tables() or not concerns(statement.keys, labels):
            continue
        deviation = _deviation(statement.keys, plan, noise)
        level = ALPHA / max(1, _comparisons(statement.keys, plan))
        needed = least = None
        if deviation:
            least = detectable(len(plan.seeds), level) * deviation
            if statement.effect:
                needed = units_needed(statement.effect / deviation, level) or MOST_UNITS + 1
        expected.append(Outlook(statement, len(plan.seeds), needed, least))
    return expected


def hopeless(outlook: Sequence[Outlook]) -> bool:
    """Whether effects are published, and none of them can be found with the seeds that are planned."""
    known = [expectation.decides for expectation in outlook if expectation.decides is not None]
    return bool(known) and not any(known)


def _tasks(keys: Mapping[str, Any], plan: Plan) -> list[str]:
    labels = [task["label"] for task in plan.tasks]
    return [label for label in keys.get("tasks") or labels if label in labels]


def _deviation(keys: Mapping[str, Any], plan: Plan, noise: Mapping[str, float]) -> float | None:
    """The noise of what the rule compares; None where it is not known, or not the same for all parts of the rule."""
    parts, primary = keys.get("of") or [keys], plan.tasks[0]["primary"]["name"]
    found = {None if part["rule"] in NO_DIFFERENCE else noise.get(str(part.get("metric", primary))) for part in parts}
    return found.pop() if len(found) == 1 else None


def _comparisons(keys: Mapping[str, Any], plan: Plan) -> int:
    """How many comparisons share the 5 %, about: one for each baseline and task, or for each setting."""
    if "of" in keys:
        return sum(_comparisons(part, plan) for part in keys["of"])
    baselines = keys.get("baseline", keys.get("optimizers", []))
    count = 1 if isinstance(baselines, str) else max(1, len(baselines))
    if keys["rule"] in ("steadier", "insensitive", "better_on_average"):  # of all tasks at once
        return count
    return count * max(1, len(_tasks(keys, plan)))
