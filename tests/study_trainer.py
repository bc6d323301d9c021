"""In place of training: the records and histories of a study's runs, made up as a draw says (`study_options`).

What a run came to is a function of its task, its seed and its settings, so that what is asked in another order, in two
halves or after an interruption is the same.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study_options import FACTORS, Draw

from hf_optim.experiment.files import own_folder, write_json, write_rows
from hf_optim.study.folder.searches import validation_metric
from hf_optim.study.launch.worker import write_failure
from hf_optim.study.plan.plan import Plan, Run


class Stopped(KeyboardInterrupt):
    """Somebody stops the study."""


class Trainer:
    """In place of the launcher: writes what a draw says of every run, and stops after so many of them."""

    def __init__(self, draw: Draw, plan: Plan, most: float = math.inf) -> None:
        self.draw, self.plan, self.left = draw, plan, most
        self.tasks = {task["label"]: task for task in plan.tasks}

    def __call__(self, todo: list[Run], folder: Path, how: Any, *, on_finish: Any = None, **_: Any) -> None:
        for run in todo:
            if self.left <= 0:
                raise Stopped
            self.left -= 1
            status = self.train(run, own_folder(folder, "runs", run.id))
            if on_finish is not None:
                on_finish(run, status, 0.1)

    def train(self, run: Run, home: Path) -> str:
        """One run's record and history."""
        home.mkdir(parents=True, exist_ok=True)
        # Not of the label: a rate's grid may have the run of another arm.
        chance = random.Random(json.dumps([run.task, run.seed, run.spec["optimizer"]], sort_keys=True))
        if error := self._failure(run, chance):
            fault = "machine" if "memory" in error else None
            write_failure(home, run.id, dict(run.spec), error, 0.0, fault)
            return "failed"
        task = self.tasks[run.task]
        start, end = self._figures(task, run, chance)
        steps = int(run.spec["overrides"].get("steps") or task["steps"] or 40)
        rows = self._rows(start, end, steps, 1 + len(run.spec["optimizer"]["name"]) % 3)
        pruned = 0
        name, sign = validation_metric(task), 1 if task["primary"]["greater_is_better"] else -1
        for step, limit in run.spec.get("pruning", ()):
            seen = [sign * row[name] for row in rows if name in row and row["step"] <= step]
            if seen and max(seen) < sign * limit and not pruned:
                pruned = step
        rows = [row for row in rows if not pruned or row["step"] <= pruned]
        kept = {"one point": rows[-1:], "no start": rows[1:], "empty": [], "none": []}.get(self.draw["history"], rows)
        if self.draw["history"] != "none":
            write_rows(home, "history.jsonl", kept)
        metrics = {f"{split}_{key}": value for split in ("validation", "test") for key, value in end.items()}
        metrics |= {"train_loss": 0.5, "loss_gap": 0.1 * chance.random()}
        record: dict[str, Any] = {
            "id": run.id,
            "spec": run.spec,
            "status": "failed" if pruned else "ok",
            "error": f"stopped at step {pruned}: hopeless" if pruned else None,
            **({"pruned": bool(pruned)} if run.spec.get("pruning") else {}),
            "metrics": {} if pruned else metrics,
            "primary": task["primary"],
            "history": None if self.draw["history"] == "none" else "history.jsonl",
            "time": {"steps": pruned or steps},
            "memory": {},
            "environment": {"torch": "2.13"},
            "data": None,
            "started": "2026-01-01T10:00:00+00:00",
            "finished": "2026-01-01T10:00:02+00:00",
        }
        if self.draw["record"] == "whole":
            passes = {"forward_passes": 2 * steps, "backward_passes": steps, "flops_per_step": None}
            record["time"] |= {"train_seconds": 2.0, "step_ms_median": 1.0 + chance.random(), **passes}
            record["memory"] = {"optimizer_state_bytes": 8000, "parameters": 1000, "peak_card_bytes": None}
            record["data"] = {"name": "digits", "fingerprint": "ab" * 32, "note": "", "test_samples": 20}
        write_json(home, "record.json", record)
        return str(record["status"])

    def _failure(self, run: Run, chance: random.Random) -> str:
        told = FACTORS["failures"][self.draw["failures"]]
        drawn = chance.random()
        if told == "machine":
            return "CUDA out of memory" if drawn < 0.3 else ""
        last, base = (
            next(o["spec"]["name"] for o in self.plan.optimizers if o["label"] == label)
            for label in (max(o["label"] for o in self.plan.optimizers), self.plan.baseline)
        )
        name = run.spec["optimizer"]["name"]
        lost = {"arm": name == last, "baseline": name == base}
        hit = lost[told] if told in lost else drawn < told
        return "the loss became NaN at step 13" if hit else ""

    def _figures(self, task: Mapping[str, Any], run: Run, chance: random.Random) -> tuple[dict[str, float], ...]:
        """Every metric before and after training."""
        kind = self.draw["values"]
        stems = {str(task["primary"]["name"]).removeprefix("test_"): task["primary"]["greater_is_better"]}
        stems |= {name: up for name, (up, _) in (task.get("metrics") or {}).items() if name in ("accuracy", "loss")}
        stems.setdefault("loss", False)
        common = random.Random(f"{run.task} {run.seed}").gauss(0, 0.02)
        odd = chance.random() < 0.3
        start, end = {}, {}
        for stem, up in stems.items():
            before, value = (0.1, 0.7) if up else (2.3, 0.9)
            value += {"ties": common, "alike": 0.0}.get(kind, common + chance.gauss(0, 0.01))
            if kind == "apart":
                value += 0.01 * (sum(map(ord, run.spec["optimizer"]["name"])) % 17)
            if kind == "coarse":
                value = round(20 * value) / 20
            before, value = {
                "zero": (-1.0 if up else 1.0, 0.0),
                "negative": (before - 10, value - 10),
                "huge": (before * 1e148, value * 1e148),
                "tiny": (before * 1e-148, value * 1e-148),
                "none": (before, math.nan if odd else value),
                "infinite": (before, (math.inf if chance.random() < 0.5 else -math.inf) if odd else value),
                "in vain": (before, before if odd else value),
            }.get(kind, (before, value))
            start[stem], end[stem] = before, value
        return start, end

    def _rows(
        self, start: Mapping[str, float], end: Mapping[str, float], steps: int, passes: int
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"step": 0, **{f"validation_{key}": value for key, value in start.items()}}]
        for part in (1, 2, 3, 4):
            step = max(1, steps * part // 4)
            seen = {key: start[key] + (value - start[key]) * part / 4 for key, value in end.items()}
            rows.append({"step": step, "train_loss": 2.0 / part, "lr": 0.1, "effective_lr": 0.1 / part})
            rows.append({"step": step, **{f"validation_{key}": value for key, value in seen.items()}})
        if self.draw["history"] == "spent":
            for row in rows:
                n = row["step"]
                row |= {
                    "forward_passes": passes * n,
                    "backward_passes": n,
                    "seconds": n / 10,
                    "flops": 5e6 * n,
                    "tokens": 9 * n,
                }
        return rows
