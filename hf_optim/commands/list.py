"""What `hf-optim list` and `hf-optim info` print, from the registry alone: torch is never imported."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_optim.errors import UserError


def optimizers(pattern: str = "*") -> int:
    """Prints a table of the optimizers whose names match `pattern`. Raises UserError if none does."""
    from hf_optim import registry

    rows = []
    for name in registry.list_optimizers(pattern):
        info = registry.info(name)
        rows.append(
            (name, info.family, ", ".join(sorted(info.needs)) or "–", _bytes(info.state_bytes), info.paper or "–")
        )
    if not rows:
        raise UserError(f"no optimizer matches {pattern!r}; `hf-optim list` shows all of them")
    _print_table(("name", "family", "needs", "bytes/param", "source"), rows)
    return 0


def tasks(pattern: str = "*") -> int:
    """Prints the tasks with their models and sizes."""
    import fnmatch

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


def info(name: str) -> int:
    """Prints what there is to know about one optimizer. Raises UserError with the closest names if it is unknown."""
    from hf_optim import registry

    about = registry.info(name)
    pairs = [
        ("class", about.cls),
        ("family", about.family),
        ("needs", ", ".join(sorted(about.needs)) or "nothing beyond gradients"),
        ("source", about.paper or "–"),
        ("state", f"{_bytes(about.state_bytes)} bytes a parameter (fp32)"),
        ("defaults", ", ".join(f"{k}={_value(v)}" for k, v in about.defaults.items()) or "–"),
        ("search space", ", ".join(f"{k}: {_value(v)}" for k, v in about.search_space.items()) or "–"),
    ]
    print(name)
    for key, value in pairs:
        print(f"  {key + ':':14s}{value}")
    if about.doc:
        print("\n" + about.doc)
    return 0


def first_comment(path: Path) -> str:
    """The first comment line of a YAML file: what a shipped study is for."""
    with open(path, encoding="utf-8") as file:
        first = file.readline()
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _bytes(count: float | None) -> str:
    return "?" if count is None else f"{count:g}"


def _value(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their content; the last one is cut so that a line fits the terminal."""
    widths = [max(len(str(r[i])) for r in (header, *rows)) for i in range(len(header))]
    room = max(20, shutil.get_terminal_size((100, 24)).columns - sum(widths[:-1]) - 2 * (len(widths) - 1))
    for row in (header, *rows):
        last = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"
        print(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)), last]).rstrip()
        )
