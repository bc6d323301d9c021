"""The rules that give verdicts, tried where the truth is known; and a published performance profile."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from hf_optim.study.findings import profiles
from hf_optim.study.statistics import calibration as c
from hf_optim.study.statistics.paired import seeds_needed

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("calibrate", ROOT / "scripts" / "calibrate.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept() -> dict:
    return json.loads((ROOT / "docs" / "calibration.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("metric", c.METRICS)
@pytest.mark.parametrize("rule", c.VERDICTS)
def test_a_rule_that_gives_verdicts_keeps_five_per_cent(rule: str, metric: str) -> None:
    for seeds in (3, 5, 10):
        for comparisons, studies in ((1, 500), (9, 100)):
            one = c.measure(rule, metric, seeds, comparisons, studies)
            assert one.kept, f"{rule}, {metric}, {seeds} seeds, {comparisons} comparisons: {one.share:.3f}"


def test_a_bad_rule_is_found_out() -> None:
    bad = c.measure("percentile bootstrap of the mean difference", "Gaussian", 3, 1, 1000)
    assert not bad.kept and bad.share > 0.15


def test_studies_are_alike_but_for_their_shifts() -> None:
    for metric, (_, sd) in c.METRICS.items():
        plain = c.simulate(metric, 4, 2, 3000)
        moved = c.simulate(metric, 4, 2, 3000, shifts=np.array([0.0, 2.0]))
        assert plain.shape == (3000, 3, 4)
        assert np.allclose(moved[:, :2], plain[:, :2]) and np.allclose(moved[:, 2] - plain[:, 2], 2 * sd)
        if metric != "t with 3 degrees":  # its sample variance has no variance
            assert plain.std() == pytest.approx(sd, rel=0.1)


@pytest.mark.parametrize("effect", [1.0, 2.0])
def test_the_promised_seeds_find_a_planted_effect(effect: float) -> None:
    seeds = seeds_needed(effect)
    assert seeds is not None
    found = c.power_kept("Gaussian", effect, seeds, 1000)
    assert found >= stats.binom.ppf(1 - c.SURE, 1000, 0.8) / 1000
    assert c.power_kept("Gaussian", effect, seeds - 1, 1000) < 0.8 + 0.04


def test_the_kept_calibration_is_whole_and_within_bounds(kept: dict) -> None:
    rates = kept["simulated"]["rates"]
    assert kept["simulated"]["studies"] >= 2000
    cells = {(r["rule"], r["metric"], r["seeds"], r["comparisons"]): r for r in rates}
    for rule in c.VERDICTS:
        for metric in c.METRICS:
            for seeds in (3, 5, 10):
                for comparisons in (1, 9):
                    one = cells[rule, metric, seeds, comparisons]
                    assert one["false"] <= c.bound(one["studies"]), one


def test_real_runs_of_one_optimizer_under_two_names_agree(script: ModuleType, kept: dict) -> None:
    found = script.judge(kept["real"])
    words = [one["verdict"] for one in found["alike"]]
    assert len(words) >= 20
    assert words.count("better") + words.count("worse") <= c.bound(len(words))
    p = [one["p"] for one in found["alike"] if not math.isnan(one["p"])]
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_a_planted_effect_in_real_runs_is_found_with_the_promised_power(script: ModuleType, kept: dict) -> None:
    found = script.judge(kept["real"])
    assert found["seeds"] >= 3 and found["wrong"] == 0
    assert found["found"] >= 0.75  # 80 % was promised for differences that are Gaussian; these are counted
    assert found["apart"].count("better") >= stats.binom.ppf(0.01, len(found["apart"]), 0.8)


def test_the_page_is_made_from_the_kept_numbers(script: ModuleType, kept: dict) -> None:
    assert (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8") == script.page(kept)


def test_algoperfs_published_scores_follow_from_its_published_times() -> None:
    text = (ROOT / "tests" / "algoperf_leaderboard.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))[1:]
    times = np.array([[float(x) if x else math.nan for x in row[2:]] for row in rows])
    assert times.shape == (16, 9)
    assert profiles.score(times) == pytest.approx([float(row[1]) for row in rows], abs=1e-12)
