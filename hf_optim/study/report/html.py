"""report.html: one file, no network, the same bytes from the same records.

What it says comes from the plan, the records and the histories; no clock, path or host of the machine that draws it
enters.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from hf_optim.core.text import html as escape
from hf_optim.experiment.files import read_text
from hf_optim.study.findings import table
from hf_optim.study.findings.analysis import Analysis
from hf_optim.study.findings.curves import Histories
from hf_optim.study.findings.protocol import Protocol
from hf_optim.study.findings.table import COSTS, Row, TaskTable
from hf_optim.study.folder.results import Results, describe
from hf_optim.study.plan.entries import declared
from hf_optim.study.report import charts, differs, ladder, sections
from hf_optim.study.report.sections import html_table
from hf_optim.study.report.summary import headline, sentences, words

# No script but the one below, whose hash this is: what a label might smuggle in does not run.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; img-src data:; base-uri 'none'; \
form-action 'none'"


def render(
    results: Results, tables: Sequence[TaskTable], analysis: Analysis | None = None, protocol: Protocol | None = None
) -> str:
    """The report of a study as HTML text; `analysis` and `protocol` add their sections."""
    plan = results.plan
    styles = charts.style_of([o["label"] for o in plan.optimizers])
    body = [
        f"<h1>{escape(plan.title)}</h1>",
        f'<p class="facts">{escape(headline(results))}</p>',
        '<section class="summary"><ul>'
        + "".join(f"<li>{s}</li>" for s in sentences(results, tables))
        + "</ul></section>",
        _legend(styles),
    ]
    for task, one in zip(plan.tasks, tables, strict=True):
        body += _task(results, task, one, styles)
    body.append(ladder.section(results, styles))
    if analysis is not None:
        body.append(sections.statistics(analysis, {one.task: one.decimals for one in tables}))
        body.append(sections.speedups(analysis))
        body.append(sections.profiles(analysis, styles))
    body += [
        sections.protocol(protocol, styles),
        differs.configurations(results),
        _failures(results),
        _environment(results),
        _again(results),
        f"<h2>How to read it</h2><p>{escape(table.note(results))}</p>"
        "<p>Curves show the mean over seeds, bands reach from the lowest to the highest seed, and a cross ends a run "
        "that failed. Accuracies beyond 0.9 are drawn on the logarithm of the error, so that 0.98 and 0.99 stay "
        "apart. In the plot of differences, intervals without a verdict are pale, "
        "and an arrow marks one that leaves the panel.</p>",
        '<div id="tip" role="status"></div>',
    ]
    script = f"\n{_asset('report.js')}"
    policy = POLICY.format(hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())
    # The lines of the style sheet are kept as they are: the report is also read as source.
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(plan.title)}</title>\n<style>\n{_asset('report.css')}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{script}</script>\n</body></html>\n"
    )


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _legend(styles: Mapping[str, str]) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-k="{i}">{_swatch(style)}{escape(label)}</button>'
        for i, (label, style) in enumerate(styles.items())
    )
    return f'<nav class="legend" title="Click: hide or show. Double click: this one alone.">{buttons}</nav>'


def _swatch(style: str) -> str:
    return f'<svg class="swatch {style}" viewBox="0 0 22 8" aria-hidden="true"><path class="line" d="M0 4H22"/></svg>'


def _task(results: Results, task: Mapping[str, Any], one: TaskTable, styles: Mapping[str, str]) -> list[str]:
    share = _is_share(task, one.metric)
    rows = [
        charts.ForestRow(
            row.optimizer,
            list(row.units.values()),
            row.mean,
            row.comparison.difference if row.comparison else None,
            row.verdict,
            "" if row.mean.n else row.state,
        )
        for row in one.rows
    ]
    plot = charts.forest(rows, styles, words(one.metric), one.baseline, share)
    parts = [f"<h2>{escape(one.task + one.suffix)}</h2>", f'<p class="facts">{escape(_facts(results, task))}</p>']
    if plot:
        name = _file_name(one.task, "result")
        parts.append(
            f"<figure><figcaption><span>Result</span>{_save(name)}</figcaption>"
            f'<div class="scroll">{plot}</div></figure>'
        )
    parts.append(_result_table(one, styles))
    histories = Histories(results, task)
    stem = one.metric.removeprefix("test_")
    figures = []
    for key, caption, note in (
        ("train_loss", "Training loss", ""),
        ("validation_loss", "Validation loss", ""),
        (f"validation_{stem}", f"Validation {stem}", "higher is better" if one.greater else "lower is better"),
        ("effective_lr", "Effective learning rate", "the rate times what the rule itself adapts"),
    ):
        if key == "validation_loss" and stem == "loss":
            continue
        drawing = charts.lines(
            caption, histories.curves(key), styles, share=_is_share(task, key), log=key == "effective_lr"
        )
        figures += [_figure(one, caption, note, key, drawing)] if drawing else []
    for against, name in histories.kinds().items():
        drawing = charts.lines("Training loss", histories.over("train_loss", against), styles, x_name=name)
        figures += [_figure(one, "Training loss", f"over {name}", f"loss-{against}", drawing)] if drawing else []
    parts.append(f'<div class="grid2">{"".join(figures)}</div>')
    parts.append(f'<div class="grid2"><div>{_others(one, styles)}</div><div>{_costs(one, styles)}</div></div>')
    parts += [sections.extra(results, task, one), sections.samples(results, task)]
    return parts


def _figure(one: TaskTable, caption: str, note: str, key: str, drawing: str) -> str:
    return (
        f"<figure><figcaption><span>{escape(caption)} <small>{note}</small></span>"
        f"{_save(_file_name(one.task, key))}</figcaption>{drawing}</figure>"
    )


def _is_share(task: Mapping[str, Any], metric: str) -> bool:
    return (declared(task, metric) or (False, ""))[1] == "share"


def _save(name: str) -> str:
    buttons = "".join(f'<button type="button" data-kind="{kind.lower()}">{kind}</button>' for kind in ("SVG", "PNG"))
    return f'<span class="save" data-name="{name}">save as {buttons}</span>'


def _file_name(*parts: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", " ".join(parts)).strip("-").lower()


def _facts(results: Results, task: Mapping[str, Any]) -> str:
    """One line about the task: what was trained on what, for how long."""
    here = [
        results.records[run.id] for run in results.plan.runs if run.task == task["label"] and run.id in results.records
    ]
    fine = [record for record in here if record["status"] == "ok"]
    facts = [f"{task['title']}, {task['task']}/{task['model']}, size {task['size']}"]
    notes = sorted({str(r["data"].get("note") or r["data"].get("name")) for r in fine if r.get("data")})
    facts += notes[:2]
    steps = sorted({r["time"].get("steps") for r in fine} - {None})
    facts += [f"{steps[0]} steps" if len(steps) == 1 else f"{steps[0]} to {steps[-1]} steps"] if steps else []
    sizes = sorted({r["memory"].get("parameters") for r in fine} - {None})
    facts += [f"{sizes[0]:,} parameters"] if len(sizes) == 1 else []
    if task.get("schedule"):
        facts.append(
            "schedule " + ", ".join(f"{k} {v}" if k != "name" else str(v) for k, v in task["schedule"].items())
        )
    facts += [f"{k} {v}" for k, v in (task.get("overrides") or {}).items() if k != "steps"]
    return " · ".join(facts)


def _name_cell(label: str, styles: Mapping[str, str]) -> str:
    return f"<td>{_swatch(styles[label])}{escape(label)}</td>"


def _result_table(one: TaskTable, styles: Mapping[str, str]) -> str:
    cells = [table.result_cells(one, row) for row in one.rows]
    if not cells:
        return ""
    names = [n for n in cells[0] if n != "optimizer"]
    lines = []
    for row, texts in zip(one.rows, cells, strict=True):
        line = _name_cell(row.optimizer, styles)
        kinds = {"better": "better", "worse": "worse", "equivalent": "equivalent", row.state or None: "bad"}
        for name in names:
            kind = kinds.get(texts[name])
            line += f'<td class="{kind}">{escape(texts[name])}</td>' if kind else f"<td>{escape(texts[name])}</td>"
        line += f"<td>{_win_rate(row)}</td>"
        lines.append(f'<tr class="base">{line}</tr>' if row.optimizer == one.baseline else f"<tr>{line}</tr>")
    return html_table(["optimizer", *(words(n) if n == one.metric else n.strip() for n in names), "P(better)"], lines)


def _others(one: TaskTable, styles: Mapping[str, str]) -> str:
    shown = [name for name in table.OTHERS if name != one.metric and any(row.others[name].n for row in one.rows)]
    if not shown:
        return ""
    lines = [
        f"<tr>{_name_cell(row.optimizer, styles)}"
        + "".join(f"<td>{table.spread(row.others[n], one.decimals)}</td>" for n in shown)
        + "</tr>"
        for row in one.rows
    ]
    note = (
        "Gaps are test minus train for losses and train minus test for accuracies, the train side in evaluation mode."
    )
    return f'<h3>Losses and gaps</h3>{html_table(["optimizer", *map(words, shown)], lines)}<p class="soft">{note}</p>'


def _win_rate(row: Row) -> str:
    c = row.comparison
    return "–" if c is None or math.isnan(c.better) else f"{c.better:.2f} [{c.better_low:.2f}, {c.better_high:.2f}]"


def _costs(one: TaskTable, styles: Mapping[str, str]) -> str:
    keys = [k for k in COSTS if any(not math.isnan(row.costs[k]) for row in one.rows)]
    if not keys:
        return ""
    most = {k: max(row.costs[k] for row in one.rows if not math.isnan(row.costs[k])) for k in keys}
    lines = []
    for row in one.rows:
        line = _name_cell(row.optimizer, styles)
        for k in keys:
            value = row.costs[k]
            share = value / most[k] if value >= 0 and most[k] > 0 else 0.0
            line += (
                f'<td>{table.cost_text(k, value)}<span class="bar"><i style="width:{100 * share:.0f}%"></i></span></td>'
            )
        lines.append(f"<tr>{line}</tr>")
    return (
        f"<h3>Time and memory</h3>{html_table(['optimizer', *(COSTS[k][2] for k in keys)], lines)}"
        '<p class="soft">Medians over seeds. Runs may have shared the machine: compare within this table only. '
        "Memory is the optimizer's state.</p>"
    )


def _failures(results: Results) -> str:
    failures = results.failures()
    missing = [run for run in results.plan.runs if run.id not in results.records]
    unreadable = results.unreadable()
    if not failures and not missing and not unreadable:
        return ""
    lines = "".join(
        f'<tr><td>{escape(run.task)}</td><td class="left">{escape(run.optimizer)}</td><td>{escape(run.seed)}</td>'
        f'<td class="wide">{escape(why)}</td><td><code>{escape(run.id)}</code></td></tr>'
        for run, why in failures
    )
    text = "<h2>Failures</h2>"
    if failures:
        head = '<th>task</th><th class="left">optimizer</th><th>seed</th><th class="left">reason</th><th>run</th>'
        text += f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    if unreadable:
        text += "<p>Not readable, and left out:</p><ul>"
        text += "".join(f"<li>{escape(describe(run))}: {escape(why)}</li>" for run, why in unreadable) + "</ul>"
    if missing:
        count = f"{len(missing)} of {len(results.plan.runs)}"
        text += f'<p class="bad">{count} planned runs have no record: the study is not finished.</p>'
    return text


def _environment(results: Results) -> str:
    seen: dict[str, Counter[str]] = {}
    prints: set[str] = set()
    for record in results.records.values():
        for key, value in (record.get("environment") or {}).items():
            seen.setdefault(key, Counter())[str(value)] += 1
        data = record.get("data") or {}
        if data:
            prints.add(f"{data.get('name')} (sha256 {str(data.get('fingerprint'))[:12]})")
    lines = "".join(
        f'<tr><td>{escape(key)}</td><td class="left">{escape(_counted(values))}</td></tr>'
        for key, values in seen.items()
    )
    lines += f'<tr><td>data</td><td class="left">{escape(", ".join(sorted(prints)))}</td></tr>' if prints else ""
    return f'<h2>Environment</h2><div class="scroll"><table><tbody>{lines}</tbody></table></div>' if lines else ""


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return ", ".join(f"{value} ({count} runs)" for value, count in sorted(values.items()))


def _again(results: Results) -> str:
    plan = results.plan
    try:
        text = read_text(results.folder, "study.yaml")
    except (OSError, ValueError):
        text = ""
    plain = not plan.repetitions and len(plan.looks) == 1 and plan.seeds == tuple(range(len(plan.seeds)))
    command = "hf-optim study study.yaml" + (f" --seeds {len(plan.seeds)}" if plain else "")
    return (
        "<h2>Do it again</h2><p>Save the text below as <code>study.yaml</code> and run it; in the study's own folder "
        "the same command only makes what is missing.</p>"
        f"<pre>{escape(command)}</pre><details><summary>study.yaml</summary><pre>{escape(text)}</pre></details>"
    )
