"""A page for every run, beside the report: settings, figures, curves, samples, log, and the run's own files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_optim.core.safe_text import html as escape
from hf_optim.experiment.files import opened, own_folder, read_bytes, remove, write_atomically
from hf_optim.experiment.leftovers import sweep
from hf_optim.experiment.record import RECORD
from hf_optim.study.folder.results import Results, describe
from hf_optim.study.folder.searches import validation_metric
from hf_optim.study.folder.store import number
from hf_optim.study.plan.plan import Run, flatten
from hf_optim.study.report import samples
from hf_optim.study.report.document import document

FOLDER = "pages"
#: of a log, the last bytes; of samples, so many files and bytes; of curves, what a reader looks for first
MOST_LOG, MOST_SAMPLES, MOST_BYTES = 20_000, 12, 400_000
FIRST = ("train_loss", "validation_loss", "validation_accuracy", "effective_lr", "lr")


def link(results: Results, run_id: str, text: str = "", kind: str = "") -> str:
    """A link to the page of a run with a record; its id alone for another."""
    if results.store.record(run_id) is None:
        return f"<code>{escape(run_id)}</code>"
    of_kind = f' class="{kind}"' if kind else ""
    return f'<a{of_kind} href="{FOLDER}/{escape(run_id)}.html">{escape(text or run_id)}</a>'


def parts(results: Results) -> Iterator[Callable[[], object]]:
    """What writes the pages, piece by piece: the page of every run that has a record, unless it is there as it is."""
    yield partial(_make_room, results.folder)
    style = (files(__package__) / "run_page.css").read_text(encoding="utf-8")
    judged = {run.id for run in results.plan.runs}
    for run in results.known:
        if (record := results.store.record(run.id)) is None:
            continue
        name = f"{run.id}.html"
        text = document(describe(run), style, list(_body(results, run, record, run.id in judged)))
        if not _stands(results, name, text):
            yield partial(write_atomically, results.folder, f"{FOLDER}/{name}", text)


def _make_room(folder: Path) -> None:
    """The folder of the pages. A link in its place goes, as one in the place of a file does: the report, which we have
    written, would lead through it to pages that others have.
    """
    if (folder / FOLDER).is_symlink():
        remove(folder, FOLDER)
    sweep(own_folder(folder, FOLDER))


def _counts(results: Results, run: Run, record: Mapping[str, Any]) -> str:
    """Of a judged run that finished and counts as failed, why; else empty."""
    if run.id not in results.in_vain:
        return ""
    metric = validation_metric(next(task for task in results.plan.tasks if task["label"] == run.task))
    before, after = results.store.untrained(run.id, metric), _text(record["metrics"].get(metric))
    told = f"It counts as failed: {metric} is {after}, no better than untrained ({_text(before)})."
    return f'<p class="bad">{escape(told)}</p>'


def _stands(results: Results, name: str, text: str) -> bool:
    try:
        return read_bytes(results.folder, f"{FOLDER}/{name}") == text.encode()
    except OSError:
        return False


def _body(results: Results, run: Run, record: Mapping[str, Any], judged: bool) -> Iterator[str]:
    yield f'<nav><a href="../report.html">{escape(results.plan.title)}</a></nav><main><h1>{escape(describe(run))}</h1>'
    if record["status"] == "ok":
        primary = (record.get("primary") or {}).get("name")
        value = f": {escape(primary)} {_text(record['metrics'].get(primary))}" if primary else ""
        yield f"<p>finished{value}</p>{_counts(results, run, record) if judged else ''}"
    else:
        yield f'<p class="bad">failed: {escape(record.get("error") or "no reason recorded")}</p>'
    home = f"../runs/{escape(run.id)}"
    yield f'<p>Files: <a href="{home}/{RECORD}">{RECORD}</a>'
    if (history := record.get("history")) == "history.jsonl":
        yield f' · <a href="{home}/{history}">{history}</a>'
    yield "</p>"
    rows = results.history(run)
    yield f'<h2>History</h2><div class="curves">{"".join(_curves(rows))}</div>' if rows else ""
    yield from _samples(results, run, record)
    yield _table("Settings", flatten(run.spec))
    for place in ("metrics", "time", "memory", "execution", "data", "environment", "code"):
        yield _table(place.capitalize(), record.get(place) or {})
    yield _table("Run", {"id": run.id, "started": record.get("started"), "finished": record.get("finished")})
    if log := _log(results, run):
        yield f'<h2>Log</h2><pre tabindex="0">{escape(log)}</pre>'
    yield "</main>"


def _table(title: str, values: Mapping[str, Any]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(k)}</th><td>{_text(v)}</td></tr>' for k, v in values.items() if v is not None
    )
    at = title.lower()
    table = f'<table aria-labelledby="{at}"><tbody>{lines}</tbody></table>'
    return f'<h2 id="{at}">{title}</h2>{table}' if lines else ""


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return escape(json.dumps(value) if isinstance(value, list | dict) else "–" if value is None else value)


def _curves(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A small curve for every figure of the history, those that are read first in front."""
    names = dict.fromkeys(k for row in rows for k in row if k not in ("step", "epoch"))
    for name in [*(n for n in FIRST if n in names), *(n for n in names if n not in FIRST)][:12]:
        points = [(number(row.get("step")), number(row.get(name))) for row in rows]
        points = [(s, v) for s, v in points if s == s and abs(v) < 1e300]
        if len(points) < 2:
            continue
        stride = max(1, len(points) // 120)
        points = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
        (low, high), (first, end) = _range(v for _, v in points), _range(s for s, _ in points)
        at = [
            f"{250 * (s - first) / ((end - first) or 1):.0f} {8 + 84 * (high - v) / ((high - low) or 1):.1f}"
            for s, v in points
        ]
        shown = f"{name.replace('_', ' ')}: {points[0][1]:.4g} to {points[-1][1]:.4g}"
        yield (
            f"<figure><figcaption>{escape(shown)}</figcaption>"
            f'<svg viewBox="0 0 252 112" role="img" aria-label="{escape(shown)}"><path d="M{"L".join(at)}"/>'
            f'<text x="0" y="110">step {first:.15g}</text><text x="250" y="110" text-anchor="end">{end:.15g}</text>'
            "</svg></figure>"
        )


def _range(values: Iterator[float]) -> tuple[float, float]:
    every = list(values)
    return min(every), max(every)


def _samples(results: Results, run: Run, record: Mapping[str, Any]) -> Iterator[str]:
    """What the run generated, pictures as data and texts as text, as far as MOST_BYTES reach."""
    left, shown = MOST_BYTES, []
    for name in sorted(record.get("samples") or ())[-MOST_SAMPLES:]:
        if (sample := samples.read(results, run, name, left)) is None:
            continue
        file, content = sample
        left -= len(content)
        if drawn := samples.picture(file, content, file.name) or samples.text(file, content, 8000):
            shown.append(f"<figure><figcaption>{escape(file.name)}</figcaption>{drawn}</figure>")
    if shown:
        yield f"<h2>Samples</h2>{''.join(shown)}"


def _log(results: Results, run: Run) -> str:
    """The end of what the run printed."""
    try:
        with opened(results.folder, f"runs/{run.id}/log.txt") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LOG))
            return file.read(MOST_LOG).decode("utf-8", errors="replace")
    except OSError:
        return ""
