"""Steps every task at paper size with random weights on random inputs of the papers' shapes, and prints what a step
takes: samples and tokens a second, operations, memory. Nothing is downloaded.

    python scripts/benchmark_throughput.py                                     # bf16, batches of the papers, on a GPU
    python scripts/benchmark_throughput.py --batch 2 --steps 1 --output x.json  # what a CPU can do
    python scripts/benchmark_throughput.py --only albert --precision fp32 --compile-model
    python scripts/benchmark_throughput.py --table x.json                      # the table in docs/paper-size.md again
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from hf_optim import registry
from hf_optim.experiment import flops, footprint, precision
from hf_optim.experiment import record as records
from hf_optim.experiment.files import write_json
from hf_optim.experiment.spec import PRECISIONS
from hf_optim.experiment.task import Preset, Task, load, names


def presets(only: list[str] | None) -> Iterator[tuple[Task, str, Preset]]:
    """Every model of every task at size paper; of settings that step alike the first only."""
    for name in names():
        task, seen = load(name), set()
        for model, preset in task.sizes["paper"].presets.items():
            same = repr((model.partition("@")[0], preset.model.value, preset.data.value, preset.batch_size.value))
            if same in seen or (only and not any(part in f"{name}/{model}" for part in only)):
                continue
            seen.add(same)
            yield task, model, preset


def step(task: Task, model: str, preset: Preset, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a step of the preset's own optimizer takes; None where the task has no synthetic data."""
    data = task.synthetic(model, preset)
    if data is None:
        return None
    batch = options.batch or preset.batch_size.value
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    set_seed(0)
    network = task.model(model, preset, data)
    cost = flops.cost(network, data.train, task.collate(data))
    network = network.to(device).train()
    # AdamW for all: a paper's optimizer may ask for the loss or a closure, which a Trainer gives it.
    optimizer = registry.build({"name": "adamw", "lr": 1e-4}, network)
    forward: Any = torch.compile(network) if options.compile_model else network
    rows: Any = data.train
    fetch = getattr(rows, "__getitems__", None)
    indices = list(range(batch))
    collated = task.collate(data)
    assert collated is not None
    inputs = collated(fetch(indices) if fetch is not None else [rows[index] for index in indices])
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    records.reset_peak_memory()
    seconds, loss = [], torch.tensor(0.0)
    with precision.products(options.precision):
        for _ in range(options.warmup + options.steps):
            begun = time.perf_counter()
            with footprint.autocast(options.precision, device.type):
                loss = flops.loss_of(forward(**inputs))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    if not torch.isfinite(loss):
        raise RuntimeError(f"{task.name}/{model}: the loss is not finite after {len(seconds)} steps")
    each = sorted(seconds[options.warmup :])[options.steps // 2]
    return {
        "task": f"{task.name}/{model}",
        "parameters": sum(p.numel() for p in network.parameters()),
        "batch": batch,
        "paper_batch": preset.batch_size.value,
        "step_seconds": round(each, 4),
        "samples_per_second": round(batch / each, 3),
        "tokens_per_second": round(cost.tokens * batch / each, 1) if cost and cost.tokens else None,
        "flops_per_sample": cost.both if cost else None,
        "flops_per_second": round(cost.both * batch / each) if cost else None,
        "peak_bytes": records.peak_card_memory() or records.peak_memory(),
        "loss": round(loss.item(), 4),
    }


def table(measured: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| task and model | parameters | batch | a step | samples/s | tokens/s | GFLOPs a sample | GFLOP/s | peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in measured["rows"]:
        tokens = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"
        each, rate = (
            "" if row[key] is None else f"{row[key] / 1e9:,.3g}" for key in ("flops_per_sample", "flops_per_second")
        )
        lines.append(
            f"| {row['task']} | {row['parameters'] / 1e6:.1f} M | {row['batch']} | {row['step_seconds']:.3g} s "
            f"| {row['samples_per_second']:,.3g} | {tokens} | {each} | {rate} | {row['peak_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, or print a table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--compile-model", action="store_true")
    parser.add_argument("--batch", type=int, metavar="N", help="samples of a step (default: the paper's)")
    parser.add_argument("--steps", type=int, default=5, metavar="N")
    parser.add_argument("--warmup", type=int, default=1, metavar="N")
    parser.add_argument("--only", action="append", metavar="TEXT", help="task/model that contains this; repeatable")
    parser.add_argument("--output", type=Path, metavar="FILE")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file that was written")
    options = parser.parse_args()
    if options.table:
        print(table(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    precision.check_precision(options.precision)
    rows = []
    how = {"precision": options.precision, "compile_model": options.compile_model}
    for task, model, preset in presets(options.only):
        row = step(task, model, preset, options)
        gc.collect()
        print(f"{task.name}/{model}: {row and row['step_seconds']}", file=sys.stderr, flush=True)
        rows += [row] if row else []
        measured = {**how, "environment": records.environment(1, "cuda" if torch.cuda.is_available() else "cpu"),
                    "rows": rows}  # fmt: skip
        if options.output:
            write_json(options.output.parent, options.output.name, measured)
    print(table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
