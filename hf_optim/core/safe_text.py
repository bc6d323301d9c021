"""Any text made safe for the place that it is written to: one function for each kind of document.

Labels, titles, errors, paths and metrics may come from a stranger's folder. Whatever they hold, they stand in a
document as text: they open no tag, no link, no formula, no command and no escape sequence.
"""

from __future__ import annotations

import csv as _csv
import html as _html
import io
import json as _json
import os
import re
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

from hf_optim.errors import HIDDEN

_LATEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
          "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}",
          "<": r"\textless{}", ">": r"\textgreater{}", "`": r"\textasciigrave{}",
          '"': r"\textquotedbl{}", "×": r"$\times$"}  # fmt: skip
#: letters of a text in a chart; a label that is longer than the chart leaves no room for it
_LONGEST_PLOT = 120
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
#: what makes more of a text in Markdown: code, tables, formulas, tags, entities, links and pictures
_MARKDOWN = (
    (re.compile(r"([`|$\\])"), r"\\\1"),
    (re.compile(r"&(?=#|[A-Za-z]+;)"), "&amp;"),
    (re.compile(r"<(?=[A-Za-z/!?])"), "&lt;"),
    (re.compile(r"\](?=[\[(:])"), r"\\]"),
    (re.compile(r"(?<=[A-Za-z]):(?=//)"), r"\\:"),  # an address alone is a link on GitHub
    (re.compile(r"\b(www)\.", re.IGNORECASE), r"\1\\."),
)


def terminal(text: object) -> str:
    """For a terminal: lines and tabs stay, everything that would move the cursor or hide text shows as "�"."""
    return HIDDEN.sub("�", str(text).replace("\r\n", "\n"))


def line(text: object) -> str:
    """In one line."""
    return " ".join(terminal(text).split())


def html(text: object) -> str:
    """For HTML and SVG: between tags, or in an attribute in quotes."""
    return _html.escape(terminal(text))


def of_html(text: str) -> str:
    """What HTML says: of text, `html`'s inverse."""
    return _html.unescape(text)


def json_in_html(value: Any) -> str:
    """Plain data for a script element of type application/json: no text of it can end the element."""
    return _json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def markdown(text: object) -> str:
    """For a line, a heading or a table's cell of Markdown. Stars and underscores keep their meaning."""
    escaped = line(text)
    for pattern, put in _MARKDOWN:
        escaped = pattern.sub(put, escaped)
    # a list, a heading, a rule, and what needs no space behind it: a quotation, a fence, which would hold all below
    return re.sub(r"^(\d*)([-+*_#=~>]+|[.)])(?=\s|$)|^(?=>|~~~)", r"\1\\\2", escaped)


def latex(text: object) -> str:
    """For a cell of a LaTeX table."""
    escaped = "".join(_LATEX.get(letter, letter) for letter in line(text))
    # after the end of a line, these are its arguments
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def plot(text: object) -> str:
    """For matplotlib, in one line of at most `_LONGEST_PLOT` letters: a dollar begins no formula, and an underscore at
    the beginning takes nothing out of a legend. (What matplotlib's own `text.usetex` would make of it is `figures`'s.)
    """
    said = line(text)
    said = said if len(said) <= _LONGEST_PLOT else f"{said[: _LONGEST_PLOT - 21]}…{said[-20:]}"
    return f"{' ' * said.startswith('_')}{said}".replace("$", r"\$")


def csv(value: Any) -> Any:
    """For a cell of a CSV file: a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    value = terminal(value)
    return f"'{value}" if value.lstrip().startswith(_FORMULA) and not _is_number(value) else value


def csv_lines(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV text."""
    out = io.StringIO()
    _csv.writer(out, lineterminator="\n").writerows([csv(cell) for cell in row] for row in rows)
    return out.getvalue()


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def console(**options: Any) -> Any:
    """A rich Console for texts of any origin: what it prints is safe for a terminal, its own colours stay. No text, a
    table's title among them, is rich's markup: a label of "[/]" or "[link=...]" stands as it is.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Safe(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(terminal(segment.text), segment.style)

    size = dict(zip(("width", "height"), shutil.get_terminal_size(), strict=True))
    for variable, side in (("COLUMNS", "width"), ("LINES", "height")):
        # rich takes 0 for a size, and "²" for a number
        if (given := os.environ.get(variable)) is not None and not re.fullmatch("[1-9][0-9]{0,9}", given):
            options.setdefault(side, size[side])
    return Safe(markup=False, emoji=False, **options)


def say(console: Any, text: str) -> None:
    """Prints a line as it is; on a terminal it is wrapped at its width, what goes on set in by two. A path with a line
    break in it makes no second one.
    """
    text = " ".join(text.splitlines())
    if console.is_terminal:
        text = _wrapped(text, console.width)
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _wrapped(text: str, width: int) -> str:
    inset = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.fill(text, width, subsequent_indent=inset, break_long_words=False, break_on_hyphens=False)


def is_plain(text: str) -> bool:
    """Whether a text can be a label: something is there, nothing is hidden, and it is one line."""
    return bool(text.strip()) and text == line(text) and not any(unicodedata.category(c)[0] == "C" for c in text)
