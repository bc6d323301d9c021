"""The command `hf-optim evaluate`: checkpoints of any tasks in one table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_optim.commands import overrides
from hf_optim.commands.nested import take_nested
from hf_optim.commands.parser import Parser, check_folders
from hf_optim.core import importing
from hf_optim.core.safe_text import line
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.experiment.record import after, step_of
from hf_optim.experiment.spec import SIZES, RunSpec
from hf_optim.experiment.task import names

ABOUT = "evaluate checkpoints of any tasks into one table"
COMPUTED = ("precision", "compile_model", "workers")
EXAMPLES = (
    "hf-optim evaluate runs/a runs/b/checkpoint-324",
    "hf-optim evaluate runs/* --export all.csv",
    "hf-optim evaluate theirs/ --task vision --model vit_b16 --size paper --data cifar-10-python.tar.gz",
    "hf-optim evaluate theirs/ --task lm --model pretrained --model.checkpoint theirs/",
)
EPILOG = """
A run is known from the spec.json beside its checkpoints (`hf-optim train ... --checkpoint-every N`); of a run's folder
the last checkpoint is taken. Its numbers are those of its record. A checkpoint of somebody else's
needs --task and --model.

Several processes: torchrun --nproc_per_node 2 -m hf_optim evaluate ...
"""


def main(argv: Sequence[str] | None = None, prog: str = "hf-optim evaluate") -> int:
    """Parse, evaluate, print or export; gives 0, or 2 where one of several cannot be evaluated."""
    parser = Parser(prog, "Evaluate checkpoints on every split of their data, in one table.", EXAMPLES, EPILOG)
    add = parser.add_argument
    add(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help="a run's folder, or a checkpoint (RUN/checkpoint-STEP)",
    )
    add("--task", metavar="NAME", help=f"of checkpoints without spec.json: {', '.join(names())} or file.py:NAME")
    add("--model", metavar="NAME", help="their model (default: the task's first); its options as --model.KEY VALUE")
    add("--size", choices=SIZES, help="their size (default: small)")
    add("--data", metavar="NAME|PATH", help="other data than the run's, or the preset's")
    overrides.add(parser.add_argument_group("how they are computed, in place of the run's"), COMPUTED)
    add(
        "--columns",
        metavar="NAMES",
        help="columns, with wildcards, e.g. 'checkpoint,test_*' (default: of the test split)",
    )
    add("--export", type=Path, metavar="FILE", help="write all of it to a .csv, .md, .tex (booktabs) or .parquet file")
    add("--trust", action="store_true", help="run the code (file.py:NAME) that a spec.json names (docs/trust.md)")
    plain, nested = take_nested(list(sys.argv[1:] if argv is None else argv), ("model",))
    given = parser.parse_args(plain)
    if not given.task and (given.model or given.size or nested["model"]):
        raise UserError("--model and --size say what a checkpoint without spec.json is: give its --task, too")
    check_folders(*given.checkpoints)
    from hf_optim.study.folder import rows
    from hf_optim.study.report import exports

    if given.export:
        exports.check_format(given.export)
    computed = {key: value for key in COMPUTED if (value := getattr(given, key)) is not None}
    named = None
    if given.task:
        named = RunSpec(given.task, given.model, given.size or "small", {"name": "sgd"}, options=nested["model"])
    with importing.refused("only a spec.json says that it is to be run", given.trust or bool(given.task)):
        table, code = _table(given.checkpoints, named, given.data, computed)
    if os.environ.get("RANK", "0") != "0" or not table:
        return code
    every = rows.columns(table)
    shown = rows.choose(
        table, given.columns, [name for name in every if not name.startswith(("train_", "validation_"))]
    )
    if given.export:
        exports.write(table, rows.choose(table, given.columns, every), given.export)
        print(line(f"{counted(len(table), 'checkpoint')}: {given.export}"))
    else:
        exports.show(table, shown)
    return code


def _table(
    places: Sequence[Path], named: RunSpec | None, data: str | None, computed: dict[str, Any]
) -> tuple[list[dict[str, Any]], int]:
    """A row for each checkpoint, and the exit code: of several, one that cannot be judged is a line of its own."""
    table, code = [], 0
    # processes evaluate together: one that went on alone would wait for the others
    alone = len(places) == 1 or os.environ.get("WORLD_SIZE", "1") != "1"
    for place in places:
        try:
            table.append(_row(place, named, data, computed))
        except UserError as error:
            if alone:
                raise
            print(line(f"error: {place}: {error}"), file=sys.stderr)
            code = 2
    return table, code


def _row(place: Path, named: RunSpec | None, data: str | None, computed: dict[str, Any]) -> dict[str, Any]:
    from hf_optim.experiment import checkpoint as checkpoints
    from hf_optim.experiment.evaluation import evaluate

    checkpoint = place
    if not any((place / name).is_file() for name in ("config.json", checkpoints.ADAPTERS)):
        last = checkpoints.last_checkpoint(place)
        step = -1 if last is None else step_of(Path(last).name)
        passed = after((path.name for path in place.glob("checkpoint-*")), step)
        told = f"{', '.join(passed)}: cut short or damaged" if passed else ""
        if last is None:
            what = f"no checkpoint that is whole ({told})" if told else "no checkpoint"
            raise UserError(f"{place} holds {what}: give one, or train with --checkpoint-every")
        checkpoint = Path(last)
        if told and os.environ.get("RANK", "0") == "0":
            print(line(f"{place}: {checkpoint.name} is taken, and not {told}"), file=sys.stderr)
    spec = checkpoints.specification(checkpoint, named)
    spec = replace(spec, data=data or spec.data, overrides={**spec.overrides, **computed})
    result = evaluate(spec, checkpoint)
    best = {key for key in result.metrics if key.startswith("best_")}  # a checkpoint knows its own moment alone
    return {
        "checkpoint": str(checkpoint),
        "task": spec.task,
        "model": spec.model,
        "size": spec.size,
        "data": result.data,
        "precision": result.precision,
        "test_samples": result.samples,
        **{key: value for key, value in result.metrics.items() if key not in best},
    }
