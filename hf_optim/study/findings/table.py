"""The result tables of a study: one row for each optimizer on each task."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_optim.core.definitions import own_definitions
from hf_optim.core.wording import both, counted
from hf_optim.experiment.own_training import MODEL as OWN
from hf_optim.study.findings import naming
from hf_optim.study.folder.outcomes import Arm
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.plan import Plan
from hf_optim.study.statistics.comparisons import Comparison
from hf_optim.study.statistics.paired import Summary, summarise, unit_mean

# Shown beside the primary metric where the records have them.
OTHERS = ("test_loss", "train_loss", "loss_gap", "accuracy_gap")
COSTS = {
    "forward": ("time", "forward_a_step", "forward passes a step"),
    "backward": ("time", "backward_a_step", "backward passes a step"),
    "step_ms": ("time", "step_ms_median", "ms a step"),
    "optimizer_ms": ("time", "optimizer_ms_median", "of it optimizer"),
    "train_seconds": ("time", "train_seconds", "training s"),
    "samples": ("time", "samples_per_second", "samples a second"),
    "tokens": ("time", "tokens_per_second", "tokens a second"),
    "flops": ("time", "flops_per_step", "FLOPs of a plain step"),
    "state_bytes": ("memory", "optimizer_state_bytes", "optimizer state"),
    "peak_bytes": ("memory", "peak_rss_bytes", "peak of the process"),
    "card_bytes": ("memory", "peak_card_bytes", "peak on the card"),
}
#: behind a verdict that nobody asked for beforehand
EXPLORATORY = " (exploratory)"
NOTE = """
A verdict needs p < 0.05, and comes at a planned look alone. p is from the paired t-test after the planned looks \
({looks}) and Holm's correction over the family ({tests} {family}). “Equivalent” needs a margin stated in the \
study's YAML and no failed run: the whole interval lies within it, after the same correction. A verdict speaks of the \
tasks and sizes that were run and of no others: one at size small says nothing about size paper.

n counts finished runs; ± is the standard deviation over {units}; CI the 95 % t-interval of the mean. The difference \
is paired by {unit}, and that of the look which decided, else of the last; its interval is as wide as its own verdict \
asks for, so that it leaves zero exactly where better or worse is said, and holds singly. P(better) is the share of \
{units} in which it beats the baseline, ties counting half, with its 95 % interval; it gives no verdict. “place” are \
the places that an optimizer can have, ● those that can be the best: from paired t-tests of all pairs, with 5 % of \
their own. They are more tests than those with the baseline and tell fewer apart, so that what is worse than the \
baseline may have ● still.

A run has failed if it ended in an error, without a number, or no better on validation than untrained; in a \
comparison it counts as the worst finished run of the two. Failures are compared by Fisher's test, with 5 % of their \
own. The mean of an optimizer with failures is that of its finished runs.

Deleted folders, and looks at records before a planned look, cannot be seen from here.
""".strip()


#: why an optimizer may be worse than the baseline and among those that can be the best
FEWER_APART = "tests of all pairs are more than those with the baseline and tell fewer apart"


@dataclass(frozen=True)
class Row:
    """One optimizer on one task. `values` maps seeds to the primary metric of the runs that finished, `units` units to
    their mean; `mean` is over units.
    """

    optimizer: str
    planned: int
    failed: int
    missing: int
    values: Mapping[int, float]
    units: Mapping[int, float]
    mean: Summary
    comparison: Comparison | None
    others: Mapping[str, Summary]
    costs: Mapping[str, float]
    baseline: bool = False
    #: as a verdict names it: with its search space and trials, or with its settings
    named: str = ""
    #: the first and the last place that it can have
    place: tuple[int, int] | None = None

    @property
    def state(self) -> str:
        """What stands in place of a mean, or beside one: "1/3 runs failed"; empty where all is well."""
        if self.failed:
            return f"{self.failed}/{counted(self.planned, 'run')} failed"
        return "" if self.values else "not run"

    @property
    def tied(self) -> bool:
        """Whether it can be the best of its task."""
        return self.place is not None and self.place[0] == 1

    @property
    def verdict(self) -> str:
        """The comparison's verdict; empty for the baseline, "not yet" before the first planned look."""
        if self.baseline:
            return ""
        if self.comparison is None:
            return "not yet"
        c = self.comparison
        return f"{c.verdict}{EXPLORATORY}" if c.exploratory and c.decided else c.verdict


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
    #: " (with these settings)" where the unit is a seed
    suffix: str = ""
    note: str = ""
    #: what is counted by n, in the plural: "seeds", "repetitions"
    unit: str = "seeds"

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return arrow(self.greater)

    @property
    def head(self) -> str:
        """The metric above its column: "test_loss ↓"."""
        return f"{self.metric} {self.arrow}"

    @property
    def decimals(self) -> int:
        """How many decimals the metric is shown with."""
        return _decimals([v for row in self.rows for v in row.values.values()])

    def decimals_of(self, name: str) -> int:
        """The same for one of `OTHERS`, which may be of quite another size."""
        return _decimals([row.others[name].mean for row in self.rows if row.others[name].n])


def for_readers(tables: Sequence[TaskTable], names: Mapping[str, str]) -> list[TaskTable]:
    """The tables with other names in place of the labels."""
    return [
        replace(
            table,
            baseline=names[table.baseline],
            rows=tuple(replace(row, optimizer=names[row.optimizer]) for row in table.rows),
        )
        for table in tables
    ]


def build(results: Results, names: Mapping[str, str] | None = None) -> list[TaskTable]:
    """The tables of every task, with the verdicts of the last complete look. `names` are what verdicts call the
    optimizers, where `results` are a part of a study, whose plan does not tell that of the whole.
    """
    plan, judgement = results.plan, results.standing.judgement
    ours = tuple(f"{o['label']}: {text}" for o in plan.optimizers for text in own_definitions(o["spec"]))
    names = names or {o["label"]: naming.named(plan, o["label"]) for o in plan.optimizers}
    below, tables = note(results), []
    for task in plan.tasks:
        label, greater = task["label"], bool(task["primary"]["greater_is_better"])
        places = judgement.places[label].sets if judgement else {}
        rows = []
        for optimizer in (o["label"] for o in plan.optimizers if o["label"] in task["only"]):
            compared = judgement.comparisons.get((label, optimizer)) if judgement else None
            rows.append(_row(results, task, optimizer, names[optimizer], compared, places.get(optimizer)))
        ranked = tuple(sorted(rows, key=lambda row: _rank(row, greater)))
        tables.append(
            TaskTable(
                task=label,
                title=task["title"],
                metric=task["primary"]["name"],
                greater=greater,
                baseline=plan.baseline,
                rows=ranked,
                ours=ours,
                size="" if task.get("model") == OWN else task.get("size", ""),
                suffix=naming.suffix(plan),
                note=below,
                unit=naming.unit(plan),
            )
        )
    return tables


def note(results: Results) -> str:
    """What stands below the tables: how the numbers came about, in paragraphs."""
    plan, judgement = results.plan, results.standing.judgement
    looks = f"{', '.join(map(str, plan.looks))} {naming.unit(plan, plan.looks[-1])}"
    tests = both(map(str, judgement.families if judgement else ())) or "0"
    scored = judgement is not None and judgement.family == "score"
    family = "scores, one an optimizer over all tasks" if scored else "comparison" if tests == "1" else "comparisons"
    text = NOTE.format(
        units=naming.unit(plan), unit=naming.unit(plan, 1), looks=looks, tests=tests, family=family
    )  # fmt: skip
    return f"{naming.scope(plan)}\n\n{text}"


def _decimals(values: Sequence[float]) -> int:
    largest = max(map(abs, values), default=1.0)
    return 3 + leading(largest) if 0 < largest < 0.1 else 4 if largest < 10 else 3 if largest < 100 else 1


def _rank(row: Row, greater: bool) -> tuple[int, float]:
    if row.mean.n == 0:
        return 2, 0.0
    # Failures are told from the mean, which does not hold them.
    return int(row.failed > 0), -row.mean.mean if greater else row.mean.mean


def _row(
    results: Results,
    task: Mapping[str, Any],
    optimizer: str,
    named: str,
    compared: Comparison | None,
    place: tuple[int, int] | None,
) -> Row:
    values: dict[int, float] = {}
    fine: dict[int, Mapping[str, Any]] = {}
    planned = failed = missing = 0
    arm = results.standing.arms.get((task["label"], optimizer), Arm())
    lost = lost_seeds(results.plan, arm)
    for run, record in results.runs(task["label"], optimizer):
        planned += 1
        if record is None:
            missing += 1
            continue
        value = number(record["metrics"].get(task["primary"]["name"]))
        if record["status"] != "ok" or math.isnan(value) or run.seed in lost:
            failed += 1
            continue
        values[run.seed] = value
        fine[run.seed] = record
    units = _units(results.plan, values)
    return Row(
        optimizer=optimizer,
        planned=planned,
        failed=failed,
        missing=missing,
        values=values,
        units=units,
        mean=summarise(list(units.values())),
        comparison=compared,
        others={name: _other(results.plan, fine, name) for name in OTHERS},
        costs={key: _median(_numbers(fine.values(), place, name)) for key, (place, name, _) in COSTS.items()},
        baseline=optimizer == results.plan.baseline,
        named=named,
        place=place,
    )


def lost_seeds(plan: Plan, arm: Arm) -> set[int]:
    """The seeds of an arm whose runs failed, also those that ended no better than untrained."""
    return {
        seed
        for unit, values in arm.values.items()
        for seed, value in zip(plan.unit_seeds(unit), values, strict=False)
        if math.isnan(value)
    }


def _units(plan: Plan, values: Mapping[int, float]) -> dict[int, float]:
    units: dict[int, list[float]] = {}
    for i, seed in enumerate(plan.seeds):
        if seed in values:
            units.setdefault(i // plan.per_unit, []).append(values[seed])
    return {unit: unit_mean(some) for unit, some in units.items()}


def _other(plan: Plan, fine: Mapping[int, Mapping[str, Any]], name: str) -> Summary:
    """A metric beside the primary one, over units like that; nothing where a run lacks it."""
    values = _numbers(fine.values(), "metrics", name)
    return summarise(list(_units(plan, dict(zip(fine, values, strict=False))).values()))


def _numbers(records: Iterable[Mapping[str, Any]], place: str, name: str) -> list[float]:
    if name.endswith("_a_step"):
        values = [_a_step(record.get(place) or {}, name.removesuffix("_a_step")) for record in records]
    else:
        values = [number((record.get(place) or {}).get(name)) for record in records]
    return [] if any(math.isnan(x) for x in values) else values


def _a_step(time: Mapping[str, Any], kind: str) -> float:
    passes, steps = number(time.get(f"{kind}_passes")), number(time.get("steps"))
    return passes / steps if steps > 0 else math.nan


def _median(values: Sequence[float]) -> float:
    return plain_statistics.median(values) if values else math.nan


def arrow(greater: bool) -> str:
    """Behind a metric's name: ↑ where higher is better, ↓ where lower is."""
    return "↑" if greater else "↓"


def leading(value: float) -> int:
    """The decimal in which a number below 1 begins: 1 for .25, 3 for .004; 1 for larger ones and for 0."""
    return max(1, -math.floor(math.log10(value))) if value > 0 else 1


def worse_and_tied(tables: Sequence[TaskTable]) -> bool:
    """Whether some row is worse than the baseline and can be the best all the same, which wants a word."""
    return any(row.tied and row.verdict.removesuffix(EXPLORATORY) == "worse" for table in tables for row in table.rows)


def measured_costs(table: TaskTable) -> list[str]:
    """The `COSTS` that some row of a table has."""
    return [key for key in COSTS if any(not math.isnan(row.costs[key]) for row in table.rows)]
