"""`hf-optim reproduce`: the study of a table or figure, published beside obtained, and a verdict on each claim."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hf_optim.commands import list as listing
from hf_optim.commands import overrides
from hf_optim.commands.parser import Parser
from hf_optim.errors import UserError
from hf_optim.experiment.spec import SIZES

if TYPE_CHECKING:
    import argparse

    from hf_optim.claims.cost import Machine

ABOUT = "reproduce a table or a figure of one of the papers"
EPILOG = """
Interrupt it at any moment: the same command goes on, and the page says what there is. It leaves, beside the study's own
tables and report.html:
  reproduction.md    verdicts, published beside obtained, what differs
  reproduction.json  the same for programs, with the records behind each figure
  reproduction.svg   the figures of the table, published and obtained

Size small trains on the data that come with the package: a verdict there speaks of small models and stand-in data, and
says nothing about the paper's own setting. Size paper is the paper's setting, for a GPU. What it costs is said before
it starts. A stand-in whose published effects would need more seeds than are planned says so and is not run without
--anyway. Runs that another table's study beside it has made are taken from there.
"""


def main(argv: Sequence[str] | None = None, prog: str = "hf-optim reproduce") -> int:
    """Parse, run, judge, show; gives the exit code of the study (1 if a run failed)."""
    parser = _parser(prog)
    given = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    if given.list:
        return listing.main(["--claims"])
    if given.all == bool(given.name):
        parser.error("give a claim such as agr-table6 (see --list), or --all")
    if given.all != (given.budget is not None):
        parser.error("--all and --budget go together: --all --budget 10h")
    if given.all and (given.output or given.only):
        parser.error("--output and --only belong to one claim, and not to --all")
    from hf_optim.claims.wishes import Wish
    from hf_optim.commands import reproduction

    options = reproduction.Options(
        size=given.size,
        output=given.output,
        wish=Wish(given.epochs, tuple(given.only or ()), given.tuned or 0, given.patience),
        seeds=given.seeds,
        jobs=given.jobs,
        jobs_per_gpu=given.jobs_per_gpu,
        checkpoint_every=given.checkpoint_every,
        dry_run=given.dry_run,
        anyway=given.anyway,
        share=not given.no_sharing,
        machine=_machine(given),
        overrides=overrides.given(given),
        card=overrides.card(given),
    )
    if given.all:
        return reproduction.within(given.budget, options)
    return (reproduction.page if given.page else reproduction.reproduce)(given.name, options)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Reproduce a table or a figure of one of the four papers.",
        examples=(
            "hf-optim reproduce --list",
            "hf-optim reproduce tlr-table1",
            "hf-optim reproduce --all --budget 10h --dry-run",
        ),
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME_OR_FILE", help="a claim, as agr-table6 (see --list)")
    add("--list", action="store_true", help="list the tables and figures that come with the package")
    add("--all", action="store_true", help="what can be decided within --budget, most decidable first")
    add("--budget", metavar="TIME", help="of --all on one machine: 10h, 90m or 2d")
    add("--size", choices=SIZES[1:], default="small", help="of its setting (default: small)")
    add("--output", metavar="DIR", help="the study's folder (default: reproductions/NAME-SIZE)")
    add("--seeds", type=int, metavar="N", help="use seeds 0 to N-1 instead of the file's")
    add("--epochs", type=int, metavar="N", help="train every run for N epochs")
    add("--only", action="append", metavar="LABEL", help="this optimizer (row) or task (column) only; may be repeated")
    add("--tuned", type=int, metavar="N", help="search AMVT's printed grid of rates and decays, N trials an optimizer")
    add("--patience", type=int, metavar="N", help="end a run after N evaluations without a lower validation loss")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: one on each core or GPU)")
    add("--jobs-per-gpu", type=int, default=1, metavar="N", help="small runs that share a GPU (default: 1)")
    add("--checkpoint-every", type=int, metavar="STEPS", help="an interrupted run goes on from its last checkpoint")
    add("--dry-run", action="store_true", help="show the plan and what it costs, and write nothing")
    overrides.add_card(parser)
    add("--page", action="store_true", help="write the page from the runs that are there, and run nothing")
    add("--anyway", action="store_true", help="run a stand-in that cannot decide the published effects")
    add("--no-sharing", action="store_true", help="take no runs from the studies beside this one")
    overrides.add(parser.add_argument_group("how every run is computed"), overrides.THROUGHPUT)
    add("--tflops", type=float, metavar="N", help="operations per second that the machine reaches, for the cost")
    add("--dollars-per-hour", type=float, metavar="N", help="what an hour of one GPU (or core) costs")
    return parser


def _machine(given: argparse.Namespace) -> Machine:
    import os

    from hf_optim.claims.cost import CORE, GPU
    from hf_optim.experiment.cards import LEAST_STEP
    from hf_optim.study.launch.launcher import gpus

    card = overrides.card(given)
    machine = GPU if given.size == "paper" or card else CORE
    at_a_time = given.jobs or (max(1, len(gpus())) if machine is GPU else os.cpu_count() or 1)
    for option, value in (("--tflops", given.tflops), ("--dollars-per-hour", given.dollars_per_hour)):
        if value is not None and not value > 0:
            raise UserError(f"{option} must be above 0, got {value}")
    if card is not None:
        operations = card.operations(given.precision or "fp32")
        machine = replace(machine, name=card.name, operations=operations, step_seconds=LEAST_STEP)
    return replace(
        machine,
        at_a_time=at_a_time,
        operations=machine.operations if given.tflops is None else 1e12 * given.tflops,
        dollars=machine.dollars if given.dollars_per_hour is None else given.dollars_per_hour,
    )
