"""The command `hf-optim report`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hf_optim.commands.parser import Parser

ABOUT = "make a study's tables and report again from its records"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the tables and the report; gives 0."""
    parser = Parser(
        "hf-optim report",
        "Make a study's tables and report.html again, from its records alone.",
        ("hf-optim report studies/quickstart",),
    )
    parser.add_argument("folder", metavar="DIR", help="the study's folder")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    from hf_optim.study.conduct import remake

    return remake(options.folder)
