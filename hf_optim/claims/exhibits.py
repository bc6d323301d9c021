"""Rules on the tables (CSV files) that a command or a check leaves: theorems, rates of convergence, surfaces.

Keys (* required): `file`* is below the claim's folder; `where` keeps the rows with these texts, or one of a list.

- inequality: left*, right* (columns or numbers), tolerance (relative, 1e-9), strict. Left is at most right on
  every row. A row within the tolerance of equality decides nothing where the inequality is strict.
- falls_as: column*, exponent*, over, start, units. The slope of log(column) over log(`over`, default T), fitted from
  `start` on for each unit (default: each seed), is at most the exponent.
- lowest: column*, optimizer*. The optimizer's figure is below every other's.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_optim.claims.comparisons import Comparison, decide
from hf_optim.claims.evidence import listed
from hf_optim.claims.ruling import Ruling
from hf_optim.core import numerals
from hf_optim.core.shape import FARTHEST
from hf_optim.core.wording import counted
from hf_optim.experiment.files import read_bytes
from hf_optim.study.folder.store import number

Row = Mapping[str, str]

#: bytes and cells of a table; those of our commands have some thousand
LARGEST = 4 << 20
MOST_CELLS = 1_000_000


def rule(folder: Path, keys: Mapping[str, Any]) -> Ruling:
    """The ruling on a statement from the tables below `folder`."""
    function, _, _ = RULES[keys["rule"]]
    rest = {key: value for key, value in keys.items() if key not in ("rule", "file", "where", "negated")}
    try:
        rows = [row for row in _table(folder, keys["file"]) if _kept(row, keys.get("where", {}))]
    except (FileNotFoundError, NotADirectoryError):
        return Ruling("not tested", f"there is no {keys['file']}")
    except (OSError, ValueError, csv.Error) as error:
        return Ruling("not tested", f"{keys['file']} cannot be read: {error}")
    if not rows:
        return Ruling("not tested", f"{keys['file']} has no such rows")
    ruling = function(rows, **rest)
    if not keys.get("negated"):
        return ruling
    turned: Any = {"holds": "contradicted", "contradicted": "holds"}.get(ruling.verdict, ruling.verdict)
    return Ruling(turned, f"of the opposite: {ruling.words}", ruling.findings)


def _table(folder: Path, name: str) -> list[Row]:
    """The rows of a CSV file below `folder`; "" where a row is short. Raises OSError, ValueError or csv.Error."""
    text = read_bytes(folder, name, LARGEST).decode("utf-8")
    table = csv.DictReader(io.StringIO(text, newline=""), restval="")
    if (text.count("\n") + text.count("\r")) * len(table.fieldnames or ()) > MOST_CELLS:
        raise ValueError(f"more than {MOST_CELLS:,} cells")
    if len(set(table.fieldnames or ())) < len(table.fieldnames or ()):
        raise ValueError("two columns have one name")
    return list(table)


def _kept(row: Row, where: Mapping[str, Any]) -> bool:
    return all(row.get(key, "") in {str(one) for one in listed(text)} for key, text in where.items())


def _figure(row: Row, column: str | float) -> float:
    if not isinstance(column, str):
        return float(column)
    figure = _read(row, column)
    return math.nan if figure is None else figure


def _read(row: Row, column: str) -> float | None:
    """The figure as it is written, which may be a nan; None where there is none."""
    try:
        return numerals.number(row[column])
    except (KeyError, ValueError):
        return None


def _inequality(
    rows: Sequence[Row], left: str | float, right: str | float, tolerance: float = 1e-9, strict: bool = False
) -> Ruling:
    every = [(_figure(row, left), _figure(row, right), row) for row in rows]
    sides = [(a, b, row) for a, b, row in every if not math.isnan(a) and not math.isnan(b)]
    if not sides:
        return Ruling("not tested", f"no figures under {left} and {right}")

    def excess(a: float, b: float) -> float:
        return -b if math.isinf(b) else (a - b) / max(abs(b), 1e-300) if b else a

    a, b, row = max(sides, key=lambda side: excess(side[0], side[1]))
    named = ", ".join(f"{key} {row[key]}" for key in ("case", "problem", "seed", "T") if row.get(key))
    where = f" ({named})" if named else ""
    bare = f" ({len(every) - len(sides)} more without a figure)" if len(every) > len(sides) else ""
    words = f"over {counted(len(sides), 'case')}{bare}; nearest to breaking it: {a:.6g} against {b:.6g}{where}"
    worst = excess(a, b)
    if worst > tolerance:
        return Ruling("contradicted", f"broken: {a:.6g} against {b:.6g}{where}")
    if strict and worst > -tolerance:
        return Ruling("undecided", f"{words}: equal to within rounding")
    return Ruling("holds", words)


def _falls_as(
    rows: Sequence[Row], column: str, exponent: float, over: str = "T", start: float = 64, units: str = "seed"
) -> Ruling:
    import numpy as np

    of: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        of.setdefault(row.get(units, ""), []).append((_figure(row, over), _figure(row, column)))
    slopes: dict[int, float] = {}
    for i, unit in enumerate(sorted(of)):
        points = [(x, y) for x, y in of[unit] if max(start, 0) <= x and not math.isnan(y)]
        alone = not points or math.isclose(min(points)[0], max(points)[0])  # places one bit apart have no slope
        if alone or not all(0 < x < FARTHEST and 0 < y < FARTHEST for x, y in points):
            return Ruling("not tested", f"no fit to {column} of {units} {unit}: a figure is not positive, or one alone")
        x, y = np.log(np.array(points)).T
        slopes[i] = float(np.polyfit(x, y, 1)[0])
    comparison = Comparison(f"exponent of {over}", column, f"{exponent:g}", "exponent",
                     tuple((-slope, -exponent) for slope in slopes.values()), -1)  # fmt: skip
    (finding,) = decide([comparison])
    mean = sum(slopes.values()) / len(slopes)
    words = f"{column} goes as {over}^{mean:.3f} over {len(slopes)} {units}s, asked for {exponent:g} or less"
    if finding.pairs < 2:
        return Ruling("not tested", words, (finding,))
    verdict = "undecided" if finding.truth is None else "holds" if finding.truth else "contradicted"
    return Ruling(verdict, words, (finding,))  # type: ignore[arg-type]


def _lowest(rows: Sequence[Row], column: str, optimizer: str, tolerance: float = 1e-9) -> Ruling:
    labels = [row.get("optimizer", "") for row in rows]
    ((label, count),) = Counter(labels).most_common(1)
    if count > 1:
        return Ruling("not tested", f"{label} has {count} rows: say under `where` which is meant")
    figures = {label: _read(row, column) for label, row in zip(labels, rows, strict=True)}
    if lost := [label for label, figure in figures.items() if figure is None]:
        return Ruling("not tested", f"no figure that can be read under {column} of {lost[0]}")
    others = {label: number(figure) for label, figure in figures.items()}
    ours = others.pop(optimizer, None)
    finished = {label: value for label, value in others.items() if not math.isnan(value)}
    if ours is None or not others:
        return Ruling("not tested", f"{optimizer} or its rivals have no row")
    if math.isnan(ours):
        return Ruling("contradicted", f"{optimizer} has no figure: it did not get through")
    if not finished:
        return Ruling("holds", f"{column} {ours:.4g}; no other got through")
    rival = min(finished, key=lambda label: finished[label])
    words = f"{column} {ours:.4g} against {finished[rival]:.4g} of {rival}, the best of {counted(len(others), 'other')}"
    gap = (finished[rival] - ours) / max(abs(ours), abs(finished[rival]), 1e-300)
    return Ruling("holds" if gap > tolerance else "contradicted" if gap < -tolerance else "undecided", words)


RULES: dict[str, tuple[Callable[..., Ruling], tuple[str, ...], tuple[str, ...]]] = {
    "inequality": (_inequality, ("file", "left", "right"), ("where", "tolerance", "strict")),
    "falls_as": (_falls_as, ("file", "column", "exponent"), ("where", "over", "start", "units")),
    "lowest": (_lowest, ("file", "column", "optimizer"), ("where", "tolerance")),
}
#: of rules without seeds: what their verdict rests on
NOISELESS = {
    "inequality": "each case computed once: no noise, no interval",
    "lowest": "one deterministic run of each: no noise, no interval",
}
