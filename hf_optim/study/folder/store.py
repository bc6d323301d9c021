"""The records and histories below a study's folder. What is not one is unreadable, and said with its reason."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_optim.core import shape
from hf_optim.core.shape import Each
from hf_optim.errors import UserError, one_line
from hf_optim.experiment import files, plain_json
from hf_optim.experiment.record import MOST_ROWS, RECORD, SAMPLES
from hf_optim.experiment.spec import id_of
from hf_optim.study.plan.plan import MOST_NAMES, Plan, flatten, most_names

#: bytes of a record; ours have some kB
LARGEST = 1 << 20
#: bytes of a history in which its first steps are
BEGINNING = 1 << 15
_SCALAR = (str, float, bool, None)
#: a record as `experiment.outcome` and `launch.worker` make it; what a later version adds is let be
SHAPE = {
    "id": str,
    "spec": {"task": str, "model?": (str, None), "size?": str, "optimizer": {"name": str}, "seed": int},
    "status": ("ok", "failed"),
    "error?": (str, None),
    "pruned?": bool,
    "fault?": str,
    "groups?": [Each(_SCALAR)],
    "settled?": [str],
    "in_force?": [Each((*_SCALAR, [float]))],
    "metrics": Each((float, None)),
    "primary?": ({"name": str, "greater_is_better": bool}, None),
    "history?": (str, None),
    "samples?": [str],
    "time?": Each((float, None)),
    "memory?": Each((float, None)),
    "environment?": Each(_SCALAR),
    "execution?": Each(_SCALAR),
    "code?": Each(str),
    "data?": (Each(_SCALAR), None),
    "known_losses?": Each((float, None)),
    "started?": (str, None),
    "finished?": (str, None),
}
#: the parts of a record that become columns
_NAMED = ("metrics", "time", "memory", "environment", "execution", "code", "data", "known_losses")
#: and those that are lists of settings
_LISTED = ("groups", "in_force")
_MISSING: dict[str, Any] = {
    "error": None,
    "primary": None,
    "history": None,
    "time": {},
    "memory": {},
    "environment": {},
    "data": None,
}


class RecordStore:
    """The runs below a study's folder, each record read once (one that is missing is looked for again), and
    what was measured before training.

    `unreadable` holds the reason in one line, by run id, for every record or history that was asked for, is there and
    is not ours: such a run counts as one without a record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: dict[str, str] = {}
        self._records: dict[str, Mapping[str, Any]] = {}
        self._names: dict[str, set[str]] = {"records": set(), "settings": set(), "histories": set()}
        self._untrained: dict[str, dict[str, Any]] = {}
        self._judged_by: dict[tuple[Any, ...], Mapping[str, Any]] = {}
        self._most_names = MOST_NAMES
        self._holes: set[str] = set()

    def belongs_to(self, plan: Plan) -> None:
        """From now on a record that was judged by another metric than its task in the plan, or the other way round,
        is unreadable, and so is one with more names than a table of the plan's runs has room for.
        """
        self._judged_by = {(task["task"], task["model"], task["size"]): task["primary"] for task in plan.tasks}
        trials = sum(len(cell["points"]) for cell in (plan.tuning or {}).get("cells", ()))
        self._most_names = most_names(len(plan.runs) + trials)

    def home(self, run_id: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / run_id

    def record(self, run_id: str) -> Mapping[str, Any] | None:
        """The record of a run, None without a readable one."""
        if run_id not in self._records:
            try:
                record = _read(self.folder, run_id)
                self._check_primary(record)
                names = {name for part in _NAMED for name in record.get(part) or ()}
                self._know("records", {*names, *flatten(record["spec"])})
                self._know("settings", {name for part in _LISTED for one in record.get(part) or () for name in one})
                self._records[run_id] = record
            except FileNotFoundError:
                return None
            except (OSError, ValueError) as error:
                self.unreadable[run_id] = _why(f"runs/{run_id}/{RECORD}", error)
                return None
            self.unreadable.pop(run_id, None)
        return self._records[run_id]

    def _check_primary(self, record: Mapping[str, Any]) -> None:
        spec, said = record["spec"], record["primary"]
        planned = self._judged_by.get((spec["task"], spec.get("model"), spec.get("size")))
        keys = ("name", "greater_is_better")
        if said is not None and planned is not None and any(said[key] != planned[key] for key in keys):
            mine, theirs = (f"{p['name']}, {'higher' if p['greater_is_better'] else 'lower'}" for p in (said, planned))
            raise UserError(f"the run was judged by {mine} is better, and the plan says {theirs} is better")

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of a run's history; what cannot be read is left out, and said in `unreadable`."""
        name = (self.record(run_id) or {}).get("history")
        if not isinstance(name, str) or run_id in self._holes:
            return []
        place = f"runs/{run_id}/{name}"
        try:
            content = files.read_bytes(self.folder, place)
            # At once: megabytes of a file's holes, which take no disk, are seconds to look through.
            if b"\0" in content:
                self._holes.add(run_id)
                raise UserError("holds NUL characters (a file's holes), which no text does")
            text = content.decode("utf-8", errors="replace")
            plain_json.check_count(text)
            if text.count("\n") > MOST_ROWS:
                raise UserError(f"more than {MOST_ROWS:,} rows")
        except (OSError, ValueError) as error:
            self.unreadable[run_id] = _why(place, error)
            return []
        rows, damaged = _rows(text.splitlines())
        try:
            self._know("histories", {name for row in rows for name in row})
        except UserError as error:
            self.unreadable[run_id] = _why(place, error)
            return []
        if damaged:
            self.unreadable[run_id] = f"{place}: {damaged} of {damaged + len(rows)} lines are no rows of a history"
        return rows

    def course(self, run_id: str) -> list[dict[str, Any]] | None:
        """The rows of a run's history; None of one that cannot be read to its end, which is no whole course."""
        rows = self.history(run_id)
        return None if run_id in self.unreadable else rows

    def sample(self, run_id: str, name: str, most: int = files.LARGEST) -> bytes:
        """What a run has generated, by the name that its record gives. An OSError where it is not there, has more than
        `most` bytes, or is something else of the run's: what it printed, a checkpoint.
        """
        if not name.startswith(f"{SAMPLES}/"):
            raise files.Refused(name, f"lies outside of {SAMPLES}/")
        return files.read_bytes(self.folder, f"runs/{run_id}/{name}", most)

    def _know(self, where: str, names: set[str]) -> None:
        """Raise a UserError where a study's records (or histories) would have more names with these than there is room
        for: a small file could make a table without end.
        """
        known = self._names[where]
        most = self._most_names if where == "records" else MOST_NAMES
        if len(known) + len(names - known) > most:
            raise UserError(f"with it the study's {where} have more than {most:,} names of figures")
        known |= names

    def untrained(self, run_id: str, metric: str) -> float:
        """A metric of the validation split before the first step; NaN where it was not measured."""
        if run_id not in self._untrained:
            rows = self._first_rows(run_id)
            if not rows:
                return math.nan
            before = itertools.takewhile(lambda row: row.get("step") == 0, rows)  # rows ascend
            self._untrained[run_id] = {k: v for row in reversed([*before]) for k, v in row.items()}  # the first counts
        return number(self._untrained[run_id].get(metric))

    def untrained_of(self, run_ids: Iterable[str], metric: str) -> float:
        """The same of runs that begin alike: what the first says that says it. One may be named often: a small space of
        settings repeats them.
        """
        known = (self.untrained(run_id, metric) for run_id in dict.fromkeys(run_ids))
        return next((value for value in known if not math.isnan(value)), math.nan)

    def _first_rows(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of a run's history as far as step 0 needs them: reading all of thousands of runs takes a minute."""
        name = (self.record(run_id) or {}).get("history")
        if not isinstance(name, str):
            return []
        try:
            with files.opened(self.folder, f"runs/{run_id}/{name}") as file:
                start = file.read(BEGINNING)
            *lines, _ = start.decode("utf-8", errors="replace").splitlines(keepends=True) or [""]
            rows, damaged = _rows(lines)
        except (OSError, ValueError):
            return self.history(run_id)  # which says what is wrong
        return self.history(run_id) if damaged or all(row.get("step") == 0 for row in rows) else rows


def _read(folder: Path, run_id: str) -> dict[str, Any]:
    """The record of a run. Raises OSError or ValueError."""
    record = plain_json.parse_json(files.read_bytes(folder, f"runs/{run_id}/{RECORD}", LARGEST).decode("utf-8"))
    shape.check_shape(record, SHAPE, "the record")
    if record["id"] != run_id or id_of(record["spec"]) != run_id:
        raise UserError(f"the record is of another run than {run_id}: its specification has the id {_id(record)}")
    return _MISSING | record


def _id(record: Mapping[str, Any]) -> str:
    return id_of(record["spec"])


def _why(place: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{place}: {error.strerror or one_line(error)}"
    return f"{place}: {one_line(error) if isinstance(error, UserError) else ' '.join(str(error).split())[:200]}"


def _rows(lines: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The rows of JSON lines, and how many lines are none: all at once, which is three times as fast, unless one is
    damaged.
    """
    lines = [line for line in lines if line.strip()]
    try:
        rows = plain_json.parse_json(f"[{','.join(lines)}]")
    except ValueError:
        rows = [_row(line) for line in lines]
    fine = [row for row in rows if isinstance(row, dict) and type(row.get("step")) is int]
    return fine, len(lines) - len(fine)


def _row(line: str) -> Any:
    try:
        return plain_json.parse_json(line)
    except ValueError:
        return None


def run_names(folder: Path) -> list[str]:
    """What stands in the `runs` of a study's folder; nothing where that is a link, which may lead out of it."""
    runs = folder / "runs"
    return [] if runs.is_symlink() or not runs.is_dir() else sorted(os.listdir(runs))


def recorded(folder: Path) -> list[str]:
    """Those with something in a record's place, or that are links, which are not looked through."""
    homes = [folder / "runs" / name for name in run_names(folder)]
    return [home.name for home in homes if home.is_symlink() or os.path.lexists(home / RECORD)]


def read_record(home: Path) -> Any:
    """What stands in the place of a run's record, `home` being a study's runs/ID, and no link in its place."""
    return files.read_json(home.parents[1], f"runs/{home.name}/{RECORD}")


def read_status(home: Path) -> str | None:
    """The status in a run's record, as `read_record` reads it; None without one of ours.

    Raises UserError where the disk does not say what stands there: whoever takes that for no record runs the run anew,
    and removes the record.
    """
    try:
        record = read_record(home)
    except (FileNotFoundError, NotADirectoryError, files.Refused, ValueError):
        return None
    except OSError as error:
        again = "make it readable, and give the same command again; nothing was removed"
        raise UserError(f"{home / RECORD}: cannot be read ({error.strerror or one_line(error)}): {again}") from None
    status = record.get("status") if isinstance(record, dict) else None
    return None if status is None else str(status)


def number(value: Any) -> float:
    """`value` as a float; NaN for anything that is no number below `shape.FARTHEST`, 0 for what is as close to 0."""
    if value.__class__ is float and shape.CLOSEST < abs(value) < shape.FARTHEST:
        return value  # type: ignore[no-any-return]  # at once: a large report asks ten million times
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < shape.FARTHEST:
        return math.nan
    return float(value) if abs(value) > shape.CLOSEST else 0.0
