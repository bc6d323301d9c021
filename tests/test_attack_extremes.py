"""Studies whose figures lie at the ends of what a number can be, or where nothing stands as it should, in a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from attack_parts import claim, command
from study_fakes import replan
from tuning_fakes import expand, whole

from hf_optim.claims import cells
from hf_optim.study.plan.plan import Run
from hf_optim.study.report.ladder import _text
from hf_optim.study.statistics.intervals import Estimate

TWO = "optimizers: [{name: adamw, lr: 0.1, label: a}, {name: sgd, lr: 0.1, label: b}]\n"
ONE = "name: s\nseeds: 2\ntasks: [{task: vision, model: mlp, size: smoke, label: A, overrides: {steps: 100}}]\n" + TWO
THREE = (
    "name: s\nseeds: 3\ntasks:\n  - {task: vision, model: mlp, size: smoke, label: A}\n"
    "  - {task: vision, model: resnet, size: smoke, label: B}\n"
    "  - {task: vision, model: mlp, size: smoke, label: C, overrides: {steps: 50}}\n" + TWO
)
TUNED = ONE + "tuning: {trials: 2, space: {a: {weight_decay: [0.01, 0.1, log]}, b: {momentum: [0.1, 0.9, linear]}}}\n"
LADDER = (
    "name: lad\nseeds: 2\nladder: {model: gpt2, size: smoke, parameters: [20000], tokens: [0.05, 0.1, 0.2]}\n"
    "optimizers: [{name: adamw, lr: 0.01, label: A}, {name: sgd, lr: 0.01, label: B}]\n"
)
FIGURES = {"validation_loss": 1.0, "validation_accuracy": 0.5}


def made(folder: Path, text: str, tested: Callable[[Run], float] = lambda run: 0.5 + 0.01 * (run.seed % 7)) -> Path:
    """The study of a YAML, with a test accuracy and loss of these for each run."""
    study = whole(expand(text), folder, lambda run: {**FIGURES, **dict.fromkeys(METRICS, tested(run))})
    (study / "study.yaml").write_text(text)
    return study


METRICS = ("test_accuracy", "test_loss")


def told(study: Path, capsys: pytest.CaptureFixture[str], *more: Any) -> str:
    """What is said of the study, of which report, table and charts are made."""
    assert command(capsys, "export", study, "--table", "latex")[0] == 0
    assert command(capsys, "export", study, "--figure", "svg")[0] == 0
    assert command(capsys, "results", study, *more)[0] == 0
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and (study / "report.html").is_file()
    return out


def rung(run: Run) -> int:
    return [0.05, 0.1, 0.2].index(float(run.task.split("× ")[1]))


@pytest.mark.parametrize(
    "loss",
    [
        lambda run: 5.0 if run.optimizer == "A" else 5.000000000000001,
        lambda run: [1e149, 1e-149, 1e-149][rung(run)],
        lambda run: 1e20,
    ],
    ids=["the last bit", "wide", "beyond whole numbers"],
)
def test_a_ladder_of_any_losses_is_drawn(
    loss: Callable[[Run], float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An axis without a length, one without a number, and ticks of Python's large integers were tracebacks."""
    told(made(tmp_path / "ladder", LADDER, loss), capsys)


@pytest.mark.parametrize("values", ["[0, 5.0e-324]", "[-1, 1.0e+17]"])
def test_a_chart_of_sensitivity_has_a_width(values: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = made(tmp_path / "study", f"{ONE}sensitivity: {{values: {values}}}\n")
    for file in study.glob("runs/*/record.json"):
        if json.loads(file.read_text())["spec"]["optimizer"]["lr"] == -1:
            file.unlink()  # half finished
    told(study, capsys)


def test_a_score_in_units_of_nearly_nothing_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quotients beyond all numbers were tracebacks of their sum."""
    study = made(
        tmp_path / "study", THREE, lambda run: 1e149 if (run.optimizer == "a") == (run.task == "A") else -1e149
    )
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["metrics"]["validation_accuracy"] = 2.0000000000000002e-150
        file.write_text(json.dumps(record))
        (file.parent / "history.jsonl").write_text('{"step": 0, "validation_accuracy": 2e-150}\n')
    assert "no verdict" in told(study, capsys)
    replan(study, lambda plan: plan.update(margin=dict.fromkeys("ABC", 5e-324)))
    assert "a margin is 1e-150 at least" in command(capsys, "report", study)[2]


def test_a_search_at_a_budget_that_nobody_asks_for_is_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made(tmp_path / "study", TUNED)
    replan(study, lambda plan: plan["tuning"]["cells"].append({**plan["tuning"]["cells"][0], "budget": 2.0}))
    for words in (["report", study], ["results", study]):
        code, _, error = command(capsys, *words)
        assert code == 2 and "tuning: the cell of 'a' on 'A' is damaged" in error


def test_texts_that_are_numbers_have_a_mean_as_far_as_numbers_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made(tmp_path / "study", ONE)
    for number, file in enumerate(study.glob("runs/*/record.json")):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "environment": {"cpu": "1e308" if number % 2 else "1.1e308"}}))
    told(study, capsys, "--by", "task", "--columns", "environment.*")


@pytest.mark.parametrize("text", [TUNED, f"{ONE}sensitivity: {{values: [0.1, 0.2]}}\nvariance: {{seeds: 2}}\n"])
def test_every_run_that_cannot_be_read_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials, and the runs of what else is asked, passed for runs that had not been made yet."""
    study = made(tmp_path / "study", text)
    judged = {run["id"] for run in json.loads((study / "plan.json").read_text())["runs"]}
    specs = {file: json.loads(file.read_text())["spec"] for file in sorted(study.glob("runs/*/record.json"))}
    file = next(
        f for f, spec in specs.items() if (spec["seed"] >= 1000 if "tuning" in text else f.parent.name not in judged)
    )
    file.write_text("{")
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and f"runs/{file.parent.name}/record.json: " in out
    assert f"runs/{file.parent.name}/record.json: " in (study / "report.html").read_text()
    assert f"{file.parent.name}/record.json" in command(capsys, "export", study, "--table", "csv")[2]


def test_the_best_of_a_sentence_is_that_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three where the best had failed once, the second was said to be the best, and no other."""
    last = "label: b}"
    text = ONE.replace("seeds: 2", "seeds: 6").replace(last, f"{last}, {{name: adan, lr: 0.1, label: c}}")
    heights = {"a": 0.8, "b": 0.7, "c": 0.94}
    study = made(
        tmp_path / "study", text, lambda run: heights[run.optimizer] + 0.002 * (run.seed * ord(run.optimizer) % 5)
    )
    told(study, capsys)
    page = (study / "report.html").read_text()
    assert "c has the highest mean test accuracy" in page and "no other can be the best" in page
    specs = {file: json.loads(file.read_text())["spec"] for file in study.glob("runs/*/record.json")}
    failing = next(f for f, spec in specs.items() if (spec["optimizer"]["name"], spec["seed"]) == ("adan", 5))
    failing.write_text(json.dumps({**json.loads(failing.read_text()), "status": "failed", "error": "no"}))
    told(study, capsys)
    page = (study / "report.html").read_text()
    assert "a has the highest mean test accuracy" in page and "of those without a failed run; c can be the best" in page
    assert "no other can be the best" not in page
    table = command(capsys, "export", study, "--table", "markdown")[1]
    assert "The best mean of a column, of optimizers without a failed run, is bold." in " ".join(table.split())


@pytest.mark.parametrize("asked", [{"metric": "status.x"}, {"metric": "history.x"}, {"metric": "settled.x"}])
def test_a_metric_that_is_no_part_of_a_record_is_not_there(
    asked: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made(tmp_path / "study", ONE)
    rule = {"says": "it is", "section": "1", "rule": "better", "optimizer": "a", "baseline": "b", "greater": True}
    asks = {"small": {"study": yaml.safe_load(ONE)}, "claims": [{**rule, **asked}]}
    assert command(capsys, "reproduce", claim(tmp_path, **asks), "--page", "--output", study)[0] == 0


def test_by_no_share_of_nothing_is_divided() -> None:
    assert cells._is_share("best 0.9") and cells._is_share("best 1") and not cells._is_share(f"best .{'0' * 400}1")


@pytest.mark.parametrize("part", ["in_force", "groups", "known_losses"])
def test_settings_without_end_are_not_read(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of all of them, for each pair of optimizers, was made of a small file."""
    study = made(tmp_path / "study", ONE)
    file = next(study.glob("runs/*/record.json"))
    many = {f"n{i}": 1.0 for i in range(6000)}
    file.write_text(json.dumps({**json.loads(file.read_text()), part: many if part == "known_losses" else [many]}))
    assert "have more than" in " ".join(told(study, capsys).split())


def test_a_number_of_many_digits_stands_with_few() -> None:
    """A law that is followed far gives 1e148, whose digits filled the page."""
    assert _text(Estimate(1e148, 0.5, 2e300), 3) == "1.000e+148 [0.500, 2.000e+300]"
    assert _text(Estimate(-0.25, -1.0, 0.5), 2, "+") == "-0.25 [-1.00, +0.50]"
