"""Where a stranger's file says what something is called, that takes no place of ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from attack_parts import command

from hf_optim.errors import UserError
from hf_optim.study import api, conduct


def test_a_study_that_bears_the_name_of_ours_changes_nothing_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its `name` chooses studies/NAME: a finished study got a stranger's baseline, and was exploratory for good."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    asked = "name: quickstart\nseeds: 2\ntasks: [{task: vision, size: smoke}]\noptimizers: [adamw, sgd]\n"
    (tmp_path / "mine.yaml").write_text(asked)
    (tmp_path / "theirs").mkdir()
    for name in ("theirs.yaml", "theirs/mine.yaml"):
        (tmp_path / name).write_text(f"{asked}baseline: sgd\n")
    for own in ("mine.yaml", "quickstart"):
        assert command(capsys, "study", own)[0] == 0
        folder = tmp_path / "studies" / "quickstart"
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for name in ("theirs.yaml", "theirs/mine.yaml"):
            for more in ((), ("--dry-run",)):
                code, _, error = command(capsys, "study", name, *more)
                assert code == 2 and f"was begun from something else than {name}" in error
            with pytest.raises(UserError, match="begun from something else"):
                api.run(name)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert command(capsys, "study", own)[0] == command(capsys, "study", folder)[0] == 0
        if own == "mine.yaml":
            assert command(capsys, "study", "theirs.yaml", "--output", folder)[0] == 0  # named: theirs from now on
            assert command(capsys, "study", own)[0] == 2 and command(capsys, "study", "theirs.yaml")[0] == 0
        shutil.rmtree(folder)


def test_what_only_says_where_a_study_comes_from_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`compare` went on in what the current folder had under the name "hf-optim compare", a link to ours, too."""
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    words = ("compare", "adamw", "sgd", "--task", "vision", "--size", "smoke", "--seeds", 2)
    assert command(capsys, *words, "--output", tmp_path / "ours")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "ours").rglob("*") if path.is_file()}
    (tmp_path / "theirs").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    asked = {"name": "mine", "seeds": 2, "tasks": [{"task": "vision", "size": "smoke"}], "optimizers": ["adamw", "sgd"]}
    for name in ("hf-optim compare", "mine.yaml"):
        Path(name).symlink_to("../ours")
    assert command(capsys, *words[:3], "lion", *words[3:])[0] == 0
    assert api.run(asked).folder == Path("studies/mine")
    assert {path: path.read_bytes() for path in (tmp_path / "ours").rglob("*") if path.is_file()} == before
