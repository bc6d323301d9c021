"""Expected best of k, sensitivity, sources of variance, special cases: against independent computations."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning_fakes import BEFORE, YAML, even, expand, good_rate, rate, whole, write

from hf_optim import registry
from hf_optim.study.api import load
from hf_optim.study.findings import expected_best, sensitivity_curves, special_cases, variance_shares
from hf_optim.study.findings import protocol as tuning_report
from hf_optim.study.folder import pruning, stages
from hf_optim.study.folder import results as records
from hf_optim.study.folder.store import RecordStore
from hf_optim.study.plan import variance
from hf_optim.study.plan.plan import Plan, Run
from hf_optim.study.report import sections

PLAIN = YAML[: YAML.index("tuning:")]


def state(planned: Plan, folder: Path) -> tuple[stages.State, RecordStore]:
    reader = RecordStore(folder)
    return stages.state(planned, reader), reader


# --- expected best ---


@settings(max_examples=60)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=6), st.data())
def test_both_estimators_are_what_drawing_every_sample_gives(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    ranked = sorted(values)
    for weights, draws in (
        (expected_best.unbiased_weights(len(values), k), itertools.combinations(values, k)),
        (expected_best.biased_weights(len(values), k), itertools.product(values, repeat=k)),
    ):
        estimate = math.fsum(w * v for w, v in zip(weights, ranked, strict=True))
        assert estimate == pytest.approx(statistics.fmean(map(max, draws)), abs=1e-9)
        assert math.fsum(weights) == pytest.approx(1)


def test_a_search_of_a_thousand_trials_is_weighed_at_once() -> None:
    """A binomial for each trial and each number of trials took a minute, and with ten thousand days."""
    start, n = time.monotonic(), 1000
    for k in range(1, n + 1):
        weights = expected_best.unbiased_weights(n, k)
        assert weights.sum() == pytest.approx(1) and weights[-1] == pytest.approx(k / n)
        assert expected_best.biased_weights(n, k).sum() == pytest.approx(1)
    assert time.monotonic() - start < 20


def test_trials_hold_no_thresholds_without_end() -> None:
    """Each trial's specification holds them all: four long histories and ten thousand trials were gigabytes."""
    history = [{"step": step, "validation_accuracy": 0.5} for step in range(30_001)]
    few, many = (pruning.thresholds([history], "validation_accuracy", True, trials) for trials in (8, 1000))
    assert len(few) * 8 <= pruning.MOST and len(many) * 1000 <= pruning.MOST
    assert many[0] == (1, 0.5) and many[-1][0] > 28_000
    assert len(pruning.thresholds([history[:500]], "validation_accuracy", True, 40)) == 498


def test_curves_count_failures_as_the_untrained_model_and_end_at_the_chosen_trial(tmp_path: Path) -> None:
    planned = expand()
    whole(planned, tmp_path, lambda run: None if run.optimizer == "adamw" and rate(run) > 0.01 else good_rate(run))
    now, reader = state(planned, tmp_path)
    plan = records.load(tmp_path).plan
    curves = {c.optimizer: c for c in expected_best.curves(plan, now.searches, reader)}
    for search in now.searches:
        curve, best = curves[search.optimizer], search.choice.trial  # type: ignore[union-attr]
        assert best is not None and curve.unbiased[-1] == pytest.approx(best.value)
        assert curve.biased[-1] < best.value and all(a <= b + 1e-12 for a, b in itertools.pairwise(curve.unbiased))
        record = reader.record(best.run.id)
        assert record is not None and curve.test[-1] == pytest.approx(record["metrics"]["test_accuracy"])
        judged = [r for r in plan.runs if r.optimizer == search.optimizer]
        assert curve.judged == pytest.approx(statistics.fmean(good_rate(r)["test_accuracy"] for r in judged))
    failed = curves["adamw"]
    values = [t.value if t.status == "ok" else BEFORE["validation_accuracy"] for t in now.searches[0].trials]
    assert failed.failed > 0 and failed.unbiased[0] == pytest.approx(statistics.fmean(values))


def test_with_repetitions_a_curve_is_the_mean_of_theirs(tmp_path: Path) -> None:
    """It was that of the first repetition alone, beside the judged value of all."""
    planned = expand(YAML.replace("seeds: 3\n", "").replace("  trials: 6\n", "  trials: 3\n  repetitions: 4\n"))
    folder = whole(planned, tmp_path)
    now, reader = state(planned, folder)
    for curve in expected_best.curves(planned, now.searches, reader):
        mine = [s for s in now.searches if s.optimizer == curve.optimizer]
        assert len(mine) == 4 and len(curve.unbiased) == 3
        assert curve.unbiased[-1] == pytest.approx(statistics.fmean(max(t.value for t in s.trials) for s in mine))
        assert curve.unbiased[0] == pytest.approx(statistics.fmean(t.value for s in mine for t in s.trials))
    said = tuning_report.markdown(tuning_report.build(records.load(folder)), planned)
    assert "(the usual one in brackets), the mean over repetitions." in said


# --- sensitivity ---


def test_wortsmans_number_by_hand() -> None:
    number = sensitivity_curves.wortsman([0.5, 0.3, 4.0, math.nan], 2.3)
    assert number == pytest.approx((0.5 + 0.3 + 2.3 + 2.3) / 4 - 0.3)
    assert sensitivity_curves.wortsman([0.4, 0.4], 2.3) == 0


def test_the_grid_is_run_at_the_chosen_setting_and_gives_the_number(tmp_path: Path) -> None:
    planned = expand(YAML + "sensitivity: {values: [0.1, 0.001, 0.01], seeds: 2}\n")
    assert stages.planned(planned) == (18, 9, 18)

    def outcome(run: Run) -> dict[str, Any] | None:
        if run.optimizer == "SMARAN" and rate(run) == 0.1 and run.seed != 1000:
            return None
        return {**good_rate(run), "validation_loss": abs(math.log10(rate(run) / 0.01)) + 0.25 + 0.001 * run.seed}

    whole(planned, tmp_path, outcome)
    now, reader = state(planned, tmp_path)
    chosen = {s.optimizer: s.choice.spec for s in now.searches if s.choice}
    for grid_run in now.grid:
        assert rate(grid_run.run) == grid_run.value
        if grid_run.run.optimizer == "adamw":
            assert grid_run.run.spec["optimizer"]["weight_decay"] == chosen["adamw"]["weight_decay"]
    curves = {c.optimizer: c for c in sensitivity_curves.curves(planned, now.grid, reader)}
    assert curves["tlr(sgd)"].key == "base.lr" and curves["adamw"].values == (0.001, 0.01, 0.1)
    assert curves["adamw"].losses == pytest.approx((1.2505, 0.2505, 1.2505))
    assert curves["adamw"].number == pytest.approx((1.25 + 0.25 + 1.25) / 3 - 0.25)
    assert curves["SMARAN"].failed == (0, 0, 2)
    assert curves["SMARAN"].number == pytest.approx((1.2505 + 0.2505 + 2.3) / 3 - 0.2505)
    protocol = tuning_report.build(records.load(tmp_path))
    assert "sensitivity to lr" in tuning_report.markdown(protocol, planned)


def test_optimizers_without_the_hyper_parameter_are_left_out(tmp_path: Path) -> None:
    planned = expand(PLAIN.replace("- {name: smaran, label: SMARAN}", "- sls") + "sensitivity: {key: weight_decay}\n")
    assert {grid_run.run.optimizer for grid_run in state(planned, tmp_path)[0].grid} == {"adamw", "tlr(sgd)"}
    assert len(planned.runs) == 9  # without tuning the judged runs are known at once
    unfinished = sensitivity_curves.curves(planned, state(planned, tmp_path)[0].grid, RecordStore(tmp_path))
    assert all(math.isnan(c.number) for c in unfinished)


# --- variance ---


def test_what_a_loss_was_before_training_is_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each optimizer looked for it in the histories of all: where none says it, the square of their number was read."""
    text = f"{YAML[: YAML.index('tuning:')]}sensitivity: {{values: [0.001, 0.01], seeds: 1}}\n"
    planned = expand(text)
    now = state(planned, tmp_path)[0]
    for grid_run in now.grid:
        write(grid_run.run, tmp_path, good_rate(grid_run.run))
        (tmp_path / "runs" / grid_run.run.id / "history.jsonl").write_text("")
    read: list[str] = []

    def history(_: RecordStore, run_id: str) -> list[dict[str, Any]]:
        read.append(run_id)
        return []

    monkeypatch.setattr(RecordStore, "history", history)
    curves = sensitivity_curves.curves(planned, now.grid, RecordStore(tmp_path))
    assert len(curves) == 3 and sorted(read) == sorted(grid_run.run.id for grid_run in now.grid)


def test_thousands_of_cells_are_not_asked_of_all_runs(tmp_path: Path) -> None:
    """Each cell went through the runs of all: minutes for a study within its limits."""
    planned = expand(
        f"{YAML[: YAML.index('tuning:')]}sensitivity: {{values: [0.001, 0.01], seeds: 1}}\n"
        "variance: {seeds: 2, sources: [init], optimizers: [adamw, SMARAN, tlr(sgd)]}\n"
    )
    now, (task,) = state(planned, tmp_path)[0], planned.tasks
    labels = [f"{number}" for number in range(2000)]
    planned = replace(planned, tasks=tuple({**task, "label": label} for label in labels))
    grid = [replace(g, run=replace(g.run, task=label)) for label in labels for g in now.grid]
    varied = [replace(v, run=replace(v.run, task=label)) for label in labels for v in now.variations]
    reader, start = RecordStore(tmp_path), time.process_time()
    assert len(sensitivity_curves.curves(planned, grid, reader)) == 6000
    assert len(variance_shares.shares(planned, varied, reader)) == 6000
    assert time.process_time() - start < 8


def test_what_more_units_would_cost_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the sentence of each undecided optimizer, and every run of the study was planned anew for each."""
    whole(expand(YAML[: YAML.index("tuning:")]), tmp_path, even)
    counted: list[str] = []
    planned = stages.planned

    def count(plan: Plan) -> tuple[int, int, int]:
        counted.append(plan.name)
        return planned(plan)

    monkeypatch.setattr(stages, "planned", count)
    said = load(tmp_path).sentences
    assert sum("more runs, if planned beforehand" in sentence for sentence in said) == 2 and len(counted) == 1


def test_one_source_is_varied_at_a_time() -> None:
    planned = expand(YAML + "variance: {seeds: 3, optimizers: [adamw, SMARAN]}\n")
    assert planned.variance is not None and planned.tuning is not None
    varied_settings = list(variance.settings(planned.variance))
    assert [setting.source for setting in varied_settings] == ["", *(s for s in variance.SOURCES for _ in range(2))]
    common = varied_settings[0]
    assert dict(common.overrides) == {"split_seed": 0} and (common.seed, common.tuning_seed) == (0, 1000)
    for setting in varied_settings[1:]:
        base = {"init_seed": 0, "order_seed": 0, "split_seed": 0, "tuning": 1000}
        mine = {**base, **setting.overrides, "tuning": setting.tuning_seed}
        varied = setting.source if setting.source == "tuning" else f"{setting.source}_seed"
        assert [key for key in base if mine[key] != base[key]] == [varied]
        assert setting.seed == common.seed
    assert {(c["optimizer"], c["seed"]) for c in planned.tuning["cells"]} == {
        ("adamw", 1000), ("adamw", 1001), ("adamw", 1002), ("SMARAN", 1000), ("SMARAN", 1001), ("SMARAN", 1002),
        ("tlr(sgd)", 1000),
    }  # fmt: skip


def test_shares_are_those_of_the_variances(tmp_path: Path) -> None:
    planned = expand(YAML + "variance: {seeds: 4, optimizers: [adamw]}\n")
    effect = {"init_seed": 0.01, "order_seed": 0.02, "split_seed": 0.03}

    def outcome(run: Run) -> dict[str, Any]:
        over = run.spec["overrides"]
        test = 0.8 + sum(over.get(key, 0) * size for key, size in effect.items())
        return {**good_rate(run), "test_accuracy": test}

    whole(planned, tmp_path, outcome)
    now, reader = state(planned, tmp_path)
    shares = {s.source: s for s in variance_shares.shares(planned, now.variations, reader)}
    unit = statistics.stdev([0, 1, 2, 3])
    assert shares["split"].sd == pytest.approx(0.03 * unit) and shares["tuning"].sd == pytest.approx(0, abs=1e-12)
    assert [shares[s].share for s in variance.SOURCES] == pytest.approx([9 / 14, 1 / 14, 4 / 14, 0], abs=1e-9)
    assert all(s.n == 4 and (s.low <= s.sd <= s.high) for s in shares.values())
    # chi-squared with 3 degrees of freedom: 0.2158 and 9.3484 are its 2.5 % and 97.5 % points
    assert shares["split"].low == pytest.approx(shares["split"].sd * math.sqrt(3 / 9.3484), rel=1e-4)
    assert shares["split"].high == pytest.approx(shares["split"].sd * math.sqrt(3 / 0.2158), rel=1e-3)
    # The page has the interval too: a share without it is read as more than an order of magnitude.
    page = sections.shares(tuning_report.build(records.load(tmp_path)))
    assert "95 % interval" in page and f"{shares['split'].low:.4g} to {shares['split'].high:.4g}" in page
    # The judged runs are those of any other study.
    assert all(not {*effect} & {*run.spec["overrides"]} for run in now.runs)


# --- special cases ---


KNOWN = {name: registry.info(name) for name in registry.list_optimizers()}
PAIRS = [(name, special) for name, info in KNOWN.items() for special in info.special_cases]
MAY_BE_BASES = [name for name, info in KNOWN.items() if info.as_base and info.base is None]


def test_rules_and_wrappers_declare_what_they_contain() -> None:
    assert {("adamw", "adam"), ("sgdm", "sgd"), ("nesterov", "sgd"), ("hd_sgd", "sgd"), ("hd_adam", "adam")} <= {*PAIRS}
    assert {"tlr", "lookahead", "hdk"} <= {*MAY_BE_BASES}


@pytest.mark.parametrize(("general", "special"), PAIRS)
def test_declared_pairs_are_true(general: str, special: str) -> None:
    # hd_adam adds its eps to the uncorrected root, which shows in the eighth digit.
    assert _descend({"name": general, "lr": 0.05, **KNOWN[general].special_cases[special]}) == pytest.approx(
        _descend({"name": special, "lr": 0.05}), abs=1e-6
    )


@pytest.mark.parametrize("name", MAY_BE_BASES)
def test_declared_wrappers_contain_their_base(name: str) -> None:
    required = dict.fromkeys([*KNOWN[name].required, *(["interval"] if name == "tlr" else [])], 2)
    end = _descend({"name": name, **required, **KNOWN[name].as_base, "base": {"name": "sgd", "lr": 0.05}})
    assert end == pytest.approx(_descend({"name": "sgd", "lr": 0.05}), abs=1e-6)


def _descend(spec: dict[str, Any]) -> list[float]:
    import torch

    x = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    given = dict(spec)
    base = given.get("base", given)
    base.setdefault("weight_decay", 0.0)
    if "hd_" in spec["name"]:
        given.pop("weight_decay")
    optimizer = registry.build(given, [x])
    for _ in range(12):
        optimizer.zero_grad()
        loss = (torch.tensor([1.0, 5.0, 0.5], dtype=torch.float64) * x**2).sum()
        loss.backward()
        optimizer.step()
    return [float(v) for v in x.tolist()]


CASES = PLAIN.replace("  - {name: smaran, label: SMARAN}", "  - adam\n  - sgd").replace("seeds: 3", "seeds: 5")


@pytest.mark.parametrize(("loss", "flagged"), [(0.05, True), (0.0, False), (-0.05, False)])
def test_a_general_rule_that_loses_to_its_special_case_is_flagged(tmp_path: Path, loss: float, flagged: bool) -> None:
    planned = expand(CASES)
    assert set(special_cases.related(planned)) == {("adamw", "adam"), ("tlr(sgd)", "sgd")}
    noise = {0: 0.01, 1: -0.012, 2: 0.004, 3: -0.003, 4: 0.002}
    for run in planned.runs:
        worse = loss + noise[run.seed] if run.optimizer == "adamw" else 0.0
        write(run, tmp_path, {"validation_accuracy": 0.5, "validation_loss": 1.0, "test_accuracy": 0.8 - worse})
    (tmp_path / "plan.json").write_text(json.dumps(planned.to_dict()))
    findings = special_cases.findings(records.load(tmp_path))
    assert [(f.general, f.special) for f in findings] == ([("adamw", "adam")] if flagged else [])
    if flagged:
        from scipy import stats

        # One pair of six is told apart, at Holm's first step over all of them.
        half = stats.t.ppf(1 - 0.025 / 6, 4) * statistics.stdev(noise.values()) / math.sqrt(5)
        assert findings[0].high - findings[0].low == pytest.approx(2 * half)


def test_presets_of_wrappers_contain_their_base_and_what_that_contains() -> None:
    planned = expand(
        PLAIN.replace("- {name: smaran, label: SMARAN}", "- lookahead_adam\n  - adam\n  - {name: tlr_adamw}")
    )
    assert set(special_cases.related(planned)) == {
        ("adamw", "adam"), ("lookahead_adam", "adam"), ("tlr_adamw", "adamw"), ("tlr_adamw", "adam"),
    }  # fmt: skip
