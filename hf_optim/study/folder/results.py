"""Reads a study's folder back: its plan, the record of each run, the histories, and where the study stands."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim.core import safe_text
from hf_optim.errors import UserError
from hf_optim.study.folder import stages
from hf_optim.study.folder.changes import read_plan
from hf_optim.study.folder.grouping import by_cell
from hf_optim.study.folder.outcomes import in_vain
from hf_optim.study.folder.standing import Standing, standing
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan.plan import Plan, Run


@dataclass(frozen=True)
class Results:
    """A plan with the judged runs up to the look that is aimed at, their records by id, and where the study stands."""

    store: RecordStore
    plan: Plan
    records: Mapping[str, Mapping[str, Any]]
    standing: Standing

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return self.store.folder

    def runs(self, task: str, optimizer: str) -> Iterator[tuple[Run, Mapping[str, Any] | None]]:
        """The planned runs of one cell, in the order of seeds, each with its record or None."""
        for run in self._cells.get((task, optimizer), ()):
            yield run, self.records.get(run.id)

    @functools.cached_property
    def known(self) -> list[Run]:
        """Every run of the plan, and every other one that can be told now."""
        return list({run.id: run for run in (*self.plan.runs, *self.standing.known)}.values())

    @functools.cached_property
    def _cells(self) -> dict[tuple[str, str], list[Run]]:
        return by_cell(self.plan.runs)

    @functools.cached_property
    def spaces(self) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
        """The spaces that each cell (task and optimizer) is searched in, one a search."""
        spaces: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for cell in (self.plan.tuning or {}).get("cells", ()):
            spaces.setdefault((cell["task"], cell["optimizer"]), []).append(cell["space"])
        return spaces

    @functools.cached_property
    def in_vain(self) -> frozenset[str]:
        """The ids of the runs that finished no better on validation than untrained, which counts as failed."""
        return in_vain(self.plan, self.records, self.store)

    @functools.cached_property
    def runs_a_unit(self) -> int:
        """What one more unit of the study costs, in runs: all of them are planned to count them, which is done once."""
        return round(sum(stages.planned(self.plan)) / self.plan.looks[-1])

    def failures(self) -> list[tuple[Run, str]]:
        """The failed runs and their reasons, in the plan's order."""
        failed = []
        for run in self.plan.runs:
            record = self.records.get(run.id)
            if record is not None and record["status"] != "ok":
                failed.append((run, str(record.get("error") or "no reason recorded")))
        return failed

    def unreadable(self) -> list[tuple[Run, str]]:
        """The runs, trials and what else is known among them, with a record or a history (of those that were asked for)
        that is not ours, and why.
        """
        return [(run, why) for run in self.known if (why := self.store.unreadable.get(run.id))]

    def history(self, run: Run) -> list[dict[str, Any]]:
        """The rows of a run's history."""
        return self.store.history(run.id)


def describe(run: Run) -> str:
    """A run in a word: "adamw on vision/mlp/small, seed 0"."""
    return f"{run.optimizer} on {run.task}, seed {run.seed}"


def tell_unreadable(studies: Iterable[Results]) -> None:
    """Say, beside a table, in one line which runs are not in it since nobody can read them; the report names each."""
    if told := [f"{describe(run)}: {why}" for results in studies for run, why in results.unreadable()]:
        more = f"; and {len(told) - 1} more, which `hf-optim report` names" if len(told) > 1 else ""
        print(safe_text.line(f"unreadable: {told[0]}{more}"), file=sys.stderr)


def load(folder: Path) -> Results:
    """The results in a study's folder. Raises UserError if it holds no plan."""
    try:
        plan = read_plan(folder)
    except FileNotFoundError:
        raise UserError(f"{folder} holds no study (no plan.json): run `hf-optim study` first") from None
    store = RecordStore(folder)
    stands = standing(plan, store)
    records = {run.id: record for run in stands.state.runs if (record := store.record(run.id)) is not None}
    return Results(store, dataclasses.replace(plan, runs=stands.state.runs), records, stands)
