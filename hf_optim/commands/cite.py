"""The command `hf-optim cite`, from the registry alone: torch is not imported for what comes along."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Sequence

from hf_optim import __version__, registry
from hf_optim.commands.parser import Parser
from hf_optim.core import safe_text
from hf_optim.core.safe_text import terminal
from hf_optim.errors import UserError

ABOUT = "print the paper behind an optimizer, as BibTeX"
#: how this package is cited; CITATION.cff says the same
OWN = f"""@software{{hf_optim,
  title = {{hf_optim: papers' optimizers for Hugging Face runs, and an honest testbed}},
  author = {{{{The authors of hf_optim}}}},
  year = {{2026}},
  version = {{{__version__}}},
}}
"""
CITED = 'cited = ("Last, First and ...", "title", "where it appeared", 2026)'
SAYS_NOTHING = {"a", "an", "the", "on", "of", "in", "for", "to", "and"}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the entries; gives 0."""
    parser = Parser(
        "hf-optim cite",
        "Print the paper behind each optimizer as BibTeX, or this package where none is named.",
        ("hf-optim cite smaran adamw", "hf-optim cite > hf_optim.bib"),
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="optimizers, as `hf-optim list` shows them, or file.py:Class"
    )
    names = parser.parse_args(sys.argv[1:] if argv is None else argv).names
    print(terminal("\n".join(dict.fromkeys(map(entry, names))) if names else OWN), end="")
    for name in (name for name in names if ":" in name):
        missing = [field for field in ("author", "year") if f"  {field} = " not in entry(name)]
        if missing:
            print(
                terminal(f"note: {name} declares no {' and no '.join(missing)}: give its class {CITED}"),
                file=sys.stderr,
            )
    return 0


def entry(name: str) -> str:
    """The BibTeX of the paper behind an optimizer; what is not known of it is left out.

    Raises:
        UserError: an unknown name, or an optimizer of the user's own that names no paper.
    """
    known = registry.about(name)
    authors, title, where, year = known.cited
    said = re.fullmatch(r"(.+) \((\D*?) ?(\d{4})\)", known.paper)
    if not title and said:  # "Title (Author and Author 1964)"
        title, authors, year = said[1], authors or said[2], year or int(said[3])
    title = title or known.paper
    if not title:
        raise UserError(f'{name} names no paper: give its class paper = "Title (Authors 2026)", or {CITED}')
    lines = [f"  title = {{{_safe(title)}}},"]
    lines += [f"  author = {{{_safe(authors)}}},"] if authors else []
    kind, field = _kind(where)
    lines += [f"  {field} = {{{_safe(where)}}},"] if where else []
    lines += [f"  year = {{{_safe(str(year))}}},"] if year else []
    return f"@{kind}{{{_key(authors, title, year)},\n" + "\n".join(lines) + "\n}\n"


def _kind(where: str) -> tuple[str, str]:
    if re.search("Journal|Transactions|Annals|USSR|Doklady|arXiv", where):
        return "article", "journal"
    if re.search("Conference|Advances", where):
        return "inproceedings", "booktitle"
    return "misc", "howpublished"


def _key(authors: str, title: str, year: int) -> str:
    """The first author, the year and the title's first word that says something: kingma2015adam."""
    words = [_ascii(word) for word in re.split(r"[\s:-]", title)]
    telling = next((word for word in words if word and word not in SAYS_NOTHING), "")
    return f"{_ascii(authors.partition(',')[0])}{re.sub('[^0-9]', '', str(year or ''))}{telling}" or "paper"


def _ascii(text: str) -> str:
    """What BibTeX takes in a key: an accent falls off its letter."""
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", text.lower()))


def _safe(value: str) -> str:
    """In LaTeX; BibTeX counts a brace that LaTeX has escaped, and would end the field at one without its pair."""
    return safe_text.latex(value).replace(r"\{", r"\textbraceleft{}").replace(r"\}", r"\textbraceright{}")
