"""The command `hf-optim check`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_optim import registry
from hf_optim.commands.parser import Parser
from hf_optim.core import safe_text
from hf_optim.core.safe_text import terminal
from hf_optim.errors import UserError

ABOUT = "test an optimizer, ours or yours, for correctness"
DESCRIPTION = """\
Do to an optimizer what a training run does, and say what it breaks. Names:

  NAME                  a registered one, wildcards too: smaran, "tlr*"
  package.module:Class  any installed one: torch.optim:Adam, "torch.optim:*"
  file.py:Class         your own

Exit code: 0 all cells pass or do not apply, 1 a cell failed, 2 a wrong argument,
3 none failed, but an optimizer could not be made or stepped."""


class Bar:
    """A progress bar on the terminal, with what is being tried; silent where nobody looks."""

    def __init__(self, title: str = "") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.fields[title]}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._progress = Progress(*columns, console=safe_text.console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=None, title=title or "checking")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()

    def advance(self, done: int, total: int, label: str) -> None:
        """Show that `done` of `total` cells are known; `label` came last."""
        self._progress.start()  # not before: what is wrong with the names is one line, and no bar
        self._progress.update(self._task, completed=done, total=total, description=label[:46])


def _mapping(text: str, option: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{option} is not JSON ({error.msg} at character {error.pos + 1}): {text}") from None


def _write(name: str, text: str) -> None:
    from hf_optim.experiment.disk import writing
    from hf_optim.experiment.files import write_atomically

    file = Path(name).expanduser()
    with writing(file.parent):
        write_atomically(file.parent, file.name, text)


def _parser() -> Parser:
    parser = Parser(
        prog="hf-optim check",
        description=DESCRIPTION,
        examples=("hf-optim check smaran", "hf-optim check torch.optim:NAdam my_optimizers.py:Mine --fast"),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to check")
    parser.add_argument("--all", action="store_true", help="every registered optimizer")
    parser.add_argument("--fast", action="store_true", help="without compiling and without two processes")
    parser.add_argument("--checks", metavar="ID,ID", help="only these checks (`--list` shows them)")
    parser.add_argument("--list", action="store_true", help="list the checks and exit")
    parser.add_argument("--hyper", metavar="JSON", help="hyper-parameters for all NAMEs, e.g. '{\"lr\": 0.1}'")
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="an optimizer (or JSON with its name and hyper-parameters) that must compute the same",
    )
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the result as Markdown")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives 0, 1 when a cell failed, or 3 when none did and an optimizer could not be made.

    Raises:
        UserError: a wrong name, check or option.
    """
    options = _parser().parse_args(argv)
    if options.all and options.names:
        raise UserError("give names or --all, not both")
    names = ["*"] if options.all else options.names
    if not names and not options.list:
        raise UserError("name the optimizers to check, or give --all; see hf-optim check --help")
    hyper = _mapping(options.hyper, "--hyper") if options.hyper else {}
    if not isinstance(hyper, dict):
        raise UserError(f"--hyper must be a JSON object, got {options.hyper}")
    reference = options.reference
    if reference and reference.lstrip().startswith("{"):
        reference = _mapping(reference, "--reference")
        if "name" not in reference:
            raise UserError(f'--reference needs a "name", got {options.reference}')
    if reference:
        registry.resolve(reference if isinstance(reference, str) else reference["name"])
    for file in (options.json, options.markdown):  # before minutes of work, not after
        if file and not Path(file).expanduser().parent.is_dir():
            raise UserError(f"there is no folder {Path(file).expanduser().parent} to write {file} into")
    from hf_optim.check import show
    from hf_optim.check.candidate import expand
    from hf_optim.check.suite import registered, run

    known = registered()
    if options.list:
        for i, (id, check) in enumerate(known.items(), 1):
            print(terminal(f"{i:3d} {id:14s} {check.title}{' (slow)' if check.slow else ''}"))
        return 0
    expanded = expand(names)
    chosen = [c.strip() for c in options.checks.split(",") if c.strip()] if options.checks else None
    with Bar() as bar:
        report = run(
            expanded,
            checks=chosen,
            fast=options.fast,
            hyper=dict.fromkeys(expanded, hyper),
            references=dict.fromkeys(expanded, reference),
            progress=bar.advance,
        )
    console = safe_text.console()
    if not console.is_terminal:
        console = safe_text.console(width=100)
    show.terminal(report, known, console)
    if options.json:
        _write(options.json, report.to_json())
    if options.markdown:
        _write(options.markdown, show.markdown(report, known))
    return 1 if report.failed else 3 if report.unmade else 0
