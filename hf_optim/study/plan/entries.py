"""Reads the optimizers, tasks and seeds of a study's YAML: every name looked up, every mistake with its line."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim.core import importing
from hf_optim.core.safe_text import is_plain
from hf_optim.core.validate import closest
from hf_optim.errors import UserError
from hf_optim.experiment.task import EVERY_RUN, stem_of
from hf_optim.study.plan.source import Source, Where, describe

TASK_KEYS = (
    "task", "label", "model", "size", "data", "schedule", "overrides", "options", "hyper", "schedules", "only",
    "settings",
)  # fmt: skip
SIZES = ("smoke", "small", "paper")
MOST = 10_000  # seeds, or trials of an optimizer
LONGEST, LONGEST_TASK = 40, 80  # characters of an optimizer's label, and of a task's


@dataclass(frozen=True)
class PlanCell:
    """One optimizer on one task: the task's entry, the optimizer's label, its specification there, and its place."""

    task: Mapping[str, Any]
    optimizer: str
    spec: Mapping[str, Any]
    where: Where


def optimizer_label(spec: Mapping[str, Any]) -> str:
    """The default label: the name, and for a wrapper its base in brackets: "tlr(sgd)"."""
    name, base = str(spec.get("name", "its own")), spec.get("base")
    if base is None:
        return name
    return f"{name}({optimizer_label(base) if isinstance(base, Mapping) else base})"


def _fitting(label: str, most: int, paths: Sequence[str]) -> str:
    """A default label with the names alone of what import paths name, where the whole is too long for a label."""
    for path in paths if len(label) > most else ():
        label = label.replace(path, path.rpartition(":")[2])
    return label


def default_labels(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The label of each specification; arms of one optimizer are told apart by what differs: "adamw lr=0.01"."""
    labels, given = [optimizer_label(spec) for spec in specs], [dict(_given(spec)) for spec in specs]
    fitting = []
    for spec, label, values in zip(specs, labels, given, strict=True):
        alike = [other for other, its in zip(given, labels, strict=True) if its == label]
        apart = [f"{k}={_short(v)}" for k, v in values.items() if any(k not in o or o[k] != v for o in alike)]
        fitting.append(_fitting(" ".join([label, *apart]), LONGEST, importing.paths(spec)))
    return fitting


def _given(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a specification gives, as "lr", "base.lr"; a base's name is in the label already."""
    for key, value in spec.items():
        if isinstance(value, Mapping):
            yield from _given(value, f"{prefix}{key}.")
        elif key != "name" and not (key == "base" and isinstance(value, str)):
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def optimizers(source: Source, value: Any) -> list[dict[str, Any]]:
    from hf_optim import registry

    where: Where = ("optimizers",)
    source.check_type(where, value, list, "a list of optimizers")
    if not value:
        raise source.error(where, "optimizers is empty: name at least one")
    entries: list[dict[str, Any]] = []
    specs, own = [], []
    for i, item in enumerate(value):
        here = (*where, i)
        source.check_type(here, item, (str, dict), "an optimizer's name or a mapping with a name")
        spec = {"name": item} if isinstance(item, str) else dict(item)
        if not isinstance(spec.get("name"), str):
            raise source.error(here, "an optimizer needs a name: {name: adamw, lr: 0.001}")
        own.append(spec.pop("label", None))
        _check_run(source, here, spec)
        check_entry(source, here, spec)
        specs.append(spec)
    defaults_of = iter(default_labels([spec for spec, label in zip(specs, own, strict=True) if label is None]))
    for i, (spec, label) in enumerate(zip(specs, own, strict=True)):
        here = (*where, i)
        label = next(defaults_of) if label is None else label
        source.check_type((*here, "label"), label, str, "a text")
        if not is_plain(label) or len(label) > LONGEST:
            raise source.error(
                here, f"a label has 1 to 40 characters in one line, got {describe(label)}: give a label:"
            )
        if label in [o["label"] for o in entries]:
            raise source.error(here, f"the label {label!r} is used twice: add a different label: to one of the two")
        # An import path says nothing about its defaults before it is imported, which is not done here.
        defaults = {} if ":" in spec["name"] else plain(registry.info(spec["name"]).defaults)
        entries.append({"label": label, "spec": spec, "defaults": defaults, "where": here})
    return entries


def _check_run(source: Source, where: Where, setting: Mapping[str, Any]) -> None:
    """Raise a UserError unless what a setting says of the run is a mapping."""
    if setting.get("run") is not None:
        source.check_type((*where, "run"), setting["run"], dict, "a mapping, as {batch_size: 64}")


def check_entry(source: Source, where: Where, spec: Mapping[str, Any]) -> None:
    from hf_optim import registry

    try:
        registry.check_spec(split_setting(spec)[0])
    except UserError as error:
        # Point at the line of the hyper-parameter that the message quotes, where there is one.
        named = [k for k in spec if k not in ("name", "base") and re.search(rf"['\"]?\b{re.escape(k)}\b", str(error))]
        raise source.error((*where, named[0]) if named else where, str(error)) from None


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: tuples become lists, anything unusual its text: infinity is "inf"."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def with_data(value: Any, data: str | None) -> Any:
    """A list of tasks' entries with `data` in place of their own: the set that a task has under this name, else a path
    from the current folder. What is no list of entries is left to `tasks` to refuse.
    """
    from hf_optim.experiment.task import names_data

    if data is None or not isinstance(value, list):
        return value
    here = str(Path(data).resolve()) if data and Path(data).exists() else data
    named = [{"task": entry} if isinstance(entry, str) else entry for entry in value]
    return [
        {**entry, "data": data if names_data(entry.get("task", ""), data) else here}
        if isinstance(entry, dict)
        else entry
        for entry in named
    ]


def tasks(source: Source, value: Any, labels: list[str]) -> list[dict[str, Any]]:
    where: Where = ("tasks",)
    source.check_type(where, value, list, "a list of tasks")
    if not value:
        raise source.error(where, "tasks is empty: name at least one")
    entries: list[dict[str, Any]] = []
    for i, item in enumerate(value):
        here = (*where, i)
        item = {"task": item} if isinstance(item, str) else item
        entry = dict(source.check_keys(here, item, TASK_KEYS, ("task",)))
        for key, expected in (
            ("task", "a task's name"),
            ("model", "a model's name"),
            ("data", "a path"),
            ("label", "a text"),
            ("settings", "another task's label"),
        ):
            if entry.get(key) is not None:
                source.check_type((*here, key), entry[key], str, expected)
        for key in ("schedule", "overrides", "options", "hyper", "schedules"):
            if entry.get(key) is not None:
                source.check_type((*here, key), entry[key], dict, "a mapping")
        entry.setdefault("size", "small")
        source.check_choice((*here, "size"), entry["size"], SIZES)
        _complete(source, here, entry)
        entry["hyper"] = entry.get("hyper") or {}
        schedules = entry.get("schedules") or {}
        entry["only"] = labels if entry.get("only") is None else entry["only"]
        source.check_type((*here, "only"), entry["only"], list, "a list of optimizers' labels")
        if not entry["only"]:
            raise source.error((*here, "only"), "only is empty: name an optimizer's label, or leave the task out")
        for i, label in enumerate(entry["only"]):
            source.check_type((*here, "only", i), label, str, "an optimizer's label")
        for key, given in (("hyper", list(entry["hyper"])), ("schedules", list(schedules)), ("only", entry["only"])):
            for label in given:
                if label not in labels:
                    raise source.error(
                        (*here, key, label), f"{key}: no optimizer has the label {label!r}; labels: {', '.join(labels)}"
                    )
        for label, hyper in entry["hyper"].items():
            source.check_type((*here, "hyper", label), hyper, dict, "a mapping of hyper-parameters")
            _check_run(source, (*here, "hyper", label), hyper)
        if entry.get("label") is None:
            whole = "/".join(str(p) for p in (entry["task"], entry["model"], entry["size"]) if p)
            entry["label"] = _fitting(whole, LONGEST_TASK, importing.paths({"task": entry["task"]}))
        if not is_plain(entry["label"]) or len(entry["label"]) > LONGEST_TASK:
            raise source.error(
                here,
                f"a label has 1 to 80 characters in one line, got {describe(entry['label'])}: give the entry a label:",
            )
        if entry["label"] in [t["label"] for t in entries]:
            raise source.error(
                here, f"the label {entry['label']!r} is used twice: add a different label: to one of the two"
            )
        entries.append({**entry, "where": here})
    return entries


def _complete(source: Source, here: Where, entry: dict[str, Any]) -> None:
    """Looks the task up; fills in its first model and its primary metric, and finds the data."""
    from hf_optim.experiment.task import load

    try:
        task = load(entry["task"])
    except UserError as error:
        raise source.error((*here, "task"), str(error)) from None
    try:
        task.check_entry(entry)
    except UserError as error:
        raise source.error((*here, str(error).partition(":")[0]), str(error)) from None
    entry["model"] = task.model_named(entry.get("model"))
    try:
        preset = task.preset(entry["model"], entry["size"])
    except UserError as error:
        raise source.error((*here, "model" if entry["model"] not in task.models else "size"), str(error)) from None
    try:
        task.with_options(entry["model"], preset, entry.get("options") or {})
    except UserError as error:
        raise source.error((*here, "options"), str(error)) from None
    given = entry.get("overrides") or {}
    entry["steps"] = given.get("steps", None if "epochs" in given else preset.steps.value)
    entry["batch"] = given.get("batch_size", preset.batch_size.value)
    entry["title"] = task.title
    entry["primary"] = {"name": task.primary.name, "greater_is_better": task.primary.greater_is_better}
    entry["metrics"] = {m.name: [m.greater_is_better, m.unit] for m in (*task.metrics, *EVERY_RUN)}
    path, named = entry.get("data"), {**task.embedded, **task.remote}
    if path == "":  # to pathlib it is the current folder
        raise source.error((*here, "data"), "data: expected a name or a path, got ''")
    if path is not None and path not in named and not Path(path).is_absolute():
        beside = Path(source.file).parent / path
        path = os.path.realpath(beside if beside.exists() else path)
    if path is not None and path not in named and not Path(path).exists():
        near, sets = closest(entry["data"], named), ", ".join(named) or "none"
        raise source.error(
            (*here, "data"), f"no data set and no file or folder {entry['data']!r}{near}; sets by name: {sets}"
        )
    entry["data"] = path


def is_setting(key: str) -> bool:
    """Whether "lr" or "base.lr" can be a setting of a rule, its base or the run, and says not which of these it is."""
    return key.rpartition(".")[2] not in ("name", "base", "run")


def split_setting(spec: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """A setting as the optimizer's own specification, and what it says of the run (`run: {schedule: ...}`)."""
    return {key: value for key, value in spec.items() if key != "run"}, spec.get("run") or {}


def merged(spec: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with `changes`; those of a wrapper's base are merged into its base, those of the run into its run's."""
    merged_spec = dict(spec)
    for key, value in changes.items():
        if key == "run":
            value = {**(merged_spec.get("run") or {}), **value}
        elif key == "base" and isinstance(value, Mapping):
            base = merged_spec.get("base") or {}
            value = merged({"name": base} if isinstance(base, str) else base, value)
        merged_spec[key] = value
    return merged_spec


def rules(spec: Mapping[str, Any]) -> list[str]:
    """The names of the rule that a specification names, of its base and so on."""
    base = spec.get("base")
    own = [spec["name"]] if "name" in spec else []
    return own + (rules(base) if isinstance(base, Mapping) else [] if base is None else [base])


def declared(task: Mapping[str, Any], metric: str) -> tuple[bool, str] | None:
    """(greater is better, unit) of a figure, as its task declares it; None where nothing is declared.

    `task` is an entry of a plan; one of an older plan declares its primary metric and what every run records. Of what
    it is judged by the primary says the direction, whatever a stranger's plan declares beside it.
    """
    stem, primary, known = stem_of(metric), task["primary"], task.get("metrics") or {}
    if stem == stem_of(primary["name"]):
        return bool(primary["greater_is_better"]), str(known[stem][1]) if stem in known else ""
    if metric.startswith(("time.", "memory.")):  # what a run cost
        return False, ""
    if stem in known:
        return bool(known[stem][0]), str(known[stem][1])
    return next(((m.greater_is_better, m.unit) for m in EVERY_RUN if m.name == stem), None)


def is_share(task: Mapping[str, Any], metric: str) -> bool:
    """Whether a figure lies between 0 and 1, as its task declares it."""
    return (declared(task, metric) or (False, ""))[1] == "share"
