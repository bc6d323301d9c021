"""A stranger's folder: nothing in it runs, nothing outside it is read or written, and the report still says what is so.

Each test is an attack. What is said in docs/trust.md is tried here.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from attack_parts import command
from PIL import Image
from study_fakes import make_study

from hf_optim.core import private
from hf_optim.errors import UserError
from hf_optim.experiment import files, leftovers
from hf_optim.experiment.disk import writing
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.folder import results as records
from hf_optim.study.folder.store import read_status
from hf_optim.study.launch import worker
from hf_optim.study.launch.messages import Request

ONE = ("adamw", "smaran")
SECRET = "the-words-of-a-private-key"


def changed(file: Path, change: Callable[[Any], Any]) -> None:
    value = json.loads(file.read_text())
    file.write_text(json.dumps(change(value) or value))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return make_study(tmp_path / "study", ONE, seeds=2)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    home = tmp_path / "home" / "secret"
    home.mkdir(parents=True)
    (home / "key.txt").write_text(SECRET)
    (home / "record.json").write_text("{}")
    return home


def first(study: Path) -> Path:
    return sorted((study / "runs").iterdir())[0]


def everything(folder: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file())


# --- ids and names ---


@pytest.mark.parametrize("bad", ["../../home/secret", "/etc", "..", "a/b", "x" * 12, ""])
def test_an_id_that_is_no_hash_is_refused_everywhere(
    study: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    def point_elsewhere(plan: dict[str, Any]) -> None:
        plan["runs"][0]["id"] = bad

    changed(study / "plan.json", point_elsewhere)
    for arguments in (["report", study], ["results", study], ["results", study, "--merge", tmp_path / "into"]):
        code, out, err = command(capsys, *arguments)
        assert code == 2 and "is not the hash of its specification" in err and not out
    assert (secret / "key.txt").exists() and not (tmp_path / "into").exists()


def test_a_record_that_names_another_run_is_not_copied_by_its_name(
    study: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "into" / "runs"
    changed(first(study) / "record.json", lambda record: {**record, "id": "../../../home/secret"})
    odd = study / "runs" / "left over"  # not planned
    odd.mkdir()
    (odd / "record.json").write_text((first(study) / "record.json").read_text())
    code, out, _ = command(capsys, "results", study, "--merge", tmp_path / "into")
    assert code == 0 and "Unfinished: 1 run left" in out
    whole = sorted(p.name for p in (study / "runs").iterdir() if p != odd)[1:]
    assert sorted(p.name for p in victim.iterdir()) == whole
    assert {p.name for p in secret.iterdir()} == {"key.txt", "record.json"}


def test_a_record_of_another_specification_is_unreadable_and_named(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(first(study) / "record.json", lambda record: {**record, "spec": {**record["spec"], "seed": 7}})
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and re.search(r"^unreadable: \w+ on MLP, seed \d: runs/\w+/record.json: .*another run", out, re.M)
    assert "record.json: the record is of another run" in (study / "report.html").read_text()
    assert len(records.load(study).records) == 3


# --- links, pipes, devices ---


def link_run(study: Path, secret: Path) -> None:
    home = first(study)
    home.rename(secret / home.name)
    home.symlink_to(secret / home.name)


def link_record(study: Path, secret: Path) -> None:
    file = first(study) / "record.json"
    file.rename(secret / "elsewhere.json")
    file.symlink_to(secret / "elsewhere.json")


def link_runs(study: Path, secret: Path) -> None:
    (study / "runs").rename(secret / "runs")
    (study / "runs").symlink_to(secret / "runs")


def pipe(study: Path, secret: Path) -> None:
    (first(study) / "record.json").unlink()
    os.mkfifo(first(study) / "record.json")


def device(study: Path, secret: Path) -> None:
    (first(study) / "record.json").unlink()
    (first(study) / "record.json").symlink_to("/dev/zero")


@pytest.mark.parametrize("attack", [link_run, link_record, link_runs, pipe, device])
def test_what_is_no_file_of_the_folder_is_not_read(
    study: Path, secret: Path, capsys: pytest.CaptureFixture[str], attack: Callable[[Path, Path], None]
) -> None:
    attack(study, secret)
    before = everything(secret)
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and ("is a link, which is not followed" in out or "is no plain file" in out)
    left = 0 if attack is link_runs else 3
    assert len(records.load(study).records) == left
    assert sum(read_status(home) is not None for home in study.glob("runs/*")) == left
    assert everything(secret) == before


@pytest.mark.parametrize("name", ["plan.json", "study.yaml"])
def test_a_linked_plan_or_yaml_is_not_read(
    study: Path, secret: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (study / name).unlink()
    (study / name).symlink_to(secret / "key.txt")
    code, _, err = command(capsys, "report" if name == "plan.json" else "study", study)
    assert code == 2 and "is a link, which is not followed" in err
    if name == "study.yaml":  # the report is made without it
        assert command(capsys, "report", study)[0] == 0
    assert SECRET not in everything(study / "runs") + "".join(
        p.read_text() for p in study.glob("*.*") if not p.is_symlink() and p.suffix != ".parquet"
    )


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        ("a pipe", "is no plain file"),
        ("a link to nothing", "is a link, which is not followed"),
        ("a folder", "is no plain file"),
    ],
)
@pytest.mark.parametrize("words", ["report {}", "results {}", "results {} --merge {}2", "export {} --table csv"])
def test_what_stands_in_a_plans_place_is_named(
    study: Path, capsys: pytest.CaptureFixture[str], words: str, standing: str, said: str
) -> None:
    """`results` said that there was no study."""
    plan = study / "plan.json"
    plan.unlink()
    if standing == "a pipe":
        os.mkfifo(plan)
    elif standing == "a folder":
        plan.mkdir()
    else:
        plan.symlink_to(study / "nothing")
    code, _, err = command(capsys, *words.format(study, study).split())
    assert code == 2 and err.count("\n") == 1 and said in err and "plan.json" in err


@pytest.mark.parametrize("words", ["report {}", "results {} --merge {}2", "publish {} {}2"])
@pytest.mark.parametrize("name", ["questions.jsonl", "study.yaml", "merged.json"])
def test_a_folder_in_the_place_of_another_file_keeps_no_report(
    study: Path, name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the register's, every command said "output: Is a directory", and not where."""
    (study / name).unlink(missing_ok=True)
    (study / name).mkdir()
    code, _, err = command(capsys, *words.format(study, study).split())
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "sample", ["samples/key.txt", "../../../home/secret/key.txt", "/etc/hostname", "record.json", "samples/x.png"]
)
def test_samples_are_the_runs_own(study: Path, secret: Path, capsys: pytest.CaptureFixture[str], sample: str) -> None:
    for home in (study / "runs").iterdir():
        (home / "samples").mkdir()
        (home / "samples" / "key.txt").symlink_to(secret / "key.txt")
        (home / "samples" / "x.png").write_text(SECRET)  # not a picture
        changed(home / "record.json", lambda record: {**record, "samples": [sample]})
    assert command(capsys, "report", study)[0] == 0
    page = (study / "report.html").read_text()
    assert SECRET not in page and base64.b64encode(SECRET.encode()).decode()[:20] not in page
    assert "<h3>Samples</h3>" not in page


def test_a_sample_that_a_browser_would_run_is_not_published(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a user's own site a page among the samples would run as the user's; a picture may be one by name."""
    home, pixel = first(study), BytesIO()
    Image.new("L", (1, 1)).save(pixel, "png")
    (home / "samples").mkdir()
    pages = ["index.html", "a.svg", "a.xml", "a.HTM", "a.xhtml", "none"]
    for name in pages:
        (home / "samples" / name).write_text("<script>alert(1)</script>")
    for name in ("a.html", "a.png", "a.txt"):
        (home / "samples" / name).write_bytes(b"text" if name == "a.txt" else pixel.getvalue())
    samples = sorted(f"samples/{file.name}" for file in (home / "samples").iterdir())
    changed(home / "record.json", lambda record: {**record, "samples": samples})
    code, said, _ = command(capsys, "publish", study, tmp_path / "public")
    assert code == 0 and said.count("is not called .png or .txt") == len(pages) + 1
    assert sorted(file.name for file in (tmp_path / "public").rglob("samples/*")) == ["a.png", "a.txt"]


@pytest.mark.parametrize("where", ["samples/x", "log.txt", "deep/er/x"])
def test_merge_refuses_links_before_it_writes(
    study: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    place = first(study) / where
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(secret)
    code, _, err = command(capsys, "results", study, "--merge", tmp_path / "into")
    assert code == 2 and "is a link, which is not followed; nothing was written" in err
    assert not (tmp_path / "into").exists()


def test_merge_does_not_write_through_a_link(
    study: Path, secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (into := tmp_path / "into").symlink_to(secret)
    code, _, err = command(capsys, "results", study, "--merge", into)
    assert code == 2 and "not written through" in err
    assert {p.name for p in secret.iterdir()} == {"key.txt", "record.json"}


@pytest.mark.parametrize("where", ["runs", "runs/{id}", "runs/{id}/checkpoint-3", "runs/{id}/log.txt", ".lock"])
def test_a_worker_does_not_write_through_a_link(tmp_path: Path, secret: Path, where: str, monkeypatch: Any) -> None:
    import hf_optim.experiment.training as training

    def trains(spec: RunSpec, home: Path, **_: Any) -> None:
        print("this goes to log.txt", flush=True)
        (Path(home) / "checkpoint-3").mkdir(exist_ok=True)
        (Path(home) / "checkpoint-3" / "x").write_text("x")

    monkeypatch.setattr(training, "train", trains)
    spec = RunSpec(task="vision", optimizer={"name": "adamw"})
    place = tmp_path / "study" / where.format(id=spec.id)
    place.parent.mkdir(parents=True)
    place.symlink_to(secret / "key.txt" if place.suffix or place.name == ".lock" else secret)
    for every in (None, 3):
        try:
            worker.execute(Request(tmp_path / "study", spec.id, spec.to_dict(), checkpoint_every=every))
        except (OSError, UserError) as error:
            assert "link" in str(error)
    assert {p.name for p in secret.iterdir()} == {"key.txt", "record.json"}
    assert (secret / "key.txt").read_text() == SECRET


def test_writing_replaces_a_link_and_leaves_what_it_meant(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "x").symlink_to(secret / "key.txt")
    files.write_atomically(tmp_path, "x", "mine")
    assert (secret / "key.txt").read_text() == SECRET and (tmp_path / "x").read_text() == "mine"
    with pytest.raises(files.Refused):
        files.own_folder(tmp_path, "home/secret/key.txt")


@pytest.mark.parametrize("name", ["table.md", "report.html", "runs.parquet", "pages", "pages/{id}.html"])
@pytest.mark.parametrize("standing", ["a folder", "a pipe"])
def test_what_stands_in_the_place_of_a_part_of_the_report_keeps_nothing_else_from_it(
    study: Path, name: str, standing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = study / name.format(id=first(study).name)
    place.parent.mkdir(exist_ok=True)
    if standing == "a pipe":
        os.mkfifo(place)
    elif name == "pages":
        place.write_text("mine")
    else:
        place.mkdir()
    code, out, err = command(capsys, "report", study)
    assert code == 2 and err.count("\n") == 1 and place.name in err and "test_accuracy" in out
    made = [*study.glob("*.csv"), *study.glob("*.md"), *study.glob("*.html"), *study.glob("pages/*.html")]
    made += study.glob("*.parquet")
    assert len([path for path in made if path.is_file()]) == (8 if name == "pages" else 11)


def test_a_report_leads_to_no_pages_of_others(study: Path, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was written, and its links led to what a stranger had put behind a link called `pages`."""
    theirs = [secret / f"{path.name}.html" for path in (study / "runs").iterdir()]
    for page in theirs:
        page.write_text("<script>theirs()</script>")
    (study / "pages").symlink_to(secret)
    assert command(capsys, "report", study)[0] == 0
    assert len([*(study / "pages").iterdir()]) == 4 and not (study / "pages").is_symlink()
    assert not [page for page in (study / "pages").iterdir() if "theirs" in page.read_text()]
    assert all("theirs" in page.read_text() for page in theirs)


def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    (tmp_path / f".plan.json.{'0' * 32}.tmp").write_text("half")
    (tmp_path / f".probe.{'0' * 32}").write_text("")
    with files.whole(tmp_path, "x") as file:
        leftovers.sweep(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
        file.write(b"whole")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_resumed_run_does_not_follow_its_checkpoints(tmp_path: Path, secret: Path) -> None:
    from hf_optim.experiment.checkpoint import last_checkpoint

    state = json.dumps({"global_step": 3, "log_history": [{"step": 3, "loss": 1.0}]})
    (secret / "trainer_state.json").write_text(state.replace("3", "9"))
    (tmp_path / "checkpoint-9").symlink_to(secret)
    assert last_checkpoint(tmp_path) is None
    whole = tmp_path / "checkpoint-3"
    whole.mkdir()
    (whole / "trainer_state.json").write_text(state)
    wrong = ("{}", '{"global_step": 8, "log_history": 5}', '{"global_step": 8, "log_history": [{}]}', state)
    for damaged in (*wrong, '{"global_step": 8, "log_history": [{"step": 8, "epoch": "x"}]}'):
        (tmp_path / "checkpoint-8").mkdir(exist_ok=True)
        (tmp_path / "checkpoint-8" / "trainer_state.json").write_text(damaged)
        assert last_checkpoint(tmp_path) == str(whole)
    (whole / "optimizer.pt").symlink_to(secret / "key.txt")
    assert last_checkpoint(tmp_path) == str(whole)
    with pytest.raises(files.Refused, match="optimizer.pt"):
        files.check_tree(whole)


def test_another_users_file_is_not_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever did as the line said lost a good checkpoint."""
    (tmp_path / "checkpoint-3").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(UserError, match="checkpoint-3: cannot be read: make it readable, or choose"), writing(tmp_path):
        files.check_tree(tmp_path)


def test_what_looks_like_a_token_and_is_a_word_stays() -> None:
    """Classes, labels (of two that became one no study was published) and the "day" of "users/day" were taken out."""
    label, token = "adamw-lr0p0003wd0p1warm100", f"figd_{'aB3d' * 9}"
    text = f"t5.T5ForConditionalGeneration, w.Wav2Vec2ConformerConfig, {label}, users/day of a day"
    assert private.Scrubber([text], spoken={label}).scrub(f"{text}, {token}") == f"{text}, REMOVED"


@pytest.mark.parametrize("row", [{}, {"step": "0"}, {"step": 0.5}, {"step": None}, {"step": True}], ids=str)
def test_a_row_of_no_step_is_none_of_a_history(row: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    """One before the others kept a run that learned nothing from counting as failed, and no line said so."""
    study = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=2)
    history = next(study.glob("runs/*/history.jsonl"))
    history.write_text(json.dumps(row) + "\n" + history.read_text())
    code, out, _ = command(capsys, "report", study)
    assert code == 0 and f"{history.relative_to(study)}: 1 of " in out
