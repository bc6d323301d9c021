"""The command `hf-optim list`, from the registry alone: torch is never imported."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_optim.commands.parser import Parser
from hf_optim.errors import UserError

ABOUT = "list optimizers, tasks or studies"


def main(argv: Sequence[str] | None = None) -> int:
    """List; gives 0."""
    parser = Parser("hf-optim list", "Lists the optimizers, or the tasks or studies that come with the package.")
    parser.add_argument("pattern", nargs="?", default="*", help='names with wildcards, as "*agr*" (default: all)')
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tasks", action="store_true", help="list the tasks instead")
    kind.add_argument("--studies", action="store_true", help="list the shipped studies instead")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if options.tasks:
        return tasks(options.pattern)
    return studies(options.pattern) if options.studies else optimizers(options.pattern)


def optimizers(pattern: str = "*") -> int:
    """Prints a table of the optimizers whose names match `pattern`. Raises UserError if none does."""
    from hf_optim import registry

    rows = []
    for name in registry.list_optimizers(pattern):
        info = registry.info(name)
        int8 = "–" if info.int8_bytes is None else f"{info.int8_bytes:.2f}"
        needs = ", ".join(sorted(info.needs)) or "–"
        rows.append((name, info.family, needs, f"{info.state_bytes:g}", int8, info.paper or "–"))
    if not rows:
        raise UserError(f"no optimizer matches {pattern!r}; `hf-optim list` shows all of them")
    _print_table(("name", "family", "needs", "bytes/param", "int8", "source"), rows)
    return 0


def tasks(pattern: str = "*") -> int:
    """Prints the tasks with their models and sizes."""
    from hf_optim.experiment import task

    rows = []
    for name in task.names():
        if fnmatch.fnmatch(name, pattern):
            about = task.describe(name)
            rows.append(
                (name, ", ".join(about["models"]), ", ".join(about["sizes"]), about["primary"]["name"], about["title"])
            )
    if not rows:
        raise UserError(f"no task matches {pattern!r}; `hf-optim list --tasks` shows all of them")
    _print_table(("name", "models", "sizes", "primary metric", "title"), rows)
    return 0


def studies(pattern: str = "*") -> int:
    """Prints the studies that come with the package, each with the first comment line of its file."""
    from hf_optim.study.plan.shipped import shipped_studies

    for name, path in shipped_studies().items():
        if fnmatch.fnmatch(name, pattern):
            print(f"{name:20s} {first_comment(path)}")
    return 0


def first_comment(path: Path) -> str:
    """The first comment line of a YAML file: what a shipped study is for."""
    with open(path, encoding="utf-8") as file:
        first = file.readline()
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their content; the last one is cut so that a line fits the terminal."""
    widths = [max(len(str(r[i])) for r in (header, *rows)) for i in range(len(header))]
    room = max(20, shutil.get_terminal_size((100, 24)).columns - sum(widths[:-1]) - 2 * (len(widths) - 1))
    for row in (header, *rows):
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
        print(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)), last]).rstrip()
        )
