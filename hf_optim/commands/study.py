"""The command `hf-optim study`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_optim.commands import overrides
from hf_optim.commands.parser import Parser
from hf_optim.errors import UserError

if TYPE_CHECKING:
    from hf_optim.study.launch.jobs import Launch

ABOUT = "compare optimizers over tasks and seeds, and write a report"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of a study, then tabulate and report. Gives 1 if a run failed."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    from hf_optim.experiment import trackers
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
        jobs_per_gpu=options.jobs_per_gpu,
        checkpoint_every=options.checkpoint_every,
        launch=_launch(options),
        trust=options.trust,
        overrides=overrides.given(options),
        card=overrides.card(options),
        data=options.data,
        report_to=trackers.names(options.report_to),
    )


def _parser() -> Parser:
    parser = Parser(
        "hf-optim study",
        "Run what is missing of a study, then write its tables and report.html.\n"
        "Interrupt it at any moment; the same command goes on.",
        ("hf-optim study quickstart", "hf-optim study mine.yaml --dry-run", "hf-optim study mine.yaml --jobs 2"),
    )
    add = parser.add_argument
    add("name", metavar="NAME_OR_FILE", help="a YAML file, a study's folder, or a shipped study (`list --studies`)")
    add("--output", metavar="DIR", help="the study's folder (default: studies/NAME)")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: one on each core, or on each GPU)")
    add("--seeds", type=int, metavar="N", help="use seeds 0 to N-1 instead of the file's")
    add("--dry-run", action="store_true", help="show the plan and what it costs, and write nothing")
    overrides.add_card(parser)
    add("--data", metavar="NAME_OR_PATH", help="of every task, in place of the file's")
    add("--retry-failed", action="store_true", help="run those again that failed before")
    add("--accept-change", action="store_true", help="go on although runs of the folder are no longer in the plan")
    add("--trust", action="store_true", help="run code that only the study's folder names (docs/trust.md)")
    add("--gpus-per-run", type=int, metavar="N", help="GPUs that train one model together (default: one, if any)")
    add("--jobs-per-gpu", type=int, default=1, metavar="N", help="small runs that share a GPU (default: 1)")
    add("--report-to", metavar="NAMES", help="trackers beside the records, as tensorboard,trackio,wandb")
    add("--checkpoint-every", type=int, metavar="STEPS", help="an interrupted run goes on from its last checkpoint")
    overrides.add(parser.add_argument_group("how every run is computed, in place of the file's"), overrides.THROUGHPUT)
    jobs = parser.add_argument_group("spread over jobs (docs/running.md)").add_argument
    jobs("--launch", choices=("slurm", "local", "debug"), help="submit jobs that take runs until none is left")
    jobs("--array", type=int, metavar="N", help="most jobs at a time (default: 1)")
    jobs("--time", type=int, metavar="MINUTES", help="a job's limit, then requeued (default: 240)")
    jobs("--cpus-per-run", type=int, metavar="N", help="cores for each run (default: 1)")
    jobs("--partition", metavar="NAME", help="SLURM's partition")
    jobs("--sbatch", action="append", metavar="KEY=VALUE", help="any option of sbatch, as account=x; may be repeated")
    jobs("--no-wait", action="store_true", help="leave once the jobs are submitted")
    return parser


def _launch(options: argparse.Namespace) -> Launch | None:
    """What the options say about jobs; a UserError for one of them without --launch."""
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
