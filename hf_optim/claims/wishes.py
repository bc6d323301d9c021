"""A claim's study with what the user asks for: fewer epochs, other seeds, some rows or columns, tuned rates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_optim.core import yaml12
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.study.plan.source import Source

#: the grid that AMVT prints (Section 2.4), without the batch sizes, which belong to a task
GRID = {
    "lr": {"choices": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]},
    "weight_decay": {"choices": [0.0, 1e-5, 1e-4, 1e-3]},
}


@dataclass(frozen=True)
class Wish:
    """What is asked for beside the file: epochs of every run, labels of tasks and optimizers to keep, trials of a
    search over the grid (0: none), evaluations without a lower validation loss after which a run ends.
    """

    epochs: int | None = None
    only: tuple[str, ...] = ()
    tuned: int = 0
    patience: int | None = None

    @property
    def suffix(self) -> str:
        """What the study's folder is called beside others of the same claim."""
        parts = [f"epochs{self.epochs}"] if self.epochs else []
        parts += ["only-" + "-".join("".join(c if c.isalnum() else "_" for c in label) for label in self.only)] * bool(
            self.only
        )
        parts += [f"tuned{self.tuned}"] if self.tuned else []
        parts += [f"patience{self.patience}"] if self.patience else []
        return "".join(f"-{part}" for part in parts)

    def words(self) -> list[str]:
        """The options that ask for it."""
        epochs = ["--epochs", str(self.epochs)] if self.epochs else []
        only = [word for label in self.only for word in ("--only", label)]
        tuned = ["--tuned", str(self.tuned)] if self.tuned else []
        return [*epochs, *only, *tuned, *(["--patience", str(self.patience)] if self.patience else [])]


def study(source: Source, wish: Wish, seeds: int | None = None) -> Source:
    """The study's document under `wish`; a UserError for one that is none (with so many `seeds`, where they are asked
    for), or a label that it does not have.
    """
    from hf_optim.study.plan.plan import expand

    if wish == Wish():
        return source
    expand(source, seeds=seeds)  # what is wrong in it is told with its line, before anything in it is looked up
    value = copy.deepcopy(source.value)
    if "tasks" not in value:
        raise UserError(f"{source.file}: its study has a ladder, of which no part is asked for: leave the options out")
    value["tasks"] = [{"task": entry} if isinstance(entry, str) else entry for entry in value["tasks"]]
    value["optimizers"] = [_named(entry) for entry in value["optimizers"]]
    for option, number in (("epochs", wish.epochs), ("patience", wish.patience)):
        if number is None:
            continue
        if number < 1:
            raise UserError(f"--{option} must be at least 1, got {number}")
        for task in value["tasks"]:
            kept = {k: v for k, v in (task.get("overrides") or {}).items() if option != "epochs" or k != "steps"}
            task["overrides"] = {**kept, option: number}
    if wish.only:
        _keep(value, wish.only)
    if wish.tuned:
        _tune(value, wish.tuned)
    return Source(source.file, value, yaml12.dump(value), source.lines if not wish.only else {})


def _named(entry: Any) -> dict[str, Any]:
    """An optimizer, or the base of one, as a mapping with its name."""
    whole = {"name": entry} if isinstance(entry, str) else entry
    return {**whole, "base": _named(whole["base"])} if whole.get("base") else whole


def _label(entry: Mapping[str, Any]) -> str:
    from hf_optim.study.plan.entries import optimizer_label

    return str(entry.get("label") or (entry.get("task") or optimizer_label(entry)))


def _keep(value: dict[str, Any], only: Sequence[str]) -> None:
    tasks, optimizers = value["tasks"], value["optimizers"]
    columns = [task for task in tasks if _label(task) in only]
    rows = [row for row in optimizers if _label(row) in only]
    for label in only:
        if label not in map(_label, [*tasks, *optimizers]):
            names = [*map(_label, [*tasks, *optimizers])]
            near = closest(label, names)
            raise UserError(
                f"--only {label!r}: no task and no optimizer has this label{near}; labels: {', '.join(names)}"
            )
    value["tasks"], value["optimizers"] = columns or tasks, rows or optimizers
    labels = [_label(row) for row in value["optimizers"]]
    if value.get("baseline") not in labels:
        value["baseline"] = labels[0]
    for task in value["tasks"]:
        for key in ("hyper", "schedules"):
            if task.get(key):
                task[key] = {label: given for label, given in task[key].items() if label in labels}
        if task.get("only"):
            task["only"] = [label for label in task["only"] if label in labels]
    value["tasks"] = [task for task in value["tasks"] if task.get("only") != []]


def _tune(value: dict[str, Any], trials: int) -> None:
    """Search AMVT's printed grid for every optimizer, in place of the rates and decays that are written down."""
    from hf_optim import registry

    space: dict[str, Any] = {}
    for row in value["optimizers"]:
        inner: Mapping[str, Any] = row.get("base") or row
        known = registry.info(inner["name"]).defaults
        grid = {key: choices for key, choices in GRID.items() if key in known}
        for key in grid:
            inner.pop(key, None)  # type: ignore[attr-defined]
        space[_label(row)] = {"base": grid} if row.get("base") else grid
    for task in value["tasks"]:
        for hyper in (task.get("hyper") or {}).values():
            if set(hyper) & set(GRID) or set(hyper.get("base") or {}) & set(GRID):
                raise UserError("--tuned: this study varies the rate or the decay itself, so they cannot be searched")
    value["tuning"] = {"trials": trials, "space": space}
