"""Reads a study's folder back: its plan, the record of each run, and the histories."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.plan.plan import Plan, Run


@dataclass(frozen=True)
class Results:
    """A plan and the records there are, by run id."""

    folder: Path
    plan: Plan
    records: Mapping[str, Mapping[str, Any]]

    def runs(self, task: str, optimizer: str) -> Iterator[tuple[Run, Mapping[str, Any] | None]]:
        """The planned runs of one cell, in the order of seeds, each with its record or None."""
        for run in self._cells.get((task, optimizer), ()):
            yield run, self.records.get(run.id)

    @functools.cached_property
    def _cells(self) -> dict[tuple[str, str], list[Run]]:
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in self.plan.runs:
            cells.setdefault((run.task, run.optimizer), []).append(run)
        return cells

    def failures(self) -> list[tuple[Run, str]]:
        """The failed runs and their reasons, in the plan's order."""
        found = []
        for run in self.plan.runs:
            record = self.records.get(run.id)
            if record is not None and record["status"] != "ok":
                found.append((run, str(record.get("error") or "no reason recorded")))
        return found

    def history(self, run: Run) -> list[dict[str, Any]]:
        """The rows of a run's history; lines that cannot be read are left out."""
        record = self.records.get(run.id)
        name = record.get("history") if record else None
        if not isinstance(name, str) or Path(name).name != name:
            return []
        try:
            text = (self.folder / "runs" / run.id / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [row for row in _parsed(text.splitlines()) if isinstance(row, dict)]


def _parsed(lines: Sequence[str]) -> list[Any]:
    """The values of JSON lines: all at once, which is three times as fast, unless a line is damaged."""
    try:
        return list(json.loads(f"[{','.join(line for line in lines if line.strip())}]"))
    except ValueError:
        pass
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def load(folder: Path) -> Results:
    """The results in a study's folder. Raises UserError if it holds no plan."""
    from hf_optim.study.folder import stages  # which reads records too

    file = folder / "plan.json"
    try:
        plan = Plan.from_dict(json.loads(file.read_text(encoding="utf-8")), str(file))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no study (no plan.json): run `hf-optim study` first") from None
    except (OSError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(f"{file}: not readable: {error}") from None
    plan = stages.settled(plan, folder)
    records = {}
    for run in plan.runs:
        try:
            record = json.loads((folder / "runs" / run.id / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("id") == run.id and isinstance(record.get("metrics"), dict):
            records[run.id] = {"status": "failed", **record}
    return Results(folder, plan, records)


def number(value: Any) -> float:
    """`value` as a float; NaN for anything that is no finite number."""
    if type(value) is float or (isinstance(value, int | float) and not isinstance(value, bool)):
        return float(value) if math.isfinite(value) else math.nan
    return math.nan
