"""Two optimizers against each other: within a study by its own judgement, across studies as an exploration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.experiment.spec import UNSEEN
from hf_optim.study.folder import judgement as judging
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.rows import Row, as_float, cell, outcome, where
from hf_optim.study.plan.units import SETTINGS
from hf_optim.study.statistics.comparisons import compare as compare_all
from hf_optim.study.statistics.paired import summarise, unit_mean

#: columns of a run's specification that are no settings
_NO_SETTINGS = ("spec.seed", *(f"spec.overrides.{key}" for key in UNSEEN))


@dataclass(frozen=True)
class Side:
    """One side of a comparison: what was asked, and the value of each (task, seed)."""

    text: str
    values: Mapping[tuple[str, int], float]
    metrics: Mapping[str, str]


def compare(loaded: Sequence[Results], rows: Sequence[Row], a: str, b: str) -> tuple[list[Row], str]:
    """`a` against `b`, a row a task, and a line that says what the verdicts are worth.

    Two labels of one study are compared by the study itself: its units, looks and family, whatever `rows` were filtered
    to, so that the numbers are those of its report. Everything else is paired by task and seed over `rows` (runs that
    were judged), corrected over these tasks, and exploratory.

    Raises:
        UserError: a side that matches nothing, a study before its first look, nothing to pair, or studies that
            contradict each other: a task judged in two ways, a run with two results, a side that means different runs.
    """
    if len(loaded) == 1:
        labels = [o["label"] for o in loaded[0].plan.optimizers]
        if a in labels and b in labels and a != b:
            return _within(loaded[0], a, b)
    return _across(rows, a, b, _directions(loaded)), (
        f"exploratory: no study planned this comparison; Holm over the tasks shown; verdicts hold {SETTINGS}"
    )


def _directions(loaded: Sequence[Results]) -> dict[tuple[str, str], set[bool]]:
    """Whether greater is better, as the studies say of each task and metric."""
    said: dict[tuple[str, str], set[bool]] = {}
    for study in loaded:
        for task in study.plan.tasks:
            primary = task["primary"]
            said.setdefault((task["label"], primary["name"]), set()).add(bool(primary["greater_is_better"]))
    return said


def _within(results: Results, a: str, b: str) -> tuple[list[Row], str]:
    plan, judgement = results.plan, results.standing.judgement
    unit = "repetitions" if plan.repetitions else "seeds"
    if judgement is None:
        raise UserError(f"--compare: no verdict before the first look, after {plan.looks[0]} {unit}: run the study on")
    rows, base = [], plan.baseline in (a, b)
    for task in plan.tasks:
        if a in task["only"] and b in task["only"]:
            numbers = _with_baseline(judgement, task, a, b, plan.baseline) if base else _pair(judgement, task, a, b)
            means = [_mean(results, task["label"], label) for label in (a, b)]
            head = {"task": task["label"], "metric": task["primary"]["name"], "a": a, "b": b}
            rows.append({**head, "pairs": numbers.pop("pairs"), "a mean": means[0], "b mean": means[1], **numbers})
    if not rows:
        raise UserError(f"--compare: {a!r} and {b!r} have no task in common, so there is nothing to pair")
    family = "all pairs, which serve places, not verdicts"
    if base:
        label = a if b == plan.baseline else b
        family = f"the family of {judgement.comparisons[rows[0]['task'], label].tests}"
    if base and judgement.family == "score":
        family = "none: the family is one score an optimizer, and tasks describe"
    scope = "" if plan.repetitions else f"; verdicts hold {SETTINGS}"
    return rows, (
        f"the study's own numbers, whatever is filtered: {judgement.units} {unit}, corrected over {family}{scope}"
    )


def _with_baseline(judgement: judging.Judgement, task: Mapping[str, Any], a: str, b: str, baseline: str) -> Row:
    c = judgement.comparisons[task["label"], a if b == baseline else b]
    d, turned = c.difference, b != baseline
    mean, low, high = (-d.mean, -d.high, -d.low) if turned else (d.mean, d.low, d.high)
    word = {"better": "worse", "worse": "better"}.get(c.verdict, c.verdict) if turned else c.verdict
    return {
        "pairs": c.pairs, "difference": cell(mean), "low": cell(low), "high": cell(high), "p": cell(c.p),
        "p corrected": cell(c.adjusted), "verdict": f"{word} (exploratory)" if c.exploratory and c.decided else word,
    }  # fmt: skip


def _pair(judgement: judging.Judgement, task: Mapping[str, Any], a: str, b: str) -> Row:
    comparison = judging.pair(judgement, task["label"], a, b)
    if comparison is None:
        return {"pairs": 0, **dict.fromkeys(("difference", "low", "high", "p", "p corrected")), "verdict": "no verdict"}
    sign = 1 if task["primary"]["greater_is_better"] else -1
    low, high = sorted((sign * comparison.low, sign * comparison.high))
    return {
        "pairs": comparison.mean.n, "difference": cell(sign * comparison.mean.value), "low": cell(low),
        "high": cell(high), "p": cell(comparison.p), "p corrected": cell(comparison.adjusted),
        "verdict": comparison.verdict,
    }  # fmt: skip


def _mean(results: Results, task: str, label: str) -> float | None:
    arm = results.standing.arms.get((task, label))
    finished = [[v for v in runs if v == v] for runs in arm.values.values()] if arm else []
    return cell(summarise([unit_mean(values) for values in finished if values]).mean)  # as in the report's table


def _across(rows: Sequence[Row], a: str, b: str, said: Mapping[tuple[str, str], set[bool]]) -> list[Row]:
    left, right = _side(rows, a), _side(rows, b)
    tasks = [
        task for task in dict.fromkeys(label for label, _ in said) if task in left.metrics and task in right.metrics
    ]
    pairs, greater = {}, {}
    for task in tasks:
        seeds = [seed for name, seed in left.values if name == task and (task, seed) in right.values]
        if seeds and left.metrics[task] == right.metrics[task]:
            ways = said[task, left.metrics[task]]
            if len(ways) > 1:
                why = f"the studies do not agree whether more of {left.metrics[task]} on {task} is better"
                raise UserError(f"--compare: {why}: compare those that do")
            (greater[task],) = ways
            pairs[task] = [(left.values[task, seed], right.values[task, seed]) for seed in seeds]
    if not pairs:
        raise UserError(f"--compare: {a!r} and {b!r} have no task and seed in common, so there is nothing to pair")
    compared = compare_all(list(pairs.values()), [greater[task] for task in pairs])
    return [
        {
            "task": task,
            "metric": left.metrics[task],
            "a": a,
            "b": b,
            "pairs": comparison.pairs,
            "a mean": summarise([x for x, _ in pairs[task]]).mean,
            "b mean": summarise([y for _, y in pairs[task]]).mean,
            "difference": cell(comparison.difference.mean),
            "low": cell(comparison.difference.low),
            "high": cell(comparison.difference.high),
            "p": cell(comparison.p),
            "p corrected": cell(comparison.adjusted),
            "verdict": f"{comparison.verdict} (exploratory)" if comparison.decided else comparison.verdict,
        }
        for task, comparison in zip(pairs, compared, strict=True)
    ]


def _side(rows: Sequence[Row], text: str) -> Side:
    some = where(rows, [text]) if "=" in text else [row for row in rows if row["optimizer"] == text]
    if not some:
        labels = list(dict.fromkeys(str(row["optimizer"]) for row in rows))
        near = closest(text, labels)
        raise UserError(f"--compare: no run matches {text!r}{near}; optimizers: {', '.join(labels)}")
    _check_settings(some, text)
    seen: dict[tuple[str, int], str] = {}
    metrics: dict[str, str] = {}
    values: dict[tuple[str, int], float] = {}
    for row in some:
        place = row["task"], row["seed"]
        if seen.setdefault(place, row["id"]) != row["id"]:
            raise UserError(
                f"--compare: {text!r} matches two runs on {row['task']} with seed {row['seed']}: narrow it, as in "
                f"'study={row['study']},optimizer={row['optimizer']}'"
            )
        if metrics.setdefault(row["task"], row["metric"]) != row["metric"]:
            two = f"{metrics[row['task']]} and {row['metric']}"
            raise UserError(f"--compare: runs of {text!r} on {row['task']} are judged by {two}: narrow it")
        value = as_float(row["value"])
        if outcome(row) == "failed":
            raise UserError(
                f"--compare: a run of {text!r} on {row['task']} with seed {row['seed']} failed; without its failures "
                "it would look better than it is: narrow with --where"
            )
        if value is not None:
            if values.setdefault(place, value) != value:
                raise UserError(
                    f"--compare: the run of {text!r} on {row['task']} with seed {row['seed']} has two results, "
                    f"{values[place]:g} and {value:g}: name one study that has it"
                )
    return Side(text, values, metrics)


def _check_settings(rows: Sequence[Row], text: str) -> None:
    """Raise a UserError where a side is of several studies that mean different runs by it: pooled seed by seed, they
    would be one optimizer's that nobody has tried.
    """
    known: dict[tuple[str, str], tuple[str, set[str]]] = {}
    of: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        for part in ("spec.", "code."):  # the text of code is what records say, as far as they do
            own = {k: v for k, v in row.items() if k.startswith(part) and k not in _NO_SETTINGS and v is not None}
            if own:
                of.setdefault((part, row["task"], row["study"]), set()).add(json.dumps(own, sort_keys=True))
    for (part, task, study), settings in of.items():
        first, same = known.setdefault((part, task), (study, settings))
        if settings != same:
            raise UserError(
                f"--compare: {text!r} on {task} is trained otherwise in {study} than in {first}: narrow it, as in "
                f"'study={study},optimizer={rows[0]['optimizer']}'"
            )
