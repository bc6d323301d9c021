"""Convergence claims, checked on convex problems: `hf-optim convergence --optimizer smaran --steps 4096 --output DIR`.

Every step sees another function f_t, the rate is eta / sqrt(t), and what is known to be least is computed to high
precision. Measured: the regret R(T) against the best fixed point of the domain in hindsight, and f of the iterates and
of their mean minus the least f, at T = 1, 2, 4, ... Checked: the O(1/sqrt T) rate that AMVT claims, and for SMARAN its
Theorems 1 and 2 and the bound of Theorem 3 at every T.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_optim.commands.parser import Parser
from hf_optim.core import extras, safe_text
from hf_optim.core.safe_text import csv_lines, terminal
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.disk import writing
from hf_optim.experiment.files import whole, write_atomically
from hf_optim.toys.regret import COLUMNS, ETA, Run, exponent, follow, tuned
from hf_optim.toys.trajectory import RATES, label_of, parse, takes_rate, with_rate

if TYPE_CHECKING:
    from hf_optim.toys.online import Online

ABOUT = "measure rates of convergence against the papers' bounds"
PROBLEMS = {
    "digits": "logistic regression on embedded digits, stochastic",
    "two-pulls": "one dimension, made so that Theorem 3's bound fails",
}
STEPS = {"digits": 4096, "two-pulls": 8192}


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`hf-optim convergence`: a table and findings, and with --output convergence.csv, .svg and .png. Returns 0.

    Raises:
        UserError: an unknown problem, optimizer or hyper-parameter, a missing matplotlib.
    """
    options = _options(argv)
    steps = STEPS[options.problem] if options.steps is None else options.steps
    for name, value, least in (("--steps", steps, 8), ("--seeds", options.seeds, 1)):
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    if options.lr is not None and not 0 < options.lr < math.inf:
        raise UserError(f"--lr must be positive, got {options.lr}")
    specs = {label_of(spec): spec for spec in map(parse, options.optimizer)}
    if options.output is not None:
        _need_matplotlib()
    from hf_optim.tasks.data import online

    problem = online.Digits() if options.problem == "digits" else online.TwoPulls()
    extent = f"{counted(steps, 'step')}, lr eta / sqrt(t), {counted(options.seeds, 'seed')}"
    print(terminal(f"{problem.title}; {extent}; min f = {problem.least:.10f}"))
    by_label: dict[str, list[Run]] = {}
    for label, spec in specs.items():
        if options.lr is not None:
            spec = with_rate(spec, options.lr)
        elif takes_rate(spec) and options.problem == "two-pulls":
            spec = with_rate(spec, ETA)
        elif takes_rate(spec):
            spec = tuned(problem, spec, steps, options.seeds)
        by_label[label] = [follow(problem, spec, steps, seed) for seed in range(options.seeds)]
        rate = by_label[label][0].rate
        print(terminal(f"\n{label}{'' if rate is None else f', eta = {rate:g}'}"))
        print(terminal(table(by_label[label])))
        for finding in findings(by_label[label]):
            print(terminal(f"  {finding}"))
    if options.output is not None:
        for file in write(Path(options.output), options.problem, problem, by_label):
            print(safe_text.line(file))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    parser = Parser(
        prog="hf-optim convergence",
        description="Measure regret and suboptimality on a convex problem, against the bounds that the papers print.",
        examples=(
            "hf-optim convergence",
            "hf-optim convergence --problem two-pulls --optimizer smaran --output convergence",
        ),
        epilog="problems:\n" + "\n".join(f"  {name:<10} {text}" for name, text in PROBLEMS.items()),
    )
    add = parser.add_argument
    add("--optimizer", nargs="+", metavar="OPTIMIZER", default=["smaran", "amvt", "sgd"],
        help="names, 'wrapper(base)', 'file.py:Class', or mappings such as '{name: smaran, gamma: 0.5}' "
        "(default: smaran amvt sgd)")  # fmt: skip
    add("--problem", choices=PROBLEMS, default="digits", help="see below (default: digits)")
    add("--steps", type=int, metavar="T", help="steps of a run (default: "
        + ", ".join(f"{count} for {name}" for name, count in STEPS.items()) + ")")  # fmt: skip
    add("--seeds", type=int, default=5, metavar="N", help="runs of each optimizer (default: 5)")
    add("--lr", type=float, metavar="ETA", help=f"eta of all optimizers (default for digits: the one of {rates} with "
        f"the least mean f, found on another seed; for two-pulls: {ETA:g})")  # fmt: skip
    add("--output", metavar="DIR", help="folder of convergence.csv, .svg and .png (default: print only)")
    return parser.parse_args(argv)


def table(runs: Sequence[Run]) -> str:
    """Means over seeds at each T; the slack is the least of any seed."""
    heads = ("T", "R(T)", "R(T)/T", "bound", "bound/R(T)", "mean f - f*", "f(mean) - f*", "f - f*", "min |grad f|²")
    lines: list[tuple[str, ...]] = [heads]
    for rows in zip(*(run.rows for run in runs), strict=False):
        mean = {name: sum(row[name] for row in rows) / len(rows) for name in COLUMNS[5:]}
        mean["slack"] = min(row["slack"] for row in rows)
        figures = (
            mean["regret"], mean["regret"] / rows[0]["T"], mean["bound"], mean["slack"], mean["excess_mean"],
            mean["excess_of_mean"], mean["excess_last"], mean["least_gradient_squared"],
        )  # fmt: skip
        lines.append((str(rows[0]["T"]), *("–" if math.isnan(v) else f"{v:.4g}" for v in figures)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
                     for line in lines)  # fmt: skip


def findings(runs: Sequence[Run]) -> list[str]:
    """Fitted exponents and what became of the theorems, in words."""
    said = [f"seed {run.seed}: {run.note}" for run in runs if run.note]
    runs = [run for run in runs if run.rows]
    if not runs:
        return said
    for name, quantity, divide in (
        ("regret", "R(T)/T", True),
        ("excess_mean", "mean f - f*", False),
        ("excess_of_mean", "f(mean) - f*", False),
    ):
        mean, half = exponent(runs, name, divide)
        interval = "" if math.isnan(half) else f" ± {half:.3f} (95%, {counted(len(runs), 'seed')})"
        said.append(f"exponent of T in {quantity}: " + ("no fit" if math.isnan(mean) else f"{mean:.3f}{interval}"))
        if not divide and not math.isnan(mean):
            said[-1] += f"; O(1/sqrt T) asks for -0.5 or less: {_verdict(mean <= -0.5)}"
    if runs[0].momentum is None or runs[0].speeds is None:
        return said
    momentum = max(run.momentum or 0.0 for run in runs)
    low, high = min(run.speeds[0] for run in runs if run.speeds), max(run.speeds[1] for run in runs if run.speeds)
    said.append(
        f"Theorem 1, |m_t| < 1/(1 - gamma): {_verdict(momentum < 1)}, "
        f"at most {momentum:.9f} of (1 - gamma^t)/(1 - gamma)"
    )
    said.append(f"Theorem 2, 0 <= V_t < 1: {_verdict(0 <= low and high < 1)}, V_t in [{low:.6f}, {high:.9f}]")
    broken = [row["T"] for run in runs for row in run.rows if row["slack"] < 1]
    least = min(row["slack"] for run in runs for row in run.rows)
    said.append(
        f"Theorem 3, R(T) <= bound: {_verdict(not broken)}, "
        + (f"exceeded from T = {min(broken)}: " if broken else "")
        + f"least bound/R(T) {least:.4g}"
    )
    return said


def _verdict(holds: bool) -> str:
    return "holds" if holds else "FAILS"


def _need_matplotlib() -> None:
    with extras.needed("a plot (without --output there is none)", "study"):
        import matplotlib  # noqa: F401


def write(folder: Path, name: str, problem: Online, by_label: Mapping[str, Sequence[Run]]) -> list[Path]:
    """convergence.csv with a row for each optimizer, seed and T, and the plots; gives their paths."""
    from hf_optim.toys import regret_plot

    files = [folder / f"convergence.{kind}" for kind in ("csv", "svg", "png")]
    with writing(folder):
        rows = ({"problem": name, **row} for runs in by_label.values() for run in runs for row in run.rows)
        write_atomically(folder, files[0].name, csv_lines([COLUMNS, *([row[key] for key in COLUMNS] for row in rows)]))
        figure = regret_plot.draw(problem.title, by_label)
        for file in files[1:]:
            dateless = {"Date": None} if file.suffix == ".svg" else None  # the same run, the same file
            with whole(folder, file.name) as part:
                figure.savefig(part, format=file.suffix[1:], dpi=130, metadata=dateless)
    return files
