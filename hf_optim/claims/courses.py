"""Rules about the course of a training: what a run's history has, and not its end alone.

- sooner: optimizer*, baseline*, metric*, target or share*, tasks. Fewer steps until a logged metric reaches the target,
  or this share of the best value that any optimizer reaches with that seed.
- throughout: optimizer*, baseline*, metric*, tasks, start. Better in every tenth of the course (of its logged values,
  or what comes after `start`, a share of the training), each tenth by its mean.
- smoother: optimizer*, baseline*, metric*, tasks. The logged metric goes back less: its moves to the worse from one
  value to the next, in the mean over all moves, are smaller. A curve that only improves is perfectly smooth.
- keeps: optimizer*, metric*, margin*, tasks. The last logged value is no worse than the best one by the margin, seed by
  seed: what was reached is not lost again, as by overfitting. The best of many is a lucky one, which the margin has to
  allow for.
- bounded: optimizer*, key*, low, high. A logged figure of the optimizer's own never leaves [low, high].

A run that fails has the worst course there is from where it stopped, and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hf_optim.claims.comparisons import Comparison, paired
from hf_optim.claims.evidence import Evidence, listed
from hf_optim.claims.ruling import Answer, Question, Ruling
from hf_optim.core.wording import counted
from hf_optim.hub.rates import PREFIX
from hf_optim.study.folder.store import number
from hf_optim.study.statistics.paired import summarise

#: into how many parts a course is taken apart: as many comparisons share the 5 %
PARTS = 10
Course = Sequence[tuple[float, float]]


def _sooner(
    evidence: Evidence,
    optimizer: str,
    baseline: str | list[str],
    metric: str,
    target: float | None = None,
    share: float | None = None,
    tasks: list[str] | None = None,
) -> Answer:
    """Steps to a target, on the logarithm, paired by seed; who never arrives needed more than the whole budget."""
    comparisons = []
    others = listed(baseline)
    for task in evidence.tasks(tasks):
        label = task["label"]
        name, sign = evidence.direction(task, metric, None)
        goal: Any = target
        if share is not None:
            best = evidence.best(label, [optimizer, *others], name, sign)
            goal = {seed: value * (share if sign > 0 else 1 / share) for seed, value in best.items()}
        budget = evidence.budget(label)
        times = {arm: evidence.arrivals(label, arm, name, goal, sign) for arm in (optimizer, *others)}
        logs = {arm: {s: math.log(t) if t > 0 else t for s, t in arrivals.items()} for arm, arrivals in times.items()}
        for other in others:
            if {optimizer, other} <= set(task["only"]):
                pairs = paired(logs[optimizer], logs[other], -1)
                worst = None if math.isnan(budget) else -math.log(budget)
                comparisons.append(Comparison(label, optimizer, other, f"log steps to {name}", pairs, -1, worst=worst))
    ratios = []
    for comparison in comparisons:
        both = [b - a for a, b in comparison.pairs if not math.isnan(a + b)]
        if both:
            ratios.append(f"{math.exp(summarise(both).mean):.2f}x those of {comparison.second} on {comparison.task}")
    return Question(tuple(comparisons), "steps needed: " + ", ".join(ratios) if ratios else "")


def _throughout(
    evidence: Evidence,
    optimizer: str,
    baseline: str | list[str],
    metric: str,
    tasks: list[str] | None = None,
    start: float = 0.0,
) -> Answer:
    """The means over each part of the course, paired by seed; from where an arm is gone, all that is left is one part:
    it failed once and not in every tenth.
    """
    comparisons = []
    for task in evidence.tasks(tasks):
        label = task["label"]
        name, sign = evidence.direction(task, metric, None)
        others = [other for other in listed(baseline) if {optimizer, other} <= set(task["only"])]
        seen = {arm: evidence.courses(label, arm, name) for arm in (optimizer, *others)}
        parts = _parts(seen.values(), start)
        for low, high, last in parts:
            means = {
                arm: {
                    seed: mean
                    for seed, course in courses.items()
                    if (mean := _mean(course, low, math.inf if last else high)) is not None
                }
                for arm, courses in seen.items()
            }
            for other in list(others):
                pairs = paired(means[optimizer], means[other], sign)
                if not pairs and low > parts[0][0]:
                    continue  # ended early, by its patience
                if over := any(pairs and all(math.isnan(pair[arm]) for pair in pairs) for arm in (0, 1)):
                    others.remove(other)
                where = f"{label}, steps {low:g} to {parts[-1][1] if over else high:g}"
                comparisons.append(Comparison(where, optimizer, other, name, pairs, sign))
    return Question(tuple(comparisons))


def _parts(arms: Iterable[Mapping[int, Course]], start: float) -> list[tuple[float, float, bool]]:
    """First and last step of each part, and whether it is the last one: as many logged steps in each, about."""
    steps = sorted(
        {step for courses in arms for course in courses.values() for step, _ in course if not math.isinf(step)}
    )
    steps = [step for step in steps if step > start * steps[-1]]
    count = min(PARTS, len(steps))
    cuts = [len(steps) * i // count for i in range(count + 1)] if count else []
    return [(steps[a], steps[b - 1], b == len(steps)) for a, b in zip(cuts, cuts[1:], strict=False)]


def _mean(course: Course, low: float, high: float) -> float | None:
    """Over the steps from `low` to `high`; NaN where the run has failed, None where it has logged nothing."""
    values = [value for step, value in course if low <= step <= high]
    if not values:
        return math.nan if math.isinf(course[-1][0]) else None
    return math.fsum(values) / len(values)


def _smoother(
    evidence: Evidence, optimizer: str, baseline: str | list[str], metric: str, tasks: list[str] | None = None
) -> Answer:
    """The mean move to the worse, paired by seed."""
    comparisons = []
    for task in evidence.tasks(tasks):
        label = task["label"]
        name, sign = evidence.direction(task, metric, None)
        others = [other for other in listed(baseline) if {optimizer, other} <= set(task["only"])]
        back = {
            arm: {
                seed: _back([sign * value for _, value in course])
                for seed, course in evidence.courses(label, arm, name).items()
                if len(course) > 1 or math.isinf(course[0][0])
            }
            for arm in (optimizer, *others)
        }
        for other in others:
            pairs = paired(back[optimizer], back[other], -1)
            comparisons.append(Comparison(label, optimizer, other, f"mean move back of {name}", pairs, -1))
    return Question(tuple(comparisons))


def _back(values: Sequence[float]) -> float:
    """How far the values go down, a move in the mean; NaN where one of them is none."""
    if any(map(math.isnan, values)):
        return math.nan
    return math.fsum(max(0.0, a - b) for a, b in zip(values, values[1:], strict=False)) / (len(values) - 1)


def _keeps(evidence: Evidence, optimizer: str, metric: str, margin: float, tasks: list[str] | None = None) -> Answer:
    """The last logged value against the best, paired by seed."""
    comparisons = []
    for task in evidence.tasks(tasks):
        label = task["label"]
        name, sign = evidence.direction(task, metric, None)
        ends, bests = {}, {}
        for seed, course in evidence.courses(label, optimizer, name).items():
            finished = [sign * value for _, value in course if not math.isnan(value)]
            if finished:
                ends[seed], bests[seed] = sign * course[-1][1], max(finished)
        pairs = paired(ends, bests, 1)
        first, second = f"{optimizer} at the end", f"{optimizer} at its best"
        comparisons.append(Comparison(label, first, second, name, pairs, sign, slack=margin))
    return Question(tuple(comparisons), f"margin {margin:g}")


def _bounded(evidence: Evidence, optimizer: str, key: str, low: float = -math.inf, high: float = math.inf) -> Answer:
    name = PREFIX + key
    seen = [
        number(row[name])
        for task in evidence.tasks()
        for run, record in evidence.results.runs(task["label"], optimizer)
        if record is not None
        for row in evidence.history(run)
        if name in row
    ]
    seen = [value for value in seen if not math.isnan(value)]
    if not seen:
        return Ruling("not tested", f"no run of {optimizer} logged {key}")
    words = f"{key} in [{min(seen):.4g}, {max(seen):.4g}] over {counted(len(seen), 'logged value')}"
    near = 1e-9 * max(1.0, *(abs(v) for v in (low, high) if math.isfinite(v)))
    if min(seen) < low - near or max(seen) > high + near:
        return Ruling("contradicted", words)
    if min(seen) < low + near or max(seen) > high - near:
        return Ruling("undecided", f"{words}: at the bound to within rounding")
    return Ruling("holds", words)


RULES: dict[str, tuple[Callable[..., Answer], tuple[str, ...], tuple[str, ...]]] = {
    "sooner": (_sooner, ("optimizer", "baseline", "metric"), ("target", "share", "tasks")),
    "throughout": (_throughout, ("optimizer", "baseline", "metric"), ("tasks", "start")),
    "smoother": (_smoother, ("optimizer", "baseline", "metric"), ("tasks",)),
    "keeps": (_keeps, ("optimizer", "metric", "margin"), ("tasks",)),
    "bounded": (_bounded, ("optimizer", "key"), ("low", "high")),
}
