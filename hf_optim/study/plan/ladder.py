"""The YAML's block `ladder`: sizes x token budgets (x batch sizes) in place of `tasks`, each a task of the study.

    ladder:
      task: lm                      # default; a task that can tell its models' sizes (`Task.rung`)
      model: llama                  # default: the task's first
      size: small                   # whose preset gives what is not said here (default small)
      parameters: [30000, 120000] # * sizes, by parameter count
      tokens: [1, 2]                # * budgets, in tokens a parameter
      baseline_tokens: [0.5, 4]     # further budgets for the baseline alone, which speed-ups are read from
      batch_size: 8                 # samples a step, or a list: every rung with each of them
      rates: tuned                  # each rung tuned (default); carried: larger sizes take the settings chosen at the
                                    # smallest one; both: tuned, and run once more with the smallest one's
      data, schedule, overrides, options, hyper, schedules, only   # of every rung, as in `tasks`

A rung is a task like any other: its steps follow from its tokens, and everything that a study does with tasks it does
with rungs. What the ladder adds is in `Plan.ladder`, for the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from hf_optim.errors import UserError
from hf_optim.study.plan import extent
from hf_optim.study.plan.source import Source, Where, describe

SHARED = ("model", "size", "data", "schedule", "overrides", "options", "hyper", "schedules", "only")
OWN = ("task", "parameters", "tokens", "baseline_tokens", "batch_size", "rates")
RATES = ("tuned", "carried", "both")
HERE: Where = ("ladder",)


def expand(source: Source, value: Any, baseline: str, tuned: bool) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The entries for `tasks`, and the block for plan.json: `rates` and the rungs.

    A rung has its task's label, `size` (parameters asked for), `parameters`, `multiple`, `tokens`, `steps`,
    `batch_size`, `flops` a token, `counted`, `all` (False: the baseline alone) and `smallest`, the label of the rung at
    the smallest size that is like it but for that.
    """
    block = source.check_keys(HERE, value, (*OWN, *SHARED), ("parameters", "tokens"))
    name = source.check_type((*HERE, "task"), block.get("task", "lm"), str, "a task's name")
    sizes = _numbers(source, "parameters", block["parameters"], whole=True)
    multiples = _numbers(source, "tokens", block["tokens"])
    alone = _numbers(source, "baseline_tokens", block["baseline_tokens"]) if block.get("baseline_tokens") else []
    if twice := [m for m in alone if m in multiples]:
        raise source.error((*HERE, "baseline_tokens"), f"baseline_tokens: {twice[0]:g} is among tokens already")
    rates = source.check_choice((*HERE, "rates"), block.get("rates", "tuned"), RATES)
    if rates != "tuned" and not tuned:
        raise source.error((*HERE, "rates"), f"rates: {rates} needs tuning:, which finds what is carried over")
    shared = {key: block[key] for key in SHARED if block.get(key) is not None}
    overrides = source.check_type((*HERE, "overrides"), shared.get("overrides", {}), dict, "a mapping")
    check_overrides(source, overrides)
    given = block.get("batch_size")
    batches = [None] if given is None else _numbers(source, "batch_size", given, whole=True)
    factors = len(sizes), len(batches), len(multiples) + len(alone)
    extent.check(source, HERE, *factors, most=extent.MOST_RUNGS, what="rungs")
    tasks: list[dict[str, Any]] = []
    rungs: list[dict[str, Any]] = []
    for size in sizes:
        for batch in batches:
            for multiple in sorted([*multiples, *alone]):
                entry, rung = _rung(source, name, {**shared, "overrides": dict(overrides)}, int(size), multiple, batch)
                if len(batches) > 1:
                    rung["task"] = entry["label"] = f"{entry['label']}, batch {rung['batch_size']}"
                like = [r for r in rungs if (r["multiple"], r["batch"]) == (multiple, batch)]
                rung |= {"all": multiple in multiples, "smallest": like[0]["task"] if like else entry["label"]}
                rung["batch"] = batch
                if not rung["all"]:
                    entry["only"] = [baseline]
                if rates == "carried" and like:
                    entry["settings"] = rung["smallest"]
                source.lines[("tasks", len(tasks))] = source.lines.get(HERE, 1)
                tasks.append(entry)
                rungs.append(rung)
    for rung in rungs:
        del rung["batch"]
    return tasks, {"rates": rates, "rungs": rungs}


def check_overrides(source: Source, overrides: Mapping[str, Any]) -> None:
    """Raise a UserError for what a rung says by itself."""
    if taken := [key for key in ("steps", "epochs", "batch_size") if key in overrides]:
        raise source.error((*HERE, "overrides"), f"overrides: {taken[0]} is the ladder's: tokens and batch_size say it")


def _rung(
    source: Source, name: str, shared: Mapping[str, Any], size: int, multiple: float, batch: float | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    from hf_optim.experiment.task import load

    options = {**source.check_type((*HERE, "options"), shared.get("options", {}), dict, "a mapping")}
    options["parameters"] = size
    try:
        task = load(name)
        model = task.model_named(shared.get("model"))
        preset = task.with_options(model, task.preset(model, shared.get("size", "small")), options)
        rung = task.rung(model, preset)
    except UserError as error:
        raise source.error(HERE, str(error)) from None
    samples = preset.batch_size.value if batch is None else int(batch)
    steps = max(1, round(multiple * rung.parameters / (samples * rung.tokens)))
    overrides = {**shared["overrides"], "steps": steps, **({} if batch is None else {"batch_size": samples})}
    label = f"{model} {short(size)} × {multiple:g}"
    entry = {"task": name, **shared, "label": label, "options": options, "overrides": overrides}
    facts = {"task": label, "size": size, "parameters": rung.parameters, "multiple": multiple}
    facts |= {"tokens": steps * samples * rung.tokens, "steps": steps, "batch_size": samples}
    return entry, {**facts, "flops": float(rung.flops), "counted": rung.counted}


def short(count: float) -> str:
    """A count of parameters or tokens in a word: 30k, 1.5M, 2B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.3g}"


def check_settings(source: Source, tasks: Sequence[Mapping[str, Any]], tuned: bool) -> None:
    """What `settings` of a task's entry names: an earlier task that is tuned itself and has its optimizers."""
    for i, task in enumerate(tasks):
        home = task.get("settings")
        if home is None:
            continue
        earlier = {t["label"]: t for t in tasks[:i] if t.get("settings") is None}
        where: Where = ("tasks", i, "settings")
        if not tuned:
            raise source.error(where, "settings: is for studies with tuning:, which chooses them")
        if home not in earlier:
            raise source.error(where, f"settings: no earlier, tuned task {home!r}; there are {json.dumps([*earlier])}")
        if task["hyper"]:
            raise source.error(where, f"settings: and hyper: exclude each other: hyper belongs to {home!r}")
        if missing := [label for label in task["only"] if label not in earlier[home]["only"]]:
            raise source.error(where, f"settings: {home!r} has no {missing[0]!r}")


def _numbers(source: Source, key: str, value: Any, *, whole: bool = False) -> list[float]:
    where: Where = (*HERE, key)
    many = value if isinstance(value, list) else [value]
    for i, number in enumerate(many):
        source.check_type(
            (*where, i), number, int if whole else (int, float), "a whole number" if whole else "a number"
        )
        if not (math.isfinite(number) and number > 0) or (i and number <= many[i - 1]):
            raise source.error(where, f"{key}: numbers above 0 that ascend, got {describe(value)}")
    if not many:
        raise source.error(where, f"{key} is empty")
    return many
