"""The metrics of a checkpoint on every split: the numbers of its run's record, computed anew."""

import json
import os
import sys
from pathlib import Path

from hf_optim.commands.nested import take_nested
from hf_optim.commands.parser import Parser
from hf_optim.core.text import line
from hf_optim.errors import UserError
from hf_optim.experiment.spec import SIZES
from hf_optim.experiment.task import names


def main() -> int:
    """Print the metrics as JSON, or write them to --output; gives the exit code."""
    parser = Parser("evaluate_checkpoint.py", __doc__ or "")
    parser.add_argument("--task", required=True, metavar="NAME", help=f"{', '.join(names())} or file.py:NAME")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model of the checkpoint (default: the task's first); its options as --model.KEY VALUE",
    )
    parser.add_argument("--size", choices=SIZES, default="small", help="the size it was trained at (default small)")
    parser.add_argument("--data", metavar="NAME|PATH", help="the data it was trained on, if not the preset's")
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help="RUN/checkpoint-STEP")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there instead of printing it")
    try:
        plain, nested = take_nested(sys.argv[1:], ("model",))
        given = parser.parse_args(plain)
        from hf_optim.experiment.evaluation import evaluate_checkpoint

        metrics = evaluate_checkpoint(
            given.task, given.model, given.size, given.checkpoint, given.data, nested["model"]
        )
    except UserError as error:
        print(f"error: {line(error)}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") != "0":
        return 0
    if given.output is None:
        print(json.dumps(metrics, indent=1))
    else:
        from hf_optim.experiment.files import write_json

        write_json(given.output, metrics)
    return 0


if __name__ == "__main__":
    sys.exit(main())
