"""Which figure of a study stands beside a published one, or why none does.

- match: {model: VGG11}        # texts of the published rows; one cell may match many (the first match counts)
  task: CIFAR-100              # a task's label, or {published model: label}, or a list: the mean over these tasks
  optimizer: AdamW             # an optimizer's label, or {published optimizer: label}; default: the published one
  metric: test_accuracy
  scale: 100                   # published unit = scale x ours
  at: epoch                    # an epoch, or "epoch": the one that the row's setting names; default: the end
  until: 0.9                   # the epoch at which the logged metric is first this good, in place of its value
  against: Adam                # with form: difference (ours minus theirs) or reduction (1 - ours / theirs)
  form: reduction
- match: {setting: epoch 10}
  why: not measured, because ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hf_optim.core.shape import CLOSEST, Each
from hf_optim.study.plan.source import Source, Where

MATCHED = ("dataset", "model", "metric", "optimizer", "setting")
KEYS = ("match", "task", "optimizer", "metric", "scale", "at", "until", "against", "form", "why")
FORMS = ("value", "difference", "reduction")
EPOCH = re.compile(r"epoch ([0-9]+)$")
BEST = re.compile(r"best (0?\.[0-9]*[1-9][0-9]*|1)")
#: what the keys of a cell hold
SHAPE = {
    "match": Each((str, [str])), "task?": (str, [str], Each((str, [str]))), "optimizer?": (str, Each(str)),
    "metric?": str, "scale?": float, "at?": ("epoch", float), "until?": (str, float), "against?": str, "form?": FORMS,
    "why?": str,
}  # fmt: skip


@dataclass(frozen=True)
class PublishedCell:
    """A cell, for one published row: everything looked up. `why` alone where nothing stands beside it."""

    tasks: tuple[str, ...] = ()
    optimizer: str = ""
    metric: str = ""
    scale: float = 1.0
    at: float | None = None
    until: float | None = None
    against: str = ""
    form: str = "value"
    why: str = ""


def read(source: Source, where: Where, value: Any, rows: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cells, checked: every one matches a published row."""
    source.check_type(where, value, list, "a list of cells")
    for i, entry in enumerate(value):
        here = (*where, i)
        source.check_shape(here, entry, dict)
        source.check_keys(here, entry, KEYS, ("match",) if "why" in entry else ("match", "task", "metric"))
        source.check_shape(here, entry, SHAPE)
        source.check_keys((*here, "match"), entry["match"], MATCHED)
        if isinstance(entry.get("until"), str) and not _is_share(entry["until"]):
            raise source.error((*here, "until"), f"until must be a number or as 'best 0.9', got {entry['until']!r}")
        if ("against" in entry) != (entry.get("form", "value") != "value"):
            raise source.error(here, "against and form go together")
        if not any(_matches(entry, row) for row in rows):
            raise source.error((*here, "match"), "no published row has these texts")
    return list(value)


def _is_share(until: str) -> bool:
    """Of the best: "best 0.9"; by no text of zeros without end is anything divided."""
    return bool(BEST.fullmatch(until)) and float(until.removeprefix("best ")) > CLOSEST


def find(cells: list[Mapping[str, Any]], row: Mapping[str, Any]) -> PublishedCell | None:
    """What stands beside a published row; None where no cell matches it."""
    entry = next((entry for entry in cells if _matches(entry, row)), None)
    if entry is None:
        return None
    if "why" in entry:
        return PublishedCell(why=str(entry["why"]))
    task = entry["task"]
    task = task.get(row.get("model"), task.get(row.get("dataset"))) if isinstance(task, Mapping) else task
    optimizer = entry.get("optimizer", row["optimizer"])
    if isinstance(optimizer, Mapping):
        optimizer = optimizer.get(row["optimizer"], optimizer.get(row.get("setting"), row["optimizer"]))
    at = entry.get("at")
    if at == "epoch":
        named = EPOCH.search(str(row.get("setting", "")))
        at = float(named[1]) if named else None
    return PublishedCell(
        tasks=tuple([task] if isinstance(task, str) else task or ()),
        optimizer=str(optimizer),
        metric=entry["metric"],
        scale=float(entry.get("scale", 1.0)),
        at=at,
        until=entry.get("until"),
        against=entry.get("against", ""),
        form=entry.get("form", "value"),
    )


def _matches(entry: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    return all(
        row.get(key) in text if isinstance(text, list) else row.get(key) == text for key, text in entry["match"].items()
    )
