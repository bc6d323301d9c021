"""A claim file: one table or figure of a paper, what it claims, and how it is tested.

name: agr-table6               # * the file's name
paper: AGR                     # * SMARAN, AGR, TLR or AMVT
where: Table 6                 # * where it stands in the paper
title: ALBERT, SOP accuracy    # *
published: [Table 6]           # the `table`s of published.json whose rows belong to it (none: a figure's curves)
notes: [...]                   # contradictions of the paper, and what its text leaves open
claims:                        # *
  - text: AGR raises the accuracy at every weight decay     # *
    rule: better               # * see judges.RULES; the other keys are the rule's own
    optimizer: AdamW(AGR)
    baseline: AdamW
cells:                         # which figure of the study stands beside a published one (first match counts)
  - match: {optimizer: AdamW, setting: weight decay 0}      # texts of the published row
    task: wd 0
    optimizer: AdamW
    metric: test_sop_accuracy
    scale: 100                 # published unit = scale x ours
small:                         # * and / or `paper`: a study (see hf_optim.study.plan.plan), what differs from the paper
  differs: [Wikipedia paragraphs for WikiText-2, ...]
  study: {...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError

if TYPE_CHECKING:
    from hf_optim.study.plan.source import Source, Where

KEYS = ("name", "paper", "where", "title", "published", "notes", "claims", "cells", "small", "paper_size")
SIZES = {"small": "small", "paper": "paper_size"}
PAPERS = ("SMARAN", "AGR", "TLR", "AMVT")
MATCHED = ("dataset", "model", "metric", "optimizer", "setting")


@dataclass(frozen=True)
class Cell:
    """Where the study's counterpart of a published figure is found; `at` is an epoch, None the end of the run."""

    match: Mapping[str, str]
    task: str
    optimizer: str
    metric: str
    scale: float = 1.0
    at: float | None = None


@dataclass(frozen=True)
class Setting:
    """The study of one size, and what differs from the paper's setting."""

    study: Source | None
    differs: tuple[str, ...]
    cells: tuple[Cell, ...]
    metrics: Mapping[str, str]
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim file, checked."""

    name: str
    paper: str
    where: str
    title: str
    notes: tuple[str, ...]
    statements: tuple[Mapping[str, Any], ...]
    published: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Setting]


def folder() -> Path:
    """Where the claim files are: in the installed package, or in the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs" / "claims"
    return installed if installed.is_dir() else package.parent / "configs" / "claims"


def names() -> dict[str, Path]:
    """The claim files that come with the package, by name."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def load(name: str) -> Claim:
    """The claim of a name that comes with the package, or of a file of yours.

    Raises:
        UserError: there is none, or the file is wrong: the file and the line are named.
    """
    from difflib import get_close_matches

    from hf_optim.study.plan.source import read

    path = Path(name)
    known = names()
    if not path.is_file():
        if name not in known:
            near = get_close_matches(name, known, 3) or list(known)
            raise UserError(f"no claim {name!r}: choose from {', '.join(near)} (`hf-optim reproduce --list` shows all)")
        path = known[name]
    return parse(read(path, path.name), published())


def published() -> list[Mapping[str, Any]]:
    """Every figure that the four papers print: paper, table, dataset, model, metric, optimizer, setting, value, std."""
    file = folder() / "published.json"
    return list(json.loads(file.read_text(encoding="utf-8"))["rows"])


def parse(source: Source, rows: list[Mapping[str, Any]]) -> Claim:
    """The claim of a YAML document; `rows` are the published figures."""
    from hf_optim.claims.judges import check

    top = source.check_keys((), source.value, KEYS, ("name", "paper", "where", "title", "claims"))
    if top["paper"] not in PAPERS:
        raise source.error(("paper",), f"paper must be one of {', '.join(PAPERS)}, got {top['paper']!r}")
    tables = source.check_type(("published",), top.get("published", []), list, "a list of the paper's tables")
    mine = [row for row in rows if row["paper"] == top["paper"] and row["table"] in tables]
    for i, table in enumerate(tables):
        if not any(row["table"] == table for row in mine):
            raise source.error(("published", i), f"{top['paper']} has no printed figures under {table!r}")
    statements = source.check_type(("claims",), top["claims"], list, "a list of claims")
    if not statements:
        raise source.error(("claims",), "claims is empty: state at least one")
    for i, statement in enumerate(statements):
        source.check_type(("claims", i), statement, dict, "a mapping with text and rule")
        check(source, ("claims", i), statement)
    settings = {
        size: _setting(source, key, top[key], top.get("cells", []), mine) for size, key in SIZES.items() if key in top
    }
    if not settings:
        raise source.error((), "a claim needs a setting: small, paper_size or both")
    return Claim(
        name=top["name"],
        paper=top["paper"],
        where=str(top["where"]),
        title=top["title"],
        notes=tuple(top.get("notes", [])),
        statements=tuple(statements),
        published=tuple(mine),
        settings=settings,
    )


def _setting(source: Source, key: str, value: Any, shared: Any, rows: list[Mapping[str, Any]]) -> Setting:
    from hf_optim.study.plan.source import Source as Document

    source.check_keys((key,), value, ("study", "differs", "cells", "metrics", "command"), ("differs",))
    if ("study" in value) == ("command" in value):
        raise source.error((key,), "give either a study or a command")
    differs = source.check_type((key, "differs"), value["differs"], list, "a list of sentences")
    where: Where = (key, "cells") if "cells" in value else ("cells",)
    cells = _cells(source, where, value.get("cells", shared), rows)
    if "command" in value:
        words = source.check_type((key, "command"), value["command"], list, "a list of words")
        return Setting(None, tuple(differs), cells, {}, tuple(str(word) for word in words))
    start = (key, "study")
    lines = {place[2:]: line for place, line in source.lines.items() if place[:2] == start}
    renamed = source.check_type((key, "metrics"), value.get("metrics", {}), dict, "a mapping of metrics")
    return Setting(Document(source.file, value["study"], _text(value["study"]), lines), tuple(differs), cells, renamed)


def _text(study: Any) -> str:
    import yaml

    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True, width=120)


def _cells(source: Source, where: Where, value: Any, rows: list[Mapping[str, Any]]) -> tuple[Cell, ...]:
    source.check_type(where, value, list, "a list of cells")
    cells = []
    for i, entry in enumerate(value):
        here = (*where, i)
        source.check_keys(
            here,
            entry,
            ("match", "task", "optimizer", "metric", "scale", "at"),
            ("match", "task", "optimizer", "metric"),
        )
        source.check_keys((*here, "match"), entry["match"], MATCHED)
        cell = Cell(**entry)
        if not any(matches(cell, row) for row in rows):
            raise source.error((*here, "match"), "no published row has these texts")
        cells.append(cell)
    return tuple(cells)


def matches(cell: Cell, row: Mapping[str, Any]) -> bool:
    """Whether a published row is the one that `cell` means."""
    return all(row.get(key) == text for key, text in cell.match.items())
