"""`hf-optim launch --optimizer NAME script.py ARGS`: a script that cannot be edited, with another optimizer."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_optim.commands.nested import take_nested
from hf_optim.commands.parser import Parser
from hf_optim.core import importing
from hf_optim.core.safe_text import line
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.experiment import trackers

ABOUT = "run a script that uses Trainer, unchanged, with another optimizer"
VARIABLE = "HF_OPTIM"
#: commands and modules that start the processes which train
LAUNCHERS = {
    "accelerate", "accelerate-launch", "accelerate.commands.accelerate_cli", "accelerate.commands.launch", "torchrun",
    "torch.distributed.run", "torch.distributed.launch", "deepspeed", "deepspeed.launcher.runner",
}  # fmt: skip
EXAMPLES = (
    "hf-optim launch --optimizer smaran run_glue.py --model_name_or_path ...",
    "hf-optim launch --optimizer tlr --optimizer.base adamw --optimizer.base.lr 1e-4 -m my_package.train",
    "accelerate launch --num_processes 2 -m hf_optim launch --optimizer smaran run_glue.py ...",
    f"{VARIABLE}=smaran torchrun --nproc_per_node 2 -m hf_optim launch run_glue.py ...",
)
EPILOG = f"""
{VARIABLE} in the environment is a name, or JSON such as {{"name": "smaran", "gamma": 0.9}}; the options win.
Every transformers Trainer that the script trains is attached to. A script that trains without one is an error at its
end: nothing was attached.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script in this process; gives its exit code."""
    options, target = _split(list(sys.argv[1:] if argv is None else argv))
    parser = Parser(
        prog="hf-optim launch",
        description="Run a script or a module (-m) in which a Trainer trains, with another optimizer.",
        examples=EXAMPLES,
        epilog=EPILOG,
    )
    parser.usage = "%(prog)s [-h] [--optimizer NAME] [--optimizer.KEY VALUE] [-m]\n" + 23 * " " + "SCRIPT [ARG ...]"
    parser.add_argument(
        "--optimizer", metavar="NAME", help=f"its name, or {VARIABLE}; its values as --optimizer.KEY VALUE"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="the script is a module's name")
    plain, nested = take_nested(options, ("optimizer",))
    given, others = parser.parse_known_args(plain)
    if others:
        near = closest(others[0], ["--optimizer"])
        raise UserError(
            f"hf-optim launch: it has no option {others[0]}{near}; a script's own stand behind it: "
            "hf-optim launch --optimizer NAME script.py ARGS"
        )
    spec = _spec(given.optimizer, nested["optimizer"])
    if not target:
        raise UserError("hf-optim launch: which script? hf-optim launch --optimizer NAME script.py ARGS")
    return run(spec, target, given.module)


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our own options, and the script with its arguments."""
    i = 0
    while i < len(argv) and argv[i].startswith("-"):
        i += 2 if argv[i].startswith("--optimizer") and "=" not in argv[i] else 1
    return argv[:i], argv[i:]


def _spec(name: str | None, hyper: dict[str, Any]) -> dict[str, Any]:
    text = os.environ.get(VARIABLE, "").strip()
    try:
        spec = json.loads(text) if text.startswith("{") else {"name": text} if text else {}
    except ValueError as error:
        raise UserError(f'{VARIABLE}: not JSON ({error}): a name, or {{"name": "smaran", ...}}') from None
    if name is not None:
        spec = {"name": name}
    if "name" not in spec:
        raise UserError(
            "hf-optim launch: which optimizer? It stands before the script, hf-optim launch --optimizer NAME script.py "
            f"ARGS, or is {VARIABLE} in the environment"
        )
    return {**spec, **hyper}


def run(spec: dict[str, Any], target: Sequence[str], module: bool = False) -> int:
    """Run `target` (a script or module and its arguments) with `spec` attached to every trainer that trains."""
    from hf_optim.hub.arguments import to_spec
    from hf_optim.hub.attaching import attach
    from hf_optim.hub.train_start import at_train, attached

    spec = to_spec(spec, {}, settled=False)
    if Path(target[0]).name in LAUNCHERS:
        raise UserError(
            f"hf-optim launch: {target[0]} starts processes of its own, in which nothing would be attached: put it in "
            "front, accelerate launch -m hf_optim launch --optimizer NAME script.py ARGS (torchrun likewise)"
        )
    if not module and not Path(target[0]).is_file():
        raise UserError(f"hf-optim launch: there is no script {target[0]}")
    trained = 0

    def told(trainer: Any) -> None:
        nonlocal trained
        trained += 1
        if attached(trainer) is None:
            attach(trainer, spec)

    _allow_trackers()
    no_more = at_train(told)
    os.environ[VARIABLE] = json.dumps(spec)
    before, path = sys.argv, list(sys.path)
    sys.argv = list(target)
    try:
        if module:
            _check_module(target[0])
            runpy.run_module(target[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(target[0]).resolve().parent))
            runpy.run_path(target[0], run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before, path
        no_more()
    if not trained:
        raise UserError(
            f"{target[0]} has trained nothing through transformers.Trainer, so {spec['name']} was attached to nothing: "
            "use hf_optim.Session in a loop of one's own"
        )
    return 0


def _check_module(name: str) -> None:
    """Raise UserError unless there is such a module; one that is not installed is looked for in the current folder."""
    first = name.partition(".")[0]
    installed = bool(first and importlib.util.find_spec(first))
    if not installed:
        sys.path.append(os.getcwd())  # behind all others: nothing there takes the place of what is installed
    try:
        there = bool(first and importlib.util.find_spec(name))
    except ModuleNotFoundError as error:
        if not name.startswith(error.name or " "):  # what a package on the way lacks
            raise
        there = False
    if not there:
        why = f": {first} is the one that is installed; start the file as a script" if installed else ""
        raise UserError(f"hf-optim launch: there is no module {name!r}{why}")


def _allow_trackers() -> None:
    """A script says by itself which trackers it feeds: all are allowed but those that heed files here."""
    for name in filter(importlib.util.find_spec, importing.UNASKED):
        try:
            trackers.allow((name,))
        except UserError as error:
            print(f"warning: {line(error)}", file=sys.stderr)
