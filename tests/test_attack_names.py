"""Where a stranger's file says what something is called, that takes no place of ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from attack_parts import SPEC, claim, command, interrupted_run
from study_fakes import make_study, replan

from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.experiment import saved_files
from hf_optim.experiment.spec import RunSpec
from hf_optim.study import api, conduct
from hf_optim.study.folder import begun, shared
from hf_optim.study.folder.changes import read_plan


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


def test_a_copy_of_a_studys_file_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Let through by its text, it was from then on what the folder was begun from, and said something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    asked = "name: ours\nseeds: 2\ntasks: [{task: vision, size: smoke}]\noptimizers: [adamw, sgd]\n"
    for name in ("mine.yaml", "theirs.yaml"):
        (tmp_path / name).write_text(asked)
        assert command(capsys, "study", name)[0] == 0
    for name, code in (("theirs.yaml", 2), ("mine.yaml", 0)):
        (tmp_path / name).write_text(f"{asked}title: of {name}\n")
        assert command(capsys, "study", name)[0] == code
    assert "title: of mine.yaml" in (tmp_path / "studies" / "ours" / "study.yaml").read_text()


def test_a_copy_of_a_claims_file_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    mine, theirs = claim(tmp_path), tmp_path / "theirs.yaml"
    theirs.write_text(text := mine.read_text())
    assert command(capsys, "reproduce", mine)[0] == command(capsys, "reproduce", theirs, "--page")[0] == 0
    for file, code in ((theirs, 2), (mine, 0)):
        file.write_text(f"{text}\n# changed\n")
        assert command(capsys, "reproduce", file, "--page")[0] == (0 if file == mine else code)
        file.write_text(f"{text}\n# changed once more\n")
        assert command(capsys, "reproduce", file, "--page")[0] == code


def test_comparisons_of_labels_without_latin_letters_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both were `vs--logistic-smoke`, and the second one took the first one's place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    for labels in (("中国", "日本"), ("한국", "ไทย"), ("adamw", "sgd")):
        words = [f"{{name: {name}, label: {label}}}" for name, label in zip(("adamw", "sgd"), labels, strict=True)]
        assert command(capsys, "compare", *words, "--task", "logistic", "--size", "smoke")[0] == 0
    folders = sorted(path.name for path in (tmp_path / "studies").iterdir())
    assert len(folders) == 3 and "adamw-vs-sgd-logistic-smoke" in folders


@pytest.mark.parametrize("made", ["merge", "copy", "release of before"])
def test_a_folder_that_no_file_has_begun_is_taken_over_by_none(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any file that bore its name went on with it: a stranger's chose another baseline for what two studies say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    asked = "name: all\nseeds: 2\ntasks: [{task: vision, size: smoke}]\noptimizers: [adamw, sgd]\n"
    (tmp_path / "mine.yaml").write_text(asked)
    (tmp_path / "theirs.yaml").write_text(f"{asked}baseline: sgd\n")
    for name in ("one", "other"):
        assert command(capsys, "study", "mine.yaml", "--output", name)[0] == 0
    folder = tmp_path / "studies" / "all"
    if made == "merge":
        assert command(capsys, "results", "one", "other", "--merge", folder)[0] == 0
    elif made == "copy":
        assert command(capsys, "publish", "one", folder)[0] == 0
    else:
        shutil.copytree(tmp_path / "one", folder)
        plan = json.loads((folder / "plan.json").read_text())
        del plan[begun.BEGUN]
        (folder / "plan.json").write_text(json.dumps(plan))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _, error = command(capsys, "study", "theirs.yaml")
    assert code == 2 and "does not say that it was begun from theirs.yaml" in error
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert command(capsys, "study", folder)[0] == 0 and command(capsys, "study", "mine.yaml")[0] == 0


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


def test_a_study_that_bears_the_name_of_ours_is_told_apart_in_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its runs were rows of ours, of which none said whose it is, and `--by study` made one mean of both."""
    for place in ("ours", "theirs/a", "theirs/b"):
        make_study(tmp_path / place)
    mine, theirs = tmp_path / "ours", tmp_path / "theirs"
    for file in theirs.glob("*/runs/*/record.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps({**record, "metrics": {**record["metrics"], "test_accuracy": 0.999}}))
    alone = command(capsys, "results", mine, "--by", "optimizer")[1]
    code, out, _ = command(capsys, "results", mine, theirs / "a", "--by", "study,optimizer")
    rows = out.splitlines()[1:-1]  # the last line says that runs have two results
    assert code == 0 and {line.split()[0] for line in rows} == {"ours", "a"} and "9 runs with more than one" in out
    assert [line.split()[1:] for line in rows if line.startswith("ours")] == [
        line.split() for line in alone.splitlines()[1:]
    ]
    assert command(capsys, "results", mine, theirs / "a", "--where", "study=ours", "--by", "optimizer")[1] == alone
    assert "ours" in command(capsys, "results", mine, theirs / "b")[1].splitlines()[1]
    (tmp_path / "theirs" / "b").rename(theirs / "ours")
    out = command(capsys, "results", mine, theirs / "ours", mine, "--by", "study")[1]
    assert [line.split()[0] for line in out.splitlines()[1:-1]] == [f"{tmp_path.name}/ours", "theirs/ours"]


def test_what_other_runs_are_called_is_not_pooled_with_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of other seeds: what a stranger calls smaran was compared with adamw as if his runs and ours were of one rule."""
    mine, theirs = make_study(tmp_path / "ours"), make_study(tmp_path / "theirs", seeds=6)

    def as_they_say(plan: dict) -> None:
        plan["seeds"] = [3, 4, 5]
        plan["runs"] = [run for run in plan["runs"] if run["seed"] > 2]

    replan(theirs, as_they_say)
    asked = ("results", mine, theirs, "--compare")
    code, out, _ = command(capsys, *asked, "smaran", "adamw")
    assert code == 0 and out.splitlines()[1].split()[4] == "6"  # the same optimizer, on further seeds

    def otherwise(plan: dict) -> None:
        (entry,) = (one for one in plan["optimizers"] if one["label"] == "smaran")
        entry["spec"]["lr"] = 0.123

    replan(theirs, otherwise)
    code, out, error = command(capsys, *asked, "smaran", "adamw")
    assert (code, out) == (2, "") and "'smaran' on MLP is trained otherwise in theirs than in ours: narrow it" in error
    assert command(capsys, *asked, "study=ours,optimizer=smaran", "adamw")[0] == 0


def _of_my_file(study: Path, text: str, *seeds: int) -> Path:
    """Adan is somebody's own, of which the runs of these seeds ran this text."""

    def named(plan: dict) -> None:
        (entry,) = (one for one in plan["optimizers"] if one["label"] == "adan")
        entry["spec"]["name"] = "mine.py:Adan"

    replan(study, named)
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        if record["spec"]["optimizer"]["name"] == "mine.py:Adan" and record["spec"]["seed"] in seeds:
            file.write_text(json.dumps({**record, "code": {"mine.py:Adan": text}}))
    return study


def _leave(study: Path, *seeds: int) -> None:
    """Takes the runs of all other seeds out of a study."""
    plan = json.loads((study / "plan.json").read_text())
    for run in plan["runs"]:
        if run["seed"] not in seeds:
            shutil.rmtree(study / "runs" / run["id"])
    runs = [run for run in plan["runs"] if run["seed"] in seeds]
    (study / "plan.json").write_text(json.dumps({**plan, "seeds": seeds, "runs": runs}))


def test_two_files_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's id knows the path of its code alone: what a stranger calls as we do was pooled with ours, and what ran
    before a change of one's own file with what ran after it.
    """
    mine = _of_my_file(make_study(tmp_path / "mine"), "ab" * 32, 0, 1, 2)
    theirs = _of_my_file(make_study(tmp_path / "theirs"), "<b>" + 20 * "c", 0)
    asked = ("results", mine, theirs, "--merge", tmp_path / "both")
    code, _, error = command(capsys, *asked)
    assert code == 2 and "has two results, in mine and in theirs: mine.py:Adan abababab" in error
    assert "text" not in command(capsys, "report", theirs)[1]
    _leave(mine, 1, 2)
    _leave(theirs, 0)
    code, _, error = command(capsys, *asked[:3], "--compare", "adan", "adamw")
    assert code == 2 and "'adan' on MLP is trained otherwise in theirs than in mine: narrow it" in error
    assert command(capsys, *asked)[0] == 0
    said = "Not all runs of mine.py:Adan ran the same text of it: 2 with sha256 abababababab and 1 with sha256 "
    assert f"{said}<b>ccccccccc." in " ".join(command(capsys, "report", tmp_path / "both")[1].split())
    assert f"{said}&lt;b&gt;ccccccccc." in (tmp_path / "both" / "report.html").read_text()


def test_runs_of_other_code_are_not_taken_from_the_studies_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("mine.py")
    file.write_text("Adan = 1\n")
    beside = _of_my_file(make_study(tmp_path / "beside"), hashlib.sha256(file.read_bytes()).hexdigest(), 0, 1)
    plan = read_plan(beside)
    others = {run.id for run in plan.runs if run.optimizer != "adan" or run.seed < 2}
    assert set(shared.collect(plan, tmp_path / "new", tmp_path)) == others
    before = importing.digests(plan.to_dict())
    file.write_text("Adan = 2\n")
    assert len(shared.collect(plan, tmp_path / "newer", tmp_path)) == len(others) - 2 and before
    assert importing.import_path("mine.py:Adan") == 2
    now = importing.digests(plan.to_dict())
    file.write_text("Adan = 1\n")
    assert importing.digests(plan.to_dict()) == now != before  # what a record says: the text that was run


@pytest.mark.skipif(sys.version_info < (3, 13), reason="a part of an archive has one name")
def test_a_part_of_saved_values_has_one_name(tmp_path: Path) -> None:
    """torch's reader takes the one, and what looks through the file before took the other, harmless values."""
    torch.save({"w": torch.ones(2)}, file := tmp_path / "optimizer.pt")
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in parts.items():
            raw = name.replace("data.pkl", "data.txt")
            entry = zipfile.ZipInfo(raw)
            told = struct.pack("<BL", 1, zlib.crc32(raw.encode())) + name.encode()
            entry.extra = struct.pack("<HH", 0x7075, len(told)) + told
            archive.writestr(entry, content)
    with pytest.raises(saved_files.Suspect, match="parts of two names"):
        saved_files.check(file)


@pytest.mark.parametrize("key", ["data", "task", "model"])
def test_a_name_with_a_nul_is_one_line_beside_the_others(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spec.json's took the table of all checkpoints away."""
    run = interrupted_run(tmp_path)
    shutil.copytree(run, other := tmp_path / "other")
    spec = json.loads((other / "spec.json").read_text())
    (other / "spec.json").write_text(json.dumps({**spec, key: "a\0b"}))
    code, out, error = command(capsys, "evaluate", other, run)
    assert code == 2 and "NUL character" in error and "mlp" in out


def test_a_folder_that_is_called_by_the_run_and_says_another_one_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --output it was taken for the run's own, whatever its spec.json said."""
    monkeypatch.chdir(tmp_path)
    run = RunSpec("logistic", None, "smoke", {"name": "sgd"}, overrides={"steps": 4})
    folder = tmp_path / "runs" / run.id
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "mine.txt").write_text("mine")
    (folder / "spec.json").write_text(json.dumps(SPEC.to_dict()))
    words = ["train", "--task", "logistic", "--size", "smoke", "--optimizer", "sgd", "--steps", "4", "--quiet"]
    code, _, error = command(capsys, *words)
    assert (code, error.count("samples of another run")) == (2, 1) and (folder / "samples" / "mine.txt").exists()
    (folder / "spec.json").unlink()
    assert command(capsys, *words)[0] == 0 and (folder / "record.json").exists()
