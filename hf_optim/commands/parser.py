"""The one argument parser of the commands: what is wrong is one line, like every other mistake of a user."""

from __future__ import annotations

import argparse
import itertools
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hf_optim.core import numerals, validate
from hf_optim.errors import UserError


class _Filled(argparse.HelpFormatter):
    """Wraps paragraphs to the terminal, and leaves lines that are indented as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        out: list[str] = []
        for inset, group in itertools.groupby(text.splitlines(), lambda line: not line or line[0] == " "):
            lines = list(group)
            out += lines if inset else textwrap.wrap(" ".join(lines), width)
        return "\n".join(out)


class Parser(argparse.ArgumentParser):
    """Options are never abbreviated; a mistake is a `UserError` that names the help to read.

    Args:
        prog: "hf-optim COMMAND".
        description: what the command does, as an order.
        examples: command lines that work; a long one is shown on several lines, as a shell takes it.
        epilog: what else there is to know.
    """

    def __init__(self, prog: str, description: str, examples: Sequence[str] = (), epilog: str = "") -> None:
        width = shutil.get_terminal_size((80, 24)).columns
        shown = "examples:\n" + "".join(f"{_continued(line, width)}\n" for line in examples) if examples else ""
        super().__init__(
            prog=prog,
            description=description,
            epilog="\n".join(filter(None, (shown, epilog.strip()))) or None,
            allow_abbrev=False,
            formatter_class=_Filled,
        )
        self.register("type", int, numerals.whole)
        self.register("type", float, numerals.number)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: --(?:optimizer\.)?([\w-]+)", message)
        choice = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        hint = _meant(unknown[1].replace("-", "_"), self._option_string_actions) if unknown else ""
        if choice:
            hint = validate.closest(choice[1], [word.strip("' ") for word in choice[2].split(",")])
        raise UserError(f"{message}{hint}; see {self.prog} --help")


def _continued(command: str, width: int) -> str:
    """A command line in lines of at most `width` where options allow it: each but the last ends in a backslash."""
    lines: list[str] = []
    for part in re.split(r" (?=--?[a-z])", command):  # an option stays with its value
        if lines and len(f"{lines[-1]} {part} \\") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"{'    ' if lines else '  '}{part}")
    return " \\\n".join(lines)


def check_folders(*folders: Path) -> None:
    """Raise a `UserError` for one that is not there, before anything heavy is imported to look into it."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {str(folder)!r}")


def _meant(word: str, options: Mapping[str, Any]) -> str:
    """` (did you mean ...?)` for an option that there is not; a hyper-parameter belongs to the optimizer."""
    from hf_optim import registry

    hyper = {key for name in registry.list_optimizers() for key in registry.info(name).defaults}
    known = {option[2:].replace("-", "_"): option for option in options if option.startswith("--")}
    if "--optimizer" in options:
        known |= {key: f"--optimizer.{key}" for key in hyper if key not in known}
    elif "--hyper" in options:
        known |= {key: f"--hyper '{{\"{key}\": ...}}'" for key in hyper if key not in known}
    near = [word] if word in known else validate.nearest(word, known)
    return validate.did_you_mean(known[name] for name in near)
