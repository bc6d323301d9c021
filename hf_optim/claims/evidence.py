"""What a study's records hold, as the rules of claims ask for it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.plan.entries import declared
from hf_optim.study.plan.plan import Run

#: metrics that are counted, the same for every seed
COUNTED = ("memory.optimizer_state_bytes", "memory.parameters")
GAP_AS_RUN = "gap_as_run"
#: a metric's distance from zero, of a statement that asks for "closer to zero"
MAGNITUDE = re.compile(r"abs\((\w+)\)")


class Undeclared(UserError):
    """A metric of which nobody says whether more of it is better: the one sentence or figure that asks for it is left
    out.
    """


@dataclass
class Evidence:
    """A study's results; `renamed` are the metrics that go by another name in its records."""

    results: Results
    renamed: Mapping[str, str] = field(default_factory=dict)
    _courses: dict[str, list[dict[str, Any]] | None] = field(default_factory=dict, repr=False)

    def tasks(self, labels: list[str] | None = None) -> list[Mapping[str, Any]]:
        """The tasks of these labels that are in the study, in its order; all for None."""
        return [task for task in self.results.plan.tasks if labels is None or task["label"] in labels]

    def direction(self, task: Mapping[str, Any], metric: str | None, greater: bool | None) -> tuple[str, int]:
        """The metric's name in the records, and 1 if more of it is better, else -1 (as given, else as its task says).

        Raises:
            Undeclared: neither says it.
        """
        primary = task["primary"]["name"]
        name = self.renamed.get(metric or primary, metric or primary)
        if greater is None and (name == GAP_AS_RUN or MAGNITUDE.fullmatch(name)):
            greater = False
        said = declared(task, name)
        if greater is None and said is None:
            raise Undeclared(f"{task['label']} declares no metric {name!r}: say whether greater is better")
        return name, 1 if (said[0] if greater is None and said else greater) else -1

    def values(self, task: str, label: str, metric: str) -> dict[int, float]:
        """The metric by seed; NaN for a run that failed. A run that was not made, or has no such metric, is absent."""
        if within := MAGNITUDE.fullmatch(metric):
            return {seed: abs(value) for seed, value in self.values(task, label, within[1]).items()}
        by_seed = {}
        for run, record in self.results.runs(task, label):
            if record is None:
                continue
            if record["status"] != "ok":
                by_seed[run.seed] = math.nan
                continue
            value = _gap_as_run(record, self.history(run)) if metric == GAP_AS_RUN else measured(record, metric)
            if not math.isnan(value):
                by_seed[run.seed] = value
            elif metric in record["metrics"]:  # a metric that is there and no number is a failure of the run
                by_seed[run.seed] = math.nan
        return by_seed

    def courses(self, task: str, label: str, metric: str) -> dict[int, list[tuple[float, float]]]:
        """(step, value) of every row that has the metric, by seed; a run that failed ends with (inf, NaN), and one of
        unknown course is absent.
        """
        by_seed = {}
        for run, record in self.results.runs(task, label):
            if record is None or self.unknown(run):
                continue
            rows = [(number(row.get("step")), number(row[metric])) for row in self.history(run) if metric in row]
            rows = [(step, value) for step, value in rows if step > 0]
            if record["status"] != "ok":
                rows.append((math.inf, math.nan))
            if rows:
                by_seed[run.seed] = rows
        return by_seed

    def arrivals(
        self, task: str, label: str, metric: str, target: float | Mapping[int, float], sign: int
    ) -> dict[int, float]:
        """Steps until the logged metric is as good as `target` (or a target of each seed), NaN where it never is; a run
        of unknown course and a seed without a target are absent.
        """
        by_seed = {}
        for run, record in self.results.runs(task, label):
            if record is None or self.unknown(run) or (isinstance(target, Mapping) and run.seed not in target):
                continue
            goal = target[run.seed] if isinstance(target, Mapping) else target
            by_seed[run.seed] = next(
                (
                    number(row["step"])
                    for row in self.history(run)
                    if number(row.get("step")) > 0 and sign * (number(row.get(metric)) - goal) >= 0
                ),
                math.nan,
            )
        return by_seed

    def budget(self, task: str) -> float:
        """The last step that any run of the task made."""
        steps = [
            number((self.results.records.get(run.id) or {}).get("time", {}).get("steps"))
            for run in self.results.plan.runs
            if run.task == task
        ]
        return max((step for step in steps if step > 0), default=math.nan)

    def best(self, task: str, labels: list[str], metric: str, sign: int) -> dict[int, float]:
        """The best logged value of each seed over all of these optimizers; none where the course of one is unknown."""
        by_seed: dict[int, float] = {}
        unknown: set[int] = set()
        for label in labels:
            for run, record in self.results.runs(task, label):
                if record is not None and self.unknown(run):
                    unknown.add(run.seed)
                seen = [number(row.get(metric)) for row in self.history(run)] if record is not None else []
                seen = [sign * value for value in seen if not math.isnan(value)]
                if seen:
                    by_seed[run.seed] = (
                        max([*seen, *([sign * by_seed[run.seed]] if run.seed in by_seed else [])]) * sign
                    )
        return {seed: value for seed, value in by_seed.items() if seed not in unknown}

    def unknown(self, run: Run) -> bool:
        """Whether the run's history is one that cannot be read to its end: who knows where it arrived."""
        return self._course(run) is None

    def history(self, run: Run) -> list[dict[str, Any]]:
        """The rows of a run's history; none of one of unknown course."""
        return self._course(run) or []

    def _course(self, run: Run) -> list[dict[str, Any]] | None:
        if run.id not in self._courses:
            self._courses[run.id] = self.results.store.course(run.id)
        return self._courses[run.id]


def listed(value: Any) -> list[Any]:
    """One label or several, as a list."""
    return value if isinstance(value, list) else [value]


def measured(record: Mapping[str, Any], metric: str) -> float:
    """A metric of a record, or `place.name` of another part of it; NaN where there is none."""
    place, dot, name = metric.partition(".")
    part: Any = record.get(place) if dot else record["metrics"]
    return number(part.get(name if dot else metric) if isinstance(part, Mapping) else None)


def _gap_as_run(record: Mapping[str, Any], rows: list[dict[str, Any]]) -> float:
    """Test loss minus the mean training loss of the last epoch's batches, in training mode: the gap of SMARAN's code.

    The last tenth of the logged losses stands for an epoch where the history has no epochs.
    """
    logged = [row for row in rows if not math.isnan(number(row.get("train_loss")))]
    last = max((number(row.get("epoch")) for row in logged if not math.isnan(number(row.get("epoch")))), default=None)
    if last is not None:
        logged = [row for row in logged if number(row.get("epoch")) > last - 1]
    else:
        logged = logged[-max(1, len(logged) // 10) :]
    if not logged:
        return math.nan
    return measured(record, "test_loss") - math.fsum(number(row["train_loss"]) for row in logged) / len(logged)
