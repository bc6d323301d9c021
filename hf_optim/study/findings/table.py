"""The result tables of a study: one row for each optimizer on each task, and the text of its cells."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.core.definitions import own_definitions
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.statistics.paired import MOST_SEEDS, NAN, Comparison, Summary, compare, summarise

# Shown beside the primary metric where the records have them.
OTHERS = ("test_loss", "train_loss", "loss_gap", "accuracy_gap")
COSTS = {
    "step_ms": ("time", "step_ms_median", "ms a step"),
    "optimizer_ms": ("time", "optimizer_ms_median", "of it optimizer"),
    "train_seconds": ("time", "train_seconds", "training s"),
    "state_bytes": ("memory", "optimizer_state_bytes", "optimizer state"),
}
NOTE = (
    "± is the standard deviation over seeds; CI the 95 % t-interval of the mean; the difference is paired by seed, "
    "with its own 95 % t-interval; p is from the paired t-test after Holm's correction over all {tests} comparisons of "
    "the study; a verdict needs p < 0.05. “Equivalent” needs a margin stated in the study's YAML: the whole interval "
    "lies within it, after the same correction. A verdict speaks of the tasks and sizes that were run and of no "
    "others: one at size small says nothing about size paper. ● marks the best mean and every optimizer that no paired "
    "t-test tells from it, after Holm's correction over all pairs of the study. “seeds” is how many would decide a "
    "difference as large as the one observed (80 % power, at the corrected level) or, with a margin, show equivalence. "
    "An optimizer with a failed run has no mean: without its failures it would look too good. P(better) is the "
    "share of seeds on which it beats the baseline, ties counting half, with its 95 % interval; it gives no verdict."
)


@dataclass(frozen=True)
class Row:
    """One optimizer on one task. `values` maps seeds to the primary metric; `mean` has n = 0 if any run failed."""

    optimizer: str
    planned: int
    failed: int
    missing: int
    values: Mapping[int, float]
    mean: Summary
    comparison: Comparison | None
    others: Mapping[str, Summary]
    costs: Mapping[str, float]
    #: has the best mean of its task, or cannot be told from the one that has
    tied: bool = False

    @property
    def state(self) -> str:
        """What stands in place of a mean: "1/3 runs failed"; empty where there is one."""
        if self.failed:
            return f"{self.failed}/{self.planned} runs failed"
        return "" if self.values else "not run"

    @property
    def verdict(self) -> str:
        """The comparison's verdict; empty for the baseline."""
        if self.failed:
            return "no verdict"
        return self.comparison.verdict if self.comparison else ""


@dataclass(frozen=True)
class TaskTable:
    """One task's rows, best first; those without a mean come last."""

    task: str
    title: str
    metric: str
    greater: bool
    baseline: str
    rows: tuple[Row, ...]
    #: "label: definition" for every piece that a paper names without a formula and an optimizer here uses
    ours: tuple[str, ...] = ()
    size: str = ""

    @property
    def decimals(self) -> int:
        """How many decimals the metric is shown with."""
        largest = max((abs(v) for row in self.rows for v in row.values.values()), default=1.0)
        return 4 if largest < 10 else 3 if largest < 100 else 1


def build(results: Results) -> list[TaskTable]:
    """The tables of every task; comparisons are corrected over the whole study."""
    plan = results.plan
    made: list[tuple[Mapping[str, Any], list[dict[str, Any]]]] = []
    for task in plan.tasks:
        rows = [_row(results, task, o["label"]) for o in plan.optimizers if o["label"] in task["only"]]
        made.append((task, rows))
    asked: list[tuple[dict[str, Any], list[tuple[float, float]], bool]] = []
    margins: list[float] = []
    ours = tuple(f"{o['label']}: {text}" for o in plan.optimizers for text in own_definitions(o["spec"]))
    for task, rows in made:
        base = next((r for r in rows if r["optimizer"] == plan.baseline), None)
        for row in rows:
            if base is None or row is base:
                continue
            usable = not row["failed"] and not base["failed"]
            shared = [s for s in row["values"] if s in base["values"]] if usable else []
            pairs = [(row["values"][s], base["values"][s]) for s in shared]
            asked.append((row, pairs, bool(task["primary"]["greater_is_better"])))
            margins.append((plan.margin or {}).get(task["label"], NAN))
    compared = compare([p for _, p, _ in asked], [g for _, _, g in asked], margins)
    for (row, _, _), one in zip(asked, compared, strict=True):
        row["comparison"] = one
    _mark_ties(made)
    tables = []
    for task, rows in made:
        greater = bool(task["primary"]["greater_is_better"])
        final = sorted((Row(**row) for row in rows), key=lambda r: _rank(r, greater))
        name, rows_ = task["primary"]["name"], tuple(final)
        tables.append(
            TaskTable(task["label"], task["title"], name, greater, plan.baseline, rows_, ours, task.get("size", ""))
        )
    return tables


def _mark_ties(made: Sequence[tuple[Mapping[str, Any], Sequence[dict[str, Any]]]]) -> None:
    from hf_optim.study.statistics.ties import tied_with_best  # numpy, which listing studies does not need

    whole = [{r["optimizer"]: r["values"] for r in rows if r["values"] and not r["failed"]} for _, rows in made]
    directions = [bool(task["primary"]["greater_is_better"]) for task, _ in made]
    for (_, rows), tied in zip(made, tied_with_best(list(zip(whole, directions, strict=True))), strict=True):
        for row in rows:
            row["tied"] = row["optimizer"] in tied


def _rank(row: Row, greater: bool) -> tuple[int, float]:
    if row.mean.n == 0:
        return 1, 0.0
    return 0, -row.mean.mean if greater else row.mean.mean


def _row(results: Results, task: Mapping[str, Any], optimizer: str) -> dict[str, Any]:
    metric = task["primary"]["name"]
    values: dict[int, float] = {}
    fine: list[Mapping[str, Any]] = []
    planned = failed = missing = 0
    for run, record in results.runs(task["label"], optimizer):
        planned += 1
        if record is None:
            missing += 1
            continue
        value = number(record["metrics"].get(metric))
        if record["status"] != "ok" or math.isnan(value):
            failed += 1
            continue
        values[run.seed] = value
        fine.append(record)
    whole = [] if failed else fine
    return {
        "optimizer": optimizer,
        "planned": planned,
        "failed": failed,
        "missing": missing,
        "values": values,
        "mean": summarise([] if failed else list(values.values())),
        "comparison": None,
        "others": {name: summarise(_numbers(whole, "metrics", name)) for name in OTHERS},
        "costs": {key: _median(_numbers(fine, place, name)) for key, (place, name, _) in COSTS.items()},
    }


def _numbers(records: Sequence[Mapping[str, Any]], place: str, name: str) -> list[float]:
    found = [number((record.get(place) or {}).get(name)) for record in records]
    return [] if any(math.isnan(x) for x in found) else found


def _median(values: Sequence[float]) -> float:
    return plain_statistics.median(values) if values else math.nan


def tests_made(tables: Sequence[TaskTable]) -> int:
    """How many paired t-tests Holm's correction counted."""
    return sum(1 for t in tables for r in t.rows if r.comparison and not math.isnan(r.comparison.p))


# --- the text of single cells ---


def signed(value: float, decimals: int) -> str:
    """+0.0120, -0.0031, or a dash for NaN."""
    # Adding zero turns a rounded -0.0 into 0.0.
    return "–" if math.isnan(value) else f"{round(value, decimals) + 0.0:+.{decimals}f}"


def plain_number(value: float, decimals: int) -> str:
    """0.9120, or a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{decimals}f}"


def spread(summary: Summary, decimals: int) -> str:
    """0.9120 ± 0.0031; without a spread the mean alone; a dash without values."""
    if summary.n == 0:
        return "–"
    return plain_number(summary.mean, decimals) + (f" ± {summary.sd:.{decimals}f}" if summary.n > 1 else "")


def interval(summary: Summary, decimals: int, sign: bool = False) -> str:
    """[0.9043, 0.9197]; a dash without one."""
    write = signed if sign else plain_number
    return "–" if math.isnan(summary.low) else f"[{write(summary.low, decimals)}, {write(summary.high, decimals)}]"


def p_text(p: float) -> str:
    """0.031, <0.001, or a dash."""
    return "–" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def needed_text(comparison: Comparison | None) -> str:
    """How many seeds would decide; a dash where the question does not arise."""
    if comparison is None or comparison.verdict != "undecided" or math.isnan(comparison.p):
        return "–"
    return f"{comparison.seeds_needed}" if comparison.seeds_needed else f">{MOST_SEEDS}"


def size_text(count: float) -> str:
    """Bytes as 12.3 MB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if math.isnan(count) or count < 1000 or unit == "GB":
            return "–" if math.isnan(count) else f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def cost_text(key: str, value: float) -> str:
    """A cost with its unit's usual precision."""
    if key.endswith("bytes"):
        return size_text(value)
    return plain_number(value, 1 if key == "train_seconds" else 3 if value < 10 else 1)


def result_cells(table: TaskTable, row: Row) -> dict[str, str]:
    """A row of the result table as text, by column."""
    d, c = table.decimals, row.comparison
    difference = c.difference if c and c.pairs else summarise([])
    versus = "baseline" if row.optimizer == table.baseline else signed(difference.mean, d)
    # With one seed everything is tied, which is no news.
    top = {"top": "●" if row.tied else ""} if any(r.mean.n > 1 for r in table.rows) else {}
    return {
        "optimizer": row.optimizer,
        "n": str(len(row.values)) if len(row.values) == row.planned else f"{len(row.values)}/{row.planned}",
        table.metric: row.state or spread(row.mean, d),
        **top,
        "95 % CI": interval(row.mean, d),
        f"− {table.baseline}": versus,
        "95 % CI ": interval(difference, d, sign=True),
        "p": p_text(c.adjusted) if c else "–",
        "verdict": row.verdict or "–",
        "seeds": needed_text(c),
    }
