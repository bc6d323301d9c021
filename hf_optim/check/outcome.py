"""What a check says of an optimizer, and a table of that. Imports nothing heavy."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_optim.errors import UserError, one_line

PASS, FAIL, NOT, UNMADE = "pass", "fail", "not applicable", "could not be made"


class Fails(Exception):
    """Raised by a check that found the rule broken; the text is the cell's reason."""


class DoesNotApply(Exception):
    """Raised by a check that cannot be made on this optimizer; the text is the cell's reason."""


@dataclass(frozen=True)
class Check:
    """One rule that a training run relies on.

    `run(candidate)` returns a note or None when the rule holds, raises `Fails` or `DoesNotApply`. `breaking` says what
    happens to a user when it is broken. A `promised` check is held against every optimizer; what others find wrong with
    one that declares no `family` is reported as a fact and no failure. A `world` check runs in two processes at once;
    `slow` ones are left out of a fast run.
    """

    id: str
    title: str
    breaking: str
    run: Callable[[Any], str | None]
    promised: bool = True
    world: bool = False
    slow: bool = False


CHECKS: dict[str, Check] = {}


def check(
    id: str, title: str, breaking: str, *, promised: bool = True, world: bool = False, slow: bool = False
) -> Callable[[Callable[[Any], str | None]], Callable[[Any], str | None]]:
    """Register the decorated function as a check; the order of registration is the order of the columns."""

    def add(run: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        CHECKS[id] = Check(id, title, breaking, run, promised, world, slow)
        return run

    return add


@dataclass(frozen=True)
class Verdict:
    """What one check said of one optimizer; `why` is never empty unless it passed. What could not be made or stepped
    has the status `UNMADE` under every check, for the same reason."""

    name: str
    check: str
    status: str
    why: str = ""
    seconds: float = 0.0


def judge(check: Check, candidate: Any) -> tuple[str, str]:
    """Status and reason of a check on a candidate; whatever it raises is a reason, never a crash of the suite."""
    try:
        return PASS, check.run(candidate) or ""
    except DoesNotApply as reason:
        return NOT, str(reason)
    except Fails as reason:
        status, why = FAIL, str(reason)
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything
        status, why = FAIL, where(error)
    if not check.promised and not candidate.declared:
        return NOT, f"not promised: {why}"
    return status, why


def where(error: BaseException) -> str:
    """An exception as one line, and where it was raised unless it is a message to the user."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, {frames[-1].name})" if frames else ""
    return one_line(error) + ("" if isinstance(error, UserError) else place)


@dataclass
class Report:
    """The cells of a run, in rows (optimizers) and columns (checks); `hyper` says what a name was given."""

    names: list[str]
    checks: list[str]
    cells: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    hyper: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Verdict]:
        """Cells that failed, row by row."""
        return [c for c in self.ordered() if c.status == FAIL]

    @property
    def unmade(self) -> dict[str, str]:
        """Optimizers that could not be made or stepped, so that nothing was checked, and why."""
        return {c.name: c.why for c in self.ordered() if c.status == UNMADE}

    def ordered(self) -> list[Verdict]:
        """All cells, row by row."""
        return [self.cells[n, c] for n in self.names for c in self.checks]

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes and `to_json` writes."""
        return {
            "names": self.names,
            "checks": self.checks,
            "environment": self.environment,
            "seconds": self.seconds,
            "hyper": self.hyper,
            "cells": [asdict(c) for c in self.ordered()],
        }

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """A report from what `to_dict` gave."""
        cells = [Verdict(**c) for c in data["cells"]]
        return cls(
            list(data["names"]),
            list(data["checks"]),
            {(c.name, c.check): c for c in cells},
            dict(data["environment"]),
            data["seconds"],
            dict(data["hyper"]),
        )
