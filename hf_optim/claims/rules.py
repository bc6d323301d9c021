"""The rules by which a study's records judge a claim. They speak of the study's own setting and of nothing else.

Rules and their keys (* required; `metric` defaults to each task's primary one, `tasks` to all that ran what is
compared, `greater` to what the metric's name says):

- better: optimizer*, baseline* (a label or a list), metric, tasks, greater, by. Better than each of them (by more than
  `by`).
- on_par: optimizer*, baseline*, margin*, relative, metric, tasks. Within the margin of each, on either side.
- no_worse: optimizer*, baseline*, margin*, relative, metric, tasks. Not worse than each by the margin.
- ordered: optimizers* (worst first), metric, tasks. Each is better than the one before.
- insensitive: margin*, relative, optimizers, or optimizer and tasks, metric. All settings are within the margin of the
  best one.
- steadier: optimizer*, baseline*, tasks* (the settings), metric. The range over the settings is smaller, seed by seed.
- degrades: optimizer*, reference* (a task), tasks*, metric. Worse on each of the tasks than on the reference.
- degrades_less: optimizer*, baseline*, reference*, tasks*, metric. It degrades, and by less than the baseline does.
- better_on_average: optimizer*, baseline*, tasks*, metric*, greater. The mean over the tasks, seed by seed, is better
  than each of theirs: of tasks whose metric has one scale, where the paper tells of their mean.
- at_most: optimizer*, baseline*, factor*, metric*, tasks. At most `factor` times the baseline's.
- diverges: optimizer*, tasks. More than half of its runs fail.
- all: of* (a list of rules). All of them.
- sooner, throughout, smoother, keeps, bounded: of the course of a training, see `courses`.
- inequality, falls_as, lowest: of files that a command or a check writes, see `exhibits`.

`negated: true` turns any rule into its negation: better into "not the best", insensitive into "sensitive".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_optim.claims import courses
from hf_optim.claims.comparisons import Comparison, paired
from hf_optim.claims.evidence import COUNTED, Evidence, Undeclared, listed
from hf_optim.claims.ruling import Answer, Question, Ruling, negation, ruling
from hf_optim.core.wording import counted
from hf_optim.study.folder.store import number
from hf_optim.study.statistics.paired import clopper_pearson, summarise


def rule(evidence: Evidence, keys: Mapping[str, Any]) -> Ruling:
    """The ruling on a statement; `keys` are its rule and the rule's keys."""
    ruled = ruling(_ask(evidence, keys))
    return negation(ruled) if keys.get("negated") else ruled


def _ask(evidence: Evidence, keys: Mapping[str, Any]) -> Answer:
    function, _, _ = RULES[keys["rule"]]
    try:
        return function(evidence, **{key: value for key, value in keys.items() if key not in ("rule", "negated")})
    except Undeclared as error:
        return Ruling("not tested", str(error))


# --- rules that compare optimizers ---------------------------------------------------------------------------------


def _two(
    evidence: Evidence,
    optimizer: str,
    baselines: Sequence[str],
    metric: str | None,
    tasks: list[str] | None,
    greater: bool | None,
) -> list[Comparison]:
    """The optimizer against each baseline on each task that has both."""
    comparisons = []
    for task in evidence.tasks(tasks):
        name, sign = evidence.direction(task, metric, greater)
        for other in baselines:
            if {optimizer, other} <= set(task["only"]):
                a, b = (evidence.values(task["label"], label, name) for label in (optimizer, other))
                pairs = paired(a, b, sign)
                comparisons.append(
                    Comparison(task["label"], optimizer, other, name, pairs, sign, exact=name in COUNTED)
                )
    return comparisons


def _better(
    evidence: Evidence,
    optimizer: str,
    baseline: str | list[str],
    metric: str | None = None,
    tasks: list[str] | None = None,
    greater: bool | None = None,
    by: float = 0.0,
) -> Answer:
    comparisons = _two(evidence, optimizer, listed(baseline), metric, tasks, greater)
    return Question(
        tuple(replace(comparison, slack=-by) for comparison in comparisons), f"asked for: {by:g}" if by else ""
    )


def _better_on_average(
    evidence: Evidence,
    optimizer: str,
    baseline: str | list[str],
    tasks: list[str],
    metric: str,
    greater: bool | None = None,
) -> Answer:
    """A seed's mean is over all of the tasks that the study has; a run that fails on one of them fails the mean."""
    chosen = evidence.tasks(tasks)
    comparisons = []
    for other in listed(baseline):
        name, sign = evidence.direction(chosen[0], metric, greater)
        a, b = (
            _means([evidence.values(task["label"], label, name) for task in chosen]) for label in (optimizer, other)
        )
        where = f"the mean over {counted(len(chosen), 'task')} ({chosen[0]['label']} to {chosen[-1]['label']})"
        comparisons.append(Comparison(where, optimizer, other, name, paired(a, b, sign), sign))
    return Question(tuple(comparisons))


def _means(cells: Sequence[Mapping[int, float]]) -> dict[int, float]:
    seeds = set.intersection(*(set(cell) for cell in cells))
    return {seed: math.fsum(cell[seed] for cell in cells) / len(cells) for seed in seeds}


def _ordered(
    evidence: Evidence,
    optimizers: list[str],
    metric: str | None = None,
    tasks: list[str] | None = None,
    greater: bool | None = None,
) -> Answer:
    comparisons: list[Comparison] = []
    for worse, better in zip(optimizers, optimizers[1:], strict=False):
        comparisons += _two(evidence, better, [worse], metric, tasks, greater)
    return Question(tuple(comparisons))


def _bound(pairs: Sequence[tuple[float, float]], margin: float, relative: bool) -> float:
    values = [abs(b) for _, b in pairs if not math.isnan(b)]
    return margin * summarise(values).mean if relative and values else margin


def _within(comparison: Comparison, bound: float) -> tuple[Comparison, Comparison]:
    """ "No worse by the bound" and "no better by the bound"."""
    turned = tuple((b, a) for a, b in comparison.pairs)
    return (
        replace(comparison, slack=bound),
        replace(comparison, first=comparison.second, second=comparison.first, pairs=turned, slack=bound),
    )


def _on_par(
    evidence: Evidence,
    optimizer: str,
    baseline: str | list[str],
    margin: float,
    relative: bool = False,
    metric: str | None = None,
    tasks: list[str] | None = None,
    greater: bool | None = None,
) -> Answer:
    comparisons: list[Comparison] = []
    for comparison in _two(evidence, optimizer, listed(baseline), metric, tasks, greater):
        comparisons += _within(comparison, _bound(comparison.pairs, margin, relative))
    return Question(tuple(comparisons), f"margin {margin:g}{' of the baseline' if relative else ''}", parts=False)


def _no_worse(
    evidence: Evidence,
    optimizer: str,
    baseline: str | list[str],
    margin: float,
    relative: bool = False,
    metric: str | None = None,
    tasks: list[str] | None = None,
    greater: bool | None = None,
) -> Answer:
    comparisons = [
        _within(comparison, _bound(comparison.pairs, margin, relative))[0]
        for comparison in _two(evidence, optimizer, listed(baseline), metric, tasks, greater)
    ]
    return Question(tuple(comparisons), f"margin {margin:g}{' of the baseline' if relative else ''}")


def _at_most(
    evidence: Evidence, optimizer: str, baseline: str, factor: float, metric: str, tasks: list[str] | None = None
) -> Answer:
    """`factor` times the baseline's is more than the optimizer's."""
    comparisons = []
    for comparison in _two(evidence, optimizer, [baseline], metric, tasks, False):
        pairs = tuple((a, factor * b) for a, b in comparison.pairs)
        second = f"{factor:g} x {baseline}"
        comparisons.append(
            Comparison(
                comparison.task, optimizer, second, comparison.metric, pairs, comparison.sign, exact=comparison.exact
            )
        )
    ratios = [number(a / b) for comparison in comparisons for a, b in comparison.pairs if b]
    ratios = [ratio for ratio in ratios if not math.isnan(ratio)]
    seen = f"{factor * summarise(ratios).mean:.4g} times {baseline}'s" if ratios else ""
    return Question(tuple(comparisons), seen)


# --- rules about settings ------------------------------------------------------------------------------------------


def _insensitive(
    evidence: Evidence,
    margin: float,
    optimizers: list[str] | None = None,
    optimizer: str | None = None,
    tasks: list[str] | None = None,
    metric: str | None = None,
    relative: bool = False,
) -> Answer:
    """Every setting is within the margin of the one whose mean is best."""
    chosen = evidence.tasks(tasks)
    cells: dict[str, dict[int, float]] = {}
    name, sign = "", 1
    for task in chosen:
        name, sign = evidence.direction(task, metric, None)
        for label in optimizers or [optimizer or evidence.results.plan.optimizers[0]["label"]]:
            if label in task["only"]:
                where = label if optimizers and len(chosen) == 1 else f"{label}, {task['label']}"
                cells[where] = evidence.values(task["label"], label, name)
    missing = tuple(where for where, values in cells.items() if not values)
    if missing or len(cells) < 2:
        return Question((), missing=missing or ("a second setting",))
    means = {
        where: summarise(finished).mean
        for where, values in cells.items()
        if (finished := [v for v in values.values() if not math.isnan(v)])
    }
    if not means:
        return Ruling("not tested", "every run of every setting failed")
    best = (max if sign > 0 else min)(means, key=lambda where: means[where])
    bound = margin * abs(means[best]) if relative else margin
    comparisons: list[Comparison] = []
    for where, values in cells.items():
        if where != best:
            comparison = Comparison("the settings", where, best, name, paired(values, cells[best], sign), sign)
            comparisons += _within(comparison, bound)
    spread = max(means.values()) - min(means.values())
    return Question(
        tuple(comparisons),
        f"means within {spread:.3g} over {counted(len(cells), 'setting')}, margin {bound:.3g}, best {best}",
        parts=False,
    )


def _steadier(evidence: Evidence, optimizer: str, baseline: str, tasks: list[str], metric: str | None = None) -> Answer:
    """The range of the metric over the settings, seed by seed; a setting that fails has no end."""
    ranges: dict[str, dict[int, float]] = {}
    name = ""
    for label in (optimizer, baseline):
        cells = []
        for task in evidence.tasks(tasks):
            name, _ = evidence.direction(task, metric, None)
            cells.append(evidence.values(task["label"], label, name))
        seeds = set.intersection(*(set(cell) for cell in cells)) if cells else set()
        ranges[label] = {s: _range([cell[s] for cell in cells]) for s in seeds}
    pairs = paired(ranges[optimizer], ranges[baseline], -1)
    return Question((Comparison("the range over the settings", optimizer, baseline, name, pairs, -1),))


def _range(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values) - min(values)


def _losses(
    evidence: Evidence, label: str, reference: str, task: str, metric: str | None
) -> tuple[str, dict[int, float], int]:
    """How much worse the metric is on `task` than on `reference`, by seed (NaN: failed there), name and direction."""
    (there,) = evidence.tasks([task])
    name, sign = evidence.direction(there, metric, None)
    at, of = evidence.values(task, label, name), evidence.values(reference, label, name)
    return name, {s: sign * (of[s] - at[s]) for s in at.keys() & of.keys() if not math.isnan(of[s])}, sign


def _degrades(
    evidence: Evidence, optimizer: str, reference: str, tasks: list[str], metric: str | None = None
) -> Answer:
    comparisons = []
    for task in tasks:
        (there,) = evidence.tasks([task])
        name, sign = evidence.direction(there, metric, None)
        of, at = (evidence.values(label, optimizer, name) for label in (reference, task))
        comparisons.append(
            Comparison(task, f"{optimizer}, {reference}", f"{optimizer}, {task}", name, paired(of, at, sign), sign)
        )
    return Question(tuple(comparisons))


def _degrades_less(
    evidence: Evidence, optimizer: str, baseline: str, reference: str, tasks: list[str], metric: str | None = None
) -> Answer:
    first = _degrades(evidence, optimizer, reference, tasks, metric)
    assert isinstance(first, Question)
    comparisons = list(first.comparisons)
    for task in tasks:
        name, ours, _ = _losses(evidence, optimizer, reference, task, metric)
        _, theirs, _ = _losses(evidence, baseline, reference, task, metric)
        comparisons.append(
            Comparison(
                f"{task} against {reference}", optimizer, baseline, f"loss of {name}", paired(ours, theirs, -1), -1
            )
        )
    return Question(tuple(comparisons), parts=False)


# --- rules about runs, and of several rules ------------------------------------------------------------------------


def _diverges(evidence: Evidence, optimizer: str, tasks: list[str] | None = None) -> Answer:
    failed = runs = 0
    for task in evidence.tasks(tasks):
        name, _ = evidence.direction(task, None, None)
        values = evidence.values(task["label"], optimizer, name)
        failed, runs = failed + sum(map(math.isnan, values.values())), runs + len(values)
    if not runs:
        return Ruling("not tested", f"no runs of {optimizer}")
    low, high = clopper_pearson(failed, runs)
    words = f"{failed} of {counted(runs, 'run')} failed, a share in [{low:.2f}, {high:.2f}] (95 %)"
    return Ruling("holds" if low > 0.5 else "contradicted" if high < 0.5 else "undecided", words)


def _all(evidence: Evidence, of: list[Mapping[str, Any]]) -> Answer:
    """Comparisons of several rules, decided together; a part that is negated or reads histories is judged by itself."""
    comparisons: list[Comparison] = []
    alone: list[Ruling] = []
    for part in of:
        answer = _ask(evidence, part)
        if isinstance(answer, Question) and not answer.missing and not part.get("negated"):
            comparisons += answer.comparisons
        else:
            alone.append(rule(evidence, part))
    rulings = [*([ruling(Question(tuple(comparisons)))] if comparisons else []), *alone]
    verdicts = [ruling.verdict for ruling in rulings]
    words = "; ".join(ruling.words for ruling in rulings)
    findings = tuple(f for ruling in rulings for f in ruling.findings)
    for verdict in ("contradicted", "not tested"):
        if verdict in verdicts:
            return Ruling(verdict, words, findings)  # type: ignore[arg-type]
    if set(verdicts) == {"holds"}:
        return Ruling("holds", words, findings)
    return Ruling("partly" if {"holds", "partly"} & set(verdicts) else "undecided", words, findings)


RULES: dict[str, tuple[Callable[..., Answer], tuple[str, ...], tuple[str, ...]]] = {
    "better": (_better, ("optimizer", "baseline"), ("metric", "tasks", "greater", "by")),
    "on_par": (_on_par, ("optimizer", "baseline", "margin"), ("relative", "metric", "tasks", "greater")),
    "no_worse": (_no_worse, ("optimizer", "baseline", "margin"), ("relative", "metric", "tasks", "greater")),
    "better_on_average": (_better_on_average, ("optimizer", "baseline", "tasks", "metric"), ("greater",)),
    "ordered": (_ordered, ("optimizers",), ("metric", "tasks", "greater")),
    "at_most": (_at_most, ("optimizer", "baseline", "factor", "metric"), ("tasks",)),
    "insensitive": (_insensitive, ("margin",), ("optimizers", "optimizer", "tasks", "metric", "relative")),
    "steadier": (_steadier, ("optimizer", "baseline", "tasks"), ("metric",)),
    "degrades": (_degrades, ("optimizer", "reference", "tasks"), ("metric",)),
    "degrades_less": (_degrades_less, ("optimizer", "baseline", "reference", "tasks"), ("metric",)),
    "diverges": (_diverges, ("optimizer",), ("tasks",)),
    "all": (_all, ("of",), ()),
    **courses.RULES,
}
