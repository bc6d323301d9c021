"""The command `hf-optim`. Nothing heavy is imported before the command that needs it is known."""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_optim.study.launch.jobs import Launch

# Commands that parse their own arguments: where their main(argv) is, and what the overview says of them.
ELSEWHERE = {
    "train": ("hf_optim.commands.train", "train one model with one optimizer"),
    "check": ("hf_optim.commands.check", "test an optimizer, ours or yours, for correctness"),
    "reproduce": ("hf_optim.commands.reproduce", "reproduce a table or a figure of one of the papers"),
    "inspect": ("hf_optim.commands.inspect", "curvature and loss landscape of a checkpoint"),
    "convergence": ("hf_optim.commands.convergence", "measure rates of convergence against the papers' bounds"),
    "landscape": ("hf_optim.commands.landscape", "follow optimizers over a two-dimensional surface"),
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
        from hf_optim.core.text import line
        from hf_optim.errors import UserError

        if not isinstance(error, UserError):
            raise
        print(f"error: {line(error)}", file=sys.stderr)
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
        "study": ("rich", "yaml", "scipy", "optuna", "matplotlib"),
        "vision": ("timm", "torchvision"),
        "diffusion": ("diffusers", "torchmetrics", "torch_fidelity"),
        "tasks": ("datasets", "evaluate", "sklearn", "pyarrow", "PIL", "numpy"),
        "hf": ("transformers", "accelerate"),
        "slurm": ("submitit",),
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
        from hf_optim.core.text import line

        print(f"error: {line(message)}; see {self.prog} --help", file=sys.stderr)
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
    study.add_argument(
        "--accept-change", action="store_true", help="go on although runs of the folder are no longer in the plan"
    )
    study.add_argument(
        "--trust",
        action="store_true",
        help="run code that only the study's folder names (docs/trust.md)",
    )
    study.add_argument(
        "--gpus-per-run", type=int, metavar="N", help="GPUs that train one model together (default: one, if any)"
    )
    study.add_argument(
        "--checkpoint-every", type=int, metavar="STEPS", help="an interrupted run goes on from its last checkpoint"
    )
    spreading = study.add_argument_group("spread over jobs (docs/running.md)")
    spreading.add_argument(
        "--launch", choices=("slurm", "local", "debug"), help="submit jobs that take runs until none is left"
    )
    spreading.add_argument("--array", type=int, metavar="N", help="most jobs at a time (default: 1)")
    spreading.add_argument("--time", type=int, metavar="MINUTES", help="a job's limit, then requeued (default: 240)")
    spreading.add_argument("--cpus-per-run", type=int, metavar="N", help="cores for each run (default: 1)")
    spreading.add_argument("--partition", metavar="NAME", help="SLURM's partition")
    spreading.add_argument(
        "--sbatch", action="append", metavar="KEY=VALUE", help="any option of sbatch, as account=x; may be repeated"
    )
    spreading.add_argument("--no-wait", action="store_true", help="leave once the jobs are submitted")
    study.set_defaults(command=_study)

    results = commands.add_parser(
        "results",
        help="filter, group, compare, export and merge what studies found",
        allow_abbrev=False,
        description="Shows the runs of study folders, a line a run, straight from their records.",
    )
    results.add_argument("folders", nargs="+", metavar="DIR", help="folders of studies")
    results.add_argument(
        "--where", action="append", default=[], metavar="COND", help="e.g. 'optimizer=adam*,lr<=0.01,status!=ok'"
    )
    results.add_argument("--columns", metavar="NAMES", help="columns, with wildcards, e.g. 'optimizer,seed,test_*'")
    results.add_argument("--by", metavar="NAMES", help="group by these columns: counts, means and deviations")
    results.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two optimizers (or conditions), paired by seed, a line a task"
    )
    results.add_argument("--export", metavar="FILE", help="write it to a .csv, .md, .tex (booktabs) or .parquet file")
    results.add_argument("--merge", metavar="INTO", help="make one study of all, in this folder, with its report")
    results.add_argument(
        "--keep-first", action="store_true", help="where two records of a run differ, take the first folder's"
    )
    results.set_defaults(command=_results)

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
    from hf_optim.study.conduct import study

    return study(
        options.name,
        output=options.output,
        jobs=options.jobs,
        seeds=options.seeds,
        dry_run=options.dry_run,
        retry_failed=options.retry_failed,
        accept_change=options.accept_change,
        gpus_per_run=options.gpus_per_run,
        checkpoint_every=options.checkpoint_every,
        launch=_launch(options),
        trust=options.trust,
    )


def _launch(options: argparse.Namespace) -> Launch | None:
    """What the options say about jobs; a UserError for one of them without --launch."""
    from hf_optim.errors import UserError
    from hf_optim.study.launch.jobs import Launch

    given = {name: getattr(options, name) for name in ("array", "cpus_per_run", "partition", "sbatch", "time")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.launch is None:
        if given or options.no_wait:
            name = next(iter(given), "no_wait").replace("_", "-")
            raise UserError(f"--{name} belongs to jobs: add --launch slurm")
        return None
    pairs = [text.partition("=") for text in given.pop("sbatch", [])]
    for key, _, value in pairs:
        if not key or not value:
            raise UserError(f"--sbatch: write KEY=VALUE, as account=x, got {key!r}")
    minutes = given.pop("time", 240)
    sbatch = {key.lstrip("-"): value for key, _, value in pairs}
    return Launch(options.launch, minutes=minutes, sbatch=sbatch, wait=not options.no_wait, **given)


def _results(options: argparse.Namespace) -> int:
    from hf_optim.commands.results import results

    return results(
        options.folders,
        where=options.where,
        columns=options.columns,
        by=options.by,
        compare=tuple(options.compare) if options.compare else None,
        export=options.export,
        into=options.merge,
        keep_first=options.keep_first,
    )


def _report(options: argparse.Namespace) -> int:
    from hf_optim.study.conduct import remake

    return remake(options.folder)


def _list(options: argparse.Namespace) -> int:
    from hf_optim.commands import list as listing

    if options.tasks:
        return listing.tasks(options.pattern)
    if options.studies:
        from hf_optim.study.plan.shipped import shipped_studies

        for name, path in shipped_studies().items():
            if fnmatch.fnmatch(name, options.pattern):
                print(f"{name:20s} {listing.first_comment(path)}")
        return 0
    return listing.optimizers(options.pattern)


def _info(options: argparse.Namespace) -> int:
    from hf_optim.commands import list as listing

    return listing.info(options.name)


if __name__ == "__main__":
    raise SystemExit(main())
