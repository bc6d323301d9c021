"""report.html: one file, no network, the same bytes from the same records.

What it says comes from the plan, the records and the histories; no clock, path or host of the machine that draws it
enters. Beside it lies a page for every run (`pages`), to which it links.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from hf_optim.core.safe_text import html as escape
from hf_optim.core.safe_text import json_in_html
from hf_optim.core.wording import counted
from hf_optim.experiment.files import read_text
from hf_optim.study.findings import table
from hf_optim.study.findings.analysis import Analysis
from hf_optim.study.findings.protocol import Protocol
from hf_optim.study.findings.table import TaskTable
from hf_optim.study.folder.results import Results, describe
from hf_optim.study.plan import code
from hf_optim.study.report import charts, differs, ladder, sections, task, views
from hf_optim.study.report.columns import EXPLAINED, slug
from hf_optim.study.report.document import document
from hf_optim.study.report.pieces import file_names, html_table, paragraphs, scroll
from hf_optim.study.report.run_pages import link
from hf_optim.study.report.summary import glance, headline, sentences, terms, words

SCRIPTS = ("legend.js", "tables.js", "curves.js")


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading, to which the contents link; what is `more` is not printed."""

    anchor: str
    title: str
    html: str
    more: bool = True

    def __str__(self) -> str:
        kind = ' class="more"' if self.more else ""
        return f'<section{kind}><h2 id="{self.anchor}">{self.title}</h2>{self.html}</section>'


def render(
    results: Results, tables: Sequence[TaskTable], analysis: Analysis | None = None, protocol: Protocol | None = None
) -> str:
    """The report of a study as HTML text; `analysis` and `protocol` add their sections."""
    plan = results.plan
    styles = charts.style_of([o["label"] for o in plan.optimizers])
    fitting = views.fitting(results, list(tables))
    drawn, data = [], {}
    names = file_names(task_table.task for task_table in tables)
    for entry, task_table in zip(plan.tasks, tables, strict=True):
        metrics, dropped = fitting[task_table.task]
        name = names[task_table.task]
        section, data[name] = task.section(results, entry, task_table, styles, name, metrics, dropped)
        drawn.append(section)
    first = _filled([Section("ladder", "The ladder", ladder.section(results, styles), more=False)])
    rest = _filled(_rest(results, tables, analysis, protocol, styles))
    anchors = [(task.anchor(name), escape(label)) for label, name in names.items()]
    body = [
        f"<header><h1>{escape(plan.title)}</h1>",
        f'<p class="facts">{escape(headline(results))}</p></header>',
        "<main>",
        f'<section class="summary" aria-label="What was found">{glance(results, tables)}<ul>'
        + "".join(f"<li>{s}</li>" for s in sentences(results, tables))
        + "</ul></section>",
        _contents([*_links(first), *anchors, *_links(rest)]),
        task.legend(styles),
        *map(str, first),
        *drawn,
        *map(str, rest),
        "</main>",
        '<div id="tip" role="tooltip"></div>',
        f'<script type="application/json" id="data">{json_in_html({"tasks": data})}</script>',
    ]
    return document(plan.title, _asset("report.css"), body, "\n" + "".join(map(_asset, SCRIPTS)))


def _rest(
    results: Results,
    tables: Sequence[TaskTable],
    analysis: Analysis | None,
    protocol: Protocol | None,
    styles: Mapping[str, str],
) -> list[Section]:
    """The sections after the tasks, also those that turn out empty."""
    parts = []
    if analysis is not None:
        decimals = {task_table.task: task_table.decimals for task_table in tables}
        parts += [
            Section("statistics", "Statistics", sections.statistics(analysis, decimals)),
            Section("speed-up", "Speed-up", sections.speedups(analysis)),
            Section("time-to-target", "Time to target", sections.profiles(analysis, styles)),
        ]
    if protocol is not None:
        parts += [
            Section("tuning", "Tuning", sections.tuning(protocol, styles)),
            Section("spread", "Where the spread comes from", sections.shares(protocol)),
        ]
    return [
        *parts,
        Section("differs", "What differs", differs.configurations(results)),
        Section("failures", "Failures", _failures(results)),
        Section("runs", "Runs", _runs(results)),
        Section("environment", "Environment", _environment(results)),
        Section("again", "Do it again", _again(results)),
        Section("reading", "How to read it", _reading(results, tables), more=False),
    ]


def _reading(results: Results, tables: Sequence[TaskTable]) -> str:
    """How to read it: the words that no reader has to know first, also on paper, and the rest on the page alone."""
    words_ = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in terms(results, tables).items())
    explained = "".join(f'<dt>{escape(k)}</dt><dd id="{slug(k)}">{escape(v)}</dd>' for k, v in EXPLAINED.items())
    return (
        f'<dl class="terms">{words_}</dl>'
        f'<div class="more">{paragraphs(table.note(results))}'
        "<p>Curves show the mean over runs, bands reach from the lowest to the highest of them, and a cross ends a run "
        "that failed. Accuracies beyond 0.9 are drawn on the logarithm of the error, so that 0.98 and 0.99 stay "
        "apart. Over passes, tokens, FLOPs and seconds a curve stands where its runs were at that step on average. In "
        "the plot of differences, intervals without a verdict are pale; an arrow marks one that leaves the panel.</p>"
        f"<details><summary>What the columns mean</summary><dl>{explained}</dl></details></div>"
    )


def _filled(parts: Sequence[Section]) -> list[Section]:
    return [part for part in parts if part.html]


def _links(parts: Sequence[Section]) -> list[tuple[str, str]]:
    return [(part.anchor, part.title) for part in parts]


def _contents(sections: Sequence[tuple[str, str]]) -> str:
    """Links to every section."""
    links = "".join(f'<a href="#{at}">{name}</a>' for at, name in sections)
    return f'<nav class="contents" aria-label="Contents">{links}</nav>'


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _failures(results: Results) -> str:
    failures = results.failures()
    missing = [run for run in results.plan.runs if run.id not in results.records]
    unreadable = results.unreadable()
    lines = [
        f'<tr><th scope="row">{escape(run.optimizer)}</th><td class="left">{escape(run.task)}</td>'
        f'<td>{escape(run.seed)}</td><td class="wide">{escape(why)}</td><td>{link(results, run.id)}</td></tr>'
        for run, why in failures
    ]
    text = ""
    if failures:
        text += html_table(["optimizer", "task", "seed", "reason", "run"], lines, "Runs that failed")
    if unreadable:
        text += "<p>Not readable, and left out:</p><ul>"
        text += "".join(f"<li>{escape(describe(run))}: {escape(why)}</li>" for run, why in unreadable) + "</ul>"
    if missing:
        count = f"{len(missing)} of {len(results.plan.runs)}"
        text += f'<p class="bad">{count} planned runs have no record: the study is not finished.</p>'
    return text


def _runs(results: Results) -> str:
    """Every judged run with its page, folded: a line an optimizer and task."""
    cells: dict[tuple[str, str], list[str]] = {}
    for run in results.plan.runs:
        if (record := results.records.get(run.id)) is not None:
            kind = "" if record["status"] == "ok" else "bad"
            cells.setdefault((run.optimizer, run.task), []).append(link(results, run.id, f"seed {run.seed}", kind))
    lines = [
        f'<tr><th scope="row">{escape(optimizer)}</th><td class="left">{escape(task)}</td>'
        f'<td class="wide">{" ".join(links)}</td></tr>'
        for (optimizer, task), links in cells.items()
    ]
    if not lines:
        return ""
    content = html_table(["optimizer", "task", "run"], lines, "Every judged run")
    note = '<p class="soft">Each run has a page beside this file: record, settings, history, log and samples.</p>'
    summary = f"<summary>{counted(len(results.records), 'run')}</summary>"
    return f"{note}<details>{summary}{content}</details>"


def _environment(results: Results) -> str:
    seen: dict[str, Counter[str]] = {}
    prints: set[str] = set()
    for record in results.records.values():
        for key, value in (record.get("environment") or {}).items():
            if value is not None:
                seen.setdefault(key if key == "hf_optim" else words(key), Counter())[str(value)] += 1
        data = record.get("data") or {}
        if data:
            prints.add(f"{data.get('name')} (sha256 {str(data.get('fingerprint'))[:12]})")
    lines = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td class="left">{escape(_counted(values))}</td></tr>'
        for key, values in seen.items()
    )
    listed = escape(", ".join(sorted(prints)))
    lines += f'<tr><th scope="row">data</th><td class="left">{listed}</td></tr>' if prints else ""
    caption = '<caption class="vh">Versions and machine</caption>'
    body = scroll(f"<table>{caption}<tbody>{lines}</tbody></table>", "Versions and machine")
    return body if lines else ""


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{value} ({counted(count, 'run')})" for value, count in sorted(values.items()))


def _again(results: Results) -> str:
    plan = results.plan
    try:
        text = read_text(results.folder, "study.yaml")
    except (OSError, ValueError):
        text = ""
    plain = not plan.repetitions and len(plan.looks) == 1 and plan.seeds == tuple(range(len(plan.seeds)))
    command = "hf-optim study study.yaml" + (f" --seeds {len(plan.seeds)}" if plain else "")
    paths = ", ".join(f"<code>{escape(path)}</code>" for path in code.named(plan))
    needs = f" It needs code that is not in it: {paths}." if paths else ""
    return (
        "<p>Save the text below as <code>study.yaml</code> and run it; in the study's own folder "
        f"the same command only makes what is missing.{needs}</p>"
        f'<pre tabindex="0">{escape(command)}</pre>'
        f'<details><summary>study.yaml</summary><pre tabindex="0">{escape(text)}</pre></details>'
    )
