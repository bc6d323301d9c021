"""A reproduction as Markdown, as plain data, as a drawing and in the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_optim.claims import judges
from hf_optim.claims.beside import Pair, pairs
from hf_optim.claims.claim import Claim
from hf_optim.claims.judges import Judgement, Line
from hf_optim.core.text import html as escape
from hf_optim.core.text import markdown as markdown_text
from hf_optim.study.folder.results import Results
from hf_optim.study.statistics.paired import Summary

if TYPE_CHECKING:
    from rich.console import Console

STYLE = {
    "holds": "green",
    "contradicted": "red",
    "partly": "yellow",
    "undecided": "yellow",
    "not tested": "dim",
    "shown": "cyan",
}
CAUTION = {
    "small": "This is a stand-in at small size. Its verdicts speak of the setting below and of nothing larger; the "
    "published figures are shown for orientation and cannot be compared in size.",
    "paper": "This is the paper's setting but for the differences below.",
}


@dataclass(frozen=True)
class Outcome:
    """A claim, judged on a study's records."""

    claim: Claim
    size: str
    results: Results
    pairs: tuple[Pair, ...]
    judgements: tuple[Judgement, ...]


def judge(claim: Claim, size: str, results: Results) -> Outcome:
    """Everything that the records of one size say of a claim."""
    beside = pairs(claim, claim.settings[size].cells, results)
    renamed = claim.settings[size].metrics
    judgements = tuple(judges.judge(statement, results, renamed) for statement in claim.statements)
    return Outcome(claim, size, results, tuple(beside), judgements)


def markdown(outcome: Outcome) -> str:
    """The whole reproduction as Markdown."""
    claim, plan = outcome.claim, outcome.results.plan
    done = sum(record["status"] == "ok" for record in outcome.results.records.values())
    lines = [
        f"# {claim.paper}, {claim.where}: {claim.title}",
        "",
        f"Size {outcome.size}; {done} of {len(plan.runs)} runs finished, {len(plan.seeds)} seed(s). "
        f"{CAUTION[outcome.size]}",
        "",
        "## Verdicts",
        "",
    ]
    for one in outcome.judgements:
        lines += [f"- **{one.verdict}**: {one.text}", f"  - {markdown_text(one.words)}."]
    if any(one.lines for one in outcome.judgements):
        lines += ["", "| task | compared | metric | difference | 95 % CI | p (Holm) | P(better) | verdict |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += ["| " + " | ".join(map(markdown_text, _line_cells(line))) + " |" for line in _lines(outcome)]
    if outcome.pairs:
        lines += ["", "## Published beside obtained", "", "| | metric | published | obtained | seeds |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| {markdown_text(pair.label)} | {pair.published['metric']} | {_published(pair)} | {_obtained(pair)} | "
            f"{pair.obtained.n or '–'} |"
            for pair in outcome.pairs
        ]
    lines += ["", "## What differs from the paper", ""]
    lines += [f"- {text}" for text in claim.settings[outcome.size].differs]
    if claim.notes:
        lines += ["", "## What the paper leaves open", "", *(f"- {note}" for note in claim.notes)]
    lines += ["", f"Again: `hf-optim reproduce {claim.name} --size {outcome.size}`", ""]
    return "\n".join(lines)


def page_of_command(claim: Claim, size: str, files: list[str]) -> str:
    """The page of a figure that a command draws."""
    setting = claim.settings[size]
    lines = [
        f"# {claim.paper}, {claim.where}: {claim.title}",
        "",
        f"`hf-optim {' '.join(setting.command)}` left:",
        "",
    ]
    lines += [f"- {_linked(name)}" for name in files if name != "reproduction.md"]
    lines += [
        "",
        "## What to look for",
        "",
        *(f"- {statement['text']}" for statement in claim.statements),
    ]
    lines += ["", "## What differs from the paper", "", *(f"- {text}" for text in setting.differs)]
    if claim.notes:
        lines += ["", "## What the paper leaves open", "", *(f"- {note}" for note in claim.notes)]
    return "\n".join([*lines, ""])


def _linked(name: str) -> str:
    return f"[{name}]({name})" if re.fullmatch(r"[\w.-]+", name) else markdown_text(name)


def plain(outcome: Outcome) -> dict[str, Any]:
    """Plain data; `runs` lists the records behind each figure."""
    return {
        "claim": outcome.claim.name,
        "size": outcome.size,
        "seeds": list(outcome.results.plan.seeds),
        "differs": list(outcome.claim.settings[outcome.size].differs),
        "judgements": [
            {
                "text": one.text,
                "verdict": one.verdict,
                "words": one.words,
                "comparisons": [
                    {
                        "task": line.task,
                        "first": line.first,
                        "second": line.second,
                        "metric": line.metric,
                        "pairs": line.comparison.pairs,
                        "difference": _number(line.comparison.difference.mean),
                        "low": _number(line.comparison.difference.low),
                        "high": _number(line.comparison.difference.high),
                        "p": _number(line.comparison.p),
                        "adjusted": _number(line.comparison.adjusted),
                        "verdict": line.comparison.verdict,
                        "runs": [
                            run.id
                            for label in (line.first, line.second)
                            for run, record in outcome.results.runs(line.task, label)
                            if record is not None
                        ],
                    }
                    for line in one.lines
                ],
            }
            for one in outcome.judgements
        ],
        "figures": [
            {
                **{k: v for k, v in pair.published.items() if k not in ("note", "value", "std")},
                "published": pair.published["value"],
                "published_std": pair.published.get("std"),
                "obtained": _number(pair.obtained.mean),
                "obtained_std": _number(pair.obtained.sd),
                "seeds": pair.obtained.n,
                "metric_here": pair.metric,
                "runs": list(pair.runs),
            }
            for pair in outcome.pairs
        ],
    }


def terminal(outcome: Outcome, console: Console) -> None:
    """Tables that fit a terminal."""
    from rich.table import Table
    from rich.text import Text

    claim = outcome.claim
    if outcome.pairs:
        table = Table(
            title=f"{claim.paper}, {claim.where}: published beside obtained ({outcome.size})", title_justify="left"
        )
        for name, justify in (("", "left"), ("published", "right"), ("obtained", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for pair in outcome.pairs:
            table.add_row(f"{pair.label}", _published(pair), _obtained(pair))
        console.print(table)
    for one in outcome.judgements:
        console.print(Text.assemble((one.verdict, f"bold {STYLE[one.verdict]}"), f": {one.text}"))
        console.print(Text(f"  {one.words}", style="dim"))
    console.print(Text(CAUTION[outcome.size], style="italic"))


def drawing(outcome: Outcome) -> str:
    """Published and obtained as two panels of dots with bars of one standard deviation; empty without both."""
    shown = [pair for pair in outcome.pairs if pair.obtained.n and pair.published["value"] is not None]
    if not shown:
        return ""
    height, label, panel, gap = 22, 330, 250, 30
    width, total = label + 2 * panel + gap + 20, 46 + height * len(shown) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" font-family="system-ui, sans-serif" '
        'font-size="12" role="img">',
        f"<title>{escape(outcome.claim.title)}</title>",
        f'<rect width="{width}" height="{total}" fill="#fff"/>',
    ]
    columns = [
        ("published", [(float(p.published["value"]), float(p.published.get("std") or 0)) for p in shown]),
        (f"obtained ({outcome.size})", [(p.obtained.mean, p.obtained.sd) for p in shown]),
    ]
    for i, pair in enumerate(shown):
        y = 46 + height * i
        parts.append(f'<text x="{label - 10}" y="{y + 4}" text-anchor="end">{escape(pair.label[:52])}</text>')
    for column, (name, values) in enumerate(columns):
        left = label + column * (panel + gap)
        spread = [(v - (s if s == s else 0), v + (s if s == s else 0)) for v, s in values]
        low, high = min(a for a, _ in spread), max(b for _, b in spread)
        pad = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - pad, high + pad
        parts.append(f'<text x="{left}" y="20" font-weight="600">{escape(name)}</text>')
        bottom = 46 + height * len(shown) - height / 2
        parts.append(f'<path d="M{left} 32V{bottom:.1f}H{left + panel}" fill="none" stroke="#bbb"/>')
        for share in (0.0, 0.5, 1.0):
            value = low + share * (high - low)
            anchor = ("start", "middle", "end")[int(2 * share)]
            at = f'x="{left + share * panel:.1f}" y="{bottom + 16:.1f}"'
            parts.append(f'<text {at} text-anchor="{anchor}" fill="#555">{value:.4g}</text>')
        for i, ((value, _), (start, end)) in enumerate(zip(values, spread, strict=True)):
            y = 46 + height * i
            x, a, b = (left + panel * (v - low) / (high - low) for v in (value, start, end))
            parts.append(f'<path d="M{a:.1f} {y}H{b:.1f}" stroke="#0b62a8" stroke-width="2"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" fill="#0b62a8"/>')
    return "\n".join([*parts, "</svg>\n"])


def _lines(outcome: Outcome) -> Iterator[Line]:
    for one in outcome.judgements:
        yield from one.lines


def _line_cells(line: Line) -> list[str]:
    c = line.comparison
    interval = "–" if math.isnan(c.difference.low) else f"[{c.difference.low:+.4g}, {c.difference.high:+.4g}]"
    return [
        line.task,
        f"{line.first} − {line.second}",
        line.metric,
        "–" if math.isnan(c.difference.mean) else f"{c.difference.mean:+.4g}",
        interval,
        "–" if math.isnan(c.adjusted) else "<0.001" if c.adjusted < 0.001 else f"{c.adjusted:.3f}",
        "–" if math.isnan(c.better) else f"{c.better:.2f}",
        c.verdict,
    ]


def _published(pair: Pair) -> str:
    row = pair.published
    if row["value"] is None:
        return f"{row.get('printed', '–')} {row.get('unit', '')}".strip()
    spread = f" ± {row['std']:g}" if row.get("std") else ""
    return f"{row['value']:g}{spread} {row.get('unit', '')}".rstrip()


def _obtained(pair: Pair) -> str:
    one: Summary = pair.obtained
    if not one.n:
        return "–"
    unit = f" {pair.published['unit']}" if pair.published.get("unit") else ""
    return f"{one.mean:.4g}" + (f" ± {one.sd:.2g}" if one.n > 1 else "") + unit


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
