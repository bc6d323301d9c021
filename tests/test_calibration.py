"""The rules that give verdicts, tried where the truth is known, through the shipped path; and what is kept of it."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hf_optim.study.findings import profiles

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


def test_measuring_goes_on_where_it_was_left_and_begins_anew_with_other_rules(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate, data, name = scripts["calibrate"], {}, "one comparison, 3 seeds"
    monkeypatch.setattr(calibrate, "save", lambda data: None)
    said = []
    for digest in ("first", "first", "second"):
        monkeypatch.setattr(calibrate, "code", lambda digest=digest: digest)
        calibrate.measure(2, data, name)
        said.append(capsys.readouterr().out.count(name))
    assert said == [1, 0, 1] and len(data["cells"]) == 1


def test_the_page_is_made_from_the_kept_numbers(scripts: dict[str, ModuleType], kept: dict) -> None:
    assert (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8") == scripts["calibrate"].page(kept)


def test_what_stands_behind_a_promise_exists(scripts: dict[str, ModuleType]) -> None:
    promises = scripts["promises"].PROMISES
    for promise, _, behind in promises:
        assert behind, promise
        for test in behind:
            file, _, name = test.partition("::")
            assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), promise
    assert len({promise for promise, _, _ in promises}) == len(promises)


def test_algoperfs_published_scores_follow_from_its_published_times() -> None:
    text = (ROOT / "tests" / "algoperf_leaderboard.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))[1:]
    times = np.array([[float(x) if x else math.nan for x in row[2:]] for row in rows])
    assert times.shape == (16, 9)
    assert profiles.score(times) == pytest.approx([float(row[1]) for row in rows], abs=1e-12)
