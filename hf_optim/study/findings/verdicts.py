"""A comparison in words: what was found, how sure it is, what would decide it, and how far it reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hf_optim.study.findings.table import Row, TaskTable, p_text, signed, tests_made
from hf_optim.study.statistics.paired import ALPHA, MOST_SEEDS, Comparison


def sentences(tables: Sequence[TaskTable]) -> list[str]:
    """A sentence for every optimizer of every task that is not the baseline, best first, as plain text."""
    tests = tests_made(tables)
    return [sentence(table, row, tests) for table in tables for row in table.rows if row.optimizer != table.baseline]


def sentence(table: TaskTable, row: Row, tests: int) -> str:
    """One optimizer against the baseline; `tests` is how many comparisons the correction counted."""
    c = row.comparison
    size = f" at size {table.size}" if table.size else ""
    begin = f"{row.optimizer} against {table.baseline} on {table.task}{size}"
    if row.failed:
        return f"{begin}: no verdict, {row.failed} of {row.planned} runs failed."
    if c is None or c.pairs == 0:
        return f"{begin}: no verdict, there is no seed that both have finished."
    if c.pairs == 1:
        return f"{begin}: no verdict, one seed shows no spread; difference {signed(c.difference.mean, table.decimals)}."
    parts = [_verdict(c), _numbers(table, c, tests), _odds(table, row, c)]
    return f"{begin}: {'; '.join(part for part in parts if part)}."


def scope(tables: Sequence[TaskTable]) -> str:
    """How far the verdicts reach."""
    sizes = sorted({table.size for table in tables if table.size})
    if not sizes:
        return "The verdicts speak of the tasks that were run, and of no others."
    listed = " and ".join(sizes)
    more = "" if "paper" in sizes else " They say nothing about size paper, nor about other models and data."
    return f"The verdicts speak of these tasks at size {listed} only.{more}"


def _verdict(c: Comparison) -> str:
    if c.verdict == "equivalent":
        small = " (a difference was found, but one that was said not to matter)" if c.adjusted < ALPHA else ""
        return f"equivalent within the stated margin of {c.margin:g}{small}"
    if c.verdict != "undecided":
        return c.verdict
    if math.isnan(c.p):
        return "undecided: every seed gave the same difference, so nothing tells how sure it is"
    needed = f"{c.seeds_needed} seeds" if c.seeds_needed else f"no number of seeds up to {MOST_SEEDS}"
    return f"undecided; {needed} would decide if the true difference is the one observed"


def _numbers(table: TaskTable, c: Comparison, tests: int) -> str:
    d, digits = c.difference, table.decimals
    metric = table.metric.replace("_", " ")
    text = f"{metric} {signed(d.mean, digits)} [{signed(d.low, digits)}, {signed(d.high, digits)}]"
    corrected = f" after Holm over {tests}" if tests > 1 else ""
    if not math.isnan(c.adjusted):
        text += f", p = {p_text(c.adjusted)}{corrected}".replace("= <", "< ")
    if not math.isnan(c.adjusted_equivalent):
        text += f", p of equivalence = {p_text(c.adjusted_equivalent)}".replace("= <", "< ")
    return text


def _odds(table: TaskTable, row: Row, c: Comparison) -> str:
    text = f"P({row.optimizer} beats {table.baseline}) = {c.better:.2f} [{c.better_low:.2f}, {c.better_high:.2f}]"
    text += f" over n = {c.pairs} pairs"
    return text if math.isnan(c.power) else f"{text}, achieved power {c.power:.2f}"
