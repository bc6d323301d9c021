"""Every block that README and docs print is of use: every command is accepted, and those that only read run in order;
code compiles, and what trains for seconds runs; every study is planned. `scripts/run_docs.py` runs all as printed.
"""

from __future__ import annotations

import importlib
import re
import shlex
import textwrap
from argparse import ArgumentParser
from glob import glob
from pathlib import Path

import pytest
from study_fakes import make_study

from hf_optim.commands.main import commands, main
from hf_optim.commands.parser import Parser
from hf_optim.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), text)
        for page in PAGES
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == language
    ]


def printed() -> list[tuple[str, str]]:
    """Every command of ours in a block: (page, command), lines that go on put together."""
    commands = []
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            commands += [(page, part) for part in re.findall(r"(?:^|&& )(hf-optim [^#&|>]+)", line.strip())]
    return sorted(set(commands))


class Accepted(Exception):
    """The command line was parsed."""


@pytest.mark.parametrize("page, command", printed())
def test_a_printed_command_is_accepted(page, command, monkeypatch):
    def parse_known_args(self, *given):
        assert not ArgumentParser.parse_known_args(self, *given)[1]
        raise Accepted

    monkeypatch.setattr(Parser, "parse_known_args", parse_known_args)
    name, *rest = shlex.split(command.replace("[", "").replace("]", ""))[1:]
    assert name in commands(), f"{page}: {command}"
    with pytest.raises(Accepted):
        importlib.import_module(f"hf_optim.commands.{name}").main(rest)


@pytest.mark.parametrize("page, text", blocks("python"))
def test_printed_code_compiles(page, text):
    compile(textwrap.dedent(text), page, "exec")


#: pages whose code trains for a second; that of the others has tests of its own (README, docs/trainer, coming-from,
#: optimizers), or runs a study
QUICK = ("docs/index.md", "docs/adding.md", "docs/trainer.md", "docs/honest.md", "docs/studies.md", "CONTRIBUTING.md")
READING = re.compile(r"^hf-optim (list|info|cite|export|results|report|publish) ")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with what a reader has."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    importlib.import_module("docs_world").lay(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", QUICK)
def test_code_and_yaml_run_in_order(page, reader, monkeypatch):
    from hf_optim.check import outcome

    monkeypatch.setattr(outcome, "CHECKS", dict(outcome.CHECKS))  # a page adds one
    results = list(importlib.import_module("run_docs").run_page(ROOT / page, reader, 0, quick=True))
    assert results and all(status == "ok" for _, status, _, _ in results), results


def test_a_page_that_is_wrong_fails(reader):
    run_docs = importlib.import_module("run_docs")
    text = "```python\nhf_optim.attach(trainer, 'smarann')\n```\n```yaml\nvariance: {sources: [spilt]}\n```\n"
    wrong = [run_docs.Block("page", "", kind, body) for _, kind, body in run_docs.BLOCK.findall(text)]
    assert [block.language for block in wrong] == ["python", "yaml"]
    for block, run in zip(wrong, (run_docs.run_python, run_docs.run_yaml), strict=True):
        with pytest.raises(UserError, match="smaran|split"):
            run(block)
    assert (
        run_docs.run_shell("exit 3", reader, 5)[0] == "failed"
        and run_docs.run_shell("sleep 60", reader, 0.2)[0] == "stopped"
    )


def test_every_command_that_reads_runs(reader, capsys):
    labels = ("adamw", "smaran", "sgd")
    for i, name in enumerate(("quickstart", "my", "a", "b", "before", "after")):
        plan = make_study(reader / "studies" / name, labels, seeds=2 + (i > 0)) / "plan.json"
        plan.write_text(plan.read_text().replace('"name": "fake"', f'"name": "{name}"'))
    run_docs = importlib.import_module("run_docs")
    ran = 0
    for page in run_docs.pages():
        for block in run_docs.blocks(page):
            for command in block.commands() if block.language == "bash" else ():
                if READING.match(command) and not run_docs.left_out(command):
                    words = [w for word in shlex.split(command, comments=True) for w in (sorted(glob(word)) or [word])]
                    assert main(words[1:]) == 0, (page, command, capsys.readouterr())
                    ran += 1
    assert ran > 15


def test_scripts_that_pages_name_are_there():
    named = {(page, script) for page, text in blocks("bash") for script in re.findall(r"scripts/[\w./-]+", text)}
    assert named and not [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()]
