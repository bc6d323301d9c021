"""The verdicts of a study at a look, as numbers. Whatever shows or asks for a verdict takes it from here.

A family is what is corrected together: the comparisons with the baseline over all tasks, or one score an optimizer over
all tasks. Optimizers that were added after results were known are a family of their own. All pairs of optimizers, for
places, and the failures have 5 % of their own each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hf_optim.study.folder.outcomes import Arm, Key
from hf_optim.study.folder.questions import Register
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics import failures
from hf_optim.study.statistics.comparisons import Comparison, comparison
from hf_optim.study.statistics.looks import Claim, Decision, decide
from hf_optim.study.statistics.paired import NAN, MeanDifference, mean_difference
from hf_optim.study.statistics.places import Pair, Places, places
from hf_optim.study.statistics.scores import score

ALIKE = "every seed gave the same run: the seed does nothing, so nothing tells chance"


@dataclass(frozen=True)
class Judgement:
    """`units` is how many were looked at. `comparisons` are with the baseline, by task and optimizer; `scores` by
    optimizer, where these are the family; `places` by task. `tests` counts the family.
    """

    units: int
    family: str
    tests: int
    comparisons: Mapping[Key, Comparison]
    scores: Mapping[str, Comparison]
    places: Mapping[str, Places]
    score_unit: str = ""
    note: str = ""

    @property
    def verdicts(self) -> list[Comparison]:
        """Those of the family: the others describe."""
        return list(self.scores.values() if self.family == "score" else self.comparisons.values())

    @property
    def decided(self) -> bool:
        """Whether more units could say nothing more."""
        return bool(self.verdicts) and all(c.decided or (c.reason and c.pairs == 0) for c in self.verdicts)


def judge(plan: Plan, arms: Mapping[Key, Arm], looks: Sequence[int], register: Register) -> Judgement:
    """The judgement after `looks`, the ones of the plan that are complete."""
    whole = _Study(plan, arms, looks)
    pairs = [(task["label"], label) for task in plan.tasks for label in task["only"] if label != plan.baseline]
    pairs = [key for key in pairs if plan.baseline in whole.only[key[0]]]
    asked = {key: _asked(plan, whole, key) for key in pairs}
    units, scale, note = _scales(plan, whole)
    family = "score" if plan.family == "score" and scale else "tasks"
    described = family == "score"
    compared: dict[Key, Comparison] = {}
    failed = failures.compare([asked[key].counts for key in pairs], plan.looks)
    for generation in sorted({register.generation(label) for _, label in pairs}):
        keys = [key for key in pairs if register.generation(key[1]) == generation]
        compared |= _decided(plan, {key: asked[key] for key in keys}, whole, register)
    for key, test in zip(pairs, failed, strict=True):
        compared[key] = replace(compared[key], failures=asked[key].rates, failure_test=test)
    scores = _scores(plan, whole, asked, scale, register) if described else {}
    tests = len(scores) if described else sum(c.pairs > 1 and not c.reason for c in compared.values())
    if described:
        compared = {
            key: replace(c, verdict="described", adjusted=NAN, adjusted_equivalent=NAN) for key, c in compared.items()
        }
    return Judgement(looks[-1], family, tests, compared, scores, _places(plan, whole), units, note)


@dataclass(frozen=True)
class _Asked:
    """One pair: mean advantages at each look, those of all units so far, failure counts, and why it has no verdict."""

    means: list[MeanDifference]
    advantages: list[float]
    counts: list[tuple[int, int, int, int]]
    rates: tuple[failures.FailureRate, failures.FailureRate]
    margin: float
    greater: bool
    reason: str


class _Study:
    """The arms, and what is looked up in them again and again."""

    def __init__(self, plan: Plan, arms: Mapping[Key, Arm], looks: Sequence[int]) -> None:
        self.arms, self.looks, self.per_unit = arms, looks, plan.per_unit
        self.greater = {task["label"]: bool(task["primary"]["greater_is_better"]) for task in plan.tasks}
        self.only = {task["label"]: task["only"] for task in plan.tasks}

    def shared(self, task: str, first: str, second: str, units: int) -> tuple[list[failures.Runs], list[failures.Runs]]:
        """The runs of the first so many units that both have."""
        a, b = self.arms.get((task, first), Arm()), self.arms.get((task, second), Arm())
        both = [unit for unit in range(units) if unit in a.values and unit in b.values]
        return [a.values[u] for u in both], [b.values[u] for u in both]

    def advantages(self, task: str, first: str, second: str, units: int) -> list[float]:
        """By how much the first is better in each unit, its failures and the second's counted as the worst of both."""
        a, b = failures.with_worst(*self.shared(task, first, second, units), self.greater[task])
        return [x - y if self.greater[task] else y - x for x, y in zip(a, b, strict=True)]

    def means(self, task: str, first: str, second: str) -> list[MeanDifference]:
        """The mean advantage at each look; its deviation is at least what rounding alone allows for."""
        grain = max(self.arms.get((task, label), Arm()).grain for label in (first, second))
        least = grain / 2 / math.sqrt(self.per_unit)
        return [mean_difference(self.advantages(task, first, second, n), least) for n in self.looks]

    def unusable(self, task: str, label: str) -> str:
        """Why nothing can be said of an arm."""
        arm = self.arms.get((task, label), Arm())
        if arm.cannot_run:
            return f"{label} cannot be run here: the machine failed it twice"
        return f"{label}: {ALIKE}" if arm.same else ""


def _asked(plan: Plan, whole: _Study, key: Key) -> _Asked:
    task, label = key
    reason = whole.unusable(task, plan.baseline) or whole.unusable(task, label)
    counts = []
    for n in whole.looks:
        mine, other = (failures.rate(units) for units in whole.shared(task, label, plan.baseline, n))
        counts.append((mine.count, mine.n, other.count, other.n))
    usable = not reason
    return _Asked(
        whole.means(task, label, plan.baseline) if usable else [],
        whole.advantages(task, label, plan.baseline, whole.looks[-1]) if usable else [],
        counts if usable else [],
        (mine, other),
        (plan.margin or {}).get(task, NAN),
        whole.greater[task],
        reason,
    )


def _decided(
    plan: Plan, asked: Mapping[Key, _Asked], whole: _Study, register: Register
) -> dict[Key, Comparison]:  # fmt: skip
    claims = [
        Claim(question.means, question.margin, not any(rate.count for rate in question.rates))
        for question in asked.values()
    ]
    tests = max(1, sum(any(m.n > 1 for m in claim.means) for claim in claims))
    compared = {}
    for (key, question), decision in zip(asked.items(), decide(claims, plan.looks), strict=True):
        c = comparison(decision, question.advantages, plan.looks, tests, question.margin, question.greater)
        compared[key] = replace(c, reason=question.reason or c.reason, exploratory=register.exploratory(*key))
    return compared


def _scales(plan: Plan, whole: _Study) -> tuple[str, dict[str, float], str]:
    """What counts as 1 on each task, in words and numbers; empty, and why, where there is no such unit."""
    labels = [task["label"] for task in plan.tasks if plan.baseline in task["only"]]
    if plan.family != "score" or not labels:
        return "", {}, ""
    if plan.margin and all(label in plan.margin for label in labels):
        return "margins", {label: plan.margin[label] for label in labels}, ""
    scale = {}
    for label in labels:
        # Of the first look alone: a unit that changed between looks would change what was decided.
        gains = whole.arms.get((label, plan.baseline), Arm()).gains
        known = [gains[u] for u in range(whole.looks[0]) if not math.isnan(gains.get(u, NAN))]
        size = abs(math.fsum(known) / len(known)) if known else 0.0
        if size == 0:
            return "", {}, f"no score: what the baseline gains by training on {label} is not known, nor a margin stated"
        scale[label] = size
    return "what training the baseline gains", scale, ""


def _scores(
    plan: Plan, whole: _Study, asked: Mapping[Key, _Asked], scale: Mapping[str, float], register: Register
) -> dict[str, Comparison]:
    margin = 1.0 if plan.margin and all(label in plan.margin for label in scale) else NAN
    scored: dict[str, Comparison] = {}
    claims: dict[str, tuple[Claim, str]] = {}
    for optimizer in plan.optimizers:
        label = optimizer["label"]
        tasks = [task for task in scale if (task, label) in asked]
        if label == plan.baseline or not tasks:
            continue
        reason = next((asked[task, label].reason for task in tasks if asked[task, label].reason), "")
        failed = any(rate.count for task in tasks for rate in asked[task, label].rates)
        means = [] if reason else [
            score([asked[task, label].means[k] for task in tasks], [scale[task] for task in tasks])
            for k in range(len(whole.looks))
        ]  # fmt: skip
        claims[label] = Claim(means, margin, not failed), reason
    for generation in sorted({register.generation(label) for label in claims}):
        some = {label: claim for label, claim in claims.items() if register.generation(label) == generation}
        decisions = decide([claim for claim, _ in some.values()], plan.looks)
        for (label, (_, reason)), decision in zip(some.items(), decisions, strict=True):
            c = comparison(decision, [], plan.looks, len(some), margin, True)
            touched = dict.fromkeys(why for task in scale for why in register.exploratory(task, label))
            scored[label] = replace(c, reason=reason or c.reason, exploratory=tuple(touched))
    return scored


def _places(plan: Plan, whole: _Study) -> dict[str, Places]:
    tasks: list[dict[Pair, list[MeanDifference]]] = []
    for task in plan.tasks:
        name = task["label"]
        labels = [x for x in task["only"] if not whole.unusable(name, x) and (name, x) in whole.arms]
        tasks.append({(a, b): whole.means(name, a, b) for i, a in enumerate(labels) for b in labels[i + 1 :]})
    return {task["label"]: placed for task, placed in zip(plan.tasks, places(tasks, plan.looks), strict=True)}


def pair(judgement: Judgement, task: str, first: str, second: str) -> Decision | None:
    """The decision on any two optimizers of a task, first minus second (positive is better); None if there is none."""
    known = judgement.places[task].pairs if task in judgement.places else {}
    if (first, second) in known:
        return known[first, second]
    if (second, first) not in known:
        return None
    other = known[second, first]
    word = {"better": "worse", "worse": "better"}.get(other.verdict, other.verdict)
    mean = replace(other.mean, value=-other.mean.value)
    return replace(other, verdict=word, mean=mean, low=-other.high, high=-other.low)
