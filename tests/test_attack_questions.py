"""A stranger's register of what a study asked: lines that cannot be read, and texts without end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from study_fakes import make_study, replan

from hf_optim.commands.main import main
from hf_optim.core import safe_text
from hf_optim.core.shape import Each, Text, check_shape
from hf_optim.errors import UserError
from hf_optim.study import conduct
from hf_optim.study.folder import questions
from hf_optim.study.folder import results as records

UNTOLD = "of questions.jsonl cannot be read: what was asked before may be untold."
#: what becomes of the first of two lines
DAMAGE = {
    "a letter less": lambda line: line.replace('"smaran"', '"maran"', 1),
    "half of it": lambda line: line[: len(line) // 2],
    "a later version's": lambda line: json.dumps({"format": 2, "asked": json.loads(line)["question"]}),
    "another digest": lambda line: line.replace(json.loads(line)["sha256"], "0" * 64),
    "none of ours": lambda line: "5",
}


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What the report of a folder says of its register, in the terminal and on every page alike."""
    assert main(["report", str(folder)]) == 0
    places = [capsys.readouterr().out, *((folder / name).read_text() for name in ("report.html", "statistics.md"))]
    said = [set(re.findall(r"(?:\d+ lines? of )?questions\.jsonl cannot be read[^.]*\.", text)) for text in places]
    assert said[0] == said[1] == said[2]
    return said[0]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_line_that_cannot_be_read_is_told_and_kept(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With it went the change of the question that it would have told, without a word."""
    study = make_study(tmp_path / "study")
    plan = records.load(study).plan
    for asked, judged in ((replace(plan, baseline="smaran"), 0), (plan, 9)):
        questions.register(study, asked, judged)
    first, last = (study / questions.FILE).read_text().splitlines()
    (study / questions.FILE).write_text(f"{first}\n\n{last}\n")
    assert told(study, capsys) == set()
    assert [change.words for change in questions.read(study).changes] == ["baseline: smaran became adamw"]
    line = DAMAGE[damage](first)
    (study / questions.FILE).write_text(f"{line}\n{last}\n")
    assert told(study, capsys) == {f"1 line {UNTOLD}"}
    # going on, a merge and a published copy lose it no more than that
    replan(study, lambda plan: plan.update(margin={"MLP": 0.05}))
    questions.register(study, records.load(study).plan, 9)
    kept = (study / questions.FILE).read_text().splitlines()
    assert kept[:2] == [line, last] and len(kept) == 3
    assert "MLP: margin: none became 0.05" in {change.words for change in questions.read(study).changes}
    assert main(["results", str(study), "--merge", str(tmp_path / "merged")]) == 0
    assert main(["publish", str(study), str(tmp_path / "public")]) == 0
    assert "left out: 1 line of questions.jsonl cannot be read" in capsys.readouterr().out
    for folder in ("study", "merged", "public"):
        assert told(tmp_path / folder, capsys) == {f"1 line {UNTOLD}"}


def test_a_register_that_cannot_be_read_at_all_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "study")
    assert told(study, capsys) == set()  # of before
    file = study / questions.FILE
    file.write_text("")
    assert told(study, capsys) == set()
    file.write_text("{\n5\n")
    assert told(study, capsys) == {f"2 lines {UNTOLD}"}
    conduct._show_question(study, safe_text.console())
    assert capsys.readouterr().out == "question not registered: 2 lines of questions.jsonl cannot be read\n"
    file.write_bytes(b"\xff\n")
    assert "can't decode byte 0xff" in questions.read(study).unread
    file.unlink()
    file.symlink_to(study / "plan.json")
    why = "questions.jsonl cannot be read (is a link, which is not followed): what was asked before may be untold."
    assert told(study, capsys) == {why}
    assert main(["results", str(study), "--merge", str(tmp_path / "merged")]) == 0
    assert told(tmp_path / "merged", capsys) == {f"1 line {UNTOLD}"}


def test_names_in_a_register_are_as_short_as_a_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A task's name of some megabytes was as many in the terminal and in the report, and 2,000 changes were 40 MB."""
    study = make_study(tmp_path / "study")
    plan = records.load(study).plan
    for long, fine in (("x" * 200, True), ("x" * 201, False), ("x" * 3_000_000, False)):
        for change in (
            lambda asked, name: asked["tasks"].update({name: {}}),
            lambda asked, name: asked["optimizers"].update({name: {}}),
            lambda asked, name: asked["optimizers"]["adan"].update({name: {}}),
            lambda asked, name: asked.update(baseline=name),
        ):
            asked = json.loads(json.dumps(questions.question(plan)))
            change(asked, long)
            line = {"sha256": questions.digest(asked), "time": "", "records": 0, "question": asked}
            (study / questions.FILE).write_text(json.dumps(line) + "\n")
            assert (questions.read(study).unread == "") == fine
        for key in ("task", "optimizer", "added"):
            brought = {"words": "w", "task": None, "optimizer": None, "added": None, key: long}
            (study / questions.FILE).write_text(json.dumps({"changed": [brought]}) + "\n")
            assert (questions.read(study).unread == "") == fine
    assert told(study, capsys) == {f"1 line {UNTOLD}"}


def test_changes_are_told_in_words_that_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was brought, and the names of settings within settings, which made gigabytes of a file of one."""
    study = make_study(tmp_path / "study")
    asked = json.loads(json.dumps(questions.question(records.load(study).plan)))
    asked["tasks"]["MLP"]["options"] = {"k" * 1_000_000: {"a": {f"n{n}": n for n in range(1000)}}}
    line = {"sha256": questions.digest(asked), "time": "", "records": 0, "question": asked}
    brought = {"words": "w" * 20_000, "task": None, "optimizer": None, "added": None}
    rows = [line, {"changed": [brought | {"words": f"{n} {'w' * 19_000}"} for n in range(1000)]}]
    (study / questions.FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert told(study, capsys) == set()
    words = [change.words for change in records.load(study).standing.register.changes]
    assert len(words) == questions.MOST and max(map(len, words)) == questions.LONGEST
    assert words[-1].startswith("MLP: options.kkkk") and words[-1].endswith("...: 999 became none")
    assert (study / "report.html").stat().st_size < 3_000_000


def test_a_key_is_no_longer_than_other_texts() -> None:
    for key, keys, said in (
        ("x" * 20_001, str, "metrics: a key: expected a text, got a text of 20001 characters"),
        ("xyz", Text(2), "metrics: a key: expected a text of at most 2 characters, got 'xyz'"),
    ):
        check_shape({key[1:]: 0.5}, Each(float, keys), "metrics")
        with pytest.raises(UserError, match=f"^{said}$"):
            check_shape({key: 0.5}, Each(float, keys), "metrics")


def test_a_register_that_is_no_text_stays(tmp_path: Path) -> None:
    """Where no record could be read either, it was written anew, without the question that it held."""
    study = make_study(tmp_path / "study")
    questions.register(study, replace(records.load(study).plan, baseline="smaran"), 0)
    file = study / questions.FILE
    file.write_bytes(damaged := file.read_bytes() + b"\xff")
    questions.register(study, records.load(study).plan, 0)
    assert file.read_bytes() == damaged and questions.read(study).unread
