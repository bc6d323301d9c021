"""A report on the terminal and as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hf_optim.check.outcome import FAIL, NOT, PASS, UNMADE, Check, Report
from hf_optim.core.safe_text import markdown as markdown_text
from hf_optim.core.wording import counted

if TYPE_CHECKING:
    from rich.console import Console

SIGNS = {PASS: "✓", FAIL: "✗", NOT: "·", UNMADE: "?"}
STYLES = {PASS: "green", FAIL: "bold red", NOT: "dim", UNMADE: "yellow"}


#: above the optimizers that nothing was checked of
UNMADE_TITLE = "Could not be made"


def short(name: str) -> str:
    """A name as a row shows it: the class of an import path."""
    return name.rpartition(":")[2]


def _numbers(ids: Iterable[str], checks: Mapping[str, Check]) -> dict[str, int]:
    """The column of each check; what was left out leaves a gap, so that a check has one number always."""
    known = list(checks)
    return {id: known.index(id) + 1 for id in ids}


def reasons(report: Report, status: str) -> dict[tuple[str, str], list[str]]:
    """(check, why) -> the names it is said of, check by check."""
    failing: dict[tuple[str, str], list[str]] = {}
    for c in sorted(report.ordered(), key=lambda c: report.checks.index(c.check)):
        if c.status == status:
            failing.setdefault((c.check, c.why), []).append(short(c.name))
    return failing


# --- terminal --------------------------------------------------------------------------------------------------------


def terminal(report: Report, checks: Mapping[str, Check], console: Console) -> None:
    """Print the matrix, its legend and a reason for every cell that is not a pass; wide tables are split. Where nothing
    could be made there is no matrix."""

    def say(text: str, inset: int, style: str = "") -> None:
        """A paragraph that begins `inset` from the left, its further lines 6."""
        wrapped = textwrap.fill(text, console.width, initial_indent=" " * inset, subsequent_indent=" " * 6)
        console.print(wrapped, style=style, markup=False, highlight=False)

    if len(report.unmade) < len(report.names):
        _grid(report, checks, console)
    for status, title in ((FAIL, "Failed"), (NOT, "Does not apply")):
        groups = reasons(report, status)
        if groups:
            console.print(f"\n{title}", style=STYLES[status] if status == FAIL else "bold")
        for (id, why), names in groups.items():
            say(f"{id}: {', '.join(names)}: {why}", 2)
            if status == FAIL:
                say(checks[id].breaking, 6, "dim")
    if report.unmade:
        console.print(f"\n{UNMADE_TITLE}", style=STYLES[UNMADE])
    for name, why in report.unmade.items():
        say(f"{short(name)}: {why}", 2)
    if report.hyper:
        console.print()
        say(
            "Given beside the defaults: " + "; ".join(f"{short(name)} {given}" for name, given in report.hyper.items()),
            0,
        )
    console.print(f"\n{summary(report)}", highlight=False)


def _grid(report: Report, checks: Mapping[str, Check], console: Console) -> None:
    """A sign for every cell, and what the numbers above them stand for."""
    from rich.text import Text

    numbers = _numbers(report.checks, checks)
    first = min(30, max([4, *(len(short(n)) for n in report.names)]))
    room = max(1, (console.width - first - 1) // 3)
    for begin in range(0, len(report.checks), room):
        columns = report.checks[begin : begin + room]
        console.print(Text(" " * first + "".join(f"{numbers[id]:3d}" for id in columns), style="bold"))
        for name in report.names:
            line = Text(short(name)[:first].ljust(first))
            for id in columns:
                status = report.cells[name, id].status
                line.append(f"  {SIGNS[status]}", style=STYLES[status])
            console.print(line, no_wrap=True)
        console.print()
    for id, number in numbers.items():
        console.print(f"{number:3d} {id:14s} {checks[id].title}", markup=False, highlight=False)


def summary(report: Report) -> str:
    """Counts, in a line."""
    count = {s: sum(c.status == s for c in report.ordered()) for s in SIGNS}
    unmade = f"; {len(report.unmade)} of them could not be made" if report.unmade else ""
    what = f"{counted(len(report.names), 'optimizer')}, {counted(len(report.checks), 'check')}"
    return f"{what}: {count[PASS]} passed, {count[FAIL]} failed, {count[NOT]} not applicable{unmade}"


# --- Markdown --------------------------------------------------------------------------------------------------------


def matrix(report: Report, checks: Mapping[str, Check]) -> str:
    """The table of a report in Markdown, with the reason of every cell that is not a pass below it."""
    numbers = _numbers(report.checks, checks)
    lines = ["| | " + " | ".join(map(str, numbers.values())) + " |", "|---|" + ":-:|" * len(numbers)]
    for name in report.names:
        signs = [SIGNS[report.cells[name, id].status] for id in report.checks]
        lines.append(f"| `{short(name)}` | " + " | ".join(signs) + " |")
    for status, title in ((FAIL, "Failed"), (NOT, "Does not apply")):
        groups = reasons(report, status)
        if groups:
            lines += ["", f"**{title}**", ""]
            lines += [
                f"- {numbers[id]} `{id}`: {', '.join(names)}: {_brief(why)}" for (id, why), names in groups.items()
            ]
    if report.unmade:
        lines += ["", f"**{UNMADE_TITLE}**", ""]
        lines += [f"- {short(name)}: {_brief(why)}" for name, why in report.unmade.items()]
    if report.hyper:
        lines += [
            "",
            "Given what they cannot do without, or what makes them act within a dozen steps: "
            + "; ".join(f"{short(n)} {_starless(given)}" for n, given in report.hyper.items())
            + ".",
        ]
    return "\n".join(lines) + "\n"


def _brief(why: str) -> str:
    """What a page has room for; a terminal and the report's data have all of it."""
    return markdown_text(textwrap.shorten(why, 240, placeholder=" …"))


def legend(checks: Mapping[str, Check], ids: Iterable[str]) -> str:
    """What each column asks and what breaking it means, in Markdown."""
    lines = ["| | check | a run relies on | when it is broken |", "|--:|---|---|---|"]
    lines += [
        f"| {i} | `{id}` | {checks[id].title} | {checks[id].breaking} |" for id, i in _numbers(ids, checks).items()
    ]
    return "\n".join(lines) + "\n"


def markdown(report: Report, checks: Mapping[str, Check]) -> str:
    """One report as a document."""
    return f"# Conformance\n\n{_versions(report)}\n\n{legend(checks, report.checks)}\n{matrix(report, checks)}"


INTRODUCTION = """\
# Conformance

What a training run does to an optimizer, tried on each. ✓ holds, ✗ is broken or raises an error, · does not apply, ?
could not be made or stepped, so that nothing is known; the reason of every cell that is not ✓ stands below its table.
An optimizer of any package is taken to have `step(closure)`, parameter groups and state, as `torch.optim.Optimizer`
says; what a class does not promise beyond that is reported under "does not apply", with what was measured. The tables
say what these versions did on the small convex problem of `hf_optim/check/problem.py` with default hyper-parameters;
they say nothing about how well a method trains. The tensors are small: classes that keep large state in 8 or 4 bits
keep this one in 32. What `torch.compile` would do inside a foreign class was switched off, for minutes of it go into
tensors of a few numbers.

What must be equal up to rounding (`accumulation`, `execution`, `compile`, `ddp`, `fsdp`) may differ by as much as
rounding makes of the same optimizer: 10 times what noise of one rounding moves the end by, of its gradients in the
coarsest precision that its step rounds to and of its parameters in their own. Where that noise is more than a tenth of
the way, nothing can be said, and the check does not apply.

One row: `hf-optim check NAME`, for instance `hf-optim check torch.optim:Adam` or `hf-optim check my_file.py:MyOwn`.
All of them: `python scripts/build_conformance.py --all`, which writes this page and `conformance.json` beside it.
"""


def page(reports: Mapping[str, Report], checks: Mapping[str, Check], missing: Iterable[str] = ()) -> str:
    """docs/conformance.md: several reports under one legend; `missing` packages were not installed."""
    some = next(iter(reports.values()))
    parts = [INTRODUCTION, legend(checks, some.checks)]
    parts += [f"## {title}\n\n{_versions(report)}\n\n{matrix(report, checks)}" for title, report in reports.items()]
    if missing:
        parts.append(f"Not installed where this was made, and so not tried: {', '.join(missing)}.\n")
    return "\n".join(parts)


def _versions(report: Report) -> str:
    versions: dict[str, Any] = report.environment
    return f"{summary(report)}. Made with " + ", ".join(f"{k} {v}" for k, v in versions.items()) + "."


def _starless(text: str) -> str:
    return markdown_text(text).replace("*", "\\*")
