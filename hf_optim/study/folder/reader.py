"""Reads the records and histories of runs below a study's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Reader:
    """The records below a study's folder, read once each (one that is missing is looked for again)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records: dict[str, Mapping[str, Any]] = {}

    def record(self, run_id: str) -> Mapping[str, Any] | None:
        """The record of a run, None without a readable one."""
        if run_id not in self._records:
            try:
                text = (self.folder / "runs" / run_id / "record.json").read_text(encoding="utf-8")
                record = json.loads(text)
            except (OSError, ValueError):
                return None
            if not isinstance(record, dict) or record.get("id") != run_id or "metrics" not in record:
                return None
            self._records[run_id] = record
        return self._records[run_id]

    def history(self, run_id: str) -> list[Mapping[str, Any]]:
        """The rows of a run's history; what cannot be read is left out."""
        record = self.record(run_id) or {}
        rows: list[Mapping[str, Any]] = []
        try:
            for line in (self.folder / "runs" / run_id / str(record["history"])).open(encoding="utf-8"):
                row = json.loads(line)
                rows += [row] if isinstance(row, dict) else []
        except (OSError, ValueError, KeyError):
            pass
        return rows

    def untrained(self, run_id: str, metric: str) -> float:
        """A metric of the validation split before the first step; NaN where it was not measured."""
        record = self.record(run_id) or {}
        try:
            with (self.folder / "runs" / run_id / str(record["history"])).open(encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    if row.get("step") != 0:  # rows ascend
                        return math.nan
                    if metric in row:
                        return number(row[metric])
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        return math.nan


def number(value: Any) -> float:
    """`value` as a float; NaN for anything that is no finite number."""
    if type(value) is float or (isinstance(value, int | float) and not isinstance(value, bool)):
        return float(value) if math.isfinite(value) else math.nan
    return math.nan
