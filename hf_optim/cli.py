"""The command `hf-optim`. Nothing heavy is imported before the command that needs it is known."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence

# Commands that parse their own arguments: where their main(argv) is, and what the overview says of them.
ELSEWHERE = {
    "train": ("hf_optim.task_cli", "train one model with one optimizer"),
    "check": ("hf_optim.check.cli", "test an optimizer, ours or yours, for correctness"),
    "landscape": ("tasks.landscape", "follow optimizers over a two-dimensional surface"),
}
OVERVIEW = "Any paper's optimizer in your Hugging Face run, and an honest testbed that tells whether it is better."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Gives the exit code: 0, 1 (a run failed), 2 (a user's error), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`head`, a pager) has left; the interpreter's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as error:
        from hf_optim.errors import UserError

        if not isinstance(error, UserError):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _extra(error.name or "")
        if not extra:
            raise
        print(f"error: this command needs {error.name}: pip install 'hf-optim[{extra}]'", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in ELSEWHERE and _exists(ELSEWHERE[arguments[0]][0]):
        module = importlib.import_module(ELSEWHERE[arguments[0]][0])
        return int(module.main(arguments[1:]) or 0)
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _extra(module: str) -> str:
    """The extra that brings `module`; empty if none does."""
    package = module.partition(".")[0]
    for extra, packages in {
        "study": ("rich", "yaml", "scipy"),
        "tasks": ("datasets", "evaluate", "sklearn", "pyarrow", "PIL", "numpy"),
        "hf": ("transformers", "accelerate"),
    }.items():
        if package in packages:
            return extra
    return ""


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error of the command does."""

    def error(self, message: str) -> None:  # type: ignore[override]
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


class _Version(argparse.Action):
    """Looks the version up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"hf-optim {version('hf-optim')}")
        except PackageNotFoundError:
            print("hf-optim (not installed)")
        raise SystemExit(0)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=20)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="hf-optim", description=OVERVIEW, allow_abbrev=False, formatter_class=_formatter)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, text) in ELSEWHERE.items():
        if _exists(module):
            commands.add_parser(name, help=text, add_help=False)

    study = commands.add_parser(
        "study",
        help="compare optimizers over tasks and seeds, and write a report",
        allow_abbrev=False,
        description="Runs what is missing of a study, then writes its tables and report.html. "
        "Interrupt it at any moment; the same command goes on.",
    )
    study.add_argument(
        "name", metavar="NAME_OR_FILE", help="a YAML file, a study's folder, or a shipped study (`list --studies`)"
    )
    study.add_argument("--output", metavar="DIR", help="the study's folder (default: studies/NAME)")
    study.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one on each core, or on each GPU)"
    )
    study.add_argument("--seeds", type=int, metavar="N", help="use seeds 0 to N-1 instead of the file's")
    study.add_argument("--dry-run", action="store_true", help="show the plan and write nothing")
    study.add_argument("--retry-failed", action="store_true", help="run those again that failed before")
    study.set_defaults(command=_study)

    report = commands.add_parser(
        "report", help="make a study's tables and report again from its records", allow_abbrev=False
    )
    report.add_argument("folder", metavar="DIR", help="the study's folder")
    report.set_defaults(command=_report)

    listing = commands.add_parser("list", help="list optimizers, tasks or studies", allow_abbrev=False)
    listing.add_argument("pattern", nargs="?", default="*", help='names with wildcards, as "*agr*" (default: all)')
    kind = listing.add_mutually_exclusive_group()
    kind.add_argument("--tasks", action="store_true", help="list the tasks instead")
    kind.add_argument("--studies", action="store_true", help="list the shipped studies instead")
    listing.set_defaults(command=_list)

    info = commands.add_parser("info", help="an optimizer's algorithm, defaults and source", allow_abbrev=False)
    info.add_argument("name", help="an optimizer's name, as `hf-optim list` shows it")
    info.set_defaults(command=_info)
    return parser


def _study(options: argparse.Namespace) -> int:
    from hf_optim.study.command import study

    return study(
        options.name,
        output=options.output,
        jobs=options.jobs,
        seeds=options.seeds,
        dry_run=options.dry_run,
        retry_failed=options.retry_failed,
    )


def _report(options: argparse.Namespace) -> int:
    from hf_optim.study.command import remake

    return remake(options.folder)


def _list(options: argparse.Namespace) -> int:
    from hf_optim import listing

    if options.tasks:
        return listing.tasks(options.pattern)
    if options.studies:
        from hf_optim.study.shipped import shipped_studies

        for name, path in shipped_studies().items():
            if fnmatch.fnmatch(name, options.pattern):
                print(f"{name:20s} {listing.first_comment(path)}")
        return 0
    return listing.optimizers(options.pattern)


def _info(options: argparse.Namespace) -> int:
    from hf_optim import listing

    return listing.info(options.name)


if __name__ == "__main__":
    raise SystemExit(main())
