"""What launchers and workers say to each other: a line of JSON each way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hf_optim.experiment.trackers import Tracked


@dataclass(frozen=True)
class Request:
    """A run to execute.

    Args:
        folder: the study's.
        id, spec: the run.
        last: whether this is its last attempt.
        asks: the figure by which the run is chosen.
        checkpoint_every: an interrupted run goes on from its last whole checkpoint; None: it starts again.
        processes: so many train one model together.
        trust: the user asked for the code that `spec` names.
        tracked: trackers are fed as well.
    """

    folder: Path
    id: str
    spec: dict[str, Any]
    last: bool = True
    asks: str | None = None
    checkpoint_every: int | None = None
    processes: int = 1
    trust: bool = False
    tracked: Tracked | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        told = {**asdict(self), "folder": str(self.folder)}
        if self.tracked is None:
            del told["tracked"]
        return told

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Request:
        """What `to_dict` gave."""
        tracked = told.get("tracked")
        return cls(**{**told, "folder": Path(told["folder"]), "tracked": Tracked(**tracked) if tracked else None})


@dataclass(frozen=True)
class Answer:
    """What became of a run.

    `status` is "ok" or "failed" where it has a record now, "busy" if another process is at it, "fault" if the machine
    failed and it should be tried again, and "broken" if no run can go on, for the `reason`.
    """

    id: str
    status: str
    reason: str = ""

    def line(self) -> str:
        """The line of JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if value}) + "\n"
