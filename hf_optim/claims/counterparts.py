"""Published figures beside the study's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_optim.claims.cells import PublishedCell, find
from hf_optim.claims.claim import Claim
from hf_optim.claims.evidence import Evidence, Undeclared
from hf_optim.claims.statement import AS_PRINTED, AS_RUN
from hf_optim.study.folder.store import number
from hf_optim.study.statistics.paired import Summary, summarise

#: how far from the epoch asked for a logged row may lie: half an epoch, or one per cent
NEAR, NEAR_SHARE = 0.5, 0.01


@dataclass(frozen=True)
class Pair:
    """One published figure, and what the study has in its place.

    `runs` are the records that `obtained` comes from; over several tasks the values are the tasks' means and `obtained`
    their mean and deviation. `variant` is the reading of the algorithm that was run; `belongs` whether the published
    figure is of that reading. `why` says why nothing stands beside it.
    """

    published: Mapping[str, Any]
    obtained: Summary
    metric: str = ""
    runs: tuple[str, ...] = ()
    variant: str = ""
    belongs: bool = True
    why: str = ""

    @property
    def label(self) -> str:
        """What tells this row from its neighbours."""
        parts = [self.published.get(key) for key in ("model", "optimizer", "setting")]
        return ", ".join(str(part) for part in [*parts, self.variant] if part)


def pairs(claim: Claim, cells: Sequence[Mapping[str, Any]], evidence: Evidence) -> list[Pair]:
    """Every published row of the claim, with the study's counterpart, once for each reading of the algorithm."""
    paired = []
    for row in claim.published:
        cell = find(list(cells), row)
        if cell is None or cell.why:
            paired.append(Pair(row, summarise([]), why=cell.why if cell else "this size has no counterpart"))
            continue
        for variant, variant_cell, belongs in _variants(claim, cell):
            try:
                values, runs = _obtained(evidence, variant_cell)
            except Undeclared as error:
                paired.append(Pair(row, summarise([]), why=str(error)))
                continue
            why = "" if values else _absence(evidence, variant_cell)
            metric = "" if not values else variant_cell.metric
            paired.append(Pair(row, summarise(values), metric, tuple(runs), variant, belongs, why))
    return paired


def _variants(claim: Claim, cell: PublishedCell) -> list[tuple[str, PublishedCell, bool]]:
    swaps = [(name, swap) for name, swap in claim.readings.items() if cell.optimizer in swap]
    if not swaps:
        return [("", cell, True)]
    variants = [(AS_PRINTED, cell, claim.published_is == AS_PRINTED)]
    return variants + [
        (name, replace(cell, optimizer=swap[cell.optimizer]), claim.published_is == name == AS_RUN)
        for name, swap in swaps
    ]


def _absence(evidence: Evidence, cell: PublishedCell) -> str:
    tasks, labels = evidence.tasks(list(cell.tasks)), [o["label"] for o in evidence.results.plan.optimizers]
    if not tasks:
        return "its task is not in this study"
    if cell.optimizer not in labels or (cell.against and cell.against not in labels):
        return "its optimizer is not in this study"
    done = any(record for task in tasks for _, record in evidence.results.runs(task["label"], cell.optimizer))
    return "not measured in these runs" if done else "not run yet"


def _obtained(evidence: Evidence, cell: PublishedCell) -> tuple[list[float], list[str]]:
    """The figure of each finished run; with several tasks, of each task the mean over its runs."""
    means, runs = [], []
    for task in evidence.tasks(list(cell.tasks)):
        ours = _by_seed(evidence, task, cell.optimizer, cell)
        if cell.against:
            theirs = _by_seed(evidence, task, cell.against, cell)
            ours = {
                seed: (value - theirs[seed][0] if cell.form == "difference" else 1 - value / theirs[seed][0], run)
                for seed, (value, run) in ours.items()
                if seed in theirs and theirs[seed][0]
            }
            runs += [theirs[seed][1] for seed in ours]
        scaled = [number(cell.scale * value) for value, _ in ours.values()]
        values = [value for value in scaled if not math.isnan(value)]
        runs += [run for _, run in ours.values()]
        if len(cell.tasks) == 1:
            return values, runs
        if values:
            means.append(summarise(values).mean)
    return (means if len(means) == len(cell.tasks) else []), runs


def _by_seed(
    evidence: Evidence, task: Mapping[str, Any], label: str, cell: PublishedCell
) -> dict[int, tuple[float, str]]:
    by_seed = {}
    for run, record in evidence.results.runs(task["label"], label):
        if record is None or record["status"] != "ok":
            continue
        name, sign = evidence.direction(task, cell.metric, None)
        if cell.until is not None:
            value = _epoch_of(evidence.history(run), name, cell.until, sign)
        elif cell.at is not None:
            value = _at(evidence.history(run), name, cell.at)
        else:
            value = evidence.values(task["label"], label, name).get(run.seed, math.nan)
        if not math.isnan(value):
            by_seed[run.seed] = (value, run.id)
    return by_seed


def _at(rows: Sequence[Mapping[str, Any]], metric: str, epoch: float) -> float:
    """The metric at the logged row nearest to the epoch; NaN where none is near."""
    near = [
        (abs(number(row.get("epoch")) - epoch), number(row[metric]))
        for row in rows
        if metric in row and not math.isnan(number(row.get("epoch")))
    ]
    distance, value = min(near, default=(math.inf, math.nan))
    return value if distance <= max(NEAR, NEAR_SHARE * epoch) else math.nan


def _epoch_of(rows: Sequence[Mapping[str, Any]], metric: str, until: float | str, sign: int) -> float:
    """The epoch at which the metric is first as good as `until`, or as that share of its best ("best 0.9")."""
    seen = [(number(row.get("epoch")), sign * number(row.get(metric))) for row in rows if metric in row]
    seen = [(epoch, value) for epoch, value in seen if not math.isnan(epoch + value)]
    goal = sign * float(until) if not isinstance(until, str) else 0.0
    if isinstance(until, str):
        share = float(until.removeprefix("best "))
        goal = max((value for _, value in seen), default=math.nan)
        goal = goal * share if goal > 0 else goal / share
    return next((epoch for epoch, value in seen if value >= goal), math.nan)
