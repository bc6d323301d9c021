"""Histories without their clock: what two executions of one run have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def without_seconds(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a history without the seconds that were spent by then."""
    return {key: value for key, value in row.items() if key != "seconds"}


def untimed(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's history, without seconds."""
    text = (folder / "history.jsonl").read_text(encoding="utf-8")
    return [without_seconds(json.loads(line)) for line in text.splitlines()]
