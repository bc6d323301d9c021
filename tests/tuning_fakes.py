"""Instant runs for tests of tuning: a record whose metrics are a function of the run's specification."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_optim.experiment.files import write_json, write_rows
from hf_optim.study.launch.follow import follow
from hf_optim.study.plan import plan, source
from hf_optim.study.plan.plan import Plan, Run

Outcome = Mapping[str, Any]
BEFORE = {"step": 0, "validation_accuracy": 0.1, "validation_loss": 2.3}

YAML = """\
name: tuned
seeds: 3
tasks:
  - {task: vision, model: mlp, size: smoke, label: MLP, overrides: {steps: 100}}
optimizers:
  - adamw
  - {name: smaran, label: SMARAN}
  - {name: tlr, base: sgd}
tuning:
  trials: 6
  space:
    SMARAN: {lr: [0.003, 1.0, log]}
"""


def expand(text: str = YAML, **options: Any) -> Plan:
    return plan.expand(source.parse(text, "s.yaml"), **options)


def rate(run: Run) -> float:
    spec = run.spec["optimizer"]
    return float(spec["lr"] if "lr" in spec else spec["base"]["lr"])


def good_rate(run: Run) -> Outcome:
    """The validation accuracy is best at a rate of 0.01; the test accuracy depends on seed and optimizer."""
    validation = 0.9 - 0.1 * abs(math.log10(rate(run) / 0.01))
    noise = random.Random(f"{run.seed} {run.optimizer}").gauss(0, 0.01)
    return {"validation_accuracy": validation, "validation_loss": 1 - validation, "test_accuracy": 0.8 + noise}


def write(run: Run, folder: Path, outcome: Outcome | None, *, steps: int = 100, pruned: bool = False) -> None:
    """A run's record and history; an outcome of None is a failure. Validation rises evenly to its final value."""
    home = folder / "runs" / run.id
    home.mkdir(parents=True, exist_ok=True)
    rows = [BEFORE]
    if outcome is not None:
        for step in (25, 50, 75, 100):
            value = 0.1 + (outcome["validation_accuracy"] - 0.1) * step / 100
            rows.append({"step": step, "validation_accuracy": value, "validation_loss": 1 - value})
    write_rows(home, "history.jsonl", rows)
    record = {"id": run.id, "spec": run.spec, "status": "ok" if outcome else "failed", "metrics": outcome or {}}
    record |= {"error": None if outcome else "the loss became NaN", "history": "history.jsonl"}
    record |= {"time": {"steps": steps}, "memory": {}, "data": None}
    write_json(home, "record.json", {**record, **({"pruned": True} if pruned else {})})


def finish(run: Run, folder: Path, outcome: Callable[[Run], Outcome | None] = good_rate) -> None:
    """Executes a fake run as the worker would: unless it has a record, and stopped early where it is to be."""
    if (folder / "runs" / run.id / "record.json").exists():
        return
    metrics = outcome(run)
    for step, limit in run.spec.get("pruning", ()):
        if metrics is not None and 0.1 + (metrics["validation_accuracy"] - 0.1) * step / 100 < limit:
            write(run, folder, None, steps=step, pruned=True)
            return
    write(run, folder, metrics, steps=100 if metrics else 40)


def whole(planned: Plan, folder: Path, outcome: Callable[[Run], Outcome | None] = good_rate) -> Path:
    """The study from its first trial to its last run."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(planned.to_dict()))
    for stage in follow(planned, folder):
        for run in stage.todo:
            finish(run, folder, outcome)
    return folder


def steps(planned: Plan, folder: Path, outcome: Callable[[Run], Outcome | None] = good_rate) -> Iterator[Run]:
    """A launcher that may be abandoned (killed) after any run: yields each run before it is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in follow(planned, folder):
        for run in stage.todo:
            yield run
            finish(run, folder, outcome)


def even(run: Run) -> dict[str, float]:
    """Nothing differs between optimizers but for a little noise that keeps everything undecided."""
    noise = random.Random(f"{run.seed} {run.optimizer}").gauss(0, 0.01)
    spec = run.spec["optimizer"]
    tuned = "lr" in spec or isinstance(spec.get("base"), dict)
    rest = good_rate(run) if tuned else {"validation_accuracy": 0.5, "validation_loss": 1.0}
    return {**rest, "test_accuracy": 0.8 + noise}


def one_in_vain(folder: Path) -> Plan:
    """A study without tuning, one run of which ends where the untrained model stands, at an accuracy of .1."""
    planned = expand(YAML[: YAML.index("tuning:")])
    (folder / "plan.json").write_text(json.dumps(planned.to_dict()))
    for run in planned.runs:
        value = 0.1 if run.optimizer == "SMARAN" and run.seed == 2 else 0.5
        finish(run, folder, lambda r, value=value: {**even(r), "validation_accuracy": value})
    return planned


def contents(folder: Path) -> dict[str, str]:
    """What each run's record holds, by id."""
    return {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("runs/*/record.json")
    }
