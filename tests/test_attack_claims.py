"""Claims of a stranger: the tables that are judged, the folders that are written, and what the page says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml
from attack_parts import CLAIM, claim, command
from study_fakes import make_study, replan

from hf_optim.claims.claim import published
from hf_optim.study import conduct

TABLE = "case,norm,norm_bound,slope,slope_bound\n"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of the reader's, with a table."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "mine.csv").write_text(TABLE + "SECRET,5,1,5,1\n")
    return folder


@pytest.mark.parametrize(
    "table",
    [
        b"case\n\xff\xfe",
        b"case\n" + b"x" * 140_000,
        b"a\nb,c\n\n",
        b"a," * 1000 + b"a\n" * 10_000,
        None,
        "pipe",
        "link",
    ],
)
def test_a_table_of_a_claim_is_a_file_of_its_folder(
    tmp_path: Path, elsewhere: Path, table: bytes | str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "agr-theorem41.csv"
    if isinstance(table, bytes):
        file.write_bytes(table)
    elif table == "pipe":
        os.mkfifo(file)
    elif table == "link":
        file.symlink_to(elsewhere / "mine.csv")
    else:
        with file.open("wb") as holes:
            holes.truncate(1 << 40)
    assert command(capsys, "reproduce", "agr-theorem41", "--page", "--output", tmp_path / "out")[0] == 0
    assert "**not tested**" in (page := (tmp_path / "out" / "reproduction.md").read_text()) and "SECRET" not in page


def test_a_claim_leaves_its_folder_neither_to_read_nor_to_write(
    tmp_path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    judged = [{**CLAIM["claims"][0], "file": "../home/mine.csv"}]
    assert command(capsys, "reproduce", claim(tmp_path, claims=judged), "--page", "--output", tmp_path / "out")[0] == 0
    assert "SECRET" not in (tmp_path / "out" / "reproduction.md").read_text()
    assert "name must be made of" in command(capsys, "reproduce", claim(tmp_path, name="../../home/x"), "--page")[2]
    for place in ("../home", str(elsewhere), ".."):
        moved = claim(tmp_path, small={"commands": {place: ["landscape", "beale"]}})
        assert "no name of a folder below" in command(capsys, "reproduce", moved, "--output", tmp_path / "out")[2]
    moved = claim(tmp_path, small={"commands": {"b": ["landscape", "beale", "--steps", "1"]}})
    assert command(capsys, "reproduce", moved, "--output", tmp_path / "new")[0] == 0
    shutil.rmtree(tmp_path / "new" / "b")
    (tmp_path / "new" / "b").symlink_to(elsewhere)
    assert "not written through" in command(capsys, "reproduce", moved, "--output", tmp_path / "new")[2]
    assert [path.name for path in elsewhere.iterdir()] == ["mine.csv"]


def test_what_a_claim_says_stands_as_text_on_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = "<img src=x onerror=alert(1)> [a](javascript:x) | `b`"
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "agr-theorem41.csv").write_text(f"{TABLE}{bad},3,1,3,1\n")
    (tmp_path / "out" / "b" / "](javascript:alert(1)) <b>\x1b[2J\n.csv").write_text("")
    said = [{**CLAIM["claims"][0], "says": bad, "section": bad, "reading": bad}]
    small = {**CLAIM["small"], "commands": {"b": ["landscape", "beale"]}}
    named = claim(tmp_path, title=bad, where=bad, notes=[bad], claims=said, small=small)
    code, out, _ = command(capsys, "reproduce", named, "--page", "--output", tmp_path / "out")
    page = (tmp_path / "out" / "reproduction.md").read_text()
    assert code == 0 and page.count(r"&lt;img src=x onerror=alert(1)> [a\](javascript:x) \| \`b\`") == 7
    assert not [tag for tag in ("<img", "<b>", "\x1b", "](java") if tag in page.replace(r"\]", "")]


def test_folders_without_end_below_a_claims_tables_are_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that `landscape` would write into: looking through a thousand of them ended in a RecursionError."""
    named = claim(tmp_path, small={**CLAIM["small"], "commands": {"b": ["landscape", "beale"]}})
    (out := tmp_path / "out").joinpath("b").mkdir(parents=True)
    (out / "b" / "landscape.csv").write_text("")
    with monkeypatch.context() as here:
        here.chdir(out / "b")
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
    try:
        code, _, error = command(capsys, "reproduce", named, "--page", "--output", out)
    finally:
        subprocess.run(["rm", "-rf", out / "b"], check=True)  # pytest's own clean-up does not get down there, either
    assert (code, error) == (0, "") and "[b/landscape.csv](b/landscape.csv)" in (out / "reproduction.md").read_text()


def test_a_claim_writes_over_nothing_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A reproduction.md of whoever, or of another claim, was replaced, and the names of all else listed on the page."""
    (out := tmp_path / "out").mkdir()
    for name in ("reproduction.md", "reproduction.json", "private.txt"):
        (out / name).write_text("[1]")
        for more in ((), ("--page",)):
            code, _, error = command(capsys, "reproduce", "agr-theorem41", *more, "--output", out)
            assert code == 2 and "not empty and holds no reproduction" in error
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [(name, "[1]")]
        (out / name).unlink()
    assert command(capsys, "reproduce", "agr-theorem41", "--output", out)[0] == 0
    (out / "private.txt").write_text("mine")
    assert command(capsys, "reproduce", "agr-theorem41", "--page", "--output", out)[0] == 0
    assert "private" not in (page := (out / "reproduction.md").read_text()) and "agr-theorem41.csv" in page
    # claims with a study, too, of which two may ask for the same runs
    for words in (("agr-theorem42", "--page"), ("agr-table2",), ("agr-table2", "--page")):
        code, _, error = command(capsys, "reproduce", *words, "--output", out)
        assert code == 2 and "holds the reproduction of agr-theorem41 at size small" in error
    assert (out / "reproduction.md").read_text() == page


def test_a_claim_writes_over_no_table_that_is_called_like_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that holds only names of its tables was taken for what an interrupted one left."""
    named = claim(tmp_path, small={**CLAIM["small"], "commands": {"b": ["landscape", "beale", "--steps", "1"]}})
    (out := tmp_path / "out").joinpath("b").mkdir(parents=True)
    (out / "b" / "landscape.csv").write_text("mine")
    code, _, error = command(capsys, "reproduce", named, "--output", out)
    assert code == 2 and "not empty and holds no reproduction" in error
    assert (out / "b" / "landscape.csv").read_text() == "mine" and [path.name for path in out.iterdir()] == ["b"]
    for _ in range(2):  # nor once there is a page of it
        assert command(capsys, "reproduce", named, "--page", "--output", out)[0] == 0
        code, _, error = command(capsys, "reproduce", named, "--output", out)
        assert code == 2 and "not empty and holds no reproduction" in error
    assert (out / "b" / "landscape.csv").read_text() == "mine"
    shutil.rmtree(out / "b")
    assert command(capsys, "reproduce", named, "--output", out)[0] == 0  # its page alone is in nobody's way
    for more in (("--page",), ()):
        assert command(capsys, "reproduce", named, *more, "--output", out)[0] == 0
    with monkeypatch.context() as here:
        here.setattr("hf_optim.claims.theorems.write", Mock(side_effect=KeyboardInterrupt))
        assert command(capsys, "reproduce", named, "--output", tmp_path / "new")[0] == 130
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["b", "reproduction.json"]
    assert command(capsys, "reproduce", named, "--output", tmp_path / "new")[0] == 0


def test_a_claim_of_the_same_name_writes_over_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is called by the claim's name, which any file may say: a finished reproduction was gone."""
    monkeypatch.chdir(tmp_path)
    own = ("reproduce", CLAIM["name"])
    assert command(capsys, *own)[0] == 0
    (out,) = (tmp_path / "reproductions").iterdir()
    before = {path: path.read_bytes() for path in out.iterdir()}
    theirs = claim(tmp_path, small={**CLAIM["small"], "commands": {"beale": ["landscape", "beale"]}})
    for more in ((), ("--page",)):
        code, _, error = command(capsys, "reproduce", theirs, *more)
        assert code == 2 and f"a claim that is called {CLAIM['name']}, too" in error
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    same = ("reproduce", claim(tmp_path), "--page", "--output", out)
    assert command(capsys, *own, "--page")[0] == 0 and command(capsys, *same)[0] == 0
    told = json.loads((out / "reproduction.json").read_text())
    told = {key: told[key] for key in told if key != "tables" and not key.endswith("sha256")}  # as in 0.1
    (out / "reproduction.json").write_text(json.dumps(told))
    assert command(capsys, "reproduce", claim(tmp_path), "--page")[0] == 2 and command(capsys, *own, "--page")[0] == 0


@pytest.mark.parametrize("wrong", [None, 5, [[]], {"a": {"b": 1}}, 10**30, "\x1b[31m"])
def test_a_claim_of_another_shape_is_one_line(tmp_path: Path, wrong: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("name", "paper", "where", "title", "notes", "published", "readings", "claims", "small"):
        command(capsys, "reproduce", claim(tmp_path, **{key: wrong}), "--page", "--output", tmp_path / "out")
    for key in ("rule", "file", "left", "where", "tolerance", "strict", "negated", "effect", "says"):
        judged = [{**CLAIM["claims"][0], key: wrong}]
        command(capsys, "reproduce", claim(tmp_path, claims=judged), "--page", "--output", tmp_path / "out")
    for key in ("checks", "commands", "metrics", "stands_for", "noise", "cells"):
        setting = {**CLAIM["small"], key: wrong}
        command(capsys, "reproduce", claim(tmp_path, small=setting), "--page", "--output", tmp_path / "out")


def test_a_page_runs_no_code_that_a_plan_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What differs from the paper is asked of the tasks."""
    study = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=2)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    replan(study, lambda plan: plan["tasks"][0].update(task=f"{tmp_path}/theirs.py:TASK"))
    asked = {"study": {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}}
    judged = [{"says": "it", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}]
    named = claim(tmp_path, claims=judged, small=asked, paper_size=asked)
    code, _, said = command(capsys, "reproduce", named, "--page", "--output", study)
    assert code == 2 and "names code that the claim does not" in said and not (tmp_path / "ran").exists()
    asked["study"]["tasks"] = [{"task": f"{tmp_path}/theirs.py:TASK"}]
    named = claim(tmp_path, claims=judged, small=asked)
    assert command(capsys, "reproduce", named, "--dry-run")[0] == 2 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("more", [(), ("--page",)], ids=str)
def test_a_claim_with_a_study_is_judged_in_no_folder_of_ours_that_bears_its_name(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished reproduction got the plan, the question and the page of a stranger's claim."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    asked = {"study": {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "smaran"]}}
    judged = [{"says": "it", "section": "1", "rule": "better", "optimizer": "smaran", "baseline": "adamw"}]
    mine = claim(tmp_path, claims=judged, small=asked)
    assert command(capsys, "reproduce", mine, "--anyway")[0] == command(capsys, "reproduce", mine, "--page")[0] == 0
    (out,) = (tmp_path / "reproductions").iterdir()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (there := tmp_path / "theirs").mkdir()
    asked["study"]["optimizers"].append("lion")
    theirs = claim(there, claims=judged, small=asked)
    code, _, error = command(capsys, "reproduce", theirs, "--anyway", *more)
    assert code == 2 and f"holds the reproduction of a claim that is called {CLAIM['name']}, too" in error
    for page in [path for path in before if path.name.startswith("reproduction.")]:
        page.unlink()
        del before[page]
    code, _, error = command(capsys, "reproduce", theirs, "--anyway", *more)
    assert code == 2 and "was begun from something else" in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_claim_is_judged_on_runs_of_its_own_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder's plan called another optimizer so: what the paper says of SMARAN held of Lion's runs."""
    study = make_study(tmp_path / "out", ("adamw", "smaran"), seeds=2)
    asked = {"study": {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "smaran"]}}
    judged = [{"says": "it", "section": "1", "rule": "better", "optimizer": "smaran", "baseline": "adamw"}]
    words = ("reproduce", claim(tmp_path, claims=judged, small=asked), "--page", "--output", study)
    assert command(capsys, *words)[0] == 0
    replan(study, lambda plan: plan["optimizers"][1]["spec"].update(name="lion"))
    code, _, said = command(capsys, *words)
    assert code == 2 and "its plan calls lion 'smaran', which is smaran in the claim" in said
    for wrong in (None, [], [3], [{"label": "smaran"}], ["nobody"]):
        asked["study"]["optimizers"] = wrong
        assert command(capsys, words[0], claim(tmp_path, claims=judged, small=asked), *words[2:])[0] == 2


@pytest.mark.parametrize("size", ["small", "paper_size"])
def test_a_page_runs_no_code_that_its_claim_names(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says that it runs nothing; the other size's study was expanded for it, too."""
    study = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=2)
    code = f"{tmp_path}/theirs.py:TASK"
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    if size == "small":
        replan(study, lambda plan: plan["tasks"][0].update(task=code))
    asked = {
        key: {"study": {"name": "s", "seeds": 2, "tasks": [{"task": task}], "optimizers": ["adamw", "sgd"]}}
        for key, task in (("small", "vision"), ("paper_size", "vision"), (size, code))
    }
    judged = [{"says": "it", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}]
    named = claim(tmp_path, claims=judged, **asked)
    ended, _, said = command(capsys, "reproduce", named, "--page", "--output", study)
    assert ended == 2 and "--page runs nothing: without --page it is run" in said and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("claims", "readings"), [(1500, 1), (2, 1500)])
def test_a_claim_of_statements_and_readings_without_end_is_refused(
    tmp_path: Path, claims: int, readings: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every statement is judged under every reading: 250 kB were millions of judgements."""
    study = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=2)
    asked = {"study": {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}}
    judged = [{"says": "it", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}] * claims
    read = {f"r{i}": {"adamw": "sgd"} for i in range(readings)}
    (tmp_path / "claim.yaml").write_text(
        yaml.dump({**CLAIM, "claims": judged, "readings": read, "small": asked}, Dumper=Plain)
    )
    code, _, said = command(capsys, "reproduce", tmp_path / "claim.yaml", "--page", "--output", study)
    assert code == 2 and "1,500 entries" in said


class Plain(yaml.SafeDumper):
    """Without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


WISHES = (["--epochs", "1"], ["--only", "sgd"], ["--tuned", "2"])
ASKED = {"name": "theirs", "seeds": 2, "baseline": "sgd", "optimizers": ["adamw", "sgd"],
         "tasks": [{"task": "vision", "size": "smoke"}]}  # fmt: skip
NO_STUDIES: list[Any] = [
    {},
    "a study",
    [1],
    *({**ASKED, "tasks": told} for told in ("vision", [1], [{"task": "vision", "overrides": "x"}])),
    *({**ASKED, "tasks": [{"task": "vision", **told}]} for told in ({"hyper": "x"}, {"only": 3})),
    *({**ASKED, "optimizers": told} for told in ([1, "sgd"], [{"lr": 1}, "sgd"], ["nope", "sgd"])),
]


def asked(folder: Path, study: Any) -> Path:
    """A claim with a study."""
    says = {"says": "x is better", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}
    told = {**CLAIM, "paper": "AGR", "claims": [says], "small": {"study": study}}
    (folder / "claim.yaml").write_text(yaml.safe_dump({key: told[key] for key in told if key != "paper_size"}))
    return folder / "claim.yaml"


@pytest.mark.parametrize("study", NO_STUDIES, ids=range(len(NO_STUDIES)))
def test_a_study_that_is_none_is_one_line_whatever_is_asked_of_it(
    tmp_path: Path, study: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for wish in WISHES:
        code, _, error = command(capsys, "reproduce", asked(tmp_path, study), "--dry-run", *wish)
        assert code == 2 and error.startswith("error: ") and ", line " in error and error.count("\n") == 1


def test_of_a_study_whose_names_stand_alone_parts_are_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`optimizers: [adamw]`, `tasks: [logistic]` and `base: adamw` were tracebacks as soon as a part was asked for."""
    named = {**ASKED, "optimizers": ["adamw", {"name": "tlr", "base": "adamw"}, "sgd"], "tasks": ["logistic"]}
    for wish in WISHES:
        assert command(capsys, "reproduce", asked(tmp_path, named), "--dry-run", *wish)[0] == 0
    unsaid = {key: named[key] for key in named if key != "seeds"}  # as without a wish
    assert command(capsys, "reproduce", asked(tmp_path, unsaid), "--dry-run", "--seeds", "3", *WISHES[0])[0] == 0
    grown = {key: named[key] for key in named if key != "tasks"} | {
        "ladder": {"model": "gpt2", "parameters": [30_000], "tokens": [0.3]}
    }
    assert "has a ladder" in command(capsys, "reproduce", asked(tmp_path, grown), "--dry-run", "--epochs", "1")[2]


def test_one_sentence_that_cannot_be_judged_takes_no_page_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asks for a metric of which nobody says whether more is better: after all runs there was one line, no page."""
    study = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=2)
    asked = {"study": {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}}
    fine = {"says": "it", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}
    row = next(row for row in published() if row["paper"] == CLAIM["paper"])
    match = {key: row[key] for key in ("model", "optimizer") if row.get(key)}
    cell = {"match": match, "task": "MLP", "optimizer": "adamw", "metric": "odd", "until": 1}
    named = claim(
        tmp_path,
        claims=[fine, {**fine, "metric": "train_speed"}],
        small=asked,
        published=[row["table"]],
        cells=[cell],
    )
    code, out, _ = command(capsys, "reproduce", named, "--page", "--output", study)
    page = (study / "reproduction.md").read_text()
    assert code == 0 and "not tested" in out and "declares no metric 'train_speed'" in page
    assert page.count("\n- **") == 2 and "declares no metric 'odd'" in page


@pytest.mark.parametrize(
    ("place", "words", "why"),
    [
        ("reproduction.json", ["beale"], "is what the claim's own file is called"),
        ("agr-theorem41.csv", ["beale"], "is what the claim's own file is called"),
        ("b", ["beale", "--hel"], "nothing would be reproduced"),
        ("b", ["-h"], "nothing would be reproduced"),
    ],
)
def test_a_command_of_a_claim_that_leaves_nothing_is_refused(
    place: str, words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {**CLAIM["small"], "commands": {place: ["landscape", *words]}}
    code, _, error = command(capsys, "reproduce", claim(tmp_path, small=small), "--dry-run")
    assert code == 2 and why in error
