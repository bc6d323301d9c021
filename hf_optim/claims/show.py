"""A reproduction as Markdown, as plain data and in the terminal."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from hf_optim.claims.comparisons import Finding
from hf_optim.claims.counterparts import Pair
from hf_optim.claims.judge import Judgement, Outcome
from hf_optim.claims.provenance import lines as settings_of_optimizers
from hf_optim.claims.provenance import of_defaults
from hf_optim.claims.settings import values
from hf_optim.core.safe_text import line
from hf_optim.core.safe_text import markdown as safe
from hf_optim.core.wording import counted
from hf_optim.study.findings.verdicts import changed
from hf_optim.study.folder.results import Results, describe
from hf_optim.study.statistics.paired import Summary

if TYPE_CHECKING:
    from rich.console import Console

STYLE = {
    "holds": "green",
    "contradicted": "red",
    "partly": "yellow",
    "undecided": "yellow",
    "premise not met": "dim",
    "not tested": "dim",
    "not testable": "dim",
}
DEFAULTS = (
    "Their own defaults, where the study sets nothing: printed in the optimizer's own paper, in its code (or torch's), "
    "or ours:"
)
CAUTION = {
    "small": "A stand-in at small size: its verdicts speak of the setting below and of nothing larger, and the "
    "published figures are shown for orientation.",
    "paper": "The verdicts speak of the setting below; what of it the paper does not print is marked.",
}


def markdown(outcome: Outcome, files: tuple[str, ...] = ()) -> str:
    """The whole reproduction as Markdown: what ran, and nothing else. `files` are a command's own."""
    claim = outcome.claim
    lines = [f"# {safe(f'{claim.paper}, {claim.where}: {claim.title}')}", ""]
    lines += [_ran(outcome), "", *_unreadable(outcome.results)] if outcome.results is not None else []
    lines += [f"- [{safe(name)}]({quote(name, errors='surrogateescape')})" for name in files] + ([""] if files else [])
    lines += ["## Verdicts", ""]
    lines += [f"- {safe(text)}" for text in _changed(outcome)]
    for judgement in outcome.judgements:
        lines += _verdict_lines(judgement)
    findings = [finding for judgement in outcome.judgements for finding in judgement.ruling.findings]
    if findings:
        lines += [
            "",
            "| task | compared | metric | difference | 95 % CI | p (Holm) | so? |",
            "|---|---|---|---|---|---|---|",
        ]
        rows = dict.fromkeys(tuple(map(safe, _cells(f))) for f in findings)
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += _beside(outcome)
    if outcome.outlooks:
        lines += ["", "## What this study could decide", ""]
        lines += [f"- {safe(text)}" for text in dict.fromkeys(outlook.sentence() for outlook in outcome.outlooks)]
    if outcome.differences:
        lines += ["", "## What differs from the paper", "", *(f"- {safe(text)}" for text in outcome.differences)]
    if outcome.results is not None and outcome.size == "paper":
        lines += [
            "",
            "## Every value, and where it stands",
            "",
            "| task | value | | source | note |",
            "|---|---|---|---|---|",
        ]
        lines += [f"| {' | '.join(map(safe, row))} |" for row in values(claim, outcome.results.plan)]
        told = settings_of_optimizers(claim, outcome.results.plan)
        if told:
            before = " before the search, which changes some" if outcome.results.plan.tuning is not None else ""
            lines += ["", f"The optimizers' settings{before}:", "", *(f"- {safe(text)}" for text in told)]
            own = of_defaults(outcome.results.plan)
            lines += ["", DEFAULTS, "", *(f"- {safe(text)}" for text in own)] if own else []
    if claim.notes:
        lines += ["", "## What the paper leaves open, and where it contradicts itself", ""]
        lines += [f"- {safe(note)}" for note in claim.notes]
    again = line(outcome.again or f"hf-optim reproduce {claim.name} --size {outcome.size}")
    # longer than any in it, as in a path that a shell has quoted
    fence = "`" * (1 + max(map(len, re.findall("`+", again)), default=0))
    return "\n".join([*lines, "", f"Again: {fence}{again}{fence}", ""])


def _ran(outcome: Outcome) -> str:
    """What ran, from the records."""
    assert outcome.results is not None
    results, plan = outcome.results, outcome.results.plan
    status = Counter(record["status"] for record in results.records.values())
    unreadable = {run.id for run, _ in results.unreadable()}
    bad = [run for run in plan.runs if run.id in unreadable and run.id not in results.records]
    missing = len(plan.runs) - len(results.records) - len(bad)
    runs, seeds = counted(len(plan.runs), "run"), counted(len(plan.seeds), "seed")
    parts = [f"Size {outcome.size}; {status['ok']} of {runs} finished with {seeds}"]
    parts += [f"{status['failed']} failed"] if status["failed"] else []
    parts += [f"{len(bad)} unreadable"] if bad else []
    if missing:
        there = {(run.task, run.optimizer) for run in plan.runs if run.id in results.records or run.id in unreadable}
        cells = [(task["label"], label) for task, label, _ in plan.cells()]
        bare = [safe(f"{label} on {task}") for task, label in cells if (task, label) not in there]
        parts.append(f"{missing} not made yet" + (f" (none at all of {', '.join(bare)})" if bare and there else ""))
    return f"{', '.join(parts)}. {CAUTION[outcome.size]}"


def _unreadable(results: Results) -> list[str]:
    """Each run with a record or a history that nobody can read: what rests on it is in no verdict."""
    unreadable = [f"- {safe(f'{describe(run)}: {why}')}" for run, why in results.unreadable()]
    return ["Not readable, and left out:", "", *unreadable, ""] if unreadable else []


def _changed(outcome: Outcome) -> list[str]:
    """What became of the study's question after results were known, which every verdict rests on."""
    return [] if outcome.results is None else changed(outcome.results)


def _verdict_lines(judgement: Judgement) -> list[str]:
    statement = judgement.statement
    given = " ".join([f"**{judgement.ruling.verdict}**", *filter(None, [safe(_aside(judgement))])])
    lines = [f"- {given}: “{safe(statement.says)}” ({safe(statement.section)})"]
    lines += [f"  - read as: {safe(statement.reading)}"] if statement.reading else []
    return [*lines, f"  - {safe(judgement.ruling.words)}"] if judgement.ruling.words else lines


def _aside(judgement: Judgement) -> str:
    """What stands in brackets behind a verdict: whose it is, and what it rests on where that is no test."""
    statement = judgement.statement
    certain = statement.noiseless() if judgement.ruling.verdict in ("holds", "contradicted") else ""
    said = "; ".join(filter(None, (statement.variant, certain)))
    return f" ({said})" if said else ""


def _beside(outcome: Outcome) -> list[str]:
    shown = [pair for pair in outcome.pairs if pair.obtained.n]
    lines: list[str] = []
    if shown:
        lines += [
            "",
            "## Published beside obtained",
            "",
            "| | metric | published | obtained | n |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {safe(pair.label)} | {safe(pair.published['metric'])} | {safe(_published(pair))}"
            f"{'' if pair.belongs else ' (of the other reading)'} | {safe(_obtained(pair))} | {pair.obtained.n} |"
            for pair in shown
        ]
    bare = Counter(pair.why for pair in outcome.pairs if not pair.obtained.n)
    if bare:
        lines += ["", f"{'Published' if not shown else 'Further published'} figures without a counterpart:", ""]
        lines += [f"- {count}: {safe(why)}" for why, count in bare.items()]
    return lines


def plain(outcome: Outcome) -> dict[str, Any]:
    """Plain data; `runs` lists the records behind each figure."""
    results = outcome.results
    return {
        "claim": outcome.claim.name,
        "size": outcome.size,
        **({"tables": outcome.claim.settings[outcome.size].tables} if results is None else {}),
        "seeds": [] if results is None else list(results.plan.seeds),
        "runs": None if results is None else [len(results.records), len(results.plan.runs)],
        "differs": list(outcome.differences),
        "changed": _changed(outcome),
        "judgements": [
            {
                "says": judgement.statement.says,
                "section": judgement.statement.section,
                "reading": judgement.statement.reading,
                "variant": judgement.statement.variant,
                "rule": judgement.statement.rule,
                "verdict": judgement.ruling.verdict,
                "words": judgement.ruling.words,
                "comparisons": [_plain(finding, outcome) for finding in judgement.ruling.findings],
            }
            for judgement in outcome.judgements
        ],
        "figures": [
            {
                **{k: v for k, v in pair.published.items() if k not in ("note", "value", "std")},
                "published": pair.published["value"],
                "published_std": pair.published.get("std"),
                "variant": pair.variant,
                "belongs": pair.belongs,
                "obtained": _number(pair.obtained.mean),
                "obtained_std": _number(pair.obtained.sd),
                "n": pair.obtained.n,
                "metric_here": pair.metric,
                "why": pair.why,
                "runs": list(pair.runs),
            }
            for pair in outcome.pairs
        ],
    }


def _plain(finding: Finding, outcome: Outcome) -> dict[str, Any]:
    comparison = finding.comparison
    runs = [] if outcome.results is None else [
        run.id
        for label in (comparison.first, comparison.second)
        for run, record in outcome.results.runs(comparison.task, label)
        if record is not None
    ]  # fmt: skip
    return {
        "task": comparison.task,
        "first": comparison.first,
        "second": comparison.second,
        "metric": comparison.metric,
        "slack": comparison.slack,
        "pairs": finding.pairs,
        "failures": list(comparison.failures()),
        "difference": _number(finding.difference.mean),
        "low": _number(finding.difference.low),
        "high": _number(finding.difference.high),
        "p": _number(finding.p),
        "adjusted": _number(finding.adjusted),
        "so": finding.truth,
        "runs": runs,
    }


def terminal(outcome: Outcome, console: Console) -> None:
    """Tables that fit a terminal."""
    from rich.table import Table
    from rich.text import Text

    claim = outcome.claim
    shown = [pair for pair in outcome.pairs if pair.obtained.n]
    if shown:
        table = Table(
            title=f"{claim.paper}, {claim.where}: published beside obtained ({outcome.size})", title_justify="left"
        )
        for name, justify in (("", "left"), ("published", "right"), ("obtained", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for pair in shown:
            table.add_row(pair.label, _published(pair), _obtained(pair))
        console.print(table)
    for text in _changed(outcome):
        console.print(Text(text))
    for judgement in outcome.judgements:
        statement, ruling = judgement.statement, judgement.ruling
        reading = f", read as: {statement.reading}" if statement.reading else ""
        words = f"{_aside(judgement)}: {statement.says} ({statement.section}){reading}"
        console.print(Text.assemble((ruling.verdict, f"bold {STYLE[ruling.verdict]}"), words))
        console.print(Text(f"  {ruling.words}", style="dim"))
    if outcome.results is not None:
        console.print(Text(CAUTION[outcome.size], style="italic"))


def _cells(finding: Finding) -> list[str]:
    comparison, difference = finding.comparison, finding.difference
    interval = "–" if math.isnan(difference.low) else f"[{difference.low:+.4g}, {difference.high:+.4g}]"
    slack = f" (given {comparison.slack:.3g})" if comparison.slack > 0 else ""
    slack = f" (more than {-comparison.slack:.3g})" if comparison.slack < 0 else slack
    p = finding.adjusted
    return [
        comparison.task,
        f"{comparison.first} − {comparison.second}{slack}",
        comparison.metric,
        "–" if math.isnan(difference.mean) else f"{difference.mean:+.4g}",
        interval,
        "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}",
        "undecided" if finding.truth is None else "yes" if finding.truth else "no",
    ]


def _published(pair: Pair) -> str:
    row = pair.published
    if row["value"] is None:
        return f"{row.get('printed', '–')} {row.get('unit', '')}".strip()
    spread = f" ± {row['std']:g}" if row.get("std") else ""
    return f"{row['value']:g}{spread} {row.get('unit', '')}".rstrip()


def _obtained(pair: Pair) -> str:
    summary: Summary = pair.obtained
    unit = f" {pair.published['unit']}" if pair.published.get("unit") else ""
    return f"{summary.mean:.4g}" + (f" ± {summary.sd:.2g}" if summary.n > 1 else "") + unit


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
