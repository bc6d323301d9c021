"""Expands a study's YAML into run specifications, each frozen and content-hashed.

The YAML (all keys; * required):

    name: quickstart            # * letters, digits, "-", "_" and "."; also the default folder studies/<name>
    title: Digits in 5 minutes  # the report's heading (default: the name)
    baseline: adamw             # the label every other optimizer is compared with (default: the first optimizer)
    seeds: 3                    # * 3 means 0, 1, 2; or a list such as [1, 7, 42]
    tasks:                      # *
      - task: vision            # * a task's name, or file.py:NAME
        label: MLP on digits    # what tables call it (default: task/model/size); unique
        model: mlp              # default: the task's first model
        size: small             # smoke, small or paper (default: small)
        data: emoji             # an embedded set, or a path to your own data (looked for beside the YAML first)
        schedule: {name: cosine}
        overrides: {epochs: 4}
        hyper:                  # hyper-parameters for this task alone, by the optimizer's label
          SMARAN: {lr: 0.05}
        only: [adamw, SMARAN]   # these optimizers alone, by label (default: all)
    optimizers:                 # *
      - adamw                   # a name, with its defaults
      - {name: smaran, lr: 0.1, label: SMARAN}          # label: default the name, for a wrapper name(base); unique
      - {name: tlr, gamma: 0.33, base: {name: sgd, lr: 0.1}}

Every optimizer runs with the same seeds, hence the same initial weights and batches: the runs are paired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError
from hf_optim.study.source import Source, Where, describe

if TYPE_CHECKING:
    from hf_optim.task import RunSpec

FORMAT = 1
KEYS = ("name", "title", "baseline", "seeds", "tasks", "optimizers")
TASK_KEYS = ("task", "label", "model", "size", "data", "schedule", "overrides", "hyper", "only")
SIZES = ("smoke", "small", "paper")


@dataclass(frozen=True)
class Run:
    """One planned run: where it stands in the study, and its specification."""

    id: str
    task: str
    optimizer: str
    seed: int
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """A study, expanded. `tasks` and `optimizers` keep the YAML's order; an optimizer has label, spec and defaults."""

    name: str
    title: str
    baseline: str
    seeds: tuple[int, ...]
    tasks: tuple[Mapping[str, Any], ...]
    optimizers: tuple[Mapping[str, Any], ...]
    runs: tuple[Run, ...]
    origin: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for plan.json."""
        return {
            "format": FORMAT,
            "name": self.name,
            "title": self.title,
            "origin": self.origin,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "tasks": [dict(t) for t in self.tasks],
            "optimizers": [dict(o) for o in self.optimizers],
            "runs": [
                {"id": r.id, "task": r.task, "optimizer": r.optimizer, "seed": r.seed, "spec": dict(r.spec)}
                for r in self.runs
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], file: str) -> Plan:
        """The inverse of `to_dict`; a file of another format or a damaged one is a UserError naming `file`."""
        try:
            if data["format"] != FORMAT:
                raise UserError(
                    f"{file}: written by another version (format {data['format']}, this one reads {FORMAT})"
                )
            return cls(
                name=data["name"],
                title=data["title"],
                baseline=data["baseline"],
                seeds=tuple(data["seeds"]),
                tasks=tuple(data["tasks"]),
                optimizers=tuple(data["optimizers"]),
                runs=tuple(Run(**run) for run in data["runs"]),
                origin=data["origin"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: not the plan of a study ({type(error).__name__}: {error})") from None


def expand(source: Source, *, seeds: int | None = None, origin: str = "") -> Plan:
    """The plan of a study's YAML. `seeds` replaces the number of seeds (0 .. n - 1) that the file asks for.

    Raises UserError with the file and line for unknown keys, wrong types, unknown optimizers or hyper-parameters,
    duplicate labels, unknown tasks, models or sizes, and empty lists.
    """
    top = source.check_keys((), source.value, KEYS, ("name", "seeds", "tasks", "optimizers"))
    name = source.check_type(("name",), top["name"], str, "a text")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise source.error(("name",), f"name must be made of letters, digits, '-', '_' and '.', got {name!r}")
    title = source.check_type(("title",), top.get("title", name), str, "a text")
    seed_list = tuple(range(_positive(seeds, "--seeds"))) if seeds is not None else _seeds(source, top["seeds"])
    optimizers = _optimizers(source, top["optimizers"])
    labels = [o["label"] for o in optimizers]
    baseline = str(source.check_type(("baseline",), top.get("baseline", labels[0]), str, "an optimizer's label"))
    if baseline not in labels:
        raise source.error(("baseline",), f"baseline {baseline!r} is no optimizer's label; labels: {', '.join(labels)}")
    tasks = _tasks(source, top["tasks"], labels)
    runs = _runs(source, tasks, optimizers, seed_list)
    shown = tuple({k: v for k, v in t.items() if k != "where"} for t in tasks)
    known = tuple({k: v for k, v in o.items() if k != "where"} for o in optimizers)
    return Plan(name, title, baseline, seed_list, shown, known, runs, origin)


def optimizer_label(spec: Mapping[str, Any]) -> str:
    """The default label: the name, and for a wrapper its base in brackets: "tlr(sgd)"."""
    base = spec.get("base")
    if base is None:
        return str(spec["name"])
    return f"{spec['name']}({base if isinstance(base, str) else optimizer_label(base)})"


def merge_check(old: Plan, new: Plan, folder: str) -> None:
    """Raises UserError unless `new` only adds to `old`: finished runs must keep their meaning."""
    planned = {(r.task, r.optimizer, r.seed): r for r in new.runs}
    for run in old.runs:
        other = planned.get((run.task, run.optimizer, run.seed))
        what = f"{run.optimizer} on {run.task}"
        if other is None:
            raise UserError(
                f"{folder} holds a larger study: {what} with seed {run.seed} is not in this plan; "
                "add it, or choose another --output"
            )
        if other.id != run.id:
            raise UserError(
                f"{folder} holds another study: {what} differs ({_difference(run.spec, other.spec)}); "
                "give it another label, or choose another --output"
            )


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    a, b = flatten(old), flatten(new)
    changed = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    parts = [f"{key}: {json.dumps(a.get(key))} there, {json.dumps(b.get(key))} here" for key in changed[:2]]
    more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
    return "; ".join(parts) + more if parts else "its content"


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _positive(value: int, what: str) -> int:
    if value < 1:
        raise UserError(f"{what} must be at least 1, got {value}")
    return value


def _seeds(source: Source, value: Any) -> tuple[int, ...]:
    where: Where = ("seeds",)
    source.check_type(where, value, (int, list), "a number of seeds or a list of seeds")
    if isinstance(value, int):
        if value < 1:
            raise source.error(where, f"seeds must be at least 1, got {value}")
        return tuple(range(value))
    if not value:
        raise source.error(where, "seeds is empty: give a number such as 3, or a list such as [0, 1, 2]")
    for i, seed in enumerate(value):
        source.check_type((*where, i), seed, int, "a whole number")
        if not 0 <= seed < 2**32:
            raise source.error((*where, i), f"a seed lies between 0 and 4294967295, got {seed}")
        if seed in value[:i]:
            raise source.error((*where, i), f"seed {seed} is given twice")
    return tuple(value)


def _optimizers(source: Source, value: Any) -> list[dict[str, Any]]:
    from hf_optim import registry

    where: Where = ("optimizers",)
    source.check_type(where, value, list, "a list of optimizers")
    if not value:
        raise source.error(where, "optimizers is empty: name at least one")
    found: list[dict[str, Any]] = []
    for i, item in enumerate(value):
        here = (*where, i)
        source.check_type(here, item, (str, dict), "an optimizer's name or a mapping with a name")
        spec = {"name": item} if isinstance(item, str) else dict(item)
        if not isinstance(spec.get("name"), str):
            raise source.error(here, "an optimizer needs a name: {name: adamw, lr: 0.001}")
        label = spec.pop("label", None)
        _check_spec(source, here, spec)
        label = optimizer_label(spec) if label is None else source.check_type((*here, "label"), label, str, "a text")
        if not label.strip() or len(label) > 40:
            raise source.error(here, f"a label has 1 to 40 characters, got {label!r}")
        if label in [o["label"] for o in found]:
            raise source.error(here, f"the label {label!r} is used twice: add a different label: to one of the two")
        info = registry.info(spec["name"])
        found.append({"label": label, "spec": spec, "defaults": plain(info.defaults), "where": here})
    return found


def _check_spec(source: Source, where: Where, spec: Mapping[str, Any]) -> None:
    from hf_optim import registry

    try:
        registry.check(dict(spec))
    except UserError as error:
        # Point at the line of the hyper-parameter that the message quotes, where there is one.
        named = [k for k in spec if k not in ("name", "base") and re.search(rf"['\"]?\b{re.escape(k)}\b", str(error))]
        raise source.error((*where, named[0]) if named else where, str(error)) from None


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: tuples become lists, anything unusual its text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _tasks(source: Source, value: Any, labels: list[str]) -> list[dict[str, Any]]:
    where: Where = ("tasks",)
    source.check_type(where, value, list, "a list of tasks")
    if not value:
        raise source.error(where, "tasks is empty: name at least one")
    found: list[dict[str, Any]] = []
    for i, item in enumerate(value):
        here = (*where, i)
        item = {"task": item} if isinstance(item, str) else item
        entry = dict(source.check_keys(here, item, TASK_KEYS, ("task",)))
        for key, expected in (
            ("task", "a task's name"),
            ("model", "a model's name"),
            ("data", "a path"),
            ("label", "a text"),
        ):
            if entry.get(key) is not None:
                source.check_type((*here, key), entry[key], str, expected)
        for key in ("schedule", "overrides", "hyper"):
            if entry.get(key) is not None:
                source.check_type((*here, key), entry[key], dict, "a mapping")
        entry.setdefault("size", "small")
        if entry["size"] not in SIZES:
            raise source.error(
                (*here, "size"), f"size must be one of {', '.join(SIZES)}, got {describe(entry['size'])}"
            )
        _complete(source, here, entry)
        entry["hyper"] = entry.get("hyper") or {}
        entry["only"] = labels if entry.get("only") is None else entry["only"]
        source.check_type((*here, "only"), entry["only"], list, "a list of optimizers' labels")
        for key, given in (("hyper", list(entry["hyper"])), ("only", entry["only"])):
            for label in given:
                if label not in labels:
                    raise source.error(
                        (*here, key, label), f"{key}: no optimizer has the label {label!r}; labels: {', '.join(labels)}"
                    )
        for label, hyper in entry["hyper"].items():
            source.check_type((*here, "hyper", label), hyper, dict, "a mapping of hyper-parameters")
        if entry.get("label") is None:
            entry["label"] = "/".join(str(p) for p in (entry["task"], entry["model"], entry["size"]) if p)
        if entry["label"] in [t["label"] for t in found]:
            raise source.error(
                here, f"the label {entry['label']!r} is used twice: add a different label: to one of the two"
            )
        found.append({**entry, "where": here})
    return found


def _complete(source: Source, here: Where, entry: dict[str, Any]) -> None:
    """Looks the task up; fills in its first model and its primary metric, and finds the data."""
    from hf_optim.task import load

    try:
        task = load(entry["task"])
    except UserError as error:
        raise source.error((*here, "task"), str(error)) from None
    entry["model"] = entry.get("model") or task.models[0]
    try:
        task.preset(entry["model"], entry["size"])
    except UserError as error:
        raise source.error((*here, "model" if entry["model"] not in task.models else "size"), str(error)) from None
    entry["title"] = task.title
    entry["primary"] = {"name": task.primary.name, "greater_is_better": task.primary.greater_is_better}
    path = entry.get("data")
    if path is not None and path not in task.embedded and not Path(path).is_absolute():
        beside = Path(source.file).parent / path
        path = str((beside if beside.exists() else Path(path)).resolve())
    if path is not None and path not in task.embedded and not Path(path).exists():
        raise source.error(
            (*here, "data"),
            f"no data set and no file or folder {entry['data']!r}; embedded sets: {', '.join(task.embedded) or 'none'}",
        )
    entry["data"] = path


def _runs(
    source: Source, tasks: Iterable[Mapping[str, Any]], optimizers: Iterable[Mapping[str, Any]], seeds: Iterable[int]
) -> tuple[Run, ...]:
    """Seed-major: an interrupted study has every optimizer on the first seeds, not some optimizers on all."""
    from hf_optim.task import RunSpec

    runs: list[Run] = []
    tasks, optimizers = list(tasks), list(optimizers)
    for seed in seeds:
        for task in tasks:
            for optimizer in optimizers:
                label = optimizer["label"]
                if label not in task["only"]:
                    continue
                spec, where = dict(optimizer["spec"]), optimizer["where"]
                if label in task["hyper"]:
                    where = (*task["where"], "hyper", label)
                    spec = _merged(spec, task["hyper"][label])
                    _check_spec(source, where, spec)
                try:
                    run: RunSpec = RunSpec(
                        task=task["task"],
                        model=task["model"],
                        size=task["size"],
                        optimizer=spec,
                        seed=seed,
                        data=task["data"],
                        schedule=task.get("schedule"),
                        overrides=task.get("overrides") or {},
                    )
                except UserError as error:
                    # Its messages begin with the key they are about: "overrides: unknown key ...".
                    key = str(error).partition(":")[0]
                    raise source.error((*task["where"], key), str(error)) from None
                runs.append(Run(run.id, task["label"], label, seed, plain(run.to_dict())))
    seen: dict[str, Run] = {}
    for run_ in runs:
        if run_.id in seen:
            twin = seen[run_.id]
            raise source.error(
                (), f"{run_.optimizer!r} on {run_.task!r} is the same run as {twin.optimizer!r} on {twin.task!r}"
            )
        seen[run_.id] = run_
    return tuple(runs)


def _merged(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(spec)
    for key, value in changes.items():
        if key == "base" and isinstance(value, dict):
            base = merged.get("base", {})
            value = _merged({"name": base} if isinstance(base, str) else base, value)
        merged[key] = value
    return merged
