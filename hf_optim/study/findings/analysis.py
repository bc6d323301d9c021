"""All statistics of a study in one place, as data, as statistics.md and as statistics.json.

The verdicts are those of the study's judgement; everything else describes. Only records and histories are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from hf_optim.core.safe_text import markdown as markdown_text
from hf_optim.study.findings import naming, profiles, speedups, verdicts
from hf_optim.study.findings.cells import p_text, plain_number, signed
from hf_optim.study.findings.table import Row, TaskTable, arrow
from hf_optim.study.folder.judgement import Judgement
from hf_optim.study.folder.results import Results
from hf_optim.study.statistics import intervals, omnibus
from hf_optim.study.statistics.looks import Decision
from hf_optim.study.statistics.places import place_text

MOST_PAIRS = 45  # a longer list of pairs is in the JSON alone
NOTES = (
    "Verdicts come from paired t-tests and, where a margin was stated, from two one-sided paired t-tests, at the "
    "planned looks alone (p is the smallest p of a look over its share of new units), corrected together over the "
    "family by Holm's procedure (with a margin, in Shaffer's form). docs/calibration.md has the false alarms of every "
    "rule.",
    "Intervals of means are 95 % t-intervals. d_z is the mean difference over its standard deviation, d_av over the "
    "mean of the two standard deviations; both positive where the optimizer is better. “wins” is P(better) over the "
    "pairs with its Clopper-Pearson interval, “improvement” over all combinations with the Brunner-Munzel interval.",
    "ANOVA (repeated measures, with Greenhouse and Geisser's correction) and Friedman ask whether any optimizer "
    "differs. They give no verdict. Pairs serve the sets of places, with 5 % of their own over all pairs of all tasks.",
)

SPEEDUP = (
    "How many times its budget the baseline needs to do as well as the other at the whole budget, from complete runs "
    "at each budget; a factor belongs to the 95 % interval unless a paired t-test rejects it. Intervals hold singly."
)


@dataclass(frozen=True)
class TaskAnalysis:
    """One task: descriptions and effects by optimizer, all optimizers against each other."""

    task: str
    size: str
    metric: str
    greater: bool
    descriptions: Mapping[str, intervals.Description]
    effects: Mapping[str, intervals.Effect]
    omnibus: omnibus.Omnibus
    places: Mapping[str, tuple[int, int]]
    pairs: Mapping[str, Decision]
    #: " (with these settings)" where the unit is a seed
    suffix: str


@dataclass(frozen=True)
class Analysis:
    """A study. `verdicts` are sentences, one an optimizer; `judgement` their numbers. `over_tasks` (Friedman's test on
    mean ranks, tasks as blocks) needs two tasks or more, `profile` targets in the YAML, `speedups` budgets.
    """

    verdicts: tuple[str, ...]
    looked: str
    progress: str
    changes: tuple[str, ...]
    scope: str
    question: str
    comparisons: Mapping[str, Any]
    scores: Mapping[str, Any]
    tasks: tuple[TaskAnalysis, ...]
    over_tasks: omnibus.Omnibus | None
    targets: tuple[profiles.TargetTable, ...]
    profile: profiles.Profile | None
    speedups: tuple[speedups.Row, ...]


def analyse(results: Results, tables: Sequence[TaskTable]) -> Analysis:
    """Everything that can be said about a study; an optimizer with failed runs is described by its finished ones."""
    judgement = results.standing.judgement
    targets = tuple(profiles.target_tables(results))
    compared = judgement.comparisons if judgement else {}
    return Analysis(
        verdicts=tuple(verdicts.sentences(results, tables)),
        looked=verdicts.looked(results),
        progress=verdicts.progress(results),
        changes=tuple(verdicts.changed(results)),
        scope=f"{naming.scope(results.plan)} {verdicts.scope(tables)}",
        question=results.standing.register.digest,
        comparisons={_two(task, ": ", label): c for (task, label), c in compared.items()},
        scores=dict(judgement.scores) if judgement else {},
        tasks=tuple(_task_analysis(table, judgement) for table in tables),
        over_tasks=_over_tasks(tables) if len(tables) > 1 else None,
        targets=targets,
        profile=profiles.profile(targets),
        speedups=tuple(speedups.speedups(results)),
    )


def _task_analysis(table: TaskTable, judgement: Judgement | None) -> TaskAnalysis:
    rows = [row for row in table.rows if row.units]
    places = judgement.places[table.task] if judgement else None
    return TaskAnalysis(
        table.task,
        table.size,
        table.metric,
        table.greater,
        {row.optimizer: intervals.describe(list(row.units.values())) for row in rows},
        _effects(table, rows),
        omnibus.compare_all(_values([row for row in rows if not row.failed]), table.greater),
        places.sets if places else {},
        {_two(a, " − ", b): decision for (a, b), decision in places.pairs.items()} if places else {},
        table.suffix,
    )


def _two(a: str, sign: str, b: str) -> str:
    """Two labels as one text, which no other two give."""
    return sign.join(f"“{label}”" if sign in label else label for label in (a, b))


def _values(rows: Sequence[Row]) -> dict[str, Mapping[int, float]]:
    return {row.optimizer: row.units for row in rows}


def _effects(table: TaskTable, rows: Sequence[Row]) -> dict[str, intervals.Effect]:
    base = next((row for row in rows if row.baseline), None)
    effects = {}
    for row in rows:
        if base is not None and row is not base:
            shared = [(value, base.units[u]) for u, value in row.units.items() if u in base.units]
            effects[row.optimizer] = intervals.effect(shared, table.greater)
    return effects


def _over_tasks(tables: Sequence[TaskTable]) -> omnibus.Omnibus | None:
    """Tasks as blocks: the mean of each optimizer that every task has, in ranks, since metrics have their own units."""
    from scipy import stats

    whole = [[row for row in table.rows if row.units and not row.failed] for table in tables]
    everywhere = [r.optimizer for r in whole[0] if all(r.optimizer in _values(rows) for rows in whole)]
    if len(everywhere) < 2:
        return None
    ranked: dict[str, dict[int, float]] = {label: {} for label in everywhere}
    for number, (table, rows) in enumerate(zip(tables, whole, strict=True)):
        means = {row.optimizer: row.mean.mean for row in rows}
        places = stats.rankdata([(-1 if table.greater else 1) * means[label] for label in everywhere])
        for label, place in zip(everywhere, places, strict=True):
            ranked[label][number] = float(place)
    return omnibus.compare_all(ranked, False)


def to_json(analysis: Analysis) -> str:
    """The whole analysis as JSON; what does not exist is null, what was never reached the text "never"."""
    return json.dumps(_plain(analysis), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else "never" if math.isinf(value) else float(f"{value:.10g}")
    return value


# --- as text ---


def markdown(analysis: Analysis, title: str, decimals: Mapping[str, int]) -> str:
    """statistics.md; `decimals` says how many a task's metric is shown with."""
    lines = [f"# {markdown_text(title)}: statistics", "", "## Verdicts", "", markdown_text(analysis.scope), ""]
    told = (analysis.progress, analysis.looked)
    lines += [line for text in told if text for line in (markdown_text(text), "")]
    said = (*analysis.changes, *analysis.verdicts)
    lines += [f"- {markdown_text(text)}" for text in said] or ["There is no verdict."]
    lines.append("")
    for task in analysis.tasks:
        lines += _task(task, decimals.get(task.task, 4))
    if analysis.over_tasks:
        lines += ["## Over all tasks", "", *_friedman(analysis.over_tasks, "tasks")]
    lines += _targets(analysis)
    if analysis.speedups:
        lines += [f"## Speed-up{analysis.tasks[0].suffix}", "", SPEEDUP, ""]
        lines += _table(
            [
                {"task": r.task, "optimizer": r.optimizer, f"times the baseline's {r.unit}": speedups.said(r)}
                for r in analysis.speedups
            ]
        )
    lines += ["## How to read it", "", *(line for note in NOTES for line in (note, ""))]
    return "\n".join(lines)


def _task(task: TaskAnalysis, decimals: int) -> list[str]:
    lines = [f"## {markdown_text(task.task)}{task.suffix}: {markdown_text(task.metric)} {arrow(task.greater)}", ""]
    rows = []
    for label, description in task.descriptions.items():
        row = {"optimizer": label, "n": str(description.n), "mean": intervals.text(description.mean, decimals)}
        row |= {
            "median": plain_number(description.median, decimals),
            "iqm": plain_number(description.iqm, decimals),
        }
        rows.append({**row, "place": place_text(task.places.get(label))})
    lines += _table(rows)
    lines += _table(
        [
            {
                "optimizer": label,
                "d_z": signed(effect.d_z, 2),
                "d_av": signed(effect.d_av, 2),
                "wins": intervals.text(effect.wins, 2),
                "improvement": intervals.text(effect.improvement, 2),
            }
            for label, effect in task.effects.items()
        ]
    )
    if task.omnibus.anova:
        a = task.omnibus.anova
        lines += [
            f"ANOVA: F({a.freedom[0]}, {a.freedom[1]}) = {plain_number(a.f, 2)}, p {_equals(a.p)}; after Greenhouse "
            f"and Geisser's correction (epsilon {a.epsilon:.2f}) p {_equals(a.p_corrected)}.",
            "",
        ]
    lines += _friedman(task.omnibus, "units")
    if 1 < len(task.pairs) <= MOST_PAIRS:
        lines += _table(
            [
                {
                    "pair": pair,
                    "advantage": signed(comparison.mean.value, decimals),
                    "p": p_text(comparison.p),
                    "p, all pairs": p_text(comparison.adjusted),
                }
                for pair, comparison in task.pairs.items()
            ]
        )
    return lines


def _friedman(result: omnibus.Omnibus, blocks: str) -> list[str]:
    if result.friedman is None:
        return []
    f = result.friedman
    ranked = sorted(f.mean_ranks.items(), key=lambda item: item[1])
    listed = ", ".join(f"{markdown_text(label)} {rank:.2f}" for label, rank in ranked)
    head = f"Friedman over {result.units} {blocks}: chi-square = {plain_number(f.chi_square, 2)}, p {_equals(f.p)}; "
    return [f"{head}mean ranks: {listed}.", ""]


def _targets(analysis: Analysis) -> list[str]:
    if not analysis.targets:
        return []
    lines = ["## Time to target", ""]
    for table in analysis.targets:
        word = "at least" if table.better == "higher" else "at most"
        asked = f"{table.task}: {table.metric.replace('_', ' ')} of {word} {table.value:g}."
        lines += [markdown_text(asked), ""]
        lines += _table(profiles.cells(table))
    if analysis.profile:
        p = analysis.profile
        lines += [
            f"Scores of the performance profile up to tau = {profiles.TAU:g}; 1 is best, there is no interval:",
            "",
        ]
        lines += _table([{"optimizer": k, "score": f"{v:.3f}"} for k, v in p.scores.items()])
    return lines


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0])
    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(names))) + "|"
    body = ["| " + " | ".join(markdown_text(row[name]) for name in names) + " |" for row in rows]
    return ["| " + " | ".join(map(markdown_text, names)) + " |", rule, *body, ""]


def _equals(p: float) -> str:
    text = p_text(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"
