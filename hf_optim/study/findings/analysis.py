"""All statistics of a study in one place, as data, as statistics.md and as statistics.json.

The verdicts are those of `table`; everything else describes. Only records and histories are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from hf_optim.core.text import markdown as markdown_text
from hf_optim.study.findings import profiles, verdicts
from hf_optim.study.findings.table import Row, TaskTable, p_text
from hf_optim.study.folder.results import Results
from hf_optim.study.statistics import intervals, omnibus, ranks

MOST_PAIRS = 45  # a longer list of pairs is in the JSON alone
NOTES = (
    "Verdicts come from the paired t-test and, where a margin was stated, from two one-sided paired t-tests, corrected "
    "together over the whole study by Holm's procedure (with a margin, in Shaffer's form). docs/calibration.md has the "
    "false alarms of every rule. Achieved power is that of finding a difference as large as the one observed, at the "
    "corrected level: it says no more than p does.",
    "Intervals of mean, median and IQM are 95 % BCa bootstrap intervals (10,000 resamples) and describe: at few seeds "
    "they cover less than 95 %. d_z is the mean difference over its standard deviation, d_av over the mean of the two "
    "standard deviations; both positive where the optimizer is better. “wins” is P(better) over the pairs with its "
    "Clopper-Pearson interval, “improvement” over all combinations of seeds with the Brunner-Munzel interval.",
    "ANOVA (repeated measures, with Greenhouse and Geisser's correction) and Friedman ask whether any optimizer "
    "differs, with the seeds as blocks; CD is Nemenyi's critical difference of mean ranks. They give no verdict. "
    "Wilcoxon's test cannot reach 0.05 with fewer than 6 seeds.",
)


@dataclass(frozen=True)
class TaskAnalysis:
    """One task: descriptions and effects by optimizer, all optimizers against each other, and places."""

    task: str
    size: str
    metric: str
    descriptions: Mapping[str, intervals.Description]
    effects: Mapping[str, intervals.Effect]
    omnibus: omnibus.Omnibus
    ranking: ranks.Ranking | None


@dataclass(frozen=True)
class Analysis:
    """A study. `ranking` and `over_tasks` (Friedman's test on mean ranks, tasks as blocks) need two tasks or more,
    `profile` targets in the YAML.
    """

    verdicts: tuple[str, ...]
    scope: str
    tasks: tuple[TaskAnalysis, ...]
    ranking: ranks.Ranking | None
    over_tasks: omnibus.Omnibus | None
    targets: tuple[profiles.TargetTable, ...]
    profile: profiles.Profile | None


def analyse(results: Results, tables: Sequence[TaskTable]) -> Analysis:
    """Everything that can be said about a study; optimizers with failed runs are left out, as they have no mean."""
    whole = [[row for row in table.rows if row.values and not row.failed] for table in tables]
    described = iter(intervals.describe([list(row.values.values()) for rows in whole for row in rows]))
    found = tuple(
        TaskAnalysis(
            table.task,
            table.size,
            table.metric,
            {row.optimizer: next(described) for row in rows},
            _effects(table, rows),
            omnibus.compare_all(_values(rows), table.greater),
            ranks.ranking([(_values(rows), table.greater)]),
        )
        for table, rows in zip(tables, whole, strict=True)
    )
    several = [(_values(rows), table.greater) for table, rows in zip(tables, whole, strict=True)]
    targets = tuple(profiles.target_tables(results))
    return Analysis(
        tuple(verdicts.sentences(tables)),
        verdicts.scope(tables),
        found,
        ranks.ranking(several) if len(tables) > 1 else None,
        _over_tasks(tables, whole) if len(tables) > 1 else None,
        targets,
        profiles.profile(targets),
    )


def _values(rows: Sequence[Row]) -> dict[str, Mapping[int, float]]:
    return {row.optimizer: row.values for row in rows}


def _effects(table: TaskTable, rows: Sequence[Row]) -> dict[str, intervals.Effect]:
    base = next((row for row in rows if row.optimizer == table.baseline), None)
    found = {}
    for row in rows:
        if base is not None and row is not base:
            shared = [(value, base.values[s]) for s, value in row.values.items() if s in base.values]
            found[row.optimizer] = intervals.effect(shared, table.greater)
    return found


def _over_tasks(tables: Sequence[TaskTable], whole: Sequence[Sequence[Row]]) -> omnibus.Omnibus | None:
    """Tasks as blocks: the mean of each optimizer that every task has, in ranks, since metrics have their own units."""
    from scipy import stats

    everywhere = [r.optimizer for r in whole[0] if all(r.optimizer in _values(rows) for rows in whole)] if whole else []
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
    lines += [f"- {markdown_text(text)}" for text in analysis.verdicts] or ["There is nothing to compare."]
    lines.append("")
    for task in analysis.tasks:
        lines += _task(task, decimals.get(task.task, 4))
    if analysis.ranking or analysis.over_tasks:
        lines += ["## Over all tasks", ""]
        lines += _friedman(analysis.over_tasks, "tasks") if analysis.over_tasks else []
        lines += _ranking(analysis.ranking) if analysis.ranking else []
    lines += _targets(analysis)
    lines += ["## How to read it", "", *(line for note in NOTES for line in (note, ""))]
    return "\n".join(lines)


def _task(task: TaskAnalysis, decimals: int) -> list[str]:
    lines = [f"## {markdown_text(task.task)}: {markdown_text(task.metric)}", ""]
    rows = []
    for label, one in task.descriptions.items():
        row = {"optimizer": label, "n": str(one.n)}
        row |= {name: intervals.text(getattr(one, name), decimals) for name in ("mean", "median", "iqm")}
        rows.append(row)
    lines += _table(rows)
    lines += _table(
        [
            {
                "optimizer": label,
                "d_z": _number(one.d_z, "+.2f"),
                "d_av": _number(one.d_av, "+.2f"),
                "wins": intervals.text(one.wins, 2),
                "improvement": intervals.text(one.improvement, 2),
            }
            for label, one in task.effects.items()
        ]
    )
    if task.omnibus.anova:
        a = task.omnibus.anova
        lines += [
            f"ANOVA: F({a.freedom[0]}, {a.freedom[1]}) = {a.f:.2f}, p {_equals(a.p)}; after Greenhouse and Geisser's "
            f"correction (epsilon {a.epsilon:.2f}) p {_equals(a.p_corrected)}.",
            "",
        ]
    lines += _friedman(task.omnibus, "seeds")
    if 1 < len(task.omnibus.pairs) <= MOST_PAIRS:
        lines += _table(
            [
                {
                    "pair": f"{one.first} − {one.second}",
                    "difference": f"{one.difference:+.{decimals}f}",
                    "t": p_text(one.t),
                    "t, Holm": p_text(one.t_holm),
                    "t, Bonferroni": p_text(one.t_bonferroni),
                    "Wilcoxon": p_text(one.wilcoxon),
                    "Wilcoxon, Holm": p_text(one.wilcoxon_holm),
                    "Nemenyi": "apart" if one.nemenyi else "",
                }
                for one in task.omnibus.pairs
            ]
        )
    return lines + (_ranking(task.ranking) if task.ranking else [])


def _friedman(one: omnibus.Omnibus, blocks: str) -> list[str]:
    if one.friedman is None:
        return []
    f = one.friedman
    ranked = sorted(f.mean_ranks.items(), key=lambda item: item[1])
    listed = ", ".join(f"{markdown_text(label)} {rank:.2f}" for label, rank in ranked)
    head = f"Friedman over {one.seeds} {blocks}: chi-square = {f.chi_square:.2f}, p {_equals(f.p)}; "
    return [f"{head}mean ranks: {listed}; CD = {f.critical_difference:.2f}.", ""]


def _ranking(one: ranks.Ranking) -> list[str]:
    shown = [
        {"optimizer": label, **{str(i + 1): f"{p:.2f}" for i, p in enumerate(one.places[label])}}
        for label in one.optimizers
    ]
    text = f"Probability of each place; of exactly this order: {one.order:.2f}."
    return [text, "", *(_table(shown) if len(one.optimizers) <= 20 else [])]


def _targets(analysis: Analysis) -> list[str]:
    if not analysis.targets:
        return []
    lines = ["## Time to target, in steps", ""]
    for table in analysis.targets:
        word = "at least" if table.better == "higher" else "at most"
        lines += [f"{markdown_text(table.task)}: {table.metric.replace('_', ' ')} of {word} {table.value:g}.", ""]
        lines += _table(
            [
                {
                    "optimizer": row.optimizer,
                    "median": f"{row.time:g}" if math.isfinite(row.time) else "never",
                    "seeds that reached it": f"{row.count}/{len(row.times)}",
                }
                for row in table.rows
            ]
        )
    if analysis.profile:
        p = analysis.profile
        lines += [f"Scores of the performance profile up to tau = {profiles.TAU:g}; 1 is best, intervals describe:", ""]
        lines += _table([{"optimizer": k, "score": intervals.text(v, 3)} for k, v in p.scores.items()])
        lines += [f"Probability that no two swap when the seeds are drawn again: {p.order:.2f}.", ""]
    return lines


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0])
    rule = "|" + "|".join("---" if i == 0 else "---:" for i in range(len(names))) + "|"
    body = ["| " + " | ".join(markdown_text(row[name]) for name in names) + " |" for row in rows]
    return ["| " + " | ".join(map(markdown_text, names)) + " |", rule, *body, ""]


def _number(value: float, shape: str) -> str:
    return "–" if math.isnan(value) else format(value, shape)


def _equals(p: float) -> str:
    text = p_text(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"
