"""The report's first screen: where the study stands, what was changed, and one sentence an optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_optim.core.safe_text import html as escape
from hf_optim.core.wording import counted, either
from hf_optim.study.findings import naming, verdicts
from hf_optim.study.findings.cells import spread
from hf_optim.study.findings.design import lines
from hf_optim.study.findings.table import TaskTable
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.searches import validation_metric
from hf_optim.study.report.pieces import coded


def headline(results: Results) -> str:
    """One line: how much was run, and when."""
    plan = results.plan
    ok = sum(1 for r in results.records.values() if r["status"] == "ok")
    failed = len(results.records) - ok
    vain = len(results.in_vain)
    fine = f"{ok} finished" + (f" ({vain} of them no better than untrained, which counts as failed)" if vain else "")
    units = counted(results.standing.units, naming.unit(plan, 1))
    parts = [
        counted(len(plan.optimizers), "optimizer"),
        counted(len(plan.tasks), "task"),
        units + (f" of {counted(plan.per_unit, 'seed')}" if plan.per_unit > 1 else ""),
        f"{counted(len(plan.runs), 'run')}: {fine}" + (f", {failed} failed" if failed else ""),
    ]
    if missing := len(plan.runs) - len(results.records):
        parts.append(f"{missing} not run yet")
    ends = sorted(str(r["finished"])[:10] for r in results.records.values() if r.get("finished"))
    return " · ".join(parts + ([ends[-1]] if ends else []))


def glance(results: Results, tables: Sequence[TaskTable]) -> str:
    """Every verdict in a word, as HTML: what a reader on a phone sees first. Empty before the first look."""
    judgement = results.standing.judgement
    if judgement is None:
        return ""
    if judgement.family == "score":
        return _verdicts(
            f"Over all tasks{naming.suffix(results.plan)}",
            [(x, c.verdict, bool(c.exploratory)) for x, c in judgement.scores.items()],
        )
    return "".join(
        _verdicts(
            table.task + table.suffix,
            [(r.optimizer, c.verdict, bool(c.exploratory)) for r in table.rows if (c := r.comparison) is not None],
        )
        for table in tables
    )


def _verdicts(title: str, given: Sequence[tuple[str, str, bool]]) -> str:
    parts = [
        f'<li>{escape(label)} <span class="{word if word in verdicts.VERDICTS and not early else ""}">'
        f"{escape(word)}{' (exploratory)' if early and word in verdicts.VERDICTS[:3] else ''}</span></li>"
        for label, word, early in given
    ]
    return f'<div class="glance"><b>{escape(title)}</b><ul>{"".join(parts)}</ul></div>' if parts else ""


def sentences(results: Results, tables: Sequence[TaskTable]) -> list[str]:
    """What the first screen says, as HTML."""
    texts = [f'<b class="bad">{escape(text)}</b>' for text in [verdicts.progress(results)] if text]
    texts += [f'<span class="bad">{escape(text)}</span>' for text in verdicts.changed(results)]
    best = [_best(table) for table in tables]
    judged = ["".join(escape(lead) + _marked(found) for lead, found in x) for x in verdicts.in_parts(results, tables)]
    texts += [*judged, *best] if results.plan.family == "score" else [*best, *judged]  # there, tasks are description
    if results.plan.looks[-1] == 1:
        texts.append(f"With <b>one {naming.unit(results.plan, 1)}</b> nothing can be said about differences.")
    looked, scope = escape(verdicts.looked(results)), coded(naming.scope(results.plan))
    texts.append(f"{looked} {scope} {escape(verdicts.scope(tables))}")
    doubts = [text.removeprefix("warning: ") for text in lines(results.plan) if text.startswith("warning: ")]
    texts += [escape(f"The design: {text}.") for text in doubts]
    return texts


def terms(results: Results, tables: Sequence[TaskTable]) -> dict[str, str]:
    """The words of the verdicts that no reader has to know first, each in a sentence; those that this page uses."""
    judgement, units = results.standing.judgement, naming.unit(results.plan)
    if judgement is None:
        return {}
    compared = [*judgement.comparisons.values(), *judgement.scores.values()]
    told = {
        "look": f"A number of {units}, planned before anything ran, after which verdicts may be given: who looks at "
        "every moment sees differences come and go that are chance."
    }
    if any(c.verdict == "undecided" for c in compared):
        told["undecided"] = "Neither better nor worse nor equal was shown. More runs might show one of them."
        told["this design finds a difference of … with 80 %"] = (
            "Were the true difference this large, 80 of 100 such studies would find it; a smaller one mostly stays "
            "undecided, and may well be there."
        )
        key, last = units if results.plan.repetitions else "seeds", results.plan.looks[-1]
        told["if planned beforehand"] = (
            f"More {units} that are added once results are known make the verdicts exploratory. A study that may need "
            f"them plans both looks from its start, as {key}: [{last}, {2 * last}]."
        )
    if any(row.failed for table in tables for row in table.rows):
        told["failed runs"] = (
            "Runs that ended in an error or without a number, and those that finished and were no better on validation "
            "than the untrained model. In a comparison each counts as the worst finished run of the two."
        )
    if silent := [table.task for table in tables if not _gain_known(results, table)]:
        told["untrained"] = (
            f"Not known of {', '.join(silent)}: no run has its validation figure both before its first step and at its "
            "end, so that a run that learned nothing counts as one that finished."
        )
    if any(c.tests > 1 for c in compared):
        told["Holm"] = (
            "A correction: who compares often finds something by chance, so each p is raised until all verdicts of the "
            "study together are wrong in at most 5 of 100 studies."
        )
    return told


def _gain_known(results: Results, table: TaskTable) -> bool:
    """Whether it is known what a task's trainings gained: of one finished run at least, or there is none."""
    task = next(task for task in results.plan.tasks if task["label"] == table.task)
    name = validation_metric(task)
    runs = [run for row in table.rows for run in results.runs(table.task, row.optimizer)]
    finished = [(run, record["metrics"]) for run, record in runs if record is not None and record["status"] == "ok"]
    return not finished or any(
        name in metrics and not math.isnan(results.store.untrained(run.id, name)) for run, metrics in finished
    )


def _marked(found: str) -> str:
    """A finding, with the verdict that it begins with in colour."""
    word = next((word for word in verdicts.VERDICTS if found.startswith(word)), "")
    return (f'<span class="{word}">{word}</span>' if word else "") + escape(found.removeprefix(word))


def _best(table: TaskTable) -> str:
    """Who can be the best of a task; a mean alone is no place."""
    ranked = [row for row in table.rows if row.mean.n]
    name = f"<b>{escape(table.task)}</b>{table.suffix}"
    if not ranked:
        return f"{name}: no optimizer has finished a run."
    best = ranked[0]
    word, metric = "highest" if table.greater else "lowest", escape(words(table.metric))
    text = f"{name}: {escape(best.optimizer)} has the {word} mean {metric}, {spread(best.mean, table.decimals)}"
    if len(table.rows) == 1:
        text = f"{name}: {escape(best.optimizer)} alone was run, to a {metric} of {spread(best.mean, table.decimals)}"
    sign = 1 if table.greater else -1
    if any(sign * row.mean.mean > sign * best.mean.mean for row in ranked[1:]):  # a mean does not hold what failed
        text += ", of those without a failed run"
    tied = [escape(row.optimizer) for row in table.rows if row.tied]
    if tied[1:]:
        text += f"; the best may be {either(tied)}"
    elif tied and all(row.place for row in ranked):
        text += "; no other can be the best" if tied == [escape(best.optimizer)] else f"; {tied[0]} can be the best"
    failed = [f"{escape(row.optimizer)} ({row.failed} of {row.planned})" for row in table.rows if row.failed]
    return f'{text}; <span class="bad">failed runs</span>: {", ".join(failed)}.' if failed else f"{text}."


def words(metric: str) -> str:
    """A metric's name in a sentence: "test accuracy"."""
    return metric.replace("_", " ")
