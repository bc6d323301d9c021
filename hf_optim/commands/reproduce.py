"""`hf-optim reproduce`: the study of a table or figure, published beside obtained, and a verdict on each claim."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.claims import claim as claims
from hf_optim.claims.wishes import Wish
from hf_optim.commands import list as listing
from hf_optim.commands import overrides
from hf_optim.commands.parser import Parser
from hf_optim.core import safe_text
from hf_optim.errors import UserError

if TYPE_CHECKING:
    import argparse

    from hf_optim.claims.cost import Machine
    from hf_optim.claims.judge import Outcome
    from hf_optim.experiment.cards import Card
    from hf_optim.study.plan.plan import Plan

ABOUT = "reproduce a table or a figure of one of the papers"
EPILOG = """
Interrupt it at any moment: the same command goes on, and the page says what there is. It leaves, beside the study's own
tables and report.html:
  reproduction.md    the verdicts, published beside obtained, and what differs from the paper
  reproduction.json  the same for programs, with the ids of the records behind every figure
  reproduction.svg   the figures of the table, published and obtained

Size small trains on the data that come with the package: a verdict there speaks of small models and stand-in data, and
says nothing about the paper's own setting. Size paper is the paper's setting, for a GPU. What it costs is said before
it starts. A stand-in whose published effects would need more seeds than are planned says so and is not run without
--anyway. Runs that another table's study beside it has made are taken from there.
"""

COMMANDS = {"landscape": "hf_optim.commands.landscape", "convergence": "hf_optim.commands.convergence"}


@dataclass(frozen=True)
class Options:
    """How a claim is to be reproduced; see the command's help."""

    size: str = "small"
    output: str | None = None
    wish: Wish = Wish()
    seeds: int | None = None
    jobs: int | None = None
    jobs_per_gpu: int = 1
    checkpoint_every: int | None = None
    dry_run: bool = False
    anyway: bool = False
    share: bool = True
    machine: Machine | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    card: Card | None = None

    def folder(self, name: str) -> Path:
        """Where the study of the claim `name` lies."""
        return Path(self.output or f"reproductions/{name}-{self.size}{self.wish.suffix}")

    def again(self, name: str) -> str:
        """The command that does the same."""
        words = ["hf-optim reproduce", f'"{name}"' if " " in name else name, "--size", self.size, *self.wish.words()]
        for option, value in (("--seeds", self.seeds), ("--output", self.output)):
            words += [option, str(value)] if value is not None else []
        for key, value in self.overrides.items():
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
        return " ".join([*words, *(["--anyway"] if self.anyway else [])])


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
    options = Options(
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
        return _within(given.budget, options)
    return page(given.name, options) if given.page else reproduce(given.name, options)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog,
        description="Reproduce a table or a figure of one of the four papers.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME_OR_FILE", help="a claim, as agr-table6 (see --list)")
    add("--list", action="store_true", help="list the tables and figures that come with the package")
    add("--all", action="store_true", help="what can be decided within --budget, most decidable first")
    add("--budget", metavar="TIME", help="of --all on one machine: 10h, 90m or 2d")
    add("--size", choices=tuple(claims.SIZES), default="small", help="default: small")
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


def reproduce(name: str, options: Options) -> int:
    """Run what is missing of the claim's study, and write and show what came out.

    Raises:
        UserError: no such claim, or it has no setting of this size, or its stand-in cannot decide it.
    """
    chosen, setting = _chosen(name, options)
    folder = options.folder(chosen.name)
    if setting.study is None:
        return _run_commands(chosen, options, folder)
    from hf_optim.claims import shared, wishes
    from hf_optim.study import conduct as command
    from hf_optim.study.plan.plan import expand

    source = wishes.study(setting.study, options.wish)
    plan = expand(source, seeds=options.seeds, overrides=options.overrides)
    _announce(chosen, plan, options, folder)
    if options.share and not options.dry_run:
        brought = shared.collect(plan.runs, folder, folder.parent)
        if brought:
            print(f"{len(brought)} runs are taken from the studies beside it")
    try:
        code = command.study(
            f"{chosen.name} ({options.size})", source=source, output=str(folder), jobs=options.jobs,
            seeds=options.seeds, dry_run=options.dry_run, checkpoint_every=options.checkpoint_every,
            overrides=options.overrides, jobs_per_gpu=options.jobs_per_gpu, card=options.card,
        )  # fmt: skip
    except KeyboardInterrupt:
        if (folder / "plan.json").is_file():
            write(chosen, options, folder)
        raise
    if not options.dry_run:
        write(chosen, options, folder)
    return code


def page(name: str, options: Options) -> int:
    """Write the page of what is there."""
    chosen, setting = _chosen(name, options)
    folder = options.folder(chosen.name)
    if setting.study is None:
        return _write_tables(chosen, options, folder)
    write(chosen, options, folder)
    return 0


def _chosen(name: str, options: Options) -> tuple[claims.Claim, claims.Setting]:
    chosen = claims.load(name)
    if options.size not in chosen.settings:
        if not chosen.settings:
            raise UserError(f"{chosen.name} has nothing to run: {chosen.statements[0].not_testable}")
        raise UserError(f"{chosen.name} has no setting of size {options.size}: choose {' or '.join(chosen.settings)}")
    return chosen, chosen.settings[options.size]


def _announce(chosen: claims.Claim, plan: Plan, options: Options, folder: Path) -> None:
    """What it costs and what it can decide; a UserError for a stand-in that cannot decide anything published."""
    from hf_optim.claims import cost, power

    machine = options.machine or (cost.GPU if options.size == "paper" else cost.CORE)
    left = [run for run in plan.runs if not (folder / "runs" / run.id / "record.json").is_file()]
    print(f"To run: {cost.of(left, machine).sentence(machine)}")
    outlooks = power.outlooks(chosen, options.size, plan)
    told = [outlook for outlook in outlooks if outlook.decides is not None or outlook.visible is not None]
    for sentence in dict.fromkeys(outlook.sentence() for outlook in told):
        print(f"  {sentence}")
    if power.hopeless(outlooks) and not options.anyway and not options.dry_run and left:
        needed = min(outlook.needed for outlook in outlooks if outlook.needed is not None)
        raise UserError(
            f"{chosen.name} at size {options.size} cannot decide what the paper claims with {len(plan.seeds)} seeds "
            f"(its largest published effect needs {needed}): give --anyway to run it all the same, or --seeds {needed}"
        )


def _run_commands(chosen: claims.Claim, options: Options, folder: Path) -> int:
    """What a figure or a theorem without a study shows: the output of commands and checks, and verdicts on it."""
    import importlib

    from hf_optim.claims import theorems

    setting = chosen.settings[options.size]
    for place, words in setting.commands.items():
        print(f"hf-optim {' '.join(words)} --output {folder / place}")
        if not options.dry_run:
            importlib.import_module(COMMANDS[words[0]]).main([*words[1:], "--output", str(folder / place)])
    for name in setting.checks:
        print(f"check {name}")
    if options.dry_run:
        return 0
    theorems.write(list(setting.checks), folder)
    return _write_tables(chosen, options, folder)


def _write_tables(chosen: claims.Claim, options: Options, folder: Path) -> int:
    from hf_optim.claims import judge

    reproduced = judge.of_tables(chosen, options.size, folder, options.again(chosen.file or chosen.name))
    files = tuple(
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("reproduction.")
    )
    _write(reproduced, folder, files)
    return 0


def write(chosen: claims.Claim, options: Options, folder: Path) -> None:
    """Judge the records in `folder`; write reproduction.md, .json and .svg, and show the tables."""
    from hf_optim.claims import judge
    from hf_optim.study.folder import results as records

    reproduced = judge.of_study(chosen, options.size, records.load(folder), options.again(chosen.file or chosen.name))
    _write(reproduced, folder)


def _write(reproduced: Outcome, folder: Path, files: tuple[str, ...] = ()) -> None:
    from hf_optim.claims import show
    from hf_optim.claims.drawing import drawing
    from hf_optim.experiment.files import write_atomically

    write_atomically(folder / "reproduction.md", show.markdown(reproduced, files))
    write_atomically(
        folder / "reproduction.json", json.dumps(show.plain(reproduced), indent=1, ensure_ascii=False) + "\n"
    )
    drawn = drawing(reproduced)
    if drawn:
        write_atomically(folder / "reproduction.svg", drawn)
    console = safe_text.console()
    show.terminal(reproduced, console)
    console.print(f"Reproduction: {folder / 'reproduction.md'}", markup=False, highlight=False, soft_wrap=True)


def _within(budget: str, options: Options) -> int:
    """Everything that fits into the budget, most decidable first; says what it leaves out."""
    from hf_optim.claims import agenda, cost

    machine = options.machine or (cost.GPU if options.size == "paper" else cost.CORE)
    chosen, left = agenda.plan(cost.hours(budget), options.size, options.wish, options.seeds, machine)
    for entry in chosen:
        print(f"{entry.name}: {entry.why}, {cost.duration(entry.hours)}")
    print(f"{len(chosen)} claims, {cost.duration(sum(entry.hours for entry in chosen))} of {budget}")
    for entry in left:
        print(f"left out: {entry.name}: {entry.why}, {cost.duration(entry.hours)}")
    if options.dry_run:
        return 0
    codes = [reproduce(entry.name, replace(options, anyway=True)) for entry in chosen]
    return max(codes, default=0)
