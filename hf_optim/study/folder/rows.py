"""Every run of a study as one flat row, and what a reader does with rows: filter, choose columns, group, compare."""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_optim.core import numerals
from hf_optim.core.shape import FARTHEST
from hf_optim.core.validate import closest
from hf_optim.core.wording import both, counted, either
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.study.folder.outcomes import IN_VAIN
from hf_optim.study.folder.results import Results
from hf_optim.study.folder.store import recorded
from hf_optim.study.plan.entries import optimizer_label
from hf_optim.study.plan.plan import Run, flatten
from hf_optim.study.statistics import paired as statistics

Row = dict[str, Any]
FIRST = ("study", "task", "optimizer", "seed", "id", "status", "stage", "metric", "value", "error")
_CONDITION = re.compile(r"\s*([^\s!<>=]+)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")


def of(results: Results) -> list[Row]:
    """A row a run: the judged ones in the plan's order, other stages' after them, then runs that are not planned.

    Columns: study, task and optimizer (labels), seed, id, status (ok, failed, missing; failed also where a judged run
    is no better than untrained, as in verdicts), stage (judged, tuning, speedup, carried, sensitivity, variance, or
    none for a run that is in the folder and no longer in the plan), metric and value (the primary metric), error; every
    metric by its name; time, memory, data, environment and execution by theirs; and what decided the run, as
    `spec.optimizer.lr`.
    """
    plan = results.plan
    tasks = {t["label"]: t for t in plan.tasks}
    store = results.store
    rows, seen = [], set()
    for stage, run in _staged(results):
        if run.id in seen:
            continue
        seen.add(run.id)
        head = {"study": plan.name, "task": run.task, "optimizer": run.optimizer, "seed": run.seed, "id": run.id}
        record = results.records.get(run.id) or store.record(run.id)
        row = _row({**head, "stage": stage}, run.spec, record, tasks[run.task]["primary"]["name"])
        if stage == "judged" and run.id in results.in_vain:
            row |= {"status": "failed", "error": IN_VAIN}
        rows.append(row if record is not None else {**row, "error": store.unreadable.get(run.id)})
    for name in recorded(results.folder):
        if name in seen or (record := store.record(name)) is None:
            continue
        try:
            RunSpec.from_dict(spec := record["spec"])
        except UserError:
            continue
        label = "/".join(str(spec[key]) for key in ("task", "model", "size") if spec.get(key))
        head = {"study": plan.name, "task": label, "optimizer": optimizer_label(spec["optimizer"])}
        head |= {"seed": spec["seed"], "id": record["id"], "stage": "none"}
        rows.append(_row(head, spec, record, str((record.get("primary") or {}).get("name", ""))))
    return rows


def of_several(studies: Sequence[Results]) -> list[Row]:
    """`of` each. Where two plans bear one name, as a merge and its first part do, or a stranger's and yours, `study` is
    the folder's.
    """
    names = [results.plan.name for results in studies]
    if len(set(names)) < len(names):
        names = folder_names([results.folder.resolve() for results in studies])
    return [row | {"study": name} for name, results in zip(names, studies, strict=True) for row in of(results)]


def folder_names(folders: Sequence[Path]) -> list[str]:
    """What the folders are called, with as many of those above as tell them apart."""
    every = ({folder: "/".join(folder.parts[-parts:]) for folder in folders} for parts in itertools.count(1))
    names = next(names for names in every if len(set(names.values())) == len(names))
    return [names[folder] for folder in folders]


def _staged(results: Results) -> Iterator[tuple[str, Run]]:
    plan = results.plan
    yield from (("judged", run) for run in plan.runs)
    if not any((plan.tuning, plan.speedup, plan.sensitivity, plan.variance)):
        return
    state = results.standing.state
    yield from (("tuning", trial.run) for search in state.searches for trial in search.trials)
    yield from (("speedup", budget.run) for budget in state.budgets)
    yield from (("carried", carried.run) for carried in state.carried)
    yield from (("sensitivity", grid_run.run) for grid_run in state.grid)
    yield from (("variance", variation.run) for variation in state.variations)


def _row(head: Row, spec: Mapping[str, Any], record: Mapping[str, Any] | None, metric: str) -> Row:
    row: Row = dict.fromkeys(FIRST) | head | {"status": "missing", "metric": metric}
    if record is not None:
        row |= {"status": record.get("status", "failed"), "error": record.get("error")}
        for place in ("metrics", "time", "memory"):  # a figure of `time` by a metric's name is none of the metric
            row |= {name: value for name, value in (record.get(place) or {}).items() if name not in row}
        row["value"] = (record.get("metrics") or {}).get(metric)
        row |= {f"data.{k}": v for k, v in (record.get("data") or {}).items()}
        row |= {f"{p}.{k}": v for p in ("environment", "execution", "code") for k, v in (record.get(p) or {}).items()}
        row |= {key: record.get(key) for key in ("started", "finished")}
    return row | {f"spec.{key}": value for key, value in flatten(spec).items()}


def columns(rows: Iterable[Row]) -> list[str]:
    """Every column that a row has, in the order of first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))


def find_column(name: str, known: Sequence[str]) -> str:
    """The column called `name`, or the only one that ends in `.name`; a UserError lists near ones."""
    if name in known:
        return name
    ending = [column for column in known if column.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        raise UserError(f"column {name!r} may mean {either(ending)}: write one of them")
    near = [column for column in known if name.lower() in column.lower()]
    said = f"near: {', '.join(near[:8])}" if near else _listed(known)
    raise UserError(f"no column {name!r}{closest(name, known)}; {said}")


def _listed(known: Sequence[str]) -> str:
    return f"columns: {', '.join(known[:30])}{' ...' if len(known) > 30 else ''}"


def choose(rows: Sequence[Row], asked: str | None, usual: Sequence[str]) -> list[str]:
    """The columns that `asked` names, separated by commas, with wildcards; `usual` ones where nothing is asked."""
    if not asked:
        return list(usual)
    known = columns(rows)
    chosen: list[str] = []
    for name in filter(None, (part.strip() for part in asked.split(","))):
        wild = [c for c in known if fnmatch.fnmatchcase(c, name)] if any(c in name for c in "*?[") else []
        chosen += wild or [find_column(name, known)]
    return list(dict.fromkeys(chosen))


def usual_columns(rows: Sequence[Row]) -> list[str]:
    """What tells runs apart and what they reached."""
    several = len({row["study"] for row in rows}) > 1
    extra = [name for name in ("error",) if any(row["error"] for row in rows)]
    head = [*(["study"] if several else []), *(["stage"] if len({row["stage"] for row in rows}) > 1 else [])]
    return [*head, "task", "optimizer", "seed", "status", *judged_by(rows), "train_seconds", *extra]


def judged_by(rows: Sequence[Row]) -> list[str]:
    """The columns of the primary metrics; `value` for one that is called as a column of something else."""
    of: dict[str, list[Row]] = {}
    for row in rows:
        of.setdefault(str(row["metric"]), []).append(row)
    of.pop("", None)
    alike = {name: all(row.get(name) == row["value"] for row in some) for name, some in of.items()}
    return list(dict.fromkeys(name if alike[name] else "value" for name in of))


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet every condition: `optimizer=adam*`, `lr<=0.01`, `status!=ok`, separated by commas.

    `=` and `!=` take wildcards, and compare numbers as numbers; an ordering needs a number on both sides, and an empty
    cell meets none.
    """
    known = columns(rows)
    tests = [_condition(part, known) for text in conditions for part in text.split(",") if part.strip()]
    return [row for row in rows if all(test(row) for test in tests)]


def meant(rows: Sequence[Row], conditions: Sequence[str]) -> str:
    """` (did you mean ...?)` for the first condition whose value no row has, where another is near it."""
    known = columns(rows)
    for parsed in (_CONDITION.fullmatch(part) for text in conditions for part in text.split(",")):
        word = parsed is not None and parsed[2] == "=" and as_float(parsed[3]) is None
        if parsed is not None and word and not where(rows, [parsed[0]]):
            column = find_column(parsed[1], known)
            return closest(parsed[3], {str(row[column]) for row in rows if row.get(column) is not None})
    return ""


def _condition(text: str, known: Sequence[str]) -> Callable[[Row], bool]:
    parsed = _CONDITION.fullmatch(text)
    if parsed is None:
        raise UserError(f"--where: {text.strip()!r} is no condition: write COLUMN=VALUE, or !=, <, <=, >, >=")
    name, sign, value = parsed.groups()
    column, wanted = find_column(name, known), as_float(value)
    if sign in ("=", "!="):

        def equal(row: Row) -> bool:
            cell = row.get(column)
            number = as_float(cell)
            if number is not None and wanted is not None:
                return number == wanted
            return fnmatch.fnmatchcase("" if cell is None else str(cell).lower(), value.lower())

        return equal if sign == "=" else lambda row: not equal(row)
    if wanted is None:
        raise UserError(f"--where: {text.strip()!r} needs a number after {sign}")
    ordered: dict[str, Callable[[float], bool]] = {
        "<": lambda x: x < wanted,
        "<=": lambda x: x <= wanted,
        ">": lambda x: x > wanted,
        ">=": lambda x: x >= wanted,
    }
    return lambda row: (x := as_float(row.get(column))) is not None and ordered[sign](x)


def as_float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return numerals.number(value) if isinstance(value, str) else float(value)
    except ValueError:
        return None


def group(rows: Sequence[Row], by: Sequence[str], measured: Sequence[str]) -> list[Row]:
    """A row for each combination of `by`: runs, failed and missing ones, and mean and sd of each `measured` column
    over the runs that finished. A combination with a failed run keeps its mean, and the count beside it says so. A run
    that several studies have, as a merge beside its parts, counts once.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(_key(row.get(name)) for name in by), []).append(row)
    lines = []
    for several in groups.values():
        some = _once(several)
        counts = {status: sum(outcome(row) == status for row in some) for status in ("ok", "failed", "missing")}
        line: Row = {**{name: several[0].get(name) for name in by}, "runs": len(some), **counts}
        for name in measured:
            fine = [as_float(row.get(name)) for row in some if row["status"] == "ok"]
            summary = statistics.summarise([x for x in fine if x is not None and abs(x) < FARTHEST])
            line[f"{name} mean"], line[f"{name} sd"] = cell(summary.mean), cell(summary.sd)
        lines.append(line)
    return lines


def _key(cell: Any) -> Any:
    """What cells are told apart by: a setting may be a list, such as betas."""
    return json.dumps(cell) if isinstance(cell, list | dict) else cell


def outcome(row: Row) -> str:
    """The status; "failed" also where a run that ended has no number for its metric, as in a study's verdicts."""
    return "failed" if row["status"] == "ok" and as_float(row["value"]) is None else str(row["status"])


def _once(rows: Sequence[Row]) -> list[Row]:
    """Every run once: the same specification with the same result is no further sample, one that is missing where
    another study has it neither.
    """
    there = {row["id"] for row in rows if row["status"] != "missing"}
    kept: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["status"] != "missing" or row["id"] not in there:
            kept.setdefault((row["id"], row["status"], row["value"]), row)
    return list(kept.values())


def told_twice(rows: Sequence[Row]) -> str:
    """What a reader of groups is told of runs that studies tell differently; empty without any."""
    results: dict[str, dict[str, Row]] = {}
    for row in _once(rows):
        if row["status"] != "missing":
            value = "" if row["value"] is None else f" {row['value']}"
            results.setdefault(row["id"], {})[f"{outcome(row)}{value}"] = row
    several = [told for told in results.values() if len(told) > 1]
    if not several:
        return ""
    row = next(iter(several[0].values()))
    first = f"{row['optimizer']} on {row['task']}, seed {row['seed']}: {both(several[0])}"
    return f"{counted(len(several), 'run')} with more than one result, each counted ({first}): name one study of these"


def cell(value: float) -> float | None:
    """A number for a row; None where there is none."""
    return None if math.isnan(value) else value


def folders(names: Sequence[str]) -> list[Path]:
    """The study folders that `names` mean; a UserError for one that is none. What stands in a plan's place and is no
    file is named as that, by who reads it.
    """
    paths = [Path(name) for name in names]
    for path in paths:
        try:
            os.lstat(path / "plan.json")
        except (FileNotFoundError, NotADirectoryError):
            where = f"no study in {str(path)!r}"
            raise UserError(f"{where}: give the folder of a study, such as studies/quickstart") from None
    return paths
