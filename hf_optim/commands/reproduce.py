"""`hf-optim reproduce`: the study of a table or figure, published beside obtained, and a verdict on each claim."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_optim.claims import claim as claims
from hf_optim.commands.train import Parser
from hf_optim.errors import UserError

EPILOG = """
Interrupt it at any moment: the same command goes on. It leaves, beside the study's own tables and report.html:
  reproduction.md    published beside obtained, the verdicts, and what differs from the paper
  reproduction.json  the same for programs, with the ids of the records behind every figure
  reproduction.svg   the figures of the table, published and obtained

Size small trains on the data that come with the package: a verdict there speaks of small models and stand-in data, and
says nothing about the paper's own setting. Size paper is the paper's setting, for a GPU.
"""

COMMANDS = {"landscape": "hf_optim.commands.landscape", "convergence": "hf_optim.commands.convergence"}


def main(argv: Sequence[str] | None = None, prog: str = "hf-optim reproduce") -> int:
    """Parse, run, judge, show; gives the exit code of the study (1 if a run failed)."""
    parser = Parser(
        prog=prog,
        description="Reproduce a table or a figure of one of the four papers.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", metavar="NAME_OR_FILE", help="a claim, as agr-table6 (see --list)")
    parser.add_argument("--list", action="store_true", help="list the tables and figures that come with the package")
    parser.add_argument("--size", choices=tuple(claims.SIZES), default="small", help="default: small")
    parser.add_argument("--output", metavar="DIR", help="the study's folder (default: reproductions/NAME-SIZE)")
    parser.add_argument("--seeds", type=int, metavar="N", help="use seeds 0 to N-1 instead of the file's")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one on each core or GPU)")
    parser.add_argument("--dry-run", action="store_true", help="show the plan and write nothing")
    given = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    if given.list:
        return _list()
    if not given.name:
        parser.error("NAME is missing: give a claim such as agr-table6, or --list")
    return reproduce(
        given.name, given.size, output=given.output, seeds=given.seeds, jobs=given.jobs, dry_run=given.dry_run
    )


def reproduce(
    name: str,
    size: str = "small",
    *,
    output: str | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    dry_run: bool = False,
) -> int:
    """Run what is missing of the claim's study, and write and show what came out.

    Raises:
        UserError: no such claim, or it has no setting of this size.
    """
    chosen = claims.load(name)
    if size not in chosen.settings:
        raise UserError(f"{chosen.name} has no setting of size {size}: choose {' or '.join(chosen.settings)}")
    setting = chosen.settings[size]
    folder = Path(output or f"reproductions/{chosen.name}-{size}")
    if setting.study is None:
        return _run_command(chosen, size, folder, dry_run)
    from hf_optim.study import conduct as command

    origin = f"{chosen.name} ({size})"
    code = command.study(origin, source=setting.study, output=str(folder), jobs=jobs, seeds=seeds, dry_run=dry_run)
    if not dry_run:
        write(chosen, size, folder)
    return code


def _run_command(chosen: claims.Claim, size: str, folder: Path, dry_run: bool) -> int:
    """What a figure without a study shows: another command's output, and a page that says what to look at."""
    import importlib

    from hf_optim.claims import show
    from hf_optim.experiment.files import write_atomically

    words = chosen.settings[size].command
    print(f"hf-optim {' '.join(words)} --output {folder}")
    if dry_run:
        return 0
    module = importlib.import_module(COMMANDS[words[0]])
    code = int(module.main([*words[1:], "--output", str(folder)]) or 0)
    write_atomically(
        folder / "reproduction.md", show.page_of_command(chosen, size, sorted(p.name for p in folder.iterdir()))
    )
    return code


def write(chosen: claims.Claim, size: str, folder: Path) -> None:
    """Judge the records in `folder`; write reproduction.md, .json and .svg, and show the tables."""
    from rich.console import Console

    from hf_optim.claims import show
    from hf_optim.experiment.files import write_atomically
    from hf_optim.study.folder import results as records

    outcome = show.judge(chosen, size, records.load(folder))
    write_atomically(folder / "reproduction.md", show.markdown(outcome))
    write_atomically(folder / "reproduction.json", json.dumps(show.plain(outcome), indent=1, ensure_ascii=False) + "\n")
    drawing = show.drawing(outcome)
    if drawing:
        write_atomically(folder / "reproduction.svg", drawing)
    console = Console()
    show.terminal(outcome, console)
    console.print(f"Reproduction: {folder / 'reproduction.md'}", markup=False, highlight=False, soft_wrap=True)


def _list() -> int:
    for name in claims.names():
        one = claims.load(name)
        print(f"{name:24s} {one.paper:7s} {one.where:22s} {one.title}  [{', '.join(one.settings)}]")
    return 0
