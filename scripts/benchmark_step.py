"""How long a step takes: ours as kernels and as written, torch's fused AdamW, and the same rules of other packages.

All forms of a rule step in turn in one process, torch's fused AdamW among them, so that a noisy machine is noisy for
all. Printed are medians of ratios, to fused AdamW (F) and to the bound (B): the time in which the bytes that the
rule's passes read and write go through memory, at the bandwidth of an in-place pass over a buffer as large as all that
the rule holds, measured in the same turn. A rule that needs a sum before it can update has to read what it sums twice.
The first steps are measured in processes of their own, with nothing cached and then with what that one has built.

    python scripts/benchmark_step.py --models resnet18 many-small --threads 1 2 --output DIR

What is in DIR/steps.json is not measured again: a run that was stopped, or that --minutes stops, goes on, on the same
kind of machine.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_tables import FUSED, first_table, plot, table, wide

import hf_optim
from hf_optim.engine import passes
from hf_optim.engine.trace import trace
from hf_optim.experiment.record import cpu

#: the same rule in other packages: package, class, arguments
PEERS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "adabelief": [("pytorch_optimizer", "AdaBelief", {})],
    "adabound": [("pytorch_optimizer", "AdaBound", {})],
    "adamw": [("optimi", "AdamW", {"lr": 1e-3}), ("heavyball", "AdamW", {"lr": 1e-3})],
    "adan": [
        ("adan_pytorch", "Adan", {}),
        ("pytorch_optimizer", "Adan", {}),
        ("timm.optim", "Adan", {}),
        ("optimi", "Adan", {"lr": 1e-3}),
    ],
    "ademamix": [("pytorch_optimizer", "AdEMAMix", {})],
    "adopt": [("pytorch_optimizer", "ADOPT", {}), ("timm.optim", "Adopt", {})],
    "lamb": [("pytorch_optimizer", "Lamb", {}), ("timm.optim", "Lamb", {})],
    "lion": [
        ("lion_pytorch", "Lion", {}),
        ("pytorch_optimizer", "Lion", {}),
        ("timm.optim", "Lion", {}),
        ("optimi", "Lion", {"lr": 1e-4}),
    ],
    "nadam": [("torch.optim", "NAdam", {"foreach": True})],
    "padam": [("pytorch_optimizer", "PAdam", {})],
    "prodigy": [("prodigyopt", "Prodigy", {}), ("pytorch_optimizer", "Prodigy", {})],
    "radam": [("torch.optim", "RAdam", {"foreach": True})],
    "schedule_free_adamw": [("schedulefree", "AdamWScheduleFree", {})],
    "sgdm": [("torch.optim", "SGD", {"lr": 1e-3, "momentum": 0.9, "fused": True})],
    "yogi": [("pytorch_optimizer", "Yogi", {})],
}


def rules() -> list[str]:
    """Every rule that steps without trial steps, and wrappers in the middle of their windows."""
    about = map(hf_optim.info, hf_optim.list_optimizers())
    return [i.name for i in about if "evaluate" not in i.needs and i.family != "matrix"]


def resnet18() -> list[tuple[int, ...]]:
    """62 tensors, 11.2M parameters."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3), (64,), (64,)]
    width = 64
    for out, blocks in ((64, 2), (128, 2), (256, 2), (512, 2)):
        for _ in range(blocks):
            shapes += [(out, width, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
            if width != out:
                shapes += [(out, width, 1, 1), (out,), (out,)]
            width = out
    return [*shapes, (100, 512), (100,)]


def transformer(layers: int, width: int, vocabulary: int, embedding: int) -> list[tuple[int, ...]]:
    """An encoder with its embeddings."""
    shapes: list[tuple[int, ...]] = [(vocabulary, embedding), (512, embedding), (2, embedding)] + [(embedding,)] * 2
    if embedding != width:
        shapes += [(width, embedding), (width,)]
    for _ in range(layers):
        shapes += [(width, width), (width,)] * 4 + [(width,)] * 4
        shapes += [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [*shapes, (width, width), (width,)]


def unet() -> list[tuple[int, ...]]:
    """Close to the CIFAR DDPM network: 248 tensors, 31.8M parameters."""
    shapes: list[tuple[int, ...]] = [(128, 3, 3, 3), (128,), (512, 128), (512,), (512, 512), (512,)]
    for _ in range(24):
        shapes += [(256, 256, 3, 3), (256,)] * 2 + [(256, 512)] + [(256,)] * 5
    return [*shapes, (3, 128, 3, 3), (3,)]


MODELS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "resnet18": resnet18,
    "albert": lambda: transformer(1, 768, 30000, 128),
    "bert": lambda: transformer(12, 768, 30522, 768),
    "unet": unet,
    "many-small": lambda: [(64, 64), (64,)] * 79,
}


def tensors(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    """Parameters with gradients."""
    parameters = [torch.nn.Parameter(torch.randn(s) * 0.02) for s in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
        p.given = p.grad  # type: ignore[attr-defined]
    return parameters


def bandwidth(size: int, repeats: int = 5) -> float:
    """Bytes a second of an in-place pass over a buffer of so many bytes."""
    buffer = torch.zeros(max(1, size // 4))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        buffer.add_(1.0)
        times.append(time.perf_counter() - start)
    return 2 * 4 * len(buffer) / statistics.median(times)


def traffic(step: Callable[[], Any]) -> tuple[int, int]:
    """Bytes that the passes of a step of ours read and write, and bytes of all that they touch."""
    seen: list[passes.Code] = []
    launch = passes.Code._launch

    def seeing(code: passes.Code, *rest: Any) -> Any:
        seen.append(code)
        return launch(code, *rest)

    passes.Code._launch = seeing  # type: ignore[method-assign]
    try:
        step()
    finally:
        passes.Code._launch = launch  # type: ignore[method-assign]
    moved, held = 0, {}  # a tensor's buffer -> its bytes
    for code in seen:
        table, sizes = code.table, {k: code.table.dtypes[k].itemsize for k in code.names}
        program = trace(code.call, {k: table.dtypes[k] for k in code.names}, code._c, code._sums, table.dtype)
        elements = int(table.sizes[sorted(code._members)].sum())
        moved += elements * (sum(sizes.values()) + sum(sizes[k] for k in program.written))
        held |= {(id(table), i, k): int(table.sizes[i]) * sizes[k] for i in code._members for k in sizes}
    return moved, sum(held.values())


def contestants(name: str, shapes: list[tuple[int, ...]], written: bool) -> dict[str, torch.optim.Optimizer]:
    """The rule in all its forms, by label, after torch's fused AdamW."""
    optimizers: dict[str, torch.optim.Optimizer] = {FUSED: torch.optim.AdamW(tensors(shapes), fused=True)}
    if name == "adamw":
        optimizers["torch AdamW foreach"] = torch.optim.AdamW(tensors(shapes), foreach=True)
    optimizers[name] = ours(name, shapes)
    if written and "compile" in hf_optim.info(name).options:
        optimizers[f"{name} as written"] = ours(name, shapes, compile=False)
    for package, cls, options in PEERS.get(name, []):
        try:
            peer = getattr(importlib.import_module(package), cls)(tensors(shapes), **options)
            getattr(peer, "train", lambda: None)()  # of a schedule-free one
            step(peer)
            optimizers[f"{package}.{cls}"] = peer
        except ImportError:
            continue
        except Exception as error:  # a peer that refuses these tensors is left out, by name
            print(f"left out: {package}.{cls}: {error}")
    return optimizers


def ours(name: str, shapes: list[tuple[int, ...]], **options: Any) -> torch.optim.Optimizer:
    """A rule of this library with its defaults, wrappers around AdamW; these change nothing while they are measured."""
    info = hf_optim.info(name)
    hyper: dict[str, Any] = {k: {"lr": 1e-3, "eta": 1e-4, "interval": 1000}[k] for k in info.required}
    hyper |= {"interval": 1000} if "interval" in info.defaults else {}
    if info.family == "wrapper":
        hyper |= {"k": 1000} if "k" in info.defaults else {}
        hyper |= {"base": {"name": "adamw"}} if info.base is None else {}
    return hf_optim.create(name, tensors(shapes), **hyper, **options)


def step(optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step. (One peer takes the gradients away after it.)"""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = p.given
    start = time.perf_counter()
    if getattr(optimizer, "needs", None):
        optimizer.step(loss=1.0)  # type: ignore[call-arg]
    else:
        optimizer.step()
    return time.perf_counter() - start


def temporaries(optimizer: torch.optim.Optimizer) -> int:
    """Most bytes that one step holds at once beyond what was there before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step(optimizer)
    held = peak = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def compare(model: str, name: str, repeats: int, written: bool, threads: int) -> list[dict[str, Any]]:
    """One row a form of the rule."""
    gc.collect()
    torch.set_num_threads(threads)
    shapes = MODELS[model]()
    n = sum(torch.Size(s).numel() for s in shapes)
    entries = contestants(name, shapes, written)
    for opt in entries.values():
        step(opt), step(opt), step(opt)
    moved, held = traffic(lambda: step(entries[name]))
    times: dict[str, list[float]] = {label: [] for label in entries}
    bounds: dict[str, list[float]] = {FUSED: [], name: []}
    for _ in range(repeats):
        bounds[FUSED].append(28 * n / bandwidth(16 * n))  # x, m, v both ways, g
        bounds[name].append(moved / bandwidth(held))
        for label, opt in entries.items():
            times[label].append(step(opt))
    rows = []
    for label, opt in entries.items():
        ratios = [a / b for a, b in zip(times[label], times[FUSED], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        bound = [a / b for a, b in zip(times[label], bounds[FUSED if label == FUSED else name], strict=True)]
        rows.append(
            {
                "model": model,
                "tensors": len(shapes),
                "parameters": n,
                "threads": threads,
                "rule": name,
                "optimizer": label,
                "bytes": (28 * n if label == FUSED else moved) / n,
                "F": middle,
                "F quartiles": [low, high],
                "B": statistics.median(bound),
                "milliseconds": 1e3 * statistics.median(times[label]),
                "temporaries per parameter": temporaries(opt) / n,
                "execution": getattr(opt, "execution", ""),
            }
        )
    return rows


def first_step(name: str) -> list[float]:
    """Run in a fresh process: seconds of the first two steps, in which everything is built."""
    optimizer = ours(name, resnet18())
    return [step(optimizer), step(optimizer)]


def first_steps(name: str) -> dict[str, Any]:
    """`first_step` of a rule, with nothing cached and again."""
    with tempfile.TemporaryDirectory() as empty:
        cold, cached = (
            json.loads(
                subprocess.run(
                    [sys.executable, __file__, "--first-step", name],
                    check=True,
                    text=True,
                    env={**os.environ, "HF_OPTIM_CACHE": empty},
                    capture_output=True,
                ).stdout.splitlines()[-1]
            )
            for _ in range(2)
        )
    return {"optimizer": name, "cold": cold, "cached": cached}


def machine() -> dict[str, Any]:
    """What figures of one table must share: a processor without AVX-512 is another case than one with it."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return {"processor": cpu(), "vectors": vectors, "cores": os.cpu_count(), "torch": torch.__version__}


class Measured:
    """DIR/steps.json, and the tables and the plot beside it; without a folder, what is printed.

    Args:
        folder: where they are; None for nowhere.

    Raises:
        SystemExit: what is there was measured on another kind of machine.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {"machine": machine(), "rows": [], "first steps": []}
        if folder is not None and (folder / "steps.json").exists():
            self.results = json.loads((folder / "steps.json").read_text(encoding="utf-8"))
            there = self.results.get("machine")
            if there != machine():
                told = f"{folder} was measured on another machine ({there}; this is {machine()})"
                raise SystemExit(f"error: {told}: name a new folder")

    def has(self, model: str, name: str, threads: int) -> bool:
        """Whether a rule was measured."""
        return any((r["model"], r["rule"], r["threads"]) == (model, name, threads) for r in self.results["rows"])

    def has_first(self, name: str) -> bool:
        """Whether its first steps were."""
        return any(r["optimizer"] == name for r in self.results["first steps"])

    def add(self, kind: str, rows: list[dict[str, Any]]) -> None:
        """Print and write rows."""
        print(table(rows) if kind == "rows" else first_table(rows), flush=True)
        self.results[kind] += rows
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, text in (
            ("steps.json", json.dumps(self.results, indent=1)),
            ("steps.md", f"{', '.join(map(str, machine().values()))}\n\n{wide(self.results['rows'])}"),
            ("first.md", first_table(self.results["first steps"])),
        ):
            (self.folder / f"{file}.new").write_text(text + "\n", encoding="utf-8")
            os.replace(self.folder / f"{file}.new", self.folder / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet18", "many-small"])
    parser.add_argument("--optimizers", nargs="+", choices=rules(), default=rules(), metavar="NAME")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=30, help="turns; above 30M parameters a tenth")
    parser.add_argument(
        "--kernels-only", action="store_true", help="leave out the forms that run as written, and the first steps"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many")
    parser.add_argument("--output", type=Path, help="folder for steps.json (all), steps.md, first.md and steps.png")
    parser.add_argument("--first-step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_step:
        torch.set_num_threads(1)
        print(json.dumps(first_step(options.first_step)))
        return
    measured, end = Measured(options.output), time.monotonic() + 60 * options.minutes
    for name in options.optimizers:
        for threads, model in itertools.product(options.threads, options.models):
            if not measured.has(model, name, threads) and time.monotonic() < end:
                large = sum(torch.Size(s).numel() for s in MODELS[model]()) > 30_000_000
                repeats = max(5, options.repeats // 10) if large else options.repeats
                measured.add("rows", compare(model, name, repeats, not options.kernels_only, threads))
        if not options.kernels_only and not measured.has_first(name) and time.monotonic() < end:
            measured.add("first steps", [first_steps(name)])
    if options.output and measured.results["rows"]:
        plot(measured.results["rows"], options.output / "steps.png")


if __name__ == "__main__":
    main()
