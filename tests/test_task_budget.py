"""What a run has spent is counted, and a budget of passes or seconds ends it and its schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train


def run(folder: Path, optimizer: str, **overrides: float) -> tuple[dict, list[dict]]:
    spec = RunSpec("vision", model="mlp", size="smoke", optimizer={"name": optimizer}, schedule={"name": "linear"},
                   overrides={"steps": 12, **overrides})  # fmt: skip
    record = train(spec, folder, progress=False)
    return record, [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_every_row_says_what_was_spent_and_a_line_search_spends_more(tmp_path: Path) -> None:
    record, rows = run(tmp_path / "adamw", "adamw")
    assert (record["time"]["forward_passes"], record["time"]["backward_passes"]) == (12, 12)
    assert all(row["forward_passes"] == row["backward_passes"] == row["step"] for row in rows)
    assert all(a["seconds"] <= b["seconds"] for a, b in zip(rows, rows[1:], strict=False))
    decayed, whole = sorted(group.get("weight_decay", 0.0) for group in record["groups"])
    assert (decayed, whole) == (0.0, 0.01) and record["data"]["test_samples"] == 512
    record, _ = run(tmp_path / "sls", "sls")
    assert record["time"]["backward_passes"] == 12 < record["time"]["forward_passes"]


def test_a_budget_of_passes_ends_the_run_and_its_schedule(tmp_path: Path) -> None:
    record, rows = run(tmp_path, "adamw", passes=12)
    assert record["status"] == "ok" and record["time"]["steps"] == 6
    rates = [row["lr"] for row in rows if "lr" in row]
    # Twelve passes are six steps: the rate falls to zero over these, not over the twelve.
    assert rates == pytest.approx([0.001 * (1 - k / 6) for k in range(6)], rel=1e-6)
    assert rows[-1]["step"] == 6 and "validation_loss" in rows[-1]


def test_a_budget_of_seconds_ends_the_run(tmp_path: Path) -> None:
    record, _ = run(tmp_path, "adamw", seconds=1e-6)
    assert record["time"]["steps"] == 1
    for bad in (0, -1.0):
        with pytest.raises(UserError, match="seconds must be above 0"):
            RunSpec("vision", optimizer={"name": "adamw"}, overrides={"seconds": bad})
