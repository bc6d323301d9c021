"""The command `hf-optim list`: what comes with the package, read without importing torch."""

from __future__ import annotations

import fnmatch
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_optim.commands.parser import Parser
from hf_optim.core import configs
from hf_optim.core.safe_text import line as text
from hf_optim.core.safe_text import terminal
from hf_optim.core.validate import closest
from hf_optim.errors import UserError

if TYPE_CHECKING:
    from hf_optim.core.catalogue import Info

ABOUT = "list optimizers, tasks, models, metrics, studies or claims"
KINDS = ("optimizers", "tasks", "models", "metrics", "studies", "claims")
Row = tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """List; gives 0."""
    parser = Parser(
        "hf-optim list",
        "List what comes with the package: optimizers, or what an option names.",
        ("hf-optim list agr", "hf-optim list --needs loss --bytes 4", "hf-optim list --studies"),
    )
    add = parser.add_argument
    add(
        "pattern",
        nargs="?",
        default="*",
        help='a part of the names, wildcards ("tlr_*"), or file.py:Class (default: all)',
    )
    kind = parser.add_mutually_exclusive_group()
    for name in KINDS[1:]:
        kind.add_argument(f"--{name}", dest="kind", action="store_const", const=name, help=f"list the {name} instead")
    only = parser.add_argument_group("optimizers only").add_argument
    only("--family", metavar="NAME", help="plain, transform, loss-aware, line-search, matrix, wrapper, ...")
    only("--needs", metavar="WHAT", help="loss or evaluate; nothing: those that need gradients alone")
    only("--bytes", type=float, metavar="N", help="state of at most N bytes a parameter")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    given = {key: getattr(options, key) for key in ("family", "needs", "bytes") if getattr(options, key) is not None}
    if options.kind and given:
        raise UserError(f"--{next(iter(given))} filters optimizers: leave out --{options.kind}")
    if options.kind is None:
        own = options.pattern if ":" in options.pattern else None
        return _print("optimizer", *optimizers(**given, own=own), options.pattern)
    heads, rows = _KINDS[options.kind]()
    return _print(options.kind, heads, rows, options.pattern)


def optimizers(
    family: str | None = None, needs: str | None = None, bytes: float | None = None, own: str | None = None
) -> tuple[Row, list[Row]]:
    """Heads and rows of the optimizers, or of the one that an import path names, that pass the filters. Raises
    UserError for an unknown family or need."""
    from hf_optim import registry

    known = [registry.info(name) for name in registry.list_optimizers()]
    _among("--family", family, {info.family for info in known})
    _among("--needs", needs, {"nothing", *(need for info in known for need in info.needs)})

    def passes(info: Info) -> bool:
        return (
            (family is None or info.family == family)
            and (needs is None or needs in (info.needs or {"nothing"}))
            and (bytes is None or info.state_bytes <= bytes)
        )

    rows: list[Row] = [
        (
            info.name,
            info.family,
            ", ".join(sorted(info.needs)) or "–",
            f"{info.state_bytes:g}",
            "–" if info.int8_bytes is None else f"{info.int8_bytes:.2f}",
            info.paper or "–",
        )
        for info in (known if own is None else [registry.about(own)])
        if passes(info)
    ]
    return ("name", "family", "needs", "bytes/param", "int8", "source"), rows


def _among(option: str, word: str | None, valid: set[str]) -> None:
    if word is not None and word not in valid:
        raise UserError(f"{option} {word}{closest(word, valid)}: choose from {', '.join(sorted(valid))}")


def tasks() -> tuple[Row, list[Row]]:
    """The tasks with what judges them."""
    from hf_optim.experiment import task

    loaded = [task.load(name) for name in task.names()]
    return ("name", "judged by", "models", "title"), [
        (entry.name, entry.primary.name, str(len(entry.models)), entry.title) for entry in loaded
    ]


def models() -> tuple[Row, list[Row]]:
    """The models with their tasks and the sizes that there are."""
    from hf_optim.experiment import task

    rows: list[Row] = []
    for name in task.names():
        entry = task.load(name)
        sizes = {model: [size for size in entry.sizes if model in entry.sizes[size].presets] for model in entry.models}
        rows += [(model, entry.name, ", ".join(sizes[model])) for model in entry.models]
    return ("name", "task", "sizes"), rows


def metrics() -> tuple[Row, list[Row]]:
    """The figures that tasks record, which way is better, in what unit, and by which tasks; and the metric files."""
    from hf_optim import metrics as files
    from hf_optim.experiment import task

    tasks_of: dict[str, list[str]] = {}
    declared = {}
    for name in task.names():
        for metric in (*task.load(name).metrics, *task.EVERY_RUN):
            tasks_of.setdefault(metric.name, []).append(name)
            declared[metric.name] = metric
    rows: list[Row] = [
        (name, "higher" if metric.greater_is_better else "lower", metric.unit or "–", ", ".join(tasks_of[name]))
        for name, metric in sorted(declared.items())
    ]
    rows += [(name, "–", "–", "hf_optim.metrics") for name in files.names() if name not in declared]
    return ("name", "better is", "unit", "recorded by"), sorted(rows)


def studies() -> tuple[Row, list[Row]]:
    """The studies that come with the package, each with the first comment line of its file."""
    from hf_optim.study.plan.shipped import shipped_studies

    return ("name", "asks"), [(name, first_comment(path)) for name, path in shipped_studies().items()]


def claims() -> tuple[Row, list[Row]]:
    """The papers' tables, figures and theorems: paper, place, sizes and title, from the heads of their files."""
    rows: list[Row] = []
    for name, path in configs.shipped("claims").items():
        top = dict(re.findall(r"^(\w+): *(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
        sizes = ", ".join(size for size, key in (("small", "small"), ("paper", "paper_size")) if key in top)
        rows.append((name, top["paper"], sizes or "not testable", top["where"], top["title"]))
    return ("name", "paper", "sizes", "where", "title"), rows


_KINDS: dict[str, Callable[[], tuple[Row, list[Row]]]] = {
    "tasks": tasks,
    "models": models,
    "metrics": metrics,
    "studies": studies,
    "claims": claims,
}


def first_comment(path: Path) -> str:
    """The first comment line of a YAML file: what a shipped study is for."""
    with open(path, encoding="utf-8") as file:
        first = file.readline()
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _print(kind: str, heads: Row, rows: list[Row], pattern: str) -> int:
    wanted = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    some = [tuple(map(text, row)) for row in rows if fnmatch.fnmatchcase(row[0], wanted)]
    if not some:
        singular = {"studies": "study"}.get(kind, kind.removesuffix("s"))
        names = [row[0] for row in rows]
        near = closest(pattern, dict.fromkeys([*names, *(part for name in names for part in name.split("_"))]))
        raise UserError(f"no {singular} matches {pattern!r}{near}; leave it out to see all of them")
    for line in aligned([heads, *some], shutil.get_terminal_size((80, 24)).columns):
        print(terminal(line))
    return 0


def aligned(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Rows as lines of at most `width` characters: what does not fit is cut, in the widest column first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths[1:]) > 8:
        widest = max(range(1, len(widths)), key=lambda i: widths[i])
        widths[widest] -= 1

    def cell(text: str, width: int) -> str:
        return (text if len(text) <= width else text[: width - 1] + "…").ljust(width)

    return ["  ".join(map(cell, row, widths)).rstrip() for row in rows]
