"""Study folders made of records alone, for tests of what reads them."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hf_optim.experiment.spec import RunSpec
from hf_optim.study.plan.plan import cell_spec, make_run

PRIMARY = {"name": "test_accuracy", "greater_is_better": True}


def accuracy(label: str, seed: int) -> float:
    """A repeatable accuracy around 0.95."""
    return 0.95 + 0.01 * random.Random(f"{label} {seed}").gauss(0, 1)


def make_study(
    folder: Path,
    labels: Sequence[str] = ("adamw", "smaran", "adan"),
    tasks: Sequence[str] = ("MLP",),
    seeds: int = 3,
    *,
    value: Callable[[str, int], float] = accuracy,
    failed: Collection[tuple[str, int]] = (),
    missing: Collection[tuple[str, int]] = (),
    steps: int = 40,
    milliseconds: float = 5.0,
    spent: bool = False,
) -> Path:
    """Writes plan.json and the records of a study; `value` gives the test accuracy of a label and a seed; with `spent`
    the histories say what was spent.
    """
    runs = []
    for seed in range(seeds):
        for task in tasks:
            for label in labels:
                asked = RunSpec("vision", task.lower(), "small", {"name": label, "lr": 0.1}, seed)
                run_id = asked.id
                runs.append({"id": run_id, "task": task, "optimizer": label, "seed": seed, "spec": asked.to_dict()})
                if (label, seed) not in missing:
                    home = folder / "runs" / run_id
                    home.mkdir(parents=True, exist_ok=True)
                    write_run(home, runs[-1], value(label, seed), (label, seed) in failed, steps, milliseconds)
                    if spent:
                        _spend(home / "history.jsonl", 1 + labels.index(label))
    plan = {
        "format": 1,
        "name": "fake",
        "title": "A fake study",
        "origin": "fake",
        "baseline": labels[0],
        "seeds": list(range(seeds)),
        "tasks": [
            {"task": "vision", "label": task, "model": task.lower(), "size": "small", "data": None, "hyper": {},
             "only": list(labels), "title": "Images", "primary": PRIMARY}
            for task in tasks
        ],
        "optimizers": [
            {"label": label, "spec": {"name": label, "lr": 0.1}, "defaults": {"lr": 0.001, "betas": [0.9, i / 100]}}
            for i, label in enumerate(labels)
        ],
        "runs": runs,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / "study.yaml").write_text("name: fake\n")
    return folder


def replan(folder: Path, change: Callable[[dict], None]) -> dict:
    """Changes the plan of a study, and then every run and its record to what its labels say; gives the plan."""
    plan = json.loads((folder / "plan.json").read_text())
    change(plan)
    tasks = {task["label"]: task for task in plan["tasks"]}
    optimizers = {optimizer["label"]: optimizer for optimizer in plan["optimizers"]}
    for run in plan["runs"]:
        task, gone = tasks[run["task"]], folder / "runs" / run["id"]
        run |= dataclasses.asdict(
            make_run(task, run["optimizer"], cell_spec(task, optimizers[run["optimizer"]]), run["seed"])
        )
        if gone.is_dir():
            home = gone.rename(gone.with_name(run["id"]))
            record = json.loads((home / "record.json").read_text())
            (home / "record.json").write_text(json.dumps({**record, "id": run["id"], "spec": run["spec"]}))
    (folder / "plan.json").write_text(json.dumps(plan))
    return plan


def _spend(history: Path, passes: int) -> None:
    """Every row says that a step took so many forward passes, one backward pass and a tenth of a second."""
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    for row in rows:
        n = row["step"]
        row |= {"forward_passes": passes * n, "backward_passes": n, "seconds": n / 10}
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(home: Path, run: dict, value: float, failed: bool, steps: int, milliseconds: float) -> None:
    rows = []
    for step in range(1, (steps // 3 if failed else steps) + 1):
        loss = 2.3 * math.exp(-step / 10) + 0.01
        rows.append({"step": step, "train_loss": loss, "lr": 0.1, "effective_lr": 0.1 / step})
        if step % 10 == 0:
            rows.append({"step": step, "validation_loss": loss, "validation_accuracy": value * step / steps})
    (home / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"test_accuracy": value, "test_loss": 1 - value, "train_loss": 0.01}
    metrics |= {"loss_gap": 0.02, "accuracy_gap": 0.03}
    record = {
        "id": run["id"],
        "spec": run["spec"],
        "status": "failed" if failed else "ok",
        "error": "the loss became NaN at step 13" if failed else None,
        "metrics": {} if failed else metrics,
        "primary": PRIMARY,
        "history": "history.jsonl",
        "time": {"train_seconds": 2.0, "step_ms_median": milliseconds, "optimizer_ms_median": 1.0, "steps": steps},
        "memory": {"optimizer_state_bytes": 8000, "parameters": 1000, "peak_rss_bytes": 10**9},
        "environment": {"python": "3.11", "torch": "2.13"},
        "data": {"name": "digits", "fingerprint": "ab" * 32, "note": "real digits"},
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T10:00:02+00:00",
    }
    (home / "record.json").write_text(json.dumps(record))
