"""A comparison in words: what was found, how sure it is, what more would find, what it cost, and how far it reaches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from hf_optim.core.numerals import decimal
from hf_optim.core.wording import both, counted
from hf_optim.study.findings import costs, design, naming
from hf_optim.study.findings.cells import interval, p_text, signed, telling
from hf_optim.study.findings.table import Row, TaskTable, leading
from hf_optim.study.folder.results import Results
from hf_optim.study.plan.entries import is_share
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics.comparisons import Comparison
from hf_optim.study.statistics.failures import FailureRate
from hf_optim.study.statistics.paired import ALPHA

#: tasks that nobody has to count
FEW = 2
#: optimizers on tasks whose missing seeds, tasks whose data, or files whose texts, are told one by one
MOST_LEFT_OUT = 10
FEW_DATA = 3
VERDICTS = ("better", "worse", "equivalent", "undecided")


def sentences(results: Results, tables: Sequence[TaskTable]) -> list[str]:
    """One sentence for every optimizer that is not the baseline, as plain text: the score's where that is the family,
    else one with a part for each task. None before the first planned look.
    """
    return ["".join(map("".join, parts)) for parts in in_parts(results, tables)]


def in_parts(results: Results, tables: Sequence[TaskTable]) -> list[list[tuple[str, str]]]:
    """The sentences, each as what leads to a finding, and the finding, which begins with its verdict: who marks that
    need not look for it in a text that holds labels.
    """
    judgement, plan = results.standing.judgement, results.plan
    if judgement is None:
        return []
    labels = [o["label"] for o in plan.optimizers if o["label"] != plan.baseline]
    said = []
    for label in labels:
        if judgement.family == "score":
            asked = label in judgement.scores
            parts = [(" over all tasks: ", _score(results, tables, label))] if asked else []
        else:
            rows = [(table, row) for table in tables for row in table.rows if row.optimizer == label and row.comparison]
            over = _tally([row.comparison for _, row in rows]) if len(rows) > FEW else ""
            parts = [
                (f"{'. And ' if i else f' {over}'}on {table.task}{_size(table)}: ", part(results, table, row))
                for i, (table, row) in enumerate(rows)
            ]
        if parts:
            warned = " ".join(filter(None, (".", unlike(results, label))))
            said.append([(_against(plan, label), ""), *parts, (warned, "")])
    return said


def _tally(comparisons: Sequence[Comparison | None]) -> str:
    """Of several tasks, how many have which verdict, before they are told one by one."""
    words = ["no verdict" if c is None or c.reason else c.verdict for c in comparisons]
    told = [f"{word} on {words.count(word)}" for word in (*VERDICTS, "no verdict") if word in words]
    return f"over {len(words)} tasks: {', '.join(told)}. One by one, "


def progress(results: Results) -> str:
    """What is missing of an unfinished study; empty for a finished one."""
    plan, stands = results.plan, results.standing
    if stands.finished:
        return ""
    state, units = stands.state, counted(stands.units, naming.unit(plan, 1))
    open_trials = [t for s in state.searches for t in s.trials if not t.status]
    waiting = sum(s.waiting for s in state.searches)
    missing = [run for run in state.after_tuning if results.store.record(run.id) is None]
    outstanding = (
        counted(len(missing), "run")
        if state.settled
        else counted(len(open_trials) + waiting, "trial")
        + ("" if all(search.choice for search in state.searches) else ", and the runs after them")
    )
    before = f"verdicts are those of the look after {stands.judgement.units}" if stands.judgement else "no verdict yet"
    return f"Unfinished: {outstanding} left before the look after {units}; {before}."


def looked(results: Results) -> str:
    """At which look the verdicts were given, and what the registered question is."""
    plan, judgement, register = results.plan, results.standing.judgement, results.standing.register
    parts = []
    if judgement is not None:
        planned = f" (planned: {both(map(str, plan.looks))})" if len(plan.looks) > 1 else ""
        parts.append(f"Looked at after {counted(judgement.units, naming.unit(plan, 1))}{planned}.")
        if judgement.note:
            parts.append(f"Judged by tasks: {judgement.note}.")
    if register.digest:
        parts.append(f"Question {register.digest[:12]}, written down on {register.time[:10]}.")
    else:
        what = "more" if register.changes else "it"
        parts.append(f"Question not registered: nothing tells whether {what} was changed after the answer.")
    return " ".join(parts)


def changed(results: Results) -> list[str]:
    """What became of the question after results were known, in words, and what cannot be read of it; what the plan has
    left out of it, and whose runs cannot be compared.
    """
    register = results.standing.register
    told = [f"{register.unread}: what was asked before may be untold."] if register.unread else []
    told += [
        f"Changed after results were known: {c.words}{'' if c.added else '; what it touches is exploratory'}."
        for c in register.changes
    ]
    return told + _left_out(results) + _other_data(results) + _other_code(results)


def _left_out(results: Results) -> list[str]:
    """Who has runs of fewer seeds than the study, as after a merge, or where somebody took some out of the plan."""
    plan = results.plan
    if plan.tuning is not None:
        return []  # the runs follow from the plan
    seeds = len(plan.seeds[: results.standing.units * plan.per_unit])
    runs = Counter((run.task, run.optimizer) for run in plan.runs)
    cells = [(task["label"], label) for task, label, _ in plan.cells()]
    fewer = [f"{label} on {task} {runs[task, label]}" for task, label in cells if runs[task, label] < seeds]
    if not fewer:
        return []
    more = f", and {len(fewer) - MOST_LEFT_OUT} more" if len(fewer) > MOST_LEFT_OUT else ""
    return [f"The plan has runs of fewer than {counted(seeds, 'seed')}: {', '.join(fewer[:MOST_LEFT_OUT])}{more}."]


def _other_data(results: Results) -> list[str]:
    """The tasks on which runs of one seed, which are paired, say that they had different data: as after a merge, or
    where a folder was changed meanwhile.
    """
    paired: dict[tuple[str, int], Counter[str]] = {}
    for run in results.plan.runs:
        data = (results.records.get(run.id) or {}).get("data") or {}
        if data.get("fingerprint") is not None:
            name = f"{data.get('name')} (sha256 {str(data['fingerprint'])[:12]})"
            paired.setdefault((run.task, run.seed), Counter())[name] += 1
    unlike: dict[str, Counter[str]] = {}
    for (task, _), had in paired.items():
        if len(had) > 1:
            unlike.setdefault(task, Counter()).update(had)
    told = [
        f"On {task} not all runs of a seed had the same data: {_counts(had)}. What differs there may be the data's."
        for task, had in unlike.items()
    ]
    return _some(told, "on")


def _other_code(results: Results) -> list[str]:
    """The files of code whose text, as runs and trials say, was not the same for all that name it: it was changed
    between them, or two studies call their own alike.
    """
    texts: dict[str, Counter[str]] = {}
    for run in results.known:
        for path, text in ((results.store.record(run.id) or {}).get("code") or {}).items():
            texts.setdefault(path, Counter())[f"with sha256 {text[:12]}"] += 1
    told = [
        f"Not all runs of {path} ran the same text of it: {_counts(had)}. What differs there may be the code's."
        for path, had in texts.items()
        if len(had) > 1
    ]
    return _some(told, "of")


def _some(told: list[str], word: str) -> list[str]:
    """The first of the sentences, and of how many more they would be."""
    return [*told[:MOST_LEFT_OUT], *([f"So {word} {more} more."] if (more := len(told) - MOST_LEFT_OUT) > 0 else [])]


def _counts(had: Counter[str]) -> str:
    several = [f"{count} {name}" for name, count in had.most_common(FEW_DATA)]
    return both([*several, *(["others"] if len(had) > FEW_DATA else [])])


def scope(tables: Sequence[TaskTable]) -> str:
    """How far the verdicts reach."""
    sizes = sorted({table.size for table in tables if table.size})
    if not sizes:
        return "The verdicts speak of the tasks that were run, and of no others."
    listed = both(sizes)
    more = "" if "paper" in sizes else " They say nothing about size paper, nor about other models and data."
    return f"The verdicts speak of these tasks at size {listed} only.{more}"


def part(results: Results, table: TaskTable, row: Row) -> str:
    """What is said of one optimizer on one task, without its beginning and its full stop."""
    c = row.comparison
    assert c is not None
    metric = table.metric.replace("_", " ")
    share = is_share(next(t for t in results.plan.tasks if t["label"] == table.task), table.metric)
    parts = [word(c), *_undecided(results, c, table.decimals, table.greater, 1.0 if share else math.inf)]
    if c.pairs > 1 and not math.isnan(c.difference.mean):
        parts += [f"{metric} {_numbers(results, c, table.decimals)}", _odds(results.plan, c)]
    elif c.pairs == 1 and not math.isnan(c.difference.mean):
        parts.append(f"difference {signed(c.difference.mean, table.decimals)}")
    parts += [failed(c, _unit(results)), costs.sentence(table, row)]
    return "; ".join(text for text in parts if text)


def word(c: Comparison, score: bool = False) -> str:
    """The verdict, or the two statements where runs failed: "better where it trains; fails more often"."""
    often = f"; fails {c.fails_more} ({_fisher(c)})" if c.fails_more else ""
    if c.reason:
        text = f"no verdict, {c.reason}"
    elif c.verdict == "equivalent":
        margin = "stated margins" if score else f"stated margin of {c.margin:g}"
        small = " (a difference was found, but one that was said not to matter)" if c.adjusted < ALPHA else ""
        text = f"equivalent where it trains, within the {margin}{small}"
    elif c.verdict in ("better", "worse"):
        text = f"{c.verdict}{_despite(c)}"
    else:
        text = c.verdict
    early = f" (exploratory: {'; '.join(c.exploratory)})" if c.exploratory else ""
    return f"{text}{often}{early}"


def _despite(c: Comparison) -> str:
    """What a verdict speaks of where runs failed. Where the winner failed no less than the other, the failures count
    against the verdict, and it holds where both train; else they are a part of it.
    """
    if c.failures is None or not any(rate.count for rate in c.failures):
        return ""
    mine, other = (rate.count * against.n for rate, against in zip(c.failures, c.failures[::-1], strict=True))
    against = mine >= other if c.verdict == "better" else mine <= other
    return " where it trains" if against else ", failures counted as the worst finished run"


def _unit(results: Results) -> str:
    """Of what failures are counted, where it is not runs."""
    return f" {naming.unit(results.plan)}" if results.plan.per_unit > 1 else ""


def failed(c: Comparison, unit: str = "") -> str:
    """The failures of both arms; of none, where they were asked for by "equivalent", how many there may still be."""
    if c.failures is None or not (c.verdict == "equivalent" or any(rate.count for rate in c.failures)):
        return ""
    mine, other = c.failures
    return f"failures {'in ' if unit else ''}{_rate(mine, unit)} (the baseline's {_rate(other)})"


def _rate(rate: FailureRate, unit: str = "") -> str:
    return f"{rate.count} of {rate.n}{unit}, at most {100 * rate.high:.0f} %"


def _fisher(c: Comparison) -> str:
    assert c.failures is not None and c.failure_test is not None
    mine, other = c.failures
    return f"{mine.count} of {mine.n} against {other.count} of {other.n}, p {_is(c.failure_test.adjusted)}"


def _against(plan: Plan, label: str) -> str:
    return f"{naming.named(plan, label)} against {naming.named(plan, plan.baseline)}"


def unlike(results: Results, label: str) -> str:
    """Where an optimizer was tuned more or less than the baseline, as planned or as it went, a sentence; else empty."""
    plan = results.plan
    if planned := naming.unlike(plan, label):
        return planned
    if plan.tuning is None or not plan.tuning["steps"]:
        return ""
    searches = [s for s in results.standing.state.searches if s.budget == 1 and s.complete]
    told = [{(s.task, s.seed): len(s.trials) for s in searches if s.optimizer == x} for x in (label, plan.baseline)]
    mine, other = (sum(one[key] for key in told[0].keys() & told[1].keys()) for one in told)
    if mine == other:
        return ""
    return (
        f"Not tuned alike: for the same steps {label} had {counted(mine, 'trial')} in all, {plan.baseline} had {other}."
    )


def _size(table: TaskTable) -> str:
    return f" at size {table.size}" if table.size else ""


def _score(results: Results, tables: Sequence[TaskTable], label: str) -> str:
    judgement = results.standing.judgement
    assert judgement is not None
    c = judgement.scores[label]
    # Two figures of the interval's half: what training gains is many times what optimizers differ by.
    decimals = 1 + leading((c.difference.high - c.difference.low) / 2)
    parts = [word(c, score=True)]
    for table in tables:
        on_task = judgement.comparisons.get((table.task, label))
        if on_task and on_task.fails_more:
            parts.append(f"fails {on_task.fails_more} on {table.task} ({_fisher(on_task)})")
    parts += _undecided(results, c, decimals, True)
    if c.pairs > 1 and not math.isnan(c.difference.mean):
        parts.append(f"score {_numbers(results, c, decimals)}, in units of {judgement.score_unit}")
    parts += [failed(c, _unit(results)), costs.over_tasks(tables, label)]
    return "; ".join(text for text in parts if text)


def _undecided(results: Results, c: Comparison, decimals: int, greater: bool, largest: float = math.inf) -> list[str]:
    """What an undecided comparison does say, and what more would find; no two values differ by more than `largest`."""
    d = c.difference
    if c.verdict != "undecided" or math.isnan(d.low):
        return []
    plan, decimals = results.plan, telling(decimals, d)
    more, effect = design.further(plan, c.pairs)
    runs = results.runs_a_unit * (more - c.pairs)
    worse, better = (-d.low, d.high) if greater else (d.high, -d.low)
    at_most = f"between {decimal(worse, decimals)} worse and {decimal(better, decimals)} better"
    least = decimal(c.detectable, decimals) if c.detectable <= largest else "no difference that there can be"
    finds = f"this design finds {least} with 80 %"
    finding = f"would find {decimal(effect * d.sd, decimals)} for {counted(runs, 'more run')}, if planned beforehand"
    next_ = f"{counted(more, naming.unit(plan, 1))} {finding}"
    return [at_most, finds, next_]


def _numbers(results: Results, c: Comparison, digits: int) -> str:
    d = c.difference
    digits = telling(digits, d)
    ends = "" if math.isnan(d.low) else f" {interval(d, digits, sign=True)}"  # none where no two units differ
    text = signed(d.mean, digits) + ends
    how = [f"Holm over {c.tests}"] if c.tests > 1 else []
    how = [f"{len(results.plan.looks)} looks", *how] if len(results.plan.looks) > 1 else how
    corrected = f" after {both(how)}" if how else ""
    if not math.isnan(c.adjusted):
        text += f", p {_is(c.adjusted)}{corrected}"
    if not math.isnan(c.adjusted_equivalent):
        text += f", p of equivalence {_is(c.adjusted_equivalent)}"
    return text


def _odds(plan: Plan, c: Comparison) -> str:
    if math.isnan(c.better):
        return ""
    half = ", a tie as half" if not (c.better * c.pairs + 1e-9) % 1 < 1e-6 else ""
    share = f"{c.better:.0%} of {counted(c.pairs, naming.unit(plan, 1))}"
    return f"ahead in {share}{half} [{c.better_low:.0%}, {c.better_high:.0%}]"


def _is(p: float) -> str:
    text = p_text(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"
