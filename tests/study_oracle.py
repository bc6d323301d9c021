"""What a study's tables and report are to say, worked out anew from its records by numpy and scipy."""

from __future__ import annotations

import csv
import html
import itertools
import json
import math
import re
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from hf_optim.study.folder.changes import read_plan


class Tables(HTMLParser):
    """The cells of a page's tables, by their kind: `rows[i]` are lists of texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img", "input", "hr", "path", "line", "rect", "circle", "use"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append((dict(attrs).get("class") or "", []))
        elif tag == "tr" and self.tables:
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes something else"
        if tag in ("td", "th") and self.cell is not None:
            self.tables[-1][1][-1].append("".join(self.cell))
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.cell is not None:
            self.cell.append(data)
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def judged(folder: Path) -> dict[tuple[str, str], list[dict[str, str]]]:
    """The rows of runs.csv by task and optimizer."""
    cells = defaultdict(list)
    with open(folder / "runs.csv", newline="") as file:
        for row in csv.DictReader(file):
            cells[uncell(row["task"]), uncell(row["optimizer"])].append(row)
    return cells


def uncell(text: str) -> str:
    """A cell's text without the apostrophe that keeps it from being a formula."""
    return text[1:] if text.startswith("'") else text


def figure(value: Any) -> float:
    """A number of a record that a study counts; NaN where there is none."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def near(a: float, b: float) -> bool:
    """Whether two numbers are the same but for the last of twelve digits, or there is neither."""
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-300)


def number(text: str) -> float:
    return float(text) if text else math.nan


def check_numbers(folder: Path) -> None:
    """table.csv says of every cell what its records say, worked out by numpy and scipy."""
    plan = read_plan(folder)
    runs = judged(folder)
    order = {seed: i for i, seed in enumerate(plan.seeds)}
    with open(folder / "table.csv", newline="") as file:
        lines = {(uncell(row["task"]), uncell(row["optimizer"])): row for row in csv.DictReader(file)}
    assert set(lines) == {(task["label"], label) for task, label, _ in plan.cells()}
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for cell, line in lines.items():
        units: dict[int, list[float]] = defaultdict(list)
        counts = dict.fromkeys(("ok", "failed", "missing"), 0)
        for run in runs.get(cell, ()):
            file = folder / "runs" / run["id"] / "record.json"
            record = json.loads(file.read_text()) if file.exists() else None
            assert (run["status"] == "missing") == (record is None)
            if record is not None:
                assert (record["seed"] if "seed" in record else int(run["seed"])) == int(run["seed"])
            value = math.nan
            if record is not None and record["status"] == "ok" and run["status"] == "ok":
                value = figure(record["metrics"].get(line["metric"]))
                assert near(value, number(run[line["metric"]]))
            counts["missing" if record is None else "failed" if math.isnan(value) else "ok"] += 1
            units[order[int(run["seed"])] // plan.per_unit].append(value)
        said = tuple(int(line[key]) for key in ("planned", "finished", "failed", "missing"))
        assert said == (len(runs.get(cell, ())), counts["ok"], counts["failed"], counts["missing"]), cell
        known = [[v for v in some if not math.isnan(v)] for some in units.values()]
        means = [float(np.mean(some)) for some in known if some]
        assert near(number(line["mean"]), float(np.mean(means)) if means else math.nan), (cell, line["mean"], means)
        if len(means) > 1:
            size = max(map(abs, means))
            assert math.isclose(number(line["sd"]), np.std(means, ddof=1), rel_tol=1e-6, abs_tol=1e-9 * size)
        values[cell] = units
    for (task, label), line in lines.items():
        check_comparison(plan, line, values.get((task, label), {}), values.get((task, plan.baseline), {}))


def check_comparison(
    plan: Any, line: dict[str, str], mine: dict[int, list[float]], other: dict[int, list[float]]
) -> None:
    """The paired difference, and a verdict that agrees with its interval and its p."""
    verdict = line["verdict"].removesuffix(" (exploratory)")
    greater = line["greater_is_better"] == "1"
    low, high, p = (number(line[key]) for key in ("difference_low", "difference_high", "p_corrected"))
    difference = number(line["difference"])
    if verdict in ("better", "worse"):
        assert p < 0.05 and ((low > 0) if (verdict == "better") == greater else (high < 0))
        assert low <= difference <= high
    elif verdict == "equivalent":
        margin = number(line["margin"])
        assert -margin < low <= high < margin and number(line["p_equivalent_corrected"]) < 0.05
    elif verdict == "undecided":
        assert not p < 0.05 and (low <= 0 <= high or difference == 0 and math.isnan(low))
    count = int(line["units"] or 0)
    pairs = [(mine[u], other[u]) for u in sorted(mine.keys() & other.keys())][:count]
    assert len(pairs) == count
    flat = [v for pair in pairs for some in pair for v in some]
    if not count or any(map(math.isnan, flat)) or math.isnan(difference):
        return
    a, b = ([float(np.mean(pair[i])) for pair in pairs] for i in (0, 1))
    size = max(map(abs, flat))
    assert math.isclose(difference, np.mean(np.subtract(a, b)), rel_tol=1e-6, abs_tol=1e-9 * size)
    raw = number(line["p"])
    if count > 1 and not math.isnan(raw) and np.std(np.subtract(a, b), ddof=1) > 1e-6 * size:
        with np.errstate(all="ignore"):
            exact = float(stats.ttest_rel(np.divide(a, size), np.divide(b, size)).pvalue)
        # Half a grain of a counted metric is the least deviation, which only makes p larger.
        arms = [[v for some in arm.values() for v in some if not math.isnan(v)] for arm in (mine, other)]
        grid = [all(abs(20 * v - round(20 * v)) < 0.01 for v in arm) for arm in arms]
        assert raw > exact * (1 - 1e-5) - 1e-12 and (any(grid) or raw < exact * (1 + 1e-5) + 1e-12), (raw, exact)


def check_sentences(text: str) -> None:
    """The word of every verdict in words is that of the interval and the p behind it."""
    parts = re.split(r": (?=(?:better|worse|equivalent|undecided)\b(?! on \d))", text)[1:]
    for part in parts:
        word = part.split()[0].strip(";,.")
        numbers = re.search(r"[+-][\d.]+ \[([+-][\d.]+), ([+-][\d.]+)\], p ([<=]) ([\d.]+)", part)
        if numbers is None:
            continue
        outside, p = float(numbers[1]) > 0 or float(numbers[2]) < 0, float(numbers[4])
        if word in ("better", "worse"):
            assert outside and (numbers[3] == "<" or p < 0.05), part
        elif word == "undecided":
            assert not outside and numbers[3] == "=" and p >= 0.05, part


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def check_plain(text: str) -> None:
    """No word of a program where a reader looks for a number."""
    odd = re.search(r"(?s).{0,60}(\b(nan|None|inf|NaN)\b(?! at step)|\[–, –\]|\be[+-]\d+\b).{0,40}", text)
    assert not odd, odd


def whole_page(text: str) -> str:
    """The text of a page whose tags all close."""
    page = Tables()
    page.feed(text)
    page.close()
    assert not page.open and text.rstrip().endswith("</html>"), page.open
    return " ".join(page.text)


def check_report(folder: Path) -> None:
    """HTML and Markdown say the same of every cell, and what CSV says to so many digits."""
    page = Tables()
    text = (folder / "report.html").read_text()
    page.feed(text)
    page.close()
    assert not page.open and text.rstrip().endswith("</html>")
    for script in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL):
        strict(script)
    for sentence in strict((folder / "statistics.json").read_text())["verdicts"]:
        check_sentences(sentence)
        assert "".join(sentence.split()) in "".join("".join(page.text).split())
    check_plain(" ".join(page.text))
    for file in folder.glob("*.md"):
        check_plain(file.read_text())
    for file in folder.glob("pages/*.html"):
        check_plain(whole_page(file.read_text()))
    shown = [rows for kind, rows in page.tables if "result" in kind.split()]
    with open(folder / "table.csv", newline="") as file:
        lines = [*csv.DictReader(file)]
    tables = [[*some] for _, some in itertools.groupby(lines, key=lambda line: line["task"])]
    shown = [rows for rows in shown if len(rows) > 1]
    assert len(shown) == len(tables)
    marked = markdown_tables((folder / "table.md").read_text())
    assert len(marked) == len(tables)
    for (head, *rows), some, (marks, *marked_rows) in zip(shown, tables, marked, strict=True):
        assert len(rows) == len(some) == len(marked_rows)
        for cells, line, marked_cells in zip(rows, some, marked_rows, strict=True):
            page_cells, mark = dict(zip(head, cells, strict=True)), dict(zip(marks, marked_cells, strict=True))
            assert page_cells["optimizer"].strip() == uncell(line["optimizer"])
            assert (page_cells["verdict"] == mark["verdict"] == line["verdict"]) or page_cells[
                "verdict"
            ] == "–" == mark["verdict"]
            for name in ("n", "95 % CI", "its interval", "p"):
                assert page_cells[name] == mark[name], name
            mean = next(v for k, v in page_cells.items() if k.endswith(("↑", "↓")))
            assert mean == next(v for k, v in mark.items() if k.endswith(("↑", "↓")))
            if line["mean"]:
                digits = re.match(r"(-?[\d.]+)(?:e([-+]?\d+))?", mean)
                assert digits, mean
                last = int(digits[2] or 0) - len(digits[1].partition(".")[2])
                assert math.isclose(float(digits[0]), float(line["mean"]), abs_tol=0.51 * 10.0**last, rel_tol=1e-12)


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The cells of a Markdown file's result tables: those that tell a verdict."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|-: "):
            if not before.startswith("|"):
                tables.append([])
            plain = re.sub(r"\\(.)", lambda match: match[1] if match[1] != "|" else "\0", line)
            tables[-1].append([unescaped(cell.strip()) for cell in plain.strip("|").split("|")])
        before = line
    return [rows for rows in tables if "verdict" in rows[0]]


def unescaped(text: str) -> str:
    return html.unescape(text).replace("\0", "|")


def table_of(file: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of a CSV file by task and optimizer."""
    with open(file, newline="") as text:
        return {(row["task"], row["optimizer"]): row for row in csv.DictReader(text)}


def same_tables(a: Path, b: Path) -> None:
    """Two folders' table.csv, whatever the order of their lines."""
    tables = [table_of(folder / "table.csv") for folder in (a, b)]
    assert tables[0].keys() == tables[1].keys()
    for cell, row in tables[0].items():
        for key, value in row.items():
            other = tables[1][cell][key]
            if value != other and not (key == "exploratory" and other):
                size = max(1e-300, abs(number(row["mean"])) if row["mean"] else 1)
                assert math.isclose(float(value), float(other), rel_tol=1e-9, abs_tol=1e-12 * size), (
                    cell,
                    key,
                    value,
                    other,
                )
