"""The result table as text: what stands above its columns, and in its cells."""

from __future__ import annotations

import math

from hf_optim.core.numerals import decimal, size_text
from hf_optim.study.findings.table import Row, TaskTable, arrow
from hf_optim.study.statistics.paired import ALPHA, Summary, summarise
from hf_optim.study.statistics.places import place_text


def result_cells(table: TaskTable, row: Row) -> dict[str, str]:
    """A row of the result table, by the keys of its columns."""
    d, c = table.decimals, row.comparison
    difference = c.difference if c and c.pairs else summarise([])
    shown = spread(row.mean, d) if row.mean.n else row.state
    # With one unit every place is possible, which is no news.
    several = any(r.place for r in table.rows)
    place = {"place": place_text(row.place) + (" ●" if row.tied else "")} if several else {}
    return {
        "optimizer": row.optimizer,
        "n": str(len(row.values)) if len(row.values) == row.planned else f"{len(row.values)}/{row.planned}",
        "metric": f"{shown}; {row.state}" if row.failed and row.mean.n else shown,
        **place,
        "95 % CI": interval(row.mean, d),
        "difference": "baseline" if row.baseline else signed(difference.mean, d),
        "interval of the difference": interval(difference, d, sign=True),
        "p": p_text(c.adjusted) if c else "–",
        "verdict": row.verdict or "–",
    }


def head(table: TaskTable, key: str) -> str:
    """What stands above a column of the result table: its key, where no other is known."""
    heads = {
        "metric": table.head,
        "difference": f"− {table.baseline}",
        "interval of the difference": "its interval",
    }
    return heads.get(key, key)


def headed(name: str, declared: tuple[bool, str] | None) -> str:
    """A figure's name above its column, with the arrow where its task declares which way is better."""
    return name if declared is None else f"{name} {arrow(declared[0])}"


def signed(value: float, decimals: int) -> str:
    """+0.0120, -0.0031, or a dash for NaN."""
    # Adding zero turns a rounded -0.0 into 0.0.
    return "–" if math.isnan(value) else decimal(round(value, decimals) + 0.0, decimals, "+")


def plain_number(value: float, decimals: int) -> str:
    """0.9120, or a dash for NaN."""
    return "–" if math.isnan(value) else decimal(value, decimals)


def spread(summary: Summary, decimals: int) -> str:
    """0.9120 ± 0.0031; without a spread the mean alone; a dash without values."""
    if summary.n == 0:
        return "–"
    return plain_number(summary.mean, decimals) + (f" ± {decimal(summary.sd, decimals)}" if summary.n > 1 else "")


def interval(summary: Summary, decimals: int, sign: bool = False) -> str:
    """[0.9043, 0.9197]; a dash without one."""
    if sign:
        decimals = telling(decimals, summary)
    write = signed if sign else plain_number
    return "–" if math.isnan(summary.low) else f"[{write(summary.low, decimals)}, {write(summary.high, decimals)}]"


def telling(decimals: int, difference: Summary) -> int:
    """Decimals by which no end of a difference's interval is rounded to zero: the verdict turns on its side."""
    ends = [abs(end) for end in (difference.low, difference.high) if end and not math.isnan(end)]
    return next((d for d in range(decimals, decimals + 5) if all(round(end, d) for end in ends)), decimals)


def p_text(p: float) -> str:
    """0.031, <0.001, or a dash; 0.0498 where 0.050 would hide on which side of the verdict it lies."""
    if math.isnan(p) or p < 0.001:
        return "–" if math.isnan(p) else "<0.001"
    return next((text for d in range(3, 9) if float(text := f"{p:.{d}f}") != ALPHA), f"{p:.3f}")


def cost_text(key: str, value: float) -> str:
    """A cost with its unit's usual precision."""
    if key.endswith("bytes"):
        return size_text(value)
    if key == "flops":
        return f"{value:.3g}" if value >= 0 else "–"
    return plain_number(value, 1 if key == "train_seconds" else 3 if value < 10 else 1)
