"""The loss over the grid of the block `sensitivity`, and Wortsman's number, from the records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hf_optim.study.folder.grouping import by_cell
from hf_optim.study.folder.stages import GridRun
from hf_optim.study.folder.store import RecordStore, number
from hf_optim.study.plan.plan import Plan, Run
from hf_optim.study.plan.sensitivity import rate_key


@dataclass(frozen=True)
class Curve:
    """One optimizer on one task: the validation loss at each value, the mean over seeds; NaN while there is no record.

    `worst` is the loss before training; `failed` counts failed runs at each value; `number` is Wortsman's, NaN before
    the grid is whole.
    """

    task: str
    optimizer: str
    key: str
    values: tuple[float, ...]
    losses: tuple[float, ...]
    failed: tuple[int, ...]
    worst: float
    number: float


def wortsman(losses: Sequence[float], before: float) -> float:
    """Mean of min(loss, loss before training) over the grid, less the best; a loss of NaN (failed) counts as before."""
    kept = [_kept(loss, before) for loss in losses]
    return math.fsum(kept) / len(kept) - min(kept)


def curves(plan: Plan, runs: Sequence[GridRun], reader: RecordStore) -> list[Curve]:
    """The curve of every optimizer that has the hyper-parameter, from the records there are."""
    if plan.sensitivity is None:
        return []
    block, drawn = plan.sensitivity, []
    seeds = plan.seeds[: block["seeds"]]
    cells = by_cell(runs, lambda grid_run: grid_run.run)
    for task, label, spec in plan.cells():
        mine = cells.get((task["label"], label), [])
        place = rate_key(spec, block["key"])
        if place is None:
            continue
        alike: dict[int, list[str]] = {}
        for grid_run in mine:
            alike.setdefault(grid_run.run.seed, []).append(grid_run.run.id)
        before = {seed: reader.untrained_of(alike.get(seed, ()), "validation_loss") for seed in seeds}
        losses = {(grid_run.value, grid_run.run.seed): _loss(grid_run.run, reader) for grid_run in mine}
        rows = [[losses.get((value, seed)) for seed in seeds] for value in block["values"]]
        kept = [[_kept(x, before[s]) for x, s in zip(row, seeds, strict=True) if x is not None] for row in rows]
        whole = all(None not in row for row in rows)
        numbers = [wortsman([losses[v, s] or 0.0 for v in block["values"]], before[s]) for s in seeds] if whole else []
        drawn.append(
            Curve(
                task=task["label"],
                optimizer=label,
                key=place,
                values=tuple(block["values"]),
                losses=tuple(_mean(row) for row in kept),
                failed=tuple(sum(x is not None and math.isnan(x) for x in row) for row in rows),
                worst=_mean(list(before.values())),
                number=_mean(numbers),
            )
        )
    return drawn


def _kept(loss: float, before: float) -> float:
    return before if math.isnan(loss) else min(loss, before)


def _loss(run: Run, reader: RecordStore) -> float | None:
    """The final validation loss, NaN for a failed run, None without a record."""
    record = reader.record(run.id)
    if record is None:
        return None
    return number(record["metrics"].get("validation_loss")) if record["status"] == "ok" else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
