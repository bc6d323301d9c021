"""A claim file: one table, figure or theorem of a paper, what the paper says of it, and how that is tested.

name: agr-table6               # * the file's name
paper: AGR                     # * SMARAN, AGR, TLR or AMVT
where: Table 6                 # * where it stands in the paper
title: ALBERT, SOP accuracy    # *
published: [Table 6]           # the `table`s of published.json whose rows belong to it (none: a figure's curves)
printed: {seeds: 4}            # what the paper prints of its study
notes: [...]                   # contradictions of the paper, and what its text leaves open
shared_notes: [code]           # those of several files of the paper, by their names in notes.json
readings:                      # where the published code is another algorithm: its rows, and whose the figures are
  as run: {AdamW(AGR): AdamW(AGR) as run}
published_is: as run
sources: {...}                 # where the settings of the optimizers at size paper stand, see `sources`
claims:                        # *
  - says: the AGR method can improve the SOP accuracy across different weight decays     # * the paper's own words
    section: Section 5.4       # *
    reading: at each of the five                # what is judged, where the words leave it open
    rule: better               # * see `rules` and `exhibits`; the other keys are the rule's own
    optimizer: AdamW(AGR)
    baseline: AdamW
    effect: 0.005              # the published difference, where one is printed, in the metric's own unit
    given: {rule: ..., ...}    # a rule of what the sentence speaks of; where that is not so, it is not judged
  - {says: ..., section: ..., not_testable: why}
cells: [...]                   # which figure of the study stands beside a published one, see `cells`
small:                         # and / or `paper_size`: a study, or commands, or checks
  study: {...}                 # see hf_optim.study.plan.plan
  commands: {beale: [landscape, beale]}         # what it leaves is in the folder `beale`
  checks: [agr-theorem41]      # see `theorems`
  stands_for: {ResNet on emoji: [VGG11, ...]}   # the paper-size tasks of a small one (default: the same label, or all)
  metrics: {test_is: test_is_small_cnn}         # metrics of the claims under their name in the records
  noise: {test_accuracy: 0.02} # the deviation of a paired difference, measured before: how many seeds an effect needs
  cells: [...]                 # in place of the shared ones
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.claims import cells as published_cells
from hf_optim.claims import sources as where_it_stands
from hf_optim.claims import statement as statements
from hf_optim.claims.statement import AS_PRINTED, AS_RUN, Statement
from hf_optim.core import configs, yaml12
from hf_optim.core.shape import Each
from hf_optim.core.validate import closest
from hf_optim.errors import UserError

if TYPE_CHECKING:
    from hf_optim.study.plan.source import Source, Where

KEYS = (
    "name", "paper", "where", "title", "published", "printed", "notes", "shared_notes", "readings", "published_is",
    "sources", "claims", "cells", "small", "paper_size",
)  # fmt: skip
SETTING_KEYS = ("study", "commands", "checks", "stands_for", "metrics", "noise", "cells")
SIZES = {"small": "small", "paper": "paper_size"}
COMMANDS = ("landscape", "convergence")
PAPERS = ("SMARAN", "AGR", "TLR", "AMVT")
#: what the keys of a file and of a setting hold, as far as nobody else looks
SHAPE = {
    "name": str, "where": (str, float), "title": str, "notes?": [str], "shared_notes?": [str], "published?": [str],
    "printed?": dict, "readings?": Each(Each(str)), "published_is?": str,
}  # fmt: skip
SETTING_SHAPE = {
    "commands?": Each([(str, float)]), "checks?": [str], "metrics?": Each(str), "stands_for?": Each([str]),
    "noise?": Each(float),
}  # fmt: skip
#: each statement is judged under every reading; ours have a dozen, and one
MOST = {"claims": 500, "readings": 20}
#: a word that is a folder's name, here and below the study's
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Setting:
    """What is done at one size: a study, commands or checks."""

    study: Source | None = None
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    cells: tuple[Mapping[str, Any], ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    stands_for: Mapping[str, list[str]] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Any]:
        """What makes the tables of one without a study, as plain data."""
        return {"commands": {place: list(words) for place, words in self.commands.items()}, "checks": [*self.checks]}


@dataclass(frozen=True)
class Claim:
    """A claim file, checked. `notes` are its own and then the `shared` ones; `file` is how the user named it."""

    name: str
    paper: str
    where: str
    title: str
    notes: tuple[str, ...]
    statements: tuple[Statement, ...]
    published: tuple[Mapping[str, Any], ...]
    settings: Mapping[str, Setting]
    printed: Mapping[str, Any] = field(default_factory=dict)
    readings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    published_is: str = ""
    sources: where_it_stands.Sources = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    file: str = ""

    def judged(self) -> tuple[Statement, ...]:
        """The statements, each once for every reading of the algorithm that it concerns."""
        judged: list[Statement] = []
        for statement in self.statements:
            concerned = [(name, swap) for name, swap in self.readings.items() if statement.labels() & set(swap)]
            judged.append(statement.under(AS_PRINTED, {}) if concerned else statement)
            judged += [statement.under(name, swap) for name, swap in concerned]
        return tuple(judged)


def names() -> dict[str, Path]:
    """The claim files that come with the package, by name."""
    return configs.shipped("claims")


def load(name: str) -> Claim:
    """The claim of a name that comes with the package, or of a file of yours (`./NAME` where ours is called so, too).

    Raises:
        UserError: there is none, or the file is wrong: the file and the line are named.
    """
    from dataclasses import replace

    from hf_optim.study.plan.source import read

    path = Path(name)
    known = names()
    if name in known:
        path = known[name]
    elif not path.is_file():
        near = closest(name, known)
        raise UserError(f"no claim {name!r}{near}: give a YAML file, or one that `hf-optim list --claims` shows")
    return replace(parse(read(path, path.name), published()), file=name)


def published() -> list[Mapping[str, Any]]:
    """Every figure that the four papers print: paper, table, dataset, model, metric, optimizer, setting, value, std."""
    file = configs.folder("claims") / "published.json"
    return list(json.loads(file.read_text(encoding="utf-8"))["rows"])


def shared_notes(paper: str) -> dict[str, str]:
    """What several claim files of a paper have to say, by name."""
    file = configs.folder("claims") / "notes.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))[paper])


def parse(source: Source, rows: list[Mapping[str, Any]]) -> Claim:
    """The claim of a YAML document; `rows` are the published figures."""
    top = source.check_keys((), source.value, KEYS, ("name", "paper", "where", "title", "claims"))
    source.check_choice(("paper",), top["paper"], PAPERS)
    source.check_shape((), top, SHAPE)
    if not WORD.fullmatch(top["name"]):
        raise source.error(("name",), f"name must be made of letters, digits, '-', '_' and '.', got {top['name']!r}")
    tables = top.get("published", [])
    mine = [row for row in rows if row["paper"] == top["paper"] and row["table"] in tables]
    for i, table in enumerate(tables):
        if not any(row["table"] == table for row in mine):
            raise source.error(("published", i), f"{top['paper']} has no printed figures under {table!r}")
    listed = source.check_type(("claims",), top["claims"], list, "a list of claims")
    if not listed:
        raise source.error(("claims",), "claims is empty: state at least one")
    for key, most in MOST.items():
        if len(top.get(key, ())) > most:
            raise source.error((key,), f"{key} has {len(top[key]):,} entries, and each is judged: {most} at most")
    claims = tuple(statements.read(source, ("claims", i), value) for i, value in enumerate(listed))
    asked = [keys for statement in claims for keys in (statement.keys, statement.given) if keys is not None]
    if (count := sum(len(keys.get("of", [keys])) for keys in asked)) > MOST["claims"]:
        raise source.error(("claims",), f"claims have {count:,} rules, and each is judged: {MOST['claims']} at most")
    settings = {
        size: _setting(source, key, top[key], top.get("cells", []), mine) for size, key in SIZES.items() if key in top
    }
    if not settings and any(statement.keys is not None for statement in claims):
        raise source.error((), "a claim that is judged needs a setting: small, paper_size or both")
    for size, setting in settings.items():
        for i, statement in enumerate(claims):
            if statement.keys is not None and statement.on_tables() == (setting.study is not None):
                what = "a study" if setting.study is None else "commands or checks"
                raise source.error(("claims", i), f"{statement.rule} needs {what} in {SIZES[size]}")
    readings = top.get("readings", {})
    belongs = top.get("published_is", "")
    if belongs and belongs not in (AS_PRINTED, AS_RUN):
        raise source.error(("published_is",), f"published_is must be {AS_PRINTED!r} or {AS_RUN!r}, got {belongs!r}")
    if readings and mine and not belongs:
        raise source.error(("readings",), "say under published_is which reading the published figures belong to")
    known = shared_notes(top["paper"])
    for i, name in enumerate(top.get("shared_notes", [])):
        if name not in known:
            near = closest(name, known)
            raise source.error(("shared_notes", i), f"unknown note {name!r}{near}; valid: {', '.join(known)}")
    shared = tuple(known[name] for name in top.get("shared_notes", []))
    sources: where_it_stands.Sources = {}
    if "sources" in top:
        sources = where_it_stands.read(source, top["sources"], top.get("paper_size", {}).get("study"))
    return Claim(
        name=top["name"],
        paper=top["paper"],
        where=str(top["where"]),
        title=top["title"],
        notes=(*top.get("notes", []), *shared),
        statements=claims,
        published=tuple(mine),
        settings=settings,
        printed=top.get("printed", {}),
        readings=readings,
        published_is=belongs,
        sources=sources,
        shared=shared,
    )


def _setting(source: Source, key: str, value: Any, shared: Any, rows: list[Mapping[str, Any]]) -> Setting:
    source.check_keys((key,), value, SETTING_KEYS)
    source.check_shape((key,), value, SETTING_SHAPE)
    kinds = [kind for kind in ("study", "commands", "checks") if kind in value]
    if not kinds or ("study" in kinds and len(kinds) > 1):
        raise source.error((key,), "give a study, or commands, or checks")
    where: Where = (key, "cells") if "cells" in value else ("cells",)
    checks = value.get("checks", [])
    for i, name in enumerate(checks):
        from hf_optim.claims.theorems import CHECKS

        if name not in CHECKS:
            near = closest(name, CHECKS)
            raise source.error((key, "checks", i), f"unknown check {name!r}{near}; valid: {', '.join(CHECKS)}")
    for place, words in value.get("commands", {}).items():
        if not WORD.fullmatch(place):
            raise source.error((key, "commands", place), f"{place!r} is no name of a folder below the study's")
        if place.startswith("reproduction.") or place in [f"{check}.csv" for check in checks]:
            raise source.error((key, "commands", place), f"{place!r} is what the claim's own file is called")
        if not words or words[0] not in COMMANDS:
            raise source.error((key, "commands", place), f"begin with one of the commands {', '.join(COMMANDS)}")
        if any(word == "-h" or len(word) > 2 and "--help".startswith(word) for word in map(str, words)):
            raise source.error((key, "commands", place), "-h asks for help, and nothing would be reproduced")
    for name, deviation in value.get("noise", {}).items():
        if not deviation > 0:
            raise source.error((key, "noise", name), f"a deviation is above 0, got {deviation:g}")
    return Setting(
        study=_study(source, key, value["study"]) if "study" in value else None,
        commands={place: tuple(map(str, words)) for place, words in value.get("commands", {}).items()},
        checks=tuple(checks),
        cells=tuple(published_cells.read(source, where, value.get("cells", shared), rows)),
        metrics=value.get("metrics", {}),
        stands_for=value.get("stands_for", {}),
        noise=value.get("noise", {}),
    )


def _study(source: Source, key: str, value: Any) -> Source:
    """The study as a document of its own, whose errors name the lines of the claim file.

    A statement's rule compares task by task; without a score the tasks of two tables that are the same have the same
    seeds, and so share their runs.
    """
    from hf_optim.study.plan.source import Source as Document

    start = (key, "study")
    lines = {place[2:]: line for place, line in source.lines.items() if place[:2] == start}
    value = {"family": "tasks", **value} if isinstance(value, Mapping) else value
    return Document(source.file, value, yaml12.dump(value), lines)
