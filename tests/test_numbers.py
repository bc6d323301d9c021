"""Numbers are what YAML 1.2 says, finite, and checked before anything runs; a mistake is one line with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_optim.commands.main import main
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.registry import list_optimizers
from hf_optim.study.plan.source import parse

STUDY = "name: s\nseeds: 1\ntasks:\n  - {task: vision, model: mlp, size: smoke}\noptimizers:\n  - %s\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("0o10", 8), ("0x1F", 31), ("-7", -7), ("+7", 7), ("1e-3", 1e-3), (".5", 0.5), ("1.", 1.0),
        ("-1E+2", -100.0), ("1:30", "1:30"), ("1_000", "1_000"), ("yes", "yes"), ("no", "no"), ("on", "on"), ("y", "y"),
        ("True", True), ("false", False), ("~", None), ("null", None), ("", None), ("2026-01-01", "2026-01-01"),
        ("0b11", "0b11"), ("=", "="), ("<<", "<<"), ("1e", "1e"), ("0x", "0x"), ("'010'", "010"), ('"1e-3"', "1e-3"),
    ],
)  # fmt: skip
def test_plain_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = parse(f"a:\n  - {text}\n", "x.yaml").value["a"][0]
    assert read == value and type(read) is type(value)
    from hf_optim.commands.nested import value as of_the_command_line

    assert of_the_command_line(text) == value


@pytest.mark.parametrize(
    "text",
    [".inf", "-.INF", ".nan", "1e400", "-1e999", str(2**63), "9" * 400, "9" * 6000, "!!int x", "!!float x",
     "!!python/name:os",
     "!!binary aGk=", "!!timestamp 2026-01-01", "!x 3", "\0", "\ud800", "[" * 40 + "]" * 40, "*a", "&a [*a]"],
)  # fmt: skip
def test_what_is_no_number_is_one_line_with_its_place(text: str) -> None:
    with pytest.raises(UserError, match=r"^x\.yaml(, line 2)?: ") as raised:
        parse(f"a: 1\nb: {text}\n", "x.yaml")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_nesting_ends_in_a_line() -> None:
    for text in ("[" * 5000, "a: " * 300 + "1", "{a: " * 5000):
        with pytest.raises(UserError, match=r"^x\.yaml"):
            parse(text, "x.yaml")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: adamw, lr: fast}", "line 6: adamw: lr must be a number, got 'fast'"),
        ("{name: adamw, lr: -1}", "line 6: adamw: lr = -1 is outside"),
        ("{name: adamw, lr: 1e400}", "line 6: 1e400 is not a finite number"),
        ("{name: adamw, betas: [0.9]}", "line 6: adamw: betas must be 2 numbers"),
        ("{name: tlr, gamma: 0.3, base: {name: sgd, lr: text}}", "line 6: "),
        ("{name: AdamW}", "line 6: there is no optimizer 'AdamW' (did you mean adamw"),
        (
            "{name: adamw, learning_rate: 0.1}",
            "adamw has no hyper-parameter 'learning_rate' (did you mean lr?)",
        ),
        ('{name: adamw, label: "3"}\nmargin: .nan', "line 7: .nan is not a finite number"),
    ],
)
def test_a_dry_run_checks_what_the_run_checks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str, message: str
) -> None:
    file, out = tmp_path / "s.yaml", tmp_path / "out"
    file.write_text(STUDY % entry)
    said = []
    for more in ([], ["--dry-run"]):
        assert main(["study", str(file), "--output", str(out), *more]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] and message in said[0] and said[0].count("\n") == 1 and not out.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 1", "seeds: 1000000000", "line 2: seeds must be at least 1 and at most 10000"),
        ("seeds: 1", "seeds: {these: [0, 4294967296]}", "line 2: a seed lies between"),
        ("smoke}", "smoke, overrides: {steps: 0}}", "line 4: overrides: steps must be 1 or more"),
        ("smoke}", "smoke, overrides: {batch_size: 1e3}}", "line 4: overrides: batch_size must be a number (int)"),
        ("smoke}", "smoke, options: {hidden_size: .inf}}", "line 4: .inf is not a finite number"),
        ("optimizers:", "tuning: {trials: 1000000}\noptimizers:", "line 5: trials must be at most 10000"),
    ],
)
def test_absurd_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text((STUDY % "adamw").replace(old, new))
    assert main(["study", str(tmp_path / "s.yaml"), "--dry-run"]) == 2
    assert message in (err := capsys.readouterr().err) and err.count("\n") == 1


def test_near_names() -> None:
    for word, near in (("AdamW", "adamw"), ("SMARAN", "smaran"), ("Tlr", "tlr"), ("LION", "lion")):
        assert closest(word, list_optimizers()).startswith(f" (did you mean {near}")
    assert closest("learning_rate", ["lr", "eps"]) == " (did you mean lr?)"
    assert closest("Weight_Decay", ["lr", "weight_decay"]) == " (did you mean weight_decay?)"
    assert closest("zzz", ["lr"]) == ""


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--lr", "--optimizer.lr"), ("--learning-rate", "--optimizer.lr"), ("--batchsize", "--batch-size")],
)
def test_a_hyper_parameter_is_the_optimizers(capsys: pytest.CaptureFixture[str], option: str, meant: str) -> None:
    assert main(["train", "--task", "vision", option, "3"]) == 2
    assert f"(did you mean {meant}" in capsys.readouterr().err


def test_a_config_file_is_read_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hf_optim.commands.train import parse as parsed

    file = tmp_path / "c.yaml"
    file.write_text("task: vision\nmodel: mlp\nsize: smoke\nseed: 010\noptimizer: {name: adamw, lr: 1e-3}\n")
    spec, _ = parsed(["--config", str(file)])
    assert spec.seed == 10 and spec.optimizer["lr"] == 1e-3 and json.loads(json.dumps(spec.to_dict()))
    file.write_text("task: vision\nseed: .nan\n")
    assert main(["train", "--config", str(file)]) == 2 and "line 2: .nan" in capsys.readouterr().err
