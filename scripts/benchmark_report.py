"""Measures how long table and report take for a study of many runs, made of records alone.

    python scripts/benchmark_report.py [--runs 10000] [--profile]

Prints a line a step: seconds, and the size of what was written. The records are made up (no training), of the size that
real ones have: a history of 60 logged steps and 10 evaluations each.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from hf_optim.study.plan.plan import cell_spec, make_run  # noqa: E402

T = TypeVar("T")
PRIMARY = {"name": "test_accuracy", "greater_is_better": True}
TASKS, OPTIMIZERS = 5, 20


def make(folder: Path, runs: int) -> None:
    """A study of `runs` runs: 5 tasks x 20 optimizers x as many seeds as it takes."""
    chance = random.Random(0)
    tasks, labels = [f"task {i}" for i in range(TASKS)], [f"optimizer {i}" for i in range(OPTIMIZERS)]
    seeds = max(1, runs // (len(tasks) * len(labels)))
    plan_tasks = [
        {"task": "vision", "label": t, "model": "mlp", "size": "small", "data": None, "hyper": {}, "only": labels,
         "title": "Images", "primary": PRIMARY, "steps": 600, "options": {"cell": t}}
        for t in tasks
    ]  # fmt: skip
    optimizers = [
        {"label": x, "spec": {"name": "adamw", "lr": 0.1 + i / 100}, "defaults": {"lr": 0.001}}
        for i, x in enumerate(labels)
    ]
    planned = []
    for seed in range(seeds):
        for task in plan_tasks:
            for optimizer in optimizers:
                run = asdict(make_run(task, str(optimizer["label"]), cell_spec(task, optimizer), seed))
                planned.append(run)
                write(folder / "runs" / run["id"], run, chance)
    plan = {
        "format": 1,
        "name": "many",
        "title": f"{len(planned)} runs",
        "origin": "made up",
        "baseline": labels[0],
        "seeds": list(range(seeds)),
        "tasks": plan_tasks,
        "optimizers": optimizers,
        "runs": planned,
    }
    (folder / "plan.json").write_text(json.dumps(plan))


def write(home: Path, run: dict[str, Any], chance: random.Random) -> None:
    """One record and its history."""
    home.mkdir(parents=True)
    value = 0.9 + 0.02 * chance.random()
    rows = []
    for step in range(10, 601, 10):
        rows.append({"step": step, "epoch": step / 60, "train_loss": 2.3 / step, "lr": 0.1, "effective_lr": 0.1 / step})
        if step % 60 == 0:
            rows.append({"step": step, "epoch": step / 60, "validation_loss": 1 - value, "validation_accuracy": value})
    (home / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"test_accuracy": value, "test_loss": 1 - value, "train_loss": 0.01, "loss_gap": 0.02}
    metrics |= {"validation_accuracy": value, "validation_loss": 1 - value, "accuracy_gap": 0.03}
    record = {
        "id": run["id"],
        "spec": run["spec"],
        "status": "ok",
        "error": None,
        "metrics": metrics,
        "primary": PRIMARY,
        "history": "history.jsonl",
        "time": {"train_seconds": 20.0, "step_ms_median": 5.0, "optimizer_ms_median": 1.0, "steps": 600},
        "memory": {"optimizer_state_bytes": 8000, "parameters": 1000, "peak_rss_bytes": 10**9},
        "environment": {"python": "3.11", "torch": "2.13"},
        "data": {"name": "digits", "fingerprint": "ab" * 32, "note": "real digits"},
        "started": "2026-01-01T10:00:00+00:00",
        "finished": "2026-01-01T10:00:20+00:00",
    }
    (home / "record.json").write_text(json.dumps(record))


def timed(label: str, work: Callable[[], T]) -> T:
    """Does `work` and prints how long it took, in seconds of the clock and of this process's own time."""
    clock, own = time.perf_counter(), time.process_time()
    result = work()
    size = f", {len(result) / 1e6:.1f} MB" if isinstance(result, str) else ""
    print(f"{label:24s} {time.perf_counter() - clock:7.1f} s, cpu {time.process_time() - own:6.1f} s{size}", flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=10_000, help="how many (default: 10000)")
    parser.add_argument("--profile", action="store_true", help="print the 25 functions that took longest")
    options = parser.parse_args()
    from hf_optim.study.findings import analysis, table
    from hf_optim.study.folder import results as records
    from hf_optim.study.folder import rows
    from hf_optim.study.report import exports, run_pages
    from hf_optim.study.report import html as report
    from hf_optim.study.report import tables as output

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        timed("(make the records)", lambda: make(folder, options.runs))
        profile = cProfile.Profile()
        if options.profile:
            profile.enable()
        began = time.perf_counter()
        results = timed("read the records", lambda: records.load(folder))
        tables = timed("table", lambda: table.build(results))
        timed("statistics.json", lambda: analysis.analyse(results, tables))
        timed("table.md", lambda: output.markdown(tables, "many"))
        timed("runs.csv", lambda: output.runs_csv(results))
        timed("runs.parquet", lambda: exports.write_parquet(rows.of(results), folder / "runs.parquet"))
        timed("report.html", lambda: report.render(results, tables))
        timed("a page for every run", lambda: [write() for write in run_pages.parts(results)])
        timed("the pages once more", lambda: [write() for write in run_pages.parts(results)])
        total = time.perf_counter() - began
        profile.disable()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{len(results.records)} records: {total:.1f} s, at most {peak:.0f} MB")
        if options.profile:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(25)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
