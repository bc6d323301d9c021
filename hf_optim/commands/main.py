"""The command `hf-optim`: a command is a file beside this one with `ABOUT` and `main(argv)`.

Nothing heavy is imported before the command that needs it is known.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from hf_optim.commands.parser import Parser
from hf_optim.core import caches, extras, importing
from hf_optim.core.notes import waiting
from hf_optim.core.safe_text import line, terminal
from hf_optim.core.validate import closest
from hf_optim.errors import UserError, of_memory

#: packages whose import takes seconds
_LARGE = ("torch", "transformers", "accelerate", "datasets", "scipy", "matplotlib", "optuna", "pandas")
importing.ignore_current_folder()  # here: a process of multiprocessing's imports the program, and does not call it
OVERVIEW = "Any paper's optimizer in your Hugging Face run, and an honest testbed that tells whether it is better."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Gives the exit code: 0, 1 (a run failed), 2 (a user's error), 130 (interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch's, of the core alone, which has none
    warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # torch's: an error says more, if it is one
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except SystemExit:  # of --help
        _drop_output()
        raise
    except BrokenPipeError:
        _drop_output()  # the reader (`head`, a pager) has left
        return 0
    except ValueError as error:
        if not isinstance(error, UserError):
            raise
        print(f"error: {line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # of what is given or where it is written to, which no command has said better
        named = line(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else "output"
        named = named if len(named) <= 80 else f"{named[:80]}..."
        print(terminal(f"error: {named}: {error.strerror or line(error)}"), file=sys.stderr)
        _drop_output()
        return 2
    except (MemoryError, RuntimeError) as error:
        if not of_memory(error):
            raise
        more = f" ({line(error)[:200]})" if str(error) else ""
        print(terminal(f"error: there is not enough memory{more}"), file=sys.stderr)
        return 2


def _open_streams() -> None:
    """Makes the three streams usable: one that is closed is the null device (or the next file that is opened would be
    written to in its place), and a character that the terminal's encoding has not is a question mark.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # what a test or a notebook puts there may have none
    if reconfigure is not None and sys.stdout.errors in ("strict", "surrogateescape"):
        reconfigure(errors="replace")


def _drop_output() -> None:
    """Where nobody takes what is printed: the interpreter's own flush at its end must not complain about it."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def commands() -> dict[str, str]:
    """Every command with the line that the overview shows, read without importing it."""
    known = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        about = re.search(r'^ABOUT = "(.+)"$', file.read_text(encoding="utf-8"), re.MULTILINE)
        if about:
            known[file.stem] = about[1]
    return known


def _run(arguments: list[str]) -> int:
    try:
        caches.user_home()
    except RuntimeError:  # libraries would then take a folder of the current one for their caches
        raise UserError("this user has no home folder: set HOME to one, from / on") from None
    name = arguments[0] if arguments else ""
    if name in commands():
        needed = extras.needed("this command", "tasks")  # the doors alone are for no command
        with needed, waiting("loading PyTorch and what goes with it", busy=_loading):
            return int(importlib.import_module(f"hf_optim.commands.{name}").main(arguments[1:]) or 0)
    if name and not name.startswith("-"):
        near = closest(name, commands())
        raise UserError(f"there is no command {name!r}{near}; `hf-optim --help` lists them")
    _overview().parse_args(arguments)
    raise AssertionError("an unknown command passed the parser")


def _loading() -> bool:
    """Whether a large package is being imported."""
    specs = (getattr(sys.modules.get(name), "__spec__", None) for name in _LARGE)
    return any(getattr(spec, "_initializing", False) for spec in specs)


def _overview() -> Parser:
    parser = Parser("hf-optim", OVERVIEW)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    # they are listed alone, and no class of ours takes all that argparse makes one with (a color, from Python 3.14 on)
    of = argparse.ArgumentParser
    listed = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=of)
    for name, about in commands().items():
        listed.add_parser(name, help=about, description=about)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(terminal(f"hf-optim {version('hf-optim')}"))
        except PackageNotFoundError:
            print("hf-optim (not installed)")
        raise SystemExit(0)


if __name__ == "__main__":
    raise SystemExit(main())
