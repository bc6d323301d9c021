"""Rules and tables of a stranger's claim that cannot be asked, contradict themselves or take no end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from attack_parts import claim, command
from study_fakes import make_study

from hf_optim.claims.exhibits import RULES

AGAINST = {"optimizer": "adamw", "baseline": "sgd"}
KEPT = {"rule": "degrades", "optimizer": "adamw", "reference": "MLP"}


def judged(tmp_path: Path, *rules: dict[str, Any], **metrics: float) -> Path:
    """The study in `out`, its metrics so, and a claim of these rules about it."""
    study = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=3)
    for number, file in enumerate(study.glob("runs/*/record.json")):
        record = json.loads(file.read_text())
        record["time"]["steps"] = 0
        record["metrics"] |= {name: value / (1 + number) for name, value in metrics.items()}
        file.write_text(json.dumps(record))
    asked = {"study": {"name": "s", "seeds": 3, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}}
    return claim(tmp_path, claims=[{"says": "it", "section": "1", **rule} for rule in rules], small=asked)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"rule": "better_on_average", **AGAINST, "tasks": [], "metric": "test_loss"}, "tasks is empty"),
        ({**KEPT, "tasks": []}, "tasks is empty"),
        ({"rule": "better", "optimizer": "adamw", "baseline": ["sgd"] * 9}, "baseline names one twice"),
        ({"rule": "all", "of": [{"rule": "all", "of": [{**KEPT, "tasks": ["gone"]}]}]}, "all is no part of all"),
        ({"rule": "all", "of": [{"rule": "diverges", "optimizer": "sgd"}] * 501}, "501 rules"),
        ({"rule": "bounded", "optimizer": "sgd", "key": "V"}, "bounded needs low, high or both"),
    ],
)
def test_a_rule_that_cannot_be_asked_is_one_line(
    tmp_path: Path, rule: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were tracebacks, or parts that are asked again and again."""
    code, _, err = command(capsys, "reproduce", judged(tmp_path, rule), "--page", "--output", tmp_path / "out")
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "better", **AGAINST, "given": {**KEPT, "tasks": ["gone"]}},
        {"rule": "sooner", **AGAINST, "metric": "validation_accuracy", "target": 0.1},
        {"rule": "at_most", **AGAINST, "factor": 1e149, "metric": "test_loss"},
    ],
)
def test_a_rule_that_finds_nothing_to_judge_keeps_no_other_from_it(
    tmp_path: Path, rule: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """A premise about a task that is not there, runs of no steps, and what is no number once multiplied."""
    file = judged(tmp_path, rule, {"rule": "better", **AGAINST}, test_loss=1e149)
    assert command(capsys, "reproduce", file, "--page", "--output", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "reproduction.md").read_text().count("“it”") == 2


def test_a_row_of_a_table_is_chosen_by_a_number_and_many_units_are_a_moment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number was a traceback; all rows were looked through for each unit, which 4 MB made a day."""
    (tmp_path / "out").mkdir()
    lines = [f"{x},1,{i}\n" for i in range(16_000) for x in (64, 128)]
    (tmp_path / "out" / "agr-theorem41.csv").write_text("T,y,seed\n" + "".join(lines))
    rule = {"says": "it", "section": "1", "rule": "falls_as", "file": "agr-theorem41.csv", "column": "y"}
    rules = [{**rule, "exponent": 0, "where": {"seed": 0}}, {**rule, "exponent": 0}]
    start = time.process_time()
    asked = command(capsys, "reproduce", claim(tmp_path, claims=rules), "--page", "--output", tmp_path / "out")
    assert asked[0] == 0 and time.process_time() - start < 10


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("optimizer,y,z\nsgd,1,2\nadamw,3,4\nsgd,9,2\n", "sgd has 2 rows"),
        ("optimizer,y,z\nsgd,inf,2\nadamw,3,4\n", "sgd has no figure"),
        ("optimizer,y,z\nsgd,1,2\nadamw,nan,4\n", "no other got through"),
        ("optimizer,y,z\nsgd,1,2\nadamw,", "no figure that can be read under y of adamw"),
        ("optimizer,y,z\nsgd,1,2\nlion,3,4\nadamw,<b>,4\n", "no figure that can be read under y of adamw"),
        ("optimizer,y,z\nadamw,1,2\nsgd", "no figure that can be read under y of sgd"),
        ("optimizer,y,z\nsgd,1,2\nadamw,3,4\nlion,1_0,9\n", "over 2 cases (1 more without a figure)"),
        ("optimizer,y,y\nsgd,1,9\nadamw,3,4\n", "two columns have one name"),
    ],
)
def test_a_table_that_contradicts_itself_holds_nothing_unsaid(
    table: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an optimizer's rows the first counted and of its rivals' the last, rows without a figure were no rows, of
    two columns the last was meant, and a rival whose row was cut off had not got through.
    """
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "agr-theorem41.csv").write_text(table)
    rule = {"says": "it", "section": "1", "file": "agr-theorem41.csv"}
    rules = [{"rule": "lowest", "column": "y", "optimizer": "sgd"}, {"rule": "inequality", "left": "y", "right": "z"}]
    file = claim(tmp_path, claims=[{**rule, **asked} for asked in rules])
    assert command(capsys, "reproduce", file, "--page", "--output", tmp_path / "out")[0] == 0
    assert said in (tmp_path / "out" / "reproduction.md").read_text()


@pytest.mark.parametrize("places", [("0.1", "0.1"), ("0.1", "0.10000000000000002")])
def test_no_slope_is_fitted_to_places_that_differ_by_rounding(places: tuple[str, str]) -> None:
    rows = [{"T": place, "y": str(i + 1), "seed": str(seed)} for seed in range(3) for i, place in enumerate(places)]
    assert RULES["falls_as"][0](rows, "y", -1.0, start=0).verdict == "not tested"
