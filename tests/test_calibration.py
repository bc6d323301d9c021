"""The rules that give verdicts, tried where the truth is known, through the shipped path; and what is kept of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hf_optim.study.findings import profiles
from hf_optim.study.statistics import looks

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import calibrate
        import calibration_bank
        import calibration_cells
        import calibration_promises
        import calibration_tuned
    finally:
        sys.path.pop(0)
    return {
        "calibrate": calibrate,
        "cells": calibration_cells,
        "bank": calibration_bank,
        "tuned": calibration_tuned,
        "promises": calibration_promises,
    }


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads((ROOT / "docs" / "calibration.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "name",
    [
        "better or worse, where nothing differs: one comparison, 3 seeds, 95 % of 500 counted",
        "equivalent, where the other is worse by the margin: looks 5, 10",
        "better or worse where it trains, where nothing differs there: one arm fails in 20%, looks 5, 10",
    ],
)
def test_rules_that_give_verdicts_keep_five_per_cent(scripts: dict[str, ModuleType], name: str) -> None:
    (cell,) = (cell for cell in scripts["cells"].cells() if cell.name == name)
    measured = scripts["cells"].measure(cell, 300, seed=1)
    assert measured["hits"] <= scripts["cells"].bound(300, 3), measured


def test_one_tuning_read_as_if_it_spoke_of_optimizers_is_found_out(scripts: dict[str, ModuleType]) -> None:
    """The fault that repetitions are for shows up in a few studies of the same machinery."""
    c, t = scripts["cells"], scripts["tuned"]
    once = next(cell for cell in t.cells(t.Bank()) if cell.name.startswith("one tuning"))
    measured = c.measure(once, 200, seed=2)
    assert measured["studies"] == 50 and measured["hits"] > c.bound(50, 1)


def test_a_slice_of_the_bank_is_the_run_that_it_would_be_alone(scripts: dict[str, ModuleType]) -> None:
    bank = scripts["bank"]
    rng = np.random.default_rng(0)
    import torch

    data = {
        name: (torch.tensor(rng.random((n, 784)), dtype=torch.float32), torch.tensor(rng.integers(0, 10, n)))
        for name, n in (("train", 200), ("validation", 50), ("test", 80))
    }
    for name in bank.OPTIMIZERS:
        together = bank.train(name, 0.01, [3, 4, 5], data)
        alone = np.concatenate([bank.train(name, 0.01, [seed], data) for seed in (3, 4, 5)])
        assert np.abs(together - alone).max() <= 1  # sums in another order may turn one answer


def test_the_kept_calibration_is_whole_and_within_bounds(scripts: dict[str, ModuleType], kept: dict) -> None:
    c, t, rates = scripts["cells"], scripts["tuned"], kept["cells"]
    assert set(rates) == {cell.name for cell in (*c.cells(), *t.cells(t.Bank()))}
    for rate in rates.values():
        assert scripts["calibrate"].within(rate, len(rates)), rate
    contrast = next(rate for name, rate in rates.items() if name.startswith("one tuning"))
    assert contrast["hits"] / contrast["studies"] > 0.15


@pytest.fixture
def two_cells(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list:
    """Two small cells in place of all, and files of their own; the list may be changed."""
    cells = [cell for cell in scripts["cells"].cells() if "one comparison" in cell.name or "equivalent" in cell.name]
    assert len(cells) == 2
    monkeypatch.setattr(scripts["cells"], "cells", lambda: cells)
    monkeypatch.setattr(scripts["tuned"], "cells", lambda bank: [])
    for name in ("PAGE", "DATA"):
        monkeypatch.setattr(scripts["calibrate"], name, tmp_path / name)
    return cells


def calibrate(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, *words: str) -> dict[str, dict]:
    """Runs the command and gives what it kept."""
    monkeypatch.setattr(sys, "argv", ["calibrate.py", "cells", "--studies", "25", *words])
    assert scripts["calibrate"].main() == 0
    data = json.loads(scripts["calibrate"].DATA.read_text(encoding="utf-8"))
    assert scripts["calibrate"].PAGE.read_text(encoding="utf-8") == scripts["calibrate"].page(data)
    return data["cells"]


def test_measuring_goes_on_where_it_was_killed_and_keeps_what_is_unchanged(
    scripts: dict[str, ModuleType], two_cells: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    c, measured = scripts["cells"], []
    whole = c.measure

    def measure(cell, *rest, **more):
        if cell.name in killed:
            raise KeyboardInterrupt
        measured.append(cell.name)
        return whole(cell, *rest, **more)

    monkeypatch.setattr(c, "measure", measure)
    first, second = (cell.name for cell in two_cells)
    killed = {second}
    with pytest.raises(KeyboardInterrupt):
        calibrate(scripts, monkeypatch)
    assert calibrate(scripts, monkeypatch, "--minutes", "0").keys() == {first} and measured == [first]
    killed = set()
    kept = calibrate(scripts, monkeypatch)
    assert list(kept) == measured == [first, second] and kept[second]["studies"] == 25
    assert calibrate(scripts, monkeypatch) == kept and measured == [first, second]
    assert calibrate(scripts, monkeypatch, "--anew", "--only", "equivalent") == kept
    assert measured == [first, second, second]
    calibrate(scripts, monkeypatch, "--studies", "21")
    assert measured[3:] == [first, second]


def test_another_cell_and_other_rules_are_measured_anew(
    scripts: dict[str, ModuleType], two_cells: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = calibrate(scripts, monkeypatch)
    first, second = (cell.name for cell in two_cells)
    two_cells[0] = dataclasses.replace(two_cells[0], text=scripts["cells"].yaml("seeds: 4"))
    changed = calibrate(scripts, monkeypatch)
    assert changed[first]["digest"] != before[first]["digest"] and changed[second] == before[second]
    monkeypatch.setattr(looks, "ALPHA", 0.1)
    assert all(row["digest"] != changed[name]["digest"] for name, row in calibrate(scripts, monkeypatch).items())
    del two_cells[0]
    assert set(calibrate(scripts, monkeypatch)) == {second}


def test_the_kept_calibration_is_of_the_code_that_judges_today(scripts: dict[str, ModuleType], kept: dict) -> None:
    """If this fails a verdict says other things than what was measured: `python scripts/calibrate.py cells`."""
    c, t = scripts["cells"], scripts["tuned"]
    few = [
        cell for cell in (*c.cells(), *t.cells(t.Bank())) if "19 comp" not in cell.name and "20 opt" not in cell.name
    ]
    stale = [cell.name for cell in few if c.digest(cell) != kept["cells"][cell.name]["digest"]]
    assert not stale and len(few) > 20


def test_the_page_is_made_from_the_kept_numbers(scripts: dict[str, ModuleType], kept: dict) -> None:
    assert (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8") == scripts["calibrate"].page(kept)


def test_what_stands_behind_a_promise_exists(scripts: dict[str, ModuleType]) -> None:
    promises = scripts["promises"].PROMISES
    for promise, _, behind in promises:
        assert isinstance(behind, tuple) and behind, promise
        for test in behind:
            file, _, name = test.partition("::")
            assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), promise
    assert len({promise for promise, _, _ in promises}) == len(promises)


def test_pages_that_promise_are_on_the_list(scripts: dict[str, ModuleType]) -> None:
    """A page that says how often a verdict may be wrong, or when there is one, is named beside a promise."""
    named = {name for _, where, _ in scripts["promises"].PROMISES for name in where.split(", ")} - {"report"}
    pages = {"README": ROOT / "README.md", **{file.name: file for file in (ROOT / "docs").glob("*.md")}}
    assert named <= pages.keys()
    promising = re.compile(
        r"verdict[^.]*\b5 %|\b(better|worse|verdict)\b[^.]*\bof 100\b|stays decided|no verdict before"
    )
    found = {name for name, file in pages.items() if promising.search(" ".join(file.read_text("utf-8").split()))}
    assert found - {"calibration.md"} <= named and {"README", "honest.md", "studies.md"} <= found


def test_algoperfs_published_scores_follow_from_its_published_times() -> None:
    text = (ROOT / "tests" / "algoperf_leaderboard.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))[1:]
    times = np.array([[float(x) if x else math.nan for x in row[2:]] for row in rows])
    assert times.shape == (16, 9)
    assert profiles.score(times) == pytest.approx([float(row[1]) for row in rows], abs=1e-12)
