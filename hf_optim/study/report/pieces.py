"""The small pieces of the report that every section is made of: tables, figures, swatches, names of files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from hf_optim.core.safe_text import html as escape
from hf_optim.study.report.columns import EXPLAINED, slug


def html_table(
    head: Sequence[str], rows: Sequence[str], caption: str, *, keys: Sequence[str] = (), kind: str = ""
) -> str:
    """A table that scrolls sideways on its own, can be sorted by every column and copied.

    `head` holds the texts of the columns, `rows` whole <tr>, `keys` what explains each column (default: its name).
    """
    cells = "".join(_head(text, key) for text, key in zip(head, keys or head, strict=True))
    table = (
        f'<table class="{kind}"><caption class="vh">{escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
    return scroll(table, caption) + COPY


def scroll(content: str, name: str) -> str:
    """What may be wider than the page, and scrolls sideways on its own: by keyboard, too."""
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name)}">{content}</div>'


def _head(text: str, key: str) -> str:
    told = f' aria-describedby="{slug(key)}"' if key in EXPLAINED else ""
    return f'<th scope="col" aria-sort="none"><button type="button"{told}>{escape(text)}</button></th>'


COPY = (
    '<p class="copy">copy as '
    + "".join(
        f'<button type="button" data-as="{name.lower()}">{name}</button>' for name in ("CSV", "LaTeX", "Markdown")
    )
    + "</p>"
)


def text_row(label: str, cells: Sequence[str]) -> str:
    """A row of plain texts, named by its first cell."""
    return f'<tr><th scope="row">{escape(label)}</th>' + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>"


def figure(title: str, note: str, drawing: str, name: str, kind: str = "") -> str:
    """A chart with its caption, which can be saved; nothing where there is no drawing."""
    if not drawing:
        return ""
    small = f" <small>{escape(note)}</small>" if note else ""
    return (
        f'<figure class="{kind}"><figcaption><span>{escape(title)}{small}</span>{_save(name)}</figcaption>'
        f"{drawing}</figure>"
    )


def _save(name: str) -> str:
    buttons = "".join(f'<button type="button" data-kind="{kind.lower()}">{kind}</button>' for kind in ("SVG", "PNG"))
    return f'<span class="save" data-name="{escape(name)}">save as {buttons}</span>'


def file_name(*parts: str) -> str:
    """A name for a file or an anchor: lower case, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", " ".join(parts)).strip("-").lower()


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """A name for each label, as `file_name` gives it: labels that come out alike get a number behind it."""
    given: dict[str, str] = {}
    taken, alike = set[str](), Counter[str]()
    for label in labels:
        name = choice = file_name(label)
        while choice in taken:  # from where the last one alike stopped: thousands of them are a moment
            alike[name] += 1
            choice = f"{name}-{alike[name] + 1}"
        taken.add(choice)
        given[label] = choice
    return given


def swatch(style: str) -> str:
    """The line of an optimizer, as its curves are drawn."""
    return f'<svg class="swatch {style}" viewBox="0 0 22 8" aria-hidden="true"><path class="line" d="M0 4H22"/></svg>'


def coded(text: str) -> str:
    """A text whose `backticks` are code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraphs(text: str) -> str:
    """A text whose paragraphs are parted by empty lines."""
    return "".join(f"<p>{coded(part)}</p>" for part in text.split("\n\n"))


def name_cell(label: str, style: str) -> str:
    """The first cell of an optimizer's row."""
    return f'<th scope="row">{swatch(style)}{escape(label)}</th>'
