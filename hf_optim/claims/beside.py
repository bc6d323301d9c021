"""Published figures beside the study's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.claims.claim import Cell, Claim, matches
from hf_optim.claims.judges import measured
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import number
from hf_optim.study.statistics.paired import Summary, summarise


@dataclass(frozen=True)
class Pair:
    """One published figure, and what the study has in its place; `runs` are the records that `obtained` comes from."""

    published: Mapping[str, Any]
    obtained: Summary
    metric: str
    runs: tuple[str, ...]

    @property
    def label(self) -> str:
        """What tells this row from its neighbours."""
        parts = [self.published.get(key) for key in ("model", "optimizer", "setting")]
        return ", ".join(str(part) for part in parts if part)


def pairs(claim: Claim, cells: Sequence[Cell], results: Results) -> list[Pair]:
    """Every published row of the claim, with the study's counterpart where a cell names one."""
    made = []
    for row in claim.published:
        cell = next((cell for cell in cells if matches(cell, row)), None)
        if cell is None:
            made.append(Pair(row, summarise([]), "", ()))
            continue
        values, runs = _values(results, cell)
        made.append(Pair(row, summarise([value * cell.scale for value in values]), cell.metric, tuple(runs)))
    return made


def _values(results: Results, cell: Cell) -> tuple[list[float], list[str]]:
    """The metric of each finished run, at the end or at the logged row nearest to the epoch `at`."""
    values, runs = [], []
    for run, record in results.runs(cell.task, cell.optimizer):
        if record is None or record["status"] != "ok":
            continue
        value = measured(record, cell.metric) if cell.at is None else _at(results.history(run), cell.metric, cell.at)
        if not math.isnan(value):
            values.append(value)
            runs.append(run.id)
    return values, runs


def _at(rows: Sequence[Mapping[str, Any]], metric: str, epoch: float) -> float:
    found = [
        (abs(number(row.get("epoch")) - epoch), number(row[metric]))
        for row in rows if metric in row and not math.isnan(number(row.get("epoch")))
    ]  # fmt: skip
    return min(found)[1] if found else math.nan
