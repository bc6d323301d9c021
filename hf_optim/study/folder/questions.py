"""The question of a study, written down before it is answered: questions.jsonl, a line for each time it changed.

A line has the normalised question, its SHA-256, the time, and how many judged runs had a record then. Changes before
any had are free. After that an added optimizer is a family of its own, and every other change is told in words and
makes what it touches exploratory. A merge brings what became of the questions of its studies, in a line of its own.
What this cannot see: a folder that was deleted and begun anew, and a look at records.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_optim.core import shape
from hf_optim.core.shape import Each, Text
from hf_optim.core.wording import counted
from hf_optim.experiment.files import Refused, check_text, read_text, write_atomically
from hf_optim.experiment.plain_json import check_count, parse_json
from hf_optim.study.folder.store import recorded
from hf_optim.study.plan.extent import LONGEST_NAME
from hf_optim.study.plan.plan import Plan

FILE = "questions.jsonl"
#: as in a plan: each change is called by labels
LABEL = Text(LONGEST_NAME)
SHAPE = {
    "sha256": str,
    "time": str,
    "records": int,
    "question": {
        "baseline": LABEL,
        "looks": [int],
        "tasks": Each({}, LABEL),
        "optimizers": Each(Each({}, LABEL), LABEL),
    },
}
#: the line of what was changed in studies that were merged
BROUGHT = {"changed": [{"words": str, "task": (LABEL, None), "optimizer": (LABEL, None), "added": (LABEL, None)}]}
#: changes that a verdict names; all stand once in the report
MOST_WORDS = 20
#: changes of a folder; each comparison asks all of them whether they touch it
MOST = 2000
#: letters of one: two labels, a setting with two values, and the names of studies that were merged
LONGEST = 1000
#: of a task's entry: what says which data are judged how
TASK = ("task", "model", "size", "data", "schedule", "schedules", "overrides", "options")


@dataclass(frozen=True)
class Change:
    """One change in words, and what it touches: an optimizer and a task (None: all), or an optimizer that was added."""

    words: str
    task: str | None = None
    optimizer: str | None = None
    added: str | None = None


@dataclass(frozen=True)
class Register:
    """The question and what became of it; `digest` is empty where none was registered. `unread` says what of it cannot
    be read, empty where all can.
    """

    digest: str = ""
    time: str = ""
    records: int = 0
    changes: tuple[Change, ...] = ()
    generations: Mapping[str, int] = field(default_factory=dict)
    unread: str = ""

    def generation(self, optimizer: str) -> int:
        """0 for those of the first question, 1 for those that were added next, and so on."""
        return self.generations.get(optimizer, 0)

    def exploratory(self, task: str, optimizer: str) -> tuple[str, ...]:
        """The changes that touch a comparison, the first of them in words; empty where it is what was asked."""
        words = [
            _short(c.words, 200)
            for c in self.changes
            if c.added is None and c.task in (None, task) and c.optimizer in (None, optimizer)
        ]
        return (*words[:MOST_WORDS], *([f"and {len(words) - MOST_WORDS} more"] if len(words) > MOST_WORDS else []))


@dataclass(frozen=True)
class Kept:
    """What stands in a register: the lines that are ours (of the shape that is written here, and with the digest of
    their question), and what was changed in the studies that were merged into its folder. `texts` are all lines as they
    stand, but for the latter, and `unread` says what cannot be read.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unread: str = ""


def question(plan: Plan) -> dict[str, Any]:
    """Everything that decides what a verdict means, as plain data."""
    tuned = plan.tuning or {}
    spaces = {(cell["task"], cell["optimizer"]): cell["space"] for cell in tuned.get("cells", ())}
    on: dict[str, dict[str, Any]] = {}
    for task, label, spec in plan.cells():
        on.setdefault(label, {})[task["label"]] = {"spec": spec, "space": spaces.get((task["label"], label), {})}
    return {
        "baseline": plan.baseline,
        "family": plan.family,
        "units": "repetitions" if plan.repetitions else "seeds",
        "looks": list(plan.looks),
        "seeds": list(plan.seeds),
        "seeds a unit": plan.per_unit,
        "tasks": {
            task["label"]: {
                "metric": dict(task["primary"]),
                "margin": (plan.margin or {}).get(task["label"]),
                "target": (plan.targets or {}).get(task["label"]),
                **{key: task.get(key) for key in TASK},
                **({"settings": task["settings"]} if task.get("settings") else {}),
            }
            for task in plan.tasks
        },
        "optimizers": on,
        "tuning": {key: tuned.get(key) for key in ("trials", "steps", "seed", "sampler", "prune")} if tuned else None,
        "speedup": dict(plan.speedup) if plan.speedup else None,
    }


def digest(asked: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two questions."""
    changed = []
    for key in ("baseline", "family", "units", "looks", "seeds", "seeds a unit", "tuning", "speedup"):
        if key == "seeds" and old["looks"] != new["looks"]:
            continue  # said already
        if old.get(key) != new.get(key):
            changed.append(Change(f"{key}: {_short(old.get(key))} became {_short(new.get(key))}"))
    for label in {**old["tasks"], **new["tasks"]}:
        a, b = old["tasks"].get(label), new["tasks"].get(label)
        if a is None or b is None:
            changed.append(Change(f"the task {label} was {'added' if a is None else 'left out'}"))
        elif a != b:
            changed += [Change(f"{label}: {text}", task=label) for text in _differences(a, b)]
    for label in {**old["optimizers"], **new["optimizers"]}:
        a, b = old["optimizers"].get(label), new["optimizers"].get(label)
        if a is None:
            changed.append(Change(f"{label} was added: a family of its own", added=label))
        elif b is None:
            changed.append(Change(f"{label} was left out"))
        else:
            whose = None if label == new["baseline"] else label
            for task in [t for t in a if t in b and a[t] != b[t]]:
                changed += [
                    Change(f"{label} on {task}: {text}", task=task, optimizer=whose)
                    for text in _differences(a[task], b[task])
                ]
            for task in [t for t in {**a, **b} if (t in a) != (t in b) and t in old["tasks"] and t in new["tasks"]]:
                changed.append(Change(f"{label} was {'left out' if task in a else 'added'} on {task}", task=task))
    return changed


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """What differs, setting by setting; each is called by its dotted name, as far as that is no longer than a label."""
    for key in {**a, **b}:
        values, name = (a.get(key), b.get(key)), _short(f"{place}{key}", LONGEST_NAME)
        x, y = (None if isinstance(value, Mapping) else value for value in values)
        if x != y:
            yield f"{name}: {_short(x)} became {_short(y)}"
        old, new = (value if isinstance(value, Mapping) else {} for value in values)
        yield from _differences(old, new, f"{name}.")


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "none" if value is None else text if len(text) <= most else text[: most - 3] + "..."


def register(folder: Path, plan: Plan, records: int) -> str:
    """Writes the question down unless it is the one that stands last; gives its digest, empty where the folder was
    begun before questions were written down. Raises OSError.
    """
    if text := together(folder, plan, records):
        write_atomically(folder, FILE, text)
    lines = kept(folder).lines
    return str(lines[-1]["sha256"]) if lines else ""


def together(folder: Path, plan: Plan, records: int, brought: Sequence[Change] = ()) -> str:
    """What is to stand in the file of `folder` once the plan's question, and what was changed in the studies that are
    merged there, are written down; empty where nothing is new. What cannot be read there stays: a later version may
    have written it. Raises OSError, `Refused` for more than is read again.
    """
    asked = question(plan)
    key, known = digest(asked), kept(folder)
    new = [change for change in dict.fromkeys(brought) if change not in known.changes]
    unknown = known.lines[-1]["sha256"] != key if known.lines else not records
    if not (new or unknown) or (known.unread and not known.texts):  # what is there is no text: it stays, and is told
        return ""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entries = [{"sha256": key, "time": now, "records": records, "question": asked}] if unknown else []
    changed = [*known.changes, *new]
    entries += [{"changed": [asdict(change) for change in changed]}] if changed else []
    text = "".join(line + "\n" for line in (*known.texts, *map(json.dumps, entries)))
    check_text(FILE, text)
    return text


def shared(folders: Sequence[Path], plan: Plan) -> str:
    """The line of the plan's question, as it was written last of all, where each of the folders has it for its own;
    empty where one has not.
    """
    lines = [kept(folder).lines for folder in folders]
    if not all(own and own[-1]["sha256"] == digest(question(plan)) for own in lines):
        return ""
    return json.dumps(max((own[-1] for own in lines), key=lambda line: str(line["time"]))) + "\n"


def untold(why: str) -> dict[str, Any]:
    """The line that stands for what cannot be read in a register that another one is made from. It cannot be read
    either, so that whoever has the other one is told, too.
    """
    return {"unreadable": why}


def read(folder: Path, plan: Plan | None = None) -> Register:
    """The register of a study's folder; with its `plan`, what this asks and nobody has registered is a change like any
    other: it was written into plan.json alone.
    """
    known = kept(folder)
    lines = known.lines
    if plan is not None and lines and lines[-1]["sha256"] != (key := digest(question(plan))):
        asked = json.loads(json.dumps(question(plan)))  # lists, as in a file
        judged = int(bool(recorded(folder)))
        lines = [*lines, {"sha256": key, "time": lines[-1]["time"], "records": judged, "question": asked}]
    return replace(registered(lines, known.changes), unread=known.unread)


def registered(lines: Sequence[Mapping[str, Any]], others: Sequence[Change] = ()) -> Register:
    """What the lines of a register say together, and what was changed in `others` that were merged."""
    told = list(others)
    generations = dict.fromkeys([c.added for c in others if c.added is not None], 1)
    if not lines:
        return Register(changes=tuple(told), generations=generations)
    number = 0
    first = lines[0]
    for old, new in zip(lines, lines[1:], strict=False):
        if not new["records"]:
            first = new
            continue
        news = changes(old["question"], new["question"])
        told += news
        added = [c.added for c in news if c.added is not None]
        number += bool(added)
        generations |= dict.fromkeys(added, number)
    return Register(lines[-1]["sha256"], first["time"], lines[-1]["records"], tuple(_few(told)), generations)


def _few(changed: list[Change]) -> list[Change]:
    """At most `MOST`, and one for the rest, which touches every comparison."""
    more = len(changed) - MOST
    return [*changed[:MOST], Change(f"and {more:,} further changes")] if more > 0 else changed


def kept(folder: Path) -> Kept:
    """The register of `folder`; OSError where the disk does not say what stands there: nothing is written over it."""
    try:
        text = read_text(folder, FILE)
        check_count(text)
    except (FileNotFoundError, NotADirectoryError):
        return Kept()
    except (Refused, ValueError) as error:
        return Kept(unread=f"{FILE} cannot be read ({error.strerror if isinstance(error, Refused) else error})")
    lines, told, texts = list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
    for line in filter(str.strip, text.splitlines()):
        entry = _parsed(line)
        if shape.fits(entry, BROUGHT):
            told += entry["changed"]
            continue
        texts.append(line)
        if shape.fits(entry, SHAPE) and digest(entry["question"]) == entry["sha256"]:
            lines.append(entry)
    keys = [key.name for key in fields(Change)]
    brought = [Change(**{key: one[key] for key in keys} | {"words": _short(one["words"], LONGEST)}) for one in told]
    damaged = len(texts) - len(lines)
    return Kept(lines, _few(brought), texts, f"{counted(damaged, 'line')} of {FILE} cannot be read" if damaged else "")


def _parsed(line: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        return None
