"""Every help speaks as the others do, fits the terminal, shows what works, and comes at once."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser

import pytest

from hf_optim.commands.main import commands
from hf_optim.commands.parser import Parser
from hf_optim.core.wording import counted

COMMANDS = sorted(commands())
#: what a help must not wait for
HEAVY = ("torch", "numpy", "transformers", "rich", "yaml", "scipy", "datasets", "hf_optim.study", "hf_optim.claims")


class Accepted(Exception):
    """The command line was parsed."""


@pytest.fixture
def shown(monkeypatch, capsys):
    """The help of a command on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def ask(name: str) -> str:
        with pytest.raises(SystemExit) as end:
            importlib.import_module(f"hf_optim.commands.{name}").main(["--help"])
        assert end.value.code == 0
        return capsys.readouterr().out

    return ask


@pytest.mark.parametrize("name", COMMANDS)
def test_an_order_in_whole_sentences(name, shown):
    about, paragraphs = commands()[name], shown(name).split("\n\n")
    order = " ".join(paragraphs[1].split())
    assert order[0].isupper() and re.search(r"[.:]$", order), order
    assert about[0].islower() and not about.endswith("."), about
    for text in (about, order):  # "write", and neither "writes" nor "a table"
        verb = re.split(r"\W", text)[0].lower()
        assert not verb.endswith("s") and verb not in ("a", "an", "the"), text


@pytest.mark.parametrize("name", ["main", *COMMANDS])
def test_it_fits_the_terminal_and_writes_defaults_alike(name, shown):
    for line in shown(name).splitlines():
        assert len(line) <= 80, line
        assert "(default " not in line.replace("(default for", ""), line


@pytest.mark.parametrize("name", COMMANDS)
def test_its_examples_are_accepted(name, shown, monkeypatch):
    copied = shown(name).split("\nexamples:\n")[1].replace("\\\n", "")  # as a shell reads it
    examples = re.findall(r"^  (?:.* -m hf_optim|hf-optim) (.+)$", copied, re.M)

    def parse_known_args(self, *given):
        assert not ArgumentParser.parse_known_args(self, *given)[1]
        raise Accepted

    monkeypatch.setattr(Parser, "parse_known_args", parse_known_args)
    assert any(example.split()[0] == name for example in examples)
    for example in examples:
        command, *rest = shlex.split(example.partition(">")[0])
        with pytest.raises(Accepted):
            importlib.import_module(f"hf_optim.commands.{command}").main(rest)


def test_no_help_imports_what_only_work_needs():
    script = f"""
import importlib, sys
from hf_optim.commands.main import commands, main
for name in ["", *commands()]:
    try:
        main([*name.split(), "--help"])
    except SystemExit as end:
        assert not end.code
    slow = [module for module in {HEAVY} if module in sys.modules]
    assert not slow, (name, slow)
"""
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (0, "run", "0 runs"),
        (1, "run", "1 run"),
        (2, "further run", "2 further runs"),
        (1, "process", "1 process"),
        (1200, "process", "1,200 processes"),
    ],
)
def test_a_count_of_one_is_of_one(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said
