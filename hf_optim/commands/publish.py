"""The command `hf-optim publish`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hf_optim.commands.parser import Parser
from hf_optim.core.wording import counted

ABOUT = "write a study as a static folder to share, with nothing private in it"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder; gives 0."""
    parser = Parser(
        "hf-optim publish",
        "Write report, tables, records and a README to a new folder, which a Hub data set, a static Space or any\n"
        "web server shows. Paths, names of users and machines, addresses and tokens are taken out;\n"
        "look through it all the same.",
        ("hf-optim publish studies/quickstart public",),
    )
    parser.add_argument("study", metavar="STUDY", help="the study's folder")
    parser.add_argument("into", metavar="DEST", help="a folder that is new or empty")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    from hf_optim.core.safe_text import line
    from hf_optim.experiment.files import write_atomically
    from hf_optim.study.conduct import finish
    from hf_optim.study.folder.publish import Published, index, publish, readme

    def complete(copied: Path, published: Published) -> None:
        finish(copied, quiet=True)
        write_atomically(copied, "index.html", index(published.plan.title))
        write_atomically(copied, "README.md", readme(published))

    into = Path(options.into)
    published = publish(Path(options.study), into, complete)
    for told in published.told:
        print(line(told))
    print(line(f"{counted(published.records, 'run')} in {into}: look through it, then send it (docs/running.md)"))
    return 0
