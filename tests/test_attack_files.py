"""More of what a stranger's files may try: paths of our own making, numbers without end, models without end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study_fakes import make_study

from hf_optim.claims import shared
from hf_optim.commands.main import main
from hf_optim.core import safe_text
from hf_optim.errors import UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import files
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.folder import results as records
from hf_optim.study.folder import store


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(one) for one in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("\n") <= 1, err
    return code, out, err


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


# --- where we write when nothing else is said ---


def test_figures_are_not_written_through_a_link(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    (study / "figures").symlink_to(elsewhere)
    code, _, err = command(capsys, "export", study, "--figure", "svg")
    assert code == 2 and "not written through" in err and not [*elsewhere.iterdir()]


def test_an_inspection_is_not_written_through_a_link(tmp_path: Path, elsewhere: Path) -> None:
    from hf_optim.commands import inspect

    (tmp_path / "inspection").symlink_to(elsewhere)
    with pytest.raises(UserError, match="not written through|link"):
        inspect._write(None, tmp_path, {"loss": 1.0}, [])
    assert not [*elsewhere.iterdir()]
    assert inspect._write(elsewhere, tmp_path, {"loss": 1.0}, []) == elsewhere


# --- runs that are taken from the studies beside one ---


def link(home: Path, elsewhere: Path) -> None:
    (elsewhere / "key").write_text("secret")
    (home / "log.txt").symlink_to(elsewhere / "key")


def pipe(home: Path, elsewhere: Path) -> None:
    (home / "record.json").unlink()
    os.mkfifo(home / "record.json")


def deep(home: Path, elsewhere: Path) -> None:
    (home / "record.json").write_text("[" * 5000)


@pytest.mark.parametrize("attack", [link, pipe, deep])
def test_runs_of_a_study_beside_are_taken_whole_or_not(
    tmp_path: Path, elsewhere: Path, attack: Callable[[Path, Path], None]
) -> None:
    runs = records.load(make_study(tmp_path / "all" / "theirs", ("adamw", "sgd"), seeds=1)).plan.runs
    attack(tmp_path / "all" / "theirs" / "runs" / runs[0].id, elsewhere)
    assert shared.collect(runs, tmp_path / "all" / "mine", tmp_path / "all") == [runs[1].id]
    assert [p.name for p in (tmp_path / "all" / "mine" / "runs").iterdir()] == [runs[1].id]


# --- numbers and depths ---


@pytest.mark.parametrize("value", [1e308, -1e308, 1e200])
def test_a_metric_whose_square_no_float_holds_is_unreadable(
    tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2, value=lambda label, seed: value * (1 - seed))
    for arguments in (["report", study], ["export", study, "--table", "latex"]):
        assert command(capsys, *arguments)[0] == 0
    assert "expected a number" in (study / "report.html").read_text()


def test_curves_of_the_largest_and_the_smallest_numbers_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    for history in study.glob("runs/*/history.jsonl"):
        rows = [{"step": 1, "train_loss": 1e308}, {"step": 2, "train_loss": 5e-324}, {"step": 3, "train_loss": 1.0}]
        history.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 1e300, "train_loss": -1e307}]))
    assert command(capsys, "report", study)[0] == 0


def test_a_number_is_one_that_can_be_computed_with() -> None:
    assert [store.number(v) for v in (2, 0.5, -1e149, 0, 5e-324)] == [2.0, 0.5, -1e149, 0.0, 0.0]
    assert all(store.number(v) != store.number(v) for v in (1e151, float("inf"), 10**400, True, "1", None))


def test_folders_without_end_are_refused(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with pytest.raises(files.Refused, match="deep"):
        files.check_tree(tmp_path)


def test_a_record_of_megabytes_is_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)
    next(study.glob("runs/*/record.json")).write_text("[" + "[]," * store.LARGEST + "[]]")
    assert "is larger than" in command(capsys, "report", study)[1]


# --- charts ---


def test_a_label_is_no_formula_of_matplotlib(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study", ("adamw", r"$\evil$", r"\$a$_b"), seeds=2)
    assert command(capsys, "export", study, "--figure", "svg", "--output", tmp_path / "out")[0] == 0
    drawn = (tmp_path / "out" / "mlp-result.svg").read_text()
    assert r"$\evil$" in drawn and safe_text.plot("a$b\n") == r"a\$b"


# --- models ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from hf_optim.experiment.task import check_run

    folder = tmp_path_factory.mktemp("saved") / "checkpoint-1"
    task, model, preset = check_run(RunSpec("vision", "convnext_tiny", "smoke", {"name": "sgd"}))
    task.model(model, preset, task.data(preset, None)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("depths", [10**9, 1, 1, 1], "counts beyond"),
        ("depths", [9000, 1, 1, 1], "layers"),
        ("hidden_sizes", [10**6, 10**6, 10**6, 10**6], "more numbers than its files hold"),
    ],
)
def test_a_model_without_end_is_refused_before_memory_ends(
    saved: Path, key: str, value: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_optim.experiment.task import load

    monkeypatch.setattr(checkpoints, "MOST_PARTS", 2000)
    config = saved / "config.json"
    before = config.read_text()
    assert checkpoints.read_model(load("vision"), "convnext_tiny", saved) is not None
    config.write_text(json.dumps({**json.loads(before), key: value}))
    try:
        with pytest.raises(UserError, match=why):
            checkpoints.read_model(load("vision"), "convnext_tiny", saved)
    finally:
        config.write_text(before)


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "hf-hub:them/model"},
        {"architecture": "local-dir:/home/me"},
        {"model_args": {"checkpoint_path": "/home/me/weights.pth"}},
        {"vision_config": {"model_args": {"pretrained_cfg": {"file": "x"}}}},
    ],
)
def test_timm_reads_nothing_that_a_checkpoint_names(tmp_path: Path, config: dict[str, Any]) -> None:
    """Older ones read it as a pickle that may call anything."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="asks for code or files of others"):
        checkpoints.check_checkpoint(tmp_path)
