"""`hf-optim inspect`: the curvature and the surroundings of a checkpoint, and the way from it to another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.commands.parser import Parser, check_folders
from hf_optim.core import importing
from hf_optim.core.safe_text import csv_lines, terminal
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.spec import SIZES, RunSpec

if TYPE_CHECKING:
    from hf_optim.curvature.plots import Picture

ABOUT = "measure curvature and loss landscape of a checkpoint"
EXAMPLES = (
    "hf-optim inspect runs/adamw/checkpoint-324",
    "hf-optim inspect runs/adamw/checkpoint-324 runs/sgd/checkpoint-324 --landscape 1",
    "hf-optim inspect model/ --task vision --model mlp --size small --eigenvalues 5 --trace 30",
)
EPILOG = """
The run is known from the spec.json beside its checkpoints (`hf-optim train ... --checkpoint-every N`).
It prints a table and leaves, in --output (default: CHECKPOINT/inspection): inspection.json, landscape.csv,
interpolation.csv and a plot of each as PNG. Everything is in evaluation mode, on the first --samples of --split.
Eigenvalues of the Hessian of the mean loss come from Lanczos' method on Hessian-vector products.
"""


def main(argv: Sequence[str] | None = None, prog: str = "hf-optim inspect") -> int:
    """Parse, look, print and write; gives the exit code."""
    parser = Parser(
        prog=prog,
        description="Measure Hessian eigenvalues, trace, parameter norm and loss landscape of a checkpoint.",
        examples=EXAMPLES,
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="RUN/checkpoint-STEP")
    add("other", type=Path, nargs="?", metavar="OTHER", help="another solution of the same model: interpolate to it")
    add("--task", metavar="NAME", help="the task, where no spec.json says it")
    add("--model", metavar="NAME", help="its model (default: the task's first)")
    add("--size", choices=SIZES, default="small", help="its size (default: small)")
    add("--data", metavar="NAME|PATH", help="its data, if not the preset's")
    add("--split", choices=("train", "validation", "test"), default="train", help="whose loss (default: train)")
    add("--samples", type=int, default=512, metavar="N", help="of the split (default: 512)")
    add("--eigenvalues", type=int, default=1, metavar="K", help="the largest K (default: 1; 0 for none)")
    add("--trace", type=int, default=0, metavar="PROBES", help="estimate the trace from so many probes (default: none)")
    add("--landscape", type=int, choices=(0, 1, 2), default=2, help="its dimensions (default: 2; 0 for none)")
    add("--points", type=int, default=11, metavar="N", help="of each direction, odd (default: 11)")
    add("--distance", type=float, default=1.0, metavar="D", help="reach of the landscape; 1: the weights' own length")
    add("--seed", type=int, default=0, metavar="N", help="of the directions (default: 0)")
    add("--double", action="store_true", help="in float64: slower, for eigenvalues close to zero")
    add("--trust", action="store_true", help="run the code (file.py:NAME) that a spec.json names (docs/trust.md)")
    add("--output", type=Path, metavar="DIR", help="where the files go (default: CHECKPOINT/inspection)")
    given = parser.parse_args(list(sys.argv[1:] if argv is None else argv))
    check_folders(*filter(None, (given.checkpoint, given.other)))
    if given.samples < 1:
        raise UserError(f"--samples must be at least 1, got {given.samples}")
    if given.eigenvalues < 0:
        raise UserError(f"--eigenvalues must be 0 or more, got {given.eigenvalues}")
    from hf_optim.experiment.checkpoint import judged

    asked = importing.refused("only a spec.json says that it is to be run", given.trust or bool(given.task))
    with asked, judged(given.checkpoint):
        return look(given)


def look(given: argparse.Namespace) -> int:
    """Everything that was asked for, in order of its cost."""
    from hf_optim.curvature import hessian, landscape, plots
    from hf_optim.curvature.solution import norms
    from hf_optim.experiment import checkpoint as checkpoints

    for place in filter(None, (given.checkpoint, given.other)):
        checkpoints.check_checkpoint(place)
    named = None
    if given.task:
        named = RunSpec(
            task=given.task, model=given.model, size=given.size, data=given.data, optimizer={"name": "adamw"}
        )
    spec = checkpoints.specification(given.checkpoint, named)
    solution = checkpoints.read_solution(given.checkpoint, spec, given.split, given.samples, double=given.double)
    figures: dict[str, Any] = {
        "checkpoint": str(given.checkpoint),
        "split": given.split,
        "samples": solution.samples,
        "loss": solution.loss(),
        **norms(solution.parameters),
    }
    _say("loss", f"{figures['loss']:.6g} on {counted(solution.samples, f'{given.split} sample')}")
    if solution.averaged:
        _say("note", "evaluation uses an average of the weights: that is what is looked at")
    _say("parameter norm", f"{figures['parameter_norm']:.6g}")
    if given.eigenvalues:
        figures["eigenvalues"] = hessian.eigenvalues(solution, given.eigenvalues)
        _say("largest eigenvalues", ", ".join(f"{value:.5g}" for value in figures["eigenvalues"]))
    if given.trace:
        estimate = hessian.trace(solution, given.trace)
        figures["trace"] = {"mean": estimate.mean, "standard_error": estimate.error, "probes": estimate.probes}
        probes = counted(estimate.probes, "probe")
        _say("trace", f"{estimate.mean:.5g} ± {estimate.error:.2g} (standard error, {probes})")
    pictures: list[Picture] = []
    if given.landscape:
        surface = landscape.surface(
            solution, points=given.points, distance=given.distance, dimensions=given.landscape, seed=given.seed,
            progress=_progress,
        )  # fmt: skip
        pictures.append(plots.landscape(surface))
    if given.other:
        second = checkpoints.read_solution(
            given.other, checkpoints.specification(given.other, named), given.split, 1, double=given.double
        )
        pictures.append(plots.interpolation(landscape.between(solution, second)))
        figures["other"] = str(given.other)
    folder = _write(given.output, given.checkpoint, figures, pictures)
    _say("written to", str(folder))
    return 0


def _say(name: str, text: str) -> None:
    print(terminal(f"{name:<20} {text}"))


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(terminal(f"landscape {done}/{total}"), end="\n" if done == total else "\r", file=sys.stderr, flush=True)


def _write(output: Path | None, checkpoint: Path, figures: dict[str, Any], pictures: Sequence[Picture]) -> Path:
    """Writes into `output`, or into a folder of the checkpoint's own; gives it."""
    from hf_optim.curvature import plots
    from hf_optim.experiment.disk import writing
    from hf_optim.experiment.files import own_folder, whole, write_atomically, write_json

    with writing(output or checkpoint / "inspection"):
        folder = own_folder(output) if output else own_folder(checkpoint, "inspection")
        write_json(folder, "inspection.json", figures)
        for picture in pictures:
            write_atomically(folder, f"{picture.name}.csv", csv_lines(picture.rows))
            with whole(folder, f"{picture.name}.png") as file:
                plots.save(picture, file)
    return folder
