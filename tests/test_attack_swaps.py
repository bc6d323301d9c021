"""What changes while it is copied, and what a copy takes over: links that come meanwhile, modes, names of any bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from attack_parts import command
from matplotlib.figure import Figure
from study_fakes import make_study

from hf_optim.experiment import copying, files
from hf_optim.study.folder import merge


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "key").write_text("a secret")
    return make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1)


@pytest.mark.parametrize("what", ["the run", "a folder in it", "a file in it"])
def test_a_link_that_comes_while_a_merge_copies_leads_nowhere(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    run = next(study.glob("runs/*"))
    (run / "notes").mkdir()
    (run / "notes" / "key").write_text("a note")
    swapped = {"the run": run, "a folder in it": run / "notes", "a file in it": run / "notes" / "key"}[what]
    target = tmp_path / "elsewhere" / ("key" if what == "a file in it" else "")

    def looked_through(folder: Path, most: int | None = None) -> None:
        files.check_tree(folder, most)
        if folder == run.resolve():
            swapped.rename(tmp_path / "aside")
            swapped.symlink_to(target)

    monkeypatch.setattr(merge, "check_tree", looked_through)
    code, _, err = command(capsys, "results", study, "--merge", tmp_path / "into")
    assert code == 2 and "is a link, which is not followed" in err
    assert not any(path.name == "key" or path.is_symlink() for path in (tmp_path / "into").rglob("*"))


def test_a_link_that_comes_while_a_chart_is_drawn_leads_nowhere(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len([*(tmp_path / "elsewhere").iterdir()])
    saved = Figure.savefig

    def swapped(self: Figure, *arguments: Any, **options: Any) -> None:
        if not (study / "figures").is_symlink():
            (study / "figures").rename(tmp_path / "aside")
            (study / "figures").symlink_to(tmp_path / "elsewhere")
        saved(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", swapped)
    code, _, err = command(capsys, "export", study, "--figure", "svg")
    assert code == 2 and "figures: is a link or no folder, and is not written through" in err
    assert len([*(tmp_path / "elsewhere").iterdir()]) == before
    assert [path.suffix for path in (tmp_path / "aside").iterdir()] == [".svg"], "the one that was begun"


@pytest.mark.parametrize("name", ["a/x", "a/b/x"])
def test_what_is_written_stays_in_its_folder_whatever_takes_its_place(tmp_path: Path, name: str) -> None:
    with files.whole(tmp_path, name) as file:
        (tmp_path / "a").rename(tmp_path / "aside")
        (tmp_path / "elsewhere" / "b").mkdir(parents=True)
        (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
        file.write(b"mine")
    assert (tmp_path / "aside" / name[2:]).read_bytes() == b"mine"
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.is_file()]
    with files.whole_folder(tmp_path / "aside", "new/y") as (_, held):
        (tmp_path / "aside" / "new").rename(tmp_path / "new")
        (tmp_path / "aside" / "new").symlink_to(tmp_path / "elsewhere")
        os.mkdir("z", dir_fd=held)
    assert (tmp_path / "new" / "y" / "z").is_dir() and not (tmp_path / "elsewhere" / "y").exists()
    with pytest.raises(files.Refused):
        files.remove(tmp_path, "a/b")


def test_what_grows_while_it_is_copied_ends(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = next(study.glob("runs/*"))
    monkeypatch.setattr(copying, "LARGEST_RUN", 10)
    with pytest.raises(files.Refused, match="grows beyond"):
        copying.copy_whole(study, f"runs/{run.name}", tmp_path)
    assert [*(tmp_path / "runs").iterdir()] == []


@pytest.mark.parametrize("linked", [False, True])
def test_a_copy_is_whole(study: Path, tmp_path: Path, linked: bool) -> None:
    run = next(study.glob("runs/*"))
    (run / "a" / "b").mkdir(parents=True)
    (run / "a" / "b" / "c.txt").write_text("c")
    (run / "checkpoint-3").mkdir()
    copying.copy_whole(study, f"runs/{run.name}", tmp_path, "checkpoint-*", linked=linked)
    shutil.rmtree(run / "checkpoint-3")

    def held(folder: Path) -> dict[str, Any]:
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.rglob("*")
            if path.is_file()
        }

    assert held(tmp_path / "runs" / run.name) == held(run)


def test_a_merged_file_is_not_run_as_its_owner(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program of a stranger's that any user of the machine could start as the one who merged."""
    run = next(study.glob("runs/*"))
    (run / "program").write_text("#!/bin/sh\n")
    (run / "program").chmod(0o6755)
    assert command(capsys, "results", study, "--merge", tmp_path / "into")[0] == 0
    assert (tmp_path / "into" / "runs" / run.name / "program").stat().st_mode & 0o7111 == 0


def test_names_that_are_not_utf8_are_told_by_a_merge(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = next(study.glob("runs/*/record.json"))
    stray = os.path.join(os.fsencode(study), b"runs", b"\xff\xfe")
    os.mkdir(stray)
    shutil.copy(record, os.fsdecode(stray))
    named = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"stu\xffdy"))
    shutil.copytree(study, named)
    for place in (study, Path(named)):
        assert main_code(place, tmp_path / f"into-{place == study}", capsys) == 0
    written = json.loads((tmp_path / "into-True" / merge.ORIGIN).read_text())
    assert "\\udcff" in "".join(written["left_out"])


def main_code(study: Path, into: Path, capsys: pytest.CaptureFixture[str]) -> int:
    from hf_optim.commands.main import main

    code = main(["results", str(study), "--merge", str(into)])
    assert "Traceback" not in capsys.readouterr().err
    return code


def test_half_a_character_is_written_so_that_it_is_read_again(tmp_path: Path) -> None:
    files.write_json(tmp_path, "x.json", {"\udcff": ["a\udcfeb", 1]})
    assert files.read_json(tmp_path, "x.json") == {"\\udcff": ["a\\udcfeb", 1]}
    files.write_rows(tmp_path, "y.jsonl", [{"a": "\udcff"}])
    assert files.read_json(tmp_path, "y.jsonl") == {"a": "\\udcff"}
