"""Rows as files: CSV, Markdown, LaTeX (booktabs) and Parquet. None of them is the truth: that is the records."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_optim.core import safe_text
from hf_optim.core.safe_text import latex as latex_text
from hf_optim.core.safe_text import terminal
from hf_optim.errors import UserError
from hf_optim.experiment.disk import unwritable
from hf_optim.experiment.files import whole, write_atomically
from hf_optim.experiment.leftovers import sweep
from hf_optim.study.report import tables as texts

Row = Mapping[str, Any]


def cell(value: Any) -> str:
    """A value for a reader: six digits, nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)


def show(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print aligned columns; a line is cut where the terminal ends, a file or a pipe gets everything."""
    cells = [[safe_text.line(cell(row.get(c))) for c in columns] for row in rows]
    right = [all(isinstance(row.get(c), int | float | None) for row in rows) for c in columns]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    room = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else None
    for line in [list(map(safe_text.line, columns)), *cells]:
        parts = [t.rjust(w) if r else t.ljust(w) for t, w, r in zip(line, widths, right, strict=True)]
        print(terminal("  ".join(parts).rstrip()[:room]))


def csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Comma-separated values; floats with twelve digits."""
    lines = [[cell(v) if isinstance(v, list | dict) else v for v in (row.get(c) for c in columns)] for row in rows]
    return texts.csv_text(columns, lines)


def markdown(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """A Markdown table."""
    return "\n".join(texts.markdown_table([{c: cell(row.get(c)) for c in columns} for row in rows]))


def latex(rows: Sequence[Row], columns: Sequence[str]) -> str:
    r"""A LaTeX tabular with the rules of booktabs (`\usepackage{booktabs}`); numbers are set to the right."""
    numeric = [
        any(isinstance(row.get(c), int | float) for row in rows)
        and not any(isinstance(row.get(c), str) for row in rows)
        for c in columns
    ]

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_text, cells)) + r" \\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
            r"\toprule",
            line(columns),
            r"\midrule",
            *(line([cell(row.get(c)) for c in columns]) for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def write_parquet(rows: Sequence[Row], path: Path, columns: Sequence[str] | None = None) -> None:
    """Writes rows to `path`, whole or not at all. A column is of whole numbers, numbers, truths or texts."""
    import pyarrow
    from pyarrow import parquet

    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else list(columns)
    arrays = {name: _array([row.get(name) for row in rows]) for name in names}
    with whole(path.parent, path.name) as file:
        parquet.write_table(pyarrow.table(arrays), file)


def _array(values: list[Any]) -> Any:
    import pyarrow

    kinds = {type(v) for v in values if v is not None}
    if kinds <= {bool}:
        return pyarrow.array(values, pyarrow.bool_() if kinds else pyarrow.string())
    if kinds <= {int} and all(abs(v) < 2**63 for v in values if v is not None):
        return pyarrow.array(values, pyarrow.int64())
    if kinds <= {int, float}:
        return pyarrow.array([None if v is None else float(v) for v in values], pyarrow.float64())
    texts = (v if v is None or isinstance(v, str) else json.dumps(v) for v in values)
    return pyarrow.array([None if v is None else terminal(v) for v in texts])


_TEXTS: dict[str, Callable[[Sequence[Row], Sequence[str]], str]] = {".csv": csv, ".md": markdown, ".tex": latex}
FORMATS = (*_TEXTS, ".parquet")


def check_format(path: Path) -> None:
    """Raises UserError unless the file's ending names a format."""
    if path.suffix not in FORMATS:
        raise UserError(f"--export: {path.name!r} must end in {', '.join(FORMATS)}")


def write(rows: Sequence[Row], columns: Sequence[str], path: Path) -> None:
    """Writes `rows` to `path` in the format that its ending names."""
    check_format(path)
    try:
        sweep(path.parent, path.name)
        if path.suffix == ".parquet":
            write_parquet(rows, path, columns)
        else:
            write_atomically(path.parent, path.name, _TEXTS[path.suffix](rows, columns))
    except OSError as error:
        raise unwritable(path.parent, error) from None
