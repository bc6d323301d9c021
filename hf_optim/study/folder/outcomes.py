"""What came out of each optimizer's judged runs on each task, unit by unit: values, failures, and what chance did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hf_optim.study.folder.searches import validation_metric
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan.plan import Plan, Run

Key = tuple[str, str]  # task's label, optimizer's label
#: what tells two runs apart that have the same metric by chance
TRACES = ("train_loss", "validation_loss", "test_loss")
IN_VAIN = "no better on validation than untrained"


@dataclass
class Arm:
    """One optimizer on one task. `values` has the metric of every run of a unit, NaN for one that failed, of the units
    whose runs all have a record; `gains` what the training gained on validation over the untrained model, by unit.
    """

    values: dict[int, tuple[float, ...]] = field(default_factory=dict)
    gains: dict[int, float] = field(default_factory=dict)
    #: every run gave the same result although its seed is another
    same: bool = False
    #: the first unit that the machine could not run
    lost: float = math.inf
    #: the step from one possible value of the metric to the next; 0 where it is not counted on samples
    grain: float = 0.0


def arms(plan: Plan, runs: Sequence[Run], store: RecordStore) -> dict[Key, Arm]:
    """The arms of a study's judged runs, each in the order of units."""
    tasks = {task["label"]: task for task in plan.tasks}
    unit_of = {seed: i // plan.per_unit for i, seed in enumerate(plan.seeds)}
    by_arm: dict[Key, dict[int, list[Run]]] = {}
    for run in runs:
        by_arm.setdefault((run.task, run.optimizer), {}).setdefault(unit_of[run.seed], []).append(run)
    return {(task, label): _arm(tasks[task], units, store) for (task, label), units in by_arm.items()}


def _arm(task: Mapping[str, Any], units: Mapping[int, Sequence[Run]], store: RecordStore) -> Arm:
    arm, samples = Arm(), 0
    traces: list[tuple[Any, ...]] = []
    for unit, runs in units.items():
        records = [store.record(run.id) for run in runs]
        known = [record for record in records if record is not None]
        if any(record.get("fault") == "machine" for record in known):
            arm.lost = min(arm.lost, unit)
        if len(known) < len(records):
            continue
        values, gains = [], []
        for run, record in zip(runs, known, strict=True):
            value, gain = _outcome(task, run, record, store)
            values.append(value)
            gains.append(gain)
            metrics = record.get("metrics") or {}
            traces.append((value, *(metrics.get(name) for name in TRACES)))
            tested = number((record.get("data") or {}).get("test_samples"))
            samples = max(samples, 0 if math.isnan(tested) else int(tested))
        arm.values[unit] = tuple(values)
        arm.gains[unit] = math.fsum(gains) / len(gains)
    finished = [trace for trace in traces if not math.isnan(trace[0])]
    arm.same = len(finished) > 1 and len(set(finished)) == 1 and finished[0][1] is not None
    arm.grain = grain([v for values in arm.values.values() for v in values], samples)
    return arm


def _outcome(task: Mapping[str, Any], run: Run, record: Mapping[str, Any], store: RecordStore) -> tuple[float, float]:
    """The metric, NaN if the run failed (an error, no number, or no better on validation than before training), and
    what training gained, NaN where the run's own history does not say: another one's may be anybody's.
    """
    metrics = record.get("metrics") or {}
    value = number(metrics.get(task["primary"]["name"]))
    if record.get("status", "failed") != "ok" or math.isnan(value):
        return math.nan, math.nan
    name, sign = validation_metric(task), 1 if task["primary"]["greater_is_better"] else -1
    gain = sign * (number(metrics.get(name)) - store.untrained(run.id, name))
    return (math.nan if gain <= 0 else value), gain


def in_vain(plan: Plan, records: Mapping[str, Mapping[str, Any]], store: RecordStore) -> frozenset[str]:
    """The ids of the plan's runs that ended as they should and are failures all the same, for `IN_VAIN`."""
    tasks = {task["label"]: task for task in plan.tasks}
    vain = set()
    for run in plan.runs:
        task, record = tasks[run.task], records.get(run.id)
        value, gain = _outcome(task, run, record, store) if record else (math.nan, math.nan)
        if math.isnan(value) and gain <= 0:
            vain.add(run.id)
    return frozenset(vain)


def grain(values: Sequence[float], samples: int) -> float:
    """1 / N (or 100 / N) for a metric that is a count over N test samples, as its values show; else 0."""
    finite = [v for v in values if not math.isnan(v)]
    for whole in (1.0, 100.0):
        counts = [v / whole * samples for v in finite]
        # A share kept as a 32-bit number is off by less than a tenth of a millionth of itself.
        if samples and finite and all(abs(c - round(c)) < 1e-3 and 0 <= c <= samples + 1e-3 for c in counts):
            return whole / samples
    return 0.0
