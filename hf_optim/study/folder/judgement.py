"""The verdicts of a study at a look, as numbers. Whatever shows or asks for a verdict takes it from here.

A family is what is corrected together: the comparisons with the baseline over all tasks, or one score an optimizer over
all tasks. Optimizers that were added after results were known are a family of their own. All pairs of optimizers, for
places, and the failures have 5 % of their own each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hf_optim.core.shape import CLOSEST
from hf_optim.study.folder.outcomes import Arm, Key
from hf_optim.study.folder.questions import Register
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics import failures
from hf_optim.study.statistics.comparisons import Comparison, comparison
from hf_optim.study.statistics.looks import Claim, Decision, decide
from hf_optim.study.statistics.paired import NAN, MeanDifference, mean_difference, summarise
from hf_optim.study.statistics.places import Pair, Places, places
from hf_optim.study.statistics.scores import score

ALIKE = "every seed gave the same run: the seed does nothing, so nothing tells chance"


@dataclass(frozen=True)
class Judgement:
    """`units` is how many were looked at. `comparisons` are with the baseline, by task and optimizer; `scores` by
    optimizer, where these are the family; `places` by task. `families` are the sizes of the first family and of
    those that were added.
    """

    units: int
    family: str
    families: tuple[int, ...]
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
        return bool(self.verdicts) and all(c.decided or c.over or c.pairs == 0 for c in self.verdicts)


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
    for generation in sorted({register.generation(label) for _, label in pairs}):
        keys = [key for key in pairs if register.generation(key[1]) == generation]
        compared |= _decided(plan, {key: asked[key] for key in keys}, register)
    scores = _scores(plan, asked, scale, register) if described else {}
    sizes = {register.generation(label): c.tests for label, c in scores.items()} if described else {
        register.generation(label): c.tests for (_, label), c in compared.items() if c.pairs > 1
    }  # fmt: skip
    families = tuple(sizes[generation] for generation in sorted(sizes))
    if described:
        compared = {
            key: replace(c, verdict="described", adjusted=NAN, adjusted_equivalent=NAN) for key, c in compared.items()
        }
    return Judgement(looks[-1], family, families, compared, scores, _places(plan, whole), units, note)


@dataclass(frozen=True)
class _Asked:
    """One pair: mean advantages and failure counts at each look that the machine could run, the advantages and failures
    of all their units, and why there is no verdict, unless an earlier look gave one.
    """

    means: list[MeanDifference]
    advantages: list[float]
    counts: list[tuple[int, int, int, int]]
    rates: tuple[failures.FailureRate, failures.FailureRate]
    margin: float
    greater: bool
    reason: str

    @property
    def unfailed(self) -> int:
        """How many looks went by before anything had failed."""
        return sum(not mine and not other for mine, _, other, _ in self.counts)


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
        return self._against(task, first, second, units)[0]

    def _against(self, task: str, first: str, second: str, units: int) -> tuple[list[float], float]:
        """The advantages, and the size of what they are differences of."""
        a, b = failures.with_worst(*self.shared(task, first, second, units), self.greater[task])
        advantages = [x - y if self.greater[task] else y - x for x, y in zip(a, b, strict=True)]
        return advantages, max(map(abs, a + b), default=0.0)

    def means(self, task: str, first: str, second: str) -> list[MeanDifference]:
        """The mean advantage at each look; its deviation is at least what rounding alone allows for."""
        grain = max(self.arms.get((task, label), Arm()).grain for label in (first, second))
        least = grain / 2 / math.sqrt(self.per_unit)
        known = [self._against(task, first, second, n) for n in self.looks]
        return [mean_difference(advantages, least, largest) for advantages, largest in known]

    def rates(
        self, task: str, first: str, second: str, units: int
    ) -> tuple[failures.FailureRate, failures.FailureRate]:
        """The failures of both in the first so many units."""
        a, b = self.shared(task, first, second, units)
        return failures.rate(a), failures.rate(b)

    def trains(self, task: str, label: str) -> bool:
        """Whether any run of an arm came to something."""
        runs = self.arms.get((task, label), Arm()).values.values()
        return any(not math.isnan(value) for values in runs for value in values)

    def unusable(self, task: str, label: str) -> tuple[str, int]:
        """Why nothing more can be said of an arm, and after how many looks; no reason, and all, where it can."""
        arm = self.arms.get((task, label), Arm())
        if arm.same:
            return f"{label}: {ALIKE}", 0
        lost = f"{label} cannot be run here: the machine failed it twice" if arm.lost < self.looks[-1] else ""
        return lost, sum(n <= arm.lost for n in self.looks)


def _asked(plan: Plan, whole: _Study, key: Key) -> _Asked:
    task, label = key
    reasons = [whole.unusable(task, side) for side in (plan.baseline, label)]
    usable = min(looks for _, looks in reasons)
    units = whole.looks[usable - 1] if usable else 0
    rates = [whole.rates(task, label, plan.baseline, n) for n in whole.looks[:usable]]
    return _Asked(
        whole.means(task, label, plan.baseline)[:usable],
        whole.advantages(task, label, plan.baseline, units),
        [(mine.count, mine.n, other.count, other.n) for mine, other in rates],
        whole.rates(task, label, plan.baseline, units),
        (plan.margin or {}).get(task, NAN),
        whole.greater[task],
        next((reason for reason, looks in reasons if reason and looks == usable), ""),
    )


def _decided(plan: Plan, asked: Mapping[Key, _Asked], register: Register) -> dict[Key, Comparison]:
    claims = [Claim(question.means, question.margin, question.unfailed) for question in asked.values()]
    tests = max(1, sum(any(m.n > 1 for m in claim.means) for claim in claims))
    failed = failures.compare([question.counts for question in asked.values()], plan.looks)
    compared = {}
    for (key, question), decision, test in zip(asked.items(), decide(claims, plan.looks), failed, strict=True):
        c = comparison(decision, question.advantages, plan.looks, tests, question.margin, question.greater)
        c = replace(c, failures=question.rates, failure_test=test, exploratory=register.exploratory(*key))
        compared[key] = _trained(_without(c, question.reason), key[1], plan.baseline)
    return compared


def _trained(c: Comparison, label: str, baseline: str) -> Comparison:
    """An undecided comparison as none, where an arm has nothing but failures: what stands in their place is no
    measurement. More units may still say which fails more often.
    """
    sides = zip((label, baseline), c.failures or (), strict=False)
    never = [side for side, rate in sides if rate.count == rate.n > 0]
    if c.decided or c.reason or not never:
        return c
    reason = f"no run of {never[0]} trained (failed, or no better than untrained)"
    return replace(c, verdict="no verdict", reason=reason, difference=summarise([]), p=NAN, adjusted=NAN)


def _without(c: Comparison, reason: str) -> Comparison:
    """A comparison of which no more can be known; what an earlier look decided stays."""
    return replace(c, verdict="no verdict", reason=reason, over=True) if reason and not c.decided else c


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
        if size < CLOSEST:
            return "", {}, f"no score: what the baseline gains by training on {label} is not known, nor a margin stated"
        scale[label] = size
    return "what training the baseline gains", scale, ""


def _scores(
    plan: Plan, asked: Mapping[Key, _Asked], scale: Mapping[str, float], register: Register
) -> dict[str, Comparison]:
    margin = 1.0 if plan.margin and all(label in plan.margin for label in scale) else NAN
    scored: dict[str, Comparison] = {}
    claims: dict[str, tuple[Claim, str]] = {}
    rates: dict[str, tuple[failures.FailureRate, failures.FailureRate]] = {}
    for optimizer in plan.optimizers:
        label = optimizer["label"]
        tasks = [task for task in scale if (task, label) in asked]
        if label == plan.baseline or not tasks:
            continue
        on = [asked[task, label] for task in tasks]
        usable = min(len(question.means) for question in on)
        units = [scale[task] for task in tasks]
        means = [score([question.means[k] for question in on], units) for k in range(usable)]
        reason = next((question.reason for question in on if question.reason and len(question.means) == usable), "")
        claims[label] = Claim(means, margin, min(question.unfailed for question in on)), reason
        mine, other = zip(*(question.rates for question in on), strict=True)
        rates[label] = failures.together(mine), failures.together(other)
    for generation in sorted({register.generation(label) for label in claims}):
        some = {label: claim for label, claim in claims.items() if register.generation(label) == generation}
        decisions = decide([claim for claim, _ in some.values()], plan.looks)
        for (label, (_, reason)), decision in zip(some.items(), decisions, strict=True):
            c = comparison(decision, [], plan.looks, len(some), margin, True)
            touched = dict.fromkeys(why for task in scale for why in register.exploratory(task, label))
            scored[label] = _without(replace(c, failures=rates[label], exploratory=tuple(touched)), reason)
    return scored


def _places(plan: Plan, whole: _Study) -> dict[str, Places]:
    tasks: list[dict[Pair, list[MeanDifference]]] = []
    for task in plan.tasks:
        name = task["label"]
        labels = [x for x in task["only"] if not whole.unusable(name, x)[0] and whole.trains(name, x)]
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
