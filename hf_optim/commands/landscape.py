"""Optimizers on surfaces of two variables: who goes where (SMARAN, Figure 1). `hf-optim landscape beale`.

The point is one float64 tensor of shape (2,), and every step sees the exact function. A transform that leaves vectors
out by default takes them here, and the remarks say with which argument. Rules that count in epochs are told that one
has `EPOCH` steps.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_optim.commands.parser import Parser
from hf_optim.core import numerals, safe_text
from hf_optim.core.safe_text import csv_lines, terminal
from hf_optim.core.validate import closest
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.disk import writing
from hf_optim.experiment.files import by_default, whole, write_atomically
from hf_optim.toys.surfaces import SURFACES, Surface
from hf_optim.toys.trajectory import (
    CLOSE,
    RATES,
    Trajectory,
    follow,
    label_of,
    on_vectors,
    parse,
    takes_rate,
    tuned,
    with_rate,
)

FARTHEST_START = 1e6
ABOUT = "follow optimizers over a two-dimensional surface"


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`hf-optim landscape`: trajectories, a table, contour plots as PNG and HTML. Returns 0.

    Raises:
        UserError: an unknown surface, optimizer or hyper-parameter, or a missing matplotlib.
    """
    options = _options(argv)
    names = list(SURFACES) if options.surfaces == ["all"] else options.surfaces
    for name in names:
        if name not in SURFACES:
            raise UserError(
                f"unknown surface {name!r}{closest(name, SURFACES)}: choose from {', '.join(SURFACES)}, or all"
            )
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, got {options.steps}")
    if not all(abs(x) <= FARTHEST_START for x in options.start or ()):
        raise UserError(f"--start: numbers from -{FARTHEST_START:g} to {FARTHEST_START:g}, got {options.start}")
    specs: dict[str, dict[str, Any]] = {}
    for text in options.optimizers:
        spec = parse(text)
        label, n = label_of(spec), 2
        while label in specs:
            label, n = f"{label_of(spec)} {n}", n + 1
        specs[label] = spec
    rates = dict(_rate(text, specs) for text in options.lr)
    from hf_optim.toys import trajectory_plot

    trajectory_plot.check_plotting()
    if options.output is not None:
        folder = Path(options.output) if options.output else by_default("landscapes")
    rows: list[dict[str, Any]] = []
    for name in names:
        surface = SURFACES[name]
        start = tuple(options.start) if options.start else surface.start
        paths = []
        for label, spec in specs.items():
            given = with_rate(spec, rates[label]) if label in rates else spec
            paths.append((tuned if takes_rate(given) else follow)(surface, given, options.steps, start, label))
        chosen = [label for label, spec in specs.items() if label not in rates and takes_rate(spec)]
        notes = remarks(surface, paths, chosen)
        print(
            terminal(f"{surface.title}; start ({start[0]:g}, {start[1]:g}), at most {counted(options.steps, 'step')}")
        )
        ended = [path.row(surface) for path in paths]
        rows += [{"surface": name, **row} for row in ended]
        print(terminal(table(ended)))
        for note in notes:
            print(terminal(f"  {note}"))
        if options.output is not None:
            picture, text = folder / f"{name}.png", folder / f"{name}.html"
            with writing(folder):
                with whole(folder, picture.name) as part:
                    trajectory_plot.png(part, surface, paths)
                write_atomically(folder, text.name, trajectory_plot.page(name, surface, paths, notes))
            print(f"  {safe_text.line(picture)}\n  {safe_text.line(text)}")
        print()
    if options.output is not None:  # where each optimizer ended on each surface
        with writing(folder):
            table_of = [list(rows[0]), *(list(row.values()) for row in rows)]
            write_atomically(folder, "landscape.csv", csv_lines(table_of))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    parser = Parser(
        prog="hf-optim landscape",
        description="Follow optimizers over a surface of two variables; write "
        "a table, SURFACE.png and a self-contained SURFACE.html.",
        examples=(
            "hf-optim landscape beale --optimizers smaran adam sgd",
            "hf-optim landscape all --steps 200 --lr sgd=0.01",
        ),
    )
    parser.add_argument("surfaces", nargs="+", metavar="SURFACE", help=f"{', '.join(SURFACES)}, or all")
    parser.add_argument(
        "--optimizers",
        nargs="+",
        metavar="OPTIMIZER",
        default=["smaran", "adam", "sgd"],
        help="names, 'wrapper(base)', 'file.py:Class', or mappings such as "
        "'{name: sgd, momentum: 0.9}' (default: smaran adam sgd)",
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps at most (default: 100)")
    parser.add_argument(
        "--start", type=float, nargs=2, metavar=("X", "Y"), help="the first point (default: the surface's)"
    )
    parser.add_argument(
        "--lr",
        nargs="+",
        default=[],
        metavar="OPTIMIZER=RATE",
        help=f"fix rates; any other optimizer with a rate gets the one of {rates} that ends lowest, "
        f"on the saddle {SURFACES['saddle'].rate:g}",
    )
    parser.add_argument("--output", metavar="DIR", default="", help="folder of the plots (default: landscapes)")
    parser.add_argument("--no-plots", dest="output", action="store_const", const=None, help="print the tables only")
    return parser.parse_args(argv)


def _rate(text: str, specs: Mapping[str, Any]) -> tuple[str, float]:
    label, _, value = text.rpartition("=")
    try:
        rate = numerals.number(value)
    except ValueError:
        rate = math.nan
    if label not in specs or not rate >= 0:
        raise UserError(f"--lr {text}: give OPTIMIZER=RATE with an optimizer of --optimizers ({', '.join(specs)})")
    return label, rate


def remarks(surface: Surface, paths: Sequence[Trajectory], chosen: Sequence[str]) -> list[str]:
    """What a reader of the plot has to know: how rates were chosen, and what differs from the defaults."""
    from hf_optim.core.definitions import own_definitions

    lines = []
    if chosen and surface.rate is not None:
        lines.append(f"lr = {surface.rate:g} for {', '.join(chosen)}: no minimum, so nothing to choose it by")
    elif chosen:
        lines.append(f"lr of {', '.join(chosen)}: the one of {', '.join(f'{r:g}' for r in RATES)} that ends lowest")
    for path in paths:
        lines += [f"{path.label}, our definition: {text}" for text in own_definitions(path.spec)]
        lines += [f"{path.label}: its transform takes the vector (x, y): {text}" for text in on_vectors(path.spec)]
    return lines


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `Trajectory.row` as text."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    header = ("optimizer", "lr", "final point", "f", "distance", f"steps to {CLOSE:g}", "")
    body = [
        (
            row["optimizer"],
            number(row["lr"], "g"),
            f"({numerals.decimal(row['x'], 4)}, {numerals.decimal(row['y'], 4)})",
            number(row["f"], ".3g"),
            number(row["distance"], ".3g"),
            number(row["steps"], "d"),
            row["note"],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(line[:-1], widths, strict=True)), line[-1]]).rstrip()
        for line in (header, *body)
    ]
    return "\n".join("  " + line for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
