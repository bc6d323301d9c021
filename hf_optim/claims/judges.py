"""The rules by which a study judges a claim. Each reads records only and speaks of the study's own setting.

Rules and their keys (* required; `metric` defaults to each task's primary one, `tasks` to all that ran both):

- better: optimizer*, baseline* (a label or a list), metric, tasks. Every comparison must be decided in favour of the
  optimizer.
- insensitive: optimizers (labels) or tasks*, optimizer, metric, margin*, relative. The metric's mean over the listed
  settings stays within `margin` of the best setting's: every setting is equivalent to it (two one-sided tests).
- steadier: optimizer*, baseline*, tasks* (the settings). The metric varies less over the settings, seed by seed.
- bounded: optimizer*, key*, low, high. A logged figure never leaves [low, high].
- sooner: optimizer*, baseline*, metric*, target*, tasks. Fewer steps until a logged metric reaches the target.
- ordered: optimizers* (worst first), metric, tasks. Each is better than the one before.
- shown: nothing to judge; the command's own output is what there is to look at.

`metric` is a metric of the record, or `time.step_ms_median`, `memory.optimizer_state_bytes` and the like. Every family
of comparisons is corrected by Holm's method within its claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from hf_optim.errors import UserError
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.entries import declared
from hf_optim.study.statistics.comparisons import Comparison, compare
from hf_optim.study.statistics.looks import detectable_effect
from hf_optim.study.statistics.paired import ALPHA, summarise

if TYPE_CHECKING:
    from hf_optim.study.plan.source import Source

Verdict = Literal["holds", "contradicted", "partly", "undecided", "not tested", "shown"]


@dataclass(frozen=True)
class Line:
    """One comparison behind a judgement: `first` minus `second` on `task`, paired by seed."""

    task: str
    first: str
    second: str
    metric: str
    comparison: Comparison


class Named(NamedTuple):
    """What a line compares."""

    task: str
    first: str
    second: str
    metric: str


@dataclass(frozen=True)
class Judgement:
    """What the study says of one claim."""

    text: str
    verdict: Verdict
    words: str
    lines: tuple[Line, ...] = ()


def check(source: Source, where: tuple[str | int, ...], statement: Mapping[str, Any]) -> None:
    """Raise a UserError with file and line unless the statement's rule exists and has its keys."""
    rule = statement.get("rule")
    if rule not in RULES:
        raise source.error((*where, "rule"), f"unknown rule {rule!r}; valid: {', '.join(RULES)}")
    _, required, optional = RULES[rule]
    source.check_keys(where, statement, ("text", "rule", *required, *optional), ("text", "rule", *required))


def judge(statement: Mapping[str, Any], results: Results, renamed: Mapping[str, str]) -> Judgement:
    """The judgement of one statement on the study's records; `renamed` metrics go by another name in them."""
    function, _, _ = RULES[statement["rule"]]
    keys = {key: value for key, value in statement.items() if key not in ("text", "rule")}
    if keys.get("metric") in renamed:
        keys["metric"] = renamed[keys["metric"]]
    verdict, words, lines = function(results, **keys)
    return Judgement(statement["text"], verdict, words, tuple(lines))


Outcome = tuple[Verdict, str, Sequence[Line]]


def _shown(results: Results) -> Outcome:
    return "shown", "see the files beside this page", ()


def _better(
    results: Results,
    optimizer: str,
    baseline: str | list[str],
    metric: str | None = None,
    tasks: list[str] | None = None,
    greater: bool | None = None,
) -> Outcome:
    others = [baseline] if isinstance(baseline, str) else baseline
    return _decide(_compare(results, [(optimizer, other) for other in others], metric, tasks, greater))


def _ordered(
    results: Results,
    optimizers: list[str],
    metric: str | None = None,
    tasks: list[str] | None = None,
    greater: bool | None = None,
) -> Outcome:
    steps = list(zip(optimizers[1:], optimizers[:-1], strict=True))
    return _decide(_compare(results, steps, metric, tasks, greater))


def _compare(
    results: Results,
    pairs: Sequence[tuple[str, str]],
    metric: str | None,
    tasks: list[str] | None,
    greater: bool | None,
) -> list[Line]:
    """Each pair on each task, corrected together."""
    asked = []
    for task in _tasks(results, tasks):
        name, up = _metric(task, metric, greater)
        for first, second in pairs:
            if {first, second} <= set(task["only"]):
                a, b = (_values(results, task["label"], label, name) for label in (first, second))
                by_seed = [(a[s], b[s]) for s in sorted(a.keys() & b.keys())]
                asked.append((Named(task["label"], first, second, name), up, by_seed))
    compared = compare([by_seed for _, _, by_seed in asked], [up for _, up, _ in asked])
    return [Line(*names, one) for (names, _, _), one in zip(asked, compared, strict=True)]


def _decide(lines: Sequence[Line]) -> Outcome:
    """Holds if all are better, contradicted if one is worse, partly if some are better, else undecided."""
    verdicts = [line.comparison.verdict for line in lines]
    tested = [v for line, v in zip(lines, verdicts, strict=True) if line.comparison.pairs >= 2]
    better, worse = verdicts.count("better"), verdicts.count("worse")
    if not tested:
        return "not tested", "too few finished runs to compare anything", lines
    power = _power_words(lines)
    count = f"{better} of {len(lines)} comparisons decided in favour, {worse} against"
    if better == len(lines):
        return "holds", f"{count}", lines
    if worse:
        against = "; ".join(
            f"{x.first} against {x.second} on {x.task}" for x in lines if x.comparison.verdict == "worse"
        )
        return "contradicted", f"{count} ({against})", lines
    return ("partly" if better else "undecided"), f"{count}, the rest undecided{power}", lines


def _power_words(lines: Sequence[Line]) -> str:
    seeds = max((line.comparison.pairs for line in lines), default=0)
    effect = detectable_effect((max(2, seeds),), len(lines))
    return f" with {seeds} seeds, which find {effect:.1f} deviations of a difference with 80 %"


def _insensitive(
    results: Results,
    margin: float,
    optimizers: list[str] | None = None,
    optimizer: str | None = None,
    tasks: list[str] | None = None,
    metric: str | None = None,
    relative: bool = False,
) -> Outcome:
    """Equivalence of every setting with the best one, by two one-sided paired t-tests at 5% (Bonferroni)."""
    cells = _settings(results, optimizers, optimizer, tasks, metric)
    values = {label: found for label, found, _ in cells if found}
    if len(values) < 2 or len(values) < len(cells):
        missing = ", ".join(label for label, found, _ in cells if not found)
        return "not tested", f"no finished runs for {missing or 'enough settings'}", ()
    greater = cells[0][2]
    means = {label: summarise(list(found.values())).mean for label, found in values.items()}
    best = (max if greater else min)(means, key=lambda label: means[label])
    bound = margin * abs(means[best]) if relative else margin
    spread = max(means.values()) - min(means.values())
    outside, open_ = [], []
    for label, found in values.items():
        if label == best:
            continue
        shared = sorted(found.keys() & values[best].keys())
        differences = [found[s] - values[best][s] for s in shared]
        one = summarise(differences, level=1 - 2 * ALPHA / (len(values) - 1))
        if one.n < 2 or math.isnan(one.low):
            open_.append(label)
        elif one.low > bound or one.high < -bound:
            outside.append(label)
        elif not (-bound < one.low and one.high < bound):
            open_.append(label)
    words = (
        f"means from {min(means.values()):.4g} to {max(means.values()):.4g} over {len(values)} settings "
        f"(spread {spread:.3g}, margin {bound:.3g})"
    )
    if outside:
        return "contradicted", f"{words}; beyond the margin of the best ({best}): {', '.join(outside)}", ()
    if open_:
        return "undecided", f"{words}; not shown to be within it: {', '.join(open_)}", ()
    return "holds", f"{words}; all equivalent to the best ({best})", ()


def _steadier(results: Results, optimizer: str, baseline: str, tasks: list[str], metric: str | None = None) -> Outcome:
    """The range of the metric over the settings, seed by seed, is smaller for the optimizer."""
    ranges: dict[str, dict[int, float]] = {}
    name = ""
    for label in (optimizer, baseline):
        cells = []
        for task in _tasks(results, tasks):
            name, _ = _metric(task, metric, None)
            cells.append(_values(results, task["label"], label, name))
        seeds = set.intersection(*(set(cell) for cell in cells)) if cells else set()
        ranges[label] = {s: max(c[s] for c in cells) - min(c[s] for c in cells) for s in seeds}
    shared = sorted(ranges[optimizer].keys() & ranges[baseline].keys())
    (one,) = compare([[(ranges[optimizer][s], ranges[baseline][s]) for s in shared]], [False])
    return _decide([Line("range over the settings", optimizer, baseline, name, one)])


def _bounded(results: Results, optimizer: str, key: str, low: float = -math.inf, high: float = math.inf) -> Outcome:
    seen = [
        number(row.get(key)) for task in results.plan.tasks for run, record in results.runs(task["label"], optimizer)
        if record is not None for row in results.history(run) if key in row
    ]  # fmt: skip
    seen = [value for value in seen if not math.isnan(value)]
    if not seen:
        return "not tested", f"no run of {optimizer} logged {key}", ()
    words = f"{key} in [{min(seen):.4g}, {max(seen):.4g}] over {len(seen)} logged values"
    return ("holds" if low <= min(seen) and max(seen) <= high else "contradicted"), words, ()


def _sooner(
    results: Results, optimizer: str, baseline: str, metric: str, target: float, tasks: list[str] | None = None
) -> Outcome:
    """Steps to a target, on the logarithm, paired by seed; a seed on which either never arrives is not compared."""
    asked, notes = [], []
    for task in _tasks(results, tasks):
        _, up = _metric(task, metric, None)
        times = {label: _arrivals(results, task["label"], label, metric, target, up) for label in (optimizer, baseline)}
        for label, found in times.items():
            late = [seed for seed, when in found.items() if when is None]
            if late:
                notes.append(
                    f"{label} did not reach {target:g} on {task['label']} with {len(late)} of {len(found)} seeds"
                )
        pairs = [
            (math.log(a), math.log(b))
            for seed in sorted(times[optimizer].keys() & times[baseline].keys())
            if (a := times[optimizer][seed]) and (b := times[baseline][seed])
        ]
        asked.append((task["label"], pairs))
    compared = compare([pairs for _, pairs in asked], [False] * len(asked))
    lines = [
        Line(task, optimizer, baseline, f"log steps to {metric} {target:g}", one)
        for (task, _), one in zip(asked, compared, strict=True)
    ]
    verdict, words, _ = _decide(lines)
    ratios = [f"{math.exp(x.comparison.difference.mean):.2f}x on {x.task}" for x in lines if x.comparison.pairs]
    return verdict, "; ".join([words, *(["steps needed: " + ", ".join(ratios)] if ratios else []), *notes]), lines


def _arrivals(results: Results, task: str, label: str, metric: str, target: float, up: bool) -> dict[int, float | None]:
    found: dict[int, float | None] = {}
    for run, record in results.runs(task, label):
        if record is None or record["status"] != "ok":
            continue
        found[run.seed] = next(
            (number(row["step"]) for row in results.history(run)
             if not math.isnan(v := number(row.get(metric))) and number(row["step"]) > 0
             and (v >= target if up else v <= target)), None
        )  # fmt: skip
    return found


def _settings(
    results: Results, optimizers: list[str] | None, optimizer: str | None, tasks: list[str] | None, metric: str | None
) -> list[tuple[str, dict[int, float], bool]]:
    """The settings of an `insensitive` claim: optimizers on every task, or one optimizer on several tasks."""
    found = []
    for task in _tasks(results, tasks):
        name, up = _metric(task, metric, None)
        for label in optimizers or [optimizer or results.plan.optimizers[0]["label"]]:
            if label in task["only"]:
                where = label if optimizers and len(_tasks(results, tasks)) == 1 else f"{label}, {task['label']}"
                found.append((where, _values(results, task["label"], label, name), up))
    return found


def _tasks(results: Results, labels: list[str] | None) -> list[Mapping[str, Any]]:
    return [task for task in results.plan.tasks if labels is None or task["label"] in labels]


def _metric(task: Mapping[str, Any], metric: str | None, greater: bool | None) -> tuple[str, bool]:
    """The metric's name (None: the primary) and its direction: the one given, else the one its task declares."""
    name = metric or str(task["primary"]["name"])
    said = declared(task, name)
    if greater is None and said is None:
        raise UserError(f"claim: {task['label']} declares no metric {name!r}: say whether greater is better")
    return name, bool(said[0] if greater is None and said else greater)


def _values(results: Results, task: str, label: str, metric: str) -> dict[int, float]:
    """The metric by seed; an optimizer with a failed run has none, since without it it would look better than it is."""
    found = {}
    for run, record in results.runs(task, label):
        if record is None:
            continue
        value = measured(record, metric)
        if record["status"] != "ok" or math.isnan(value):
            return {}
        found[run.seed] = value
    return found


def measured(record: Mapping[str, Any], metric: str) -> float:
    """A metric of a record, or `place.name` of another part of it; NaN where there is none."""
    place, dot, name = metric.partition(".")
    part: Any = record.get(place) if dot else record["metrics"]
    return number((part or {}).get(name if dot else metric))


RULES: dict[str, tuple[Callable[..., Outcome], tuple[str, ...], tuple[str, ...]]] = {
    "shown": (_shown, (), ()),
    "better": (_better, ("optimizer", "baseline"), ("metric", "tasks", "greater")),
    "ordered": (_ordered, ("optimizers",), ("metric", "tasks", "greater")),
    "insensitive": (_insensitive, ("margin",), ("optimizers", "optimizer", "tasks", "metric", "relative")),
    "steadier": (_steadier, ("optimizer", "baseline", "tasks"), ("metric",)),
    "bounded": (_bounded, ("optimizer", "key"), ("low", "high")),
    "sooner": (_sooner, ("optimizer", "baseline", "metric", "target"), ("tasks",)),
}
