"""Every block that README and docs print is of use: commands that are accepted, code that compiles,
YAML that is read. What takes long is not run here; tests/test_readme.py and others run what is quick.
"""

from __future__ import annotations

import importlib
import re
import shlex
import textwrap
from pathlib import Path

import pytest

from hf_optim.commands.main import commands
from hf_optim.commands.parser import Parser
from hf_optim.study.plan.source import parse

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
    def parse_args(self, argv):
        type(self).__mro__[1].parse_args(self, argv)  # argparse's own
        raise Accepted

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    name, *rest = shlex.split(command.replace("[", "").replace("]", ""))[1:]
    assert name in commands(), f"{page}: {command}"
    with pytest.raises(Accepted):
        importlib.import_module(f"hf_optim.commands.{name}").main(rest)


@pytest.mark.parametrize("page, text", blocks("python"))
def test_printed_code_compiles(page, text):
    compile(textwrap.dedent(text), page, "exec")


@pytest.mark.parametrize("page, text", blocks("yaml"))
def test_printed_yaml_is_read(page, text):
    parse(text, page)


def test_scripts_that_pages_name_are_there():
    named = {(page, script) for page, text in blocks("bash") for script in re.findall(r"scripts/[\w./-]+", text)}
    assert named and not [pair for pair in sorted(named) if not (ROOT / pair[1]).exists()]
