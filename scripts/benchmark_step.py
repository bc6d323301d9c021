"""How long a step takes: ours as kernels and as written, torch's fused AdamW, and the same rules of other packages.

All forms of a rule step in turn in one process, torch's fused AdamW among them, so that a noisy machine is noisy for
all. Printed are medians of ratios, to fused AdamW (F) and to the bound (B): the time in which the bytes that the rule
has to move take at the bandwidth that is measured in the same turn. A rule that needs a sum before it can update has
to read what it sums twice; BYTES says what is counted. The first steps are measured in processes of their own, with
nothing cached and then with what that one has built.

    python scripts/benchmark_step.py --models resnet18 albert --optimizers adamw_agr amvt --threads 1 2 --output DIR
"""

from __future__ import annotations

import argparse
import gc
import importlib
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

import hf_optim

#: float32 bytes a parameter that a step has to move: reads of the reduction pass, then reads and writes of the update
BYTES = {
    "adamw": 28,  # x, m, v both ways, g
    "adamw_agr": 4 + 28,  # g, for the sum of |g|
    "sgd_agr": 4 + 20,
    "adan": 44,  # x, m, v, n, previous both ways, g
    "adan_agr": 4 + 52,  # and the raw gradient before
    "amvt": 36,
    "amvt_modules": 36,
    "decgd": 36,
    "smaran": 4 + 20,
    "sps": 4 + 12,
    "lion": 20,
    "adabelief": 28,
    "acprop": 28,
    "adabound": 28,
    "yogi": 28,
    "padam": 36,
    "lamb": 24 + 16,  # x, g, m, v both ways; then x both ways, m, v
    "hd_adam": 16 + 28,  # x, g, m, v; then as AdamW
    "hd_sgd": 12 + 20,
    "l4_adam": 20 + 16,  # g, m, s both ways; then x both ways, m, s
    "l4_mom": 12 + 12,
    "prodigy": 20 + 28,  # x, g, x0, s both ways; then as AdamW
    "tlr_adamw": 28,
    "lookahead_sgd": 12,
}
#: the same rule in other packages: package, class, arguments
PEERS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "adan": [("adan_pytorch", "Adan", {}), ("pytorch_optimizer", "Adan", {}), ("optimi", "Adan", {"lr": 1e-3})],
    "lion": [("lion_pytorch", "Lion", {}), ("pytorch_optimizer", "Lion", {}), ("optimi", "Lion", {"lr": 1e-4})],
    "adabelief": [("pytorch_optimizer", "AdaBelief", {})],
    "prodigy": [("prodigyopt", "Prodigy", {}), ("pytorch_optimizer", "Prodigy", {})],
    "lamb": [("pytorch_optimizer", "Lamb", {})],
    "yogi": [("pytorch_optimizer", "Yogi", {})],
    "adamw": [("optimi", "AdamW", {"lr": 1e-3}), ("heavyball", "AdamW", {"lr": 1e-3})],
}
RULES = ["adamw", "adamw_agr", "adan", "amvt", "smaran", "lion", "prodigy", "tlr_adamw"]


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


def bandwidth(n: int, repeats: int) -> float:
    """Bytes a second of one fused AdamW-like pass: four streams in, three out."""
    streams = [torch.randn(n) for _ in range(4)]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for s in streams[:3]:
            s.add_(streams[3])
        times.append(time.perf_counter() - start)
    return 3 * 3 * 4 * n / statistics.median(times)


def contestants(name: str, shapes: list[tuple[int, ...]], written: bool) -> dict[str, torch.optim.Optimizer]:
    """The rule in all its forms, by label, after torch's fused AdamW."""
    optimizers: dict[str, torch.optim.Optimizer] = {"torch AdamW fused": torch.optim.AdamW(tensors(shapes), fused=True)}
    if name == "adamw":
        optimizers["torch AdamW foreach"] = torch.optim.AdamW(tensors(shapes), foreach=True)
    optimizers[name] = ours(name, shapes)
    if written and "compile" in hf_optim.info(name).options:
        optimizers[f"{name} as written"] = ours(name, shapes, compile=False)
    for package, cls, options in PEERS.get(name, []):
        try:
            peer = getattr(importlib.import_module(package), cls)(tensors(shapes), **options)
            step(peer)
            optimizers[f"{package}.{cls}"] = peer
        except ImportError:
            continue
        except Exception as error:  # a peer that refuses these tensors is left out, by name
            print(f"left out: {package}.{cls}: {error}")
    return optimizers


def ours(name: str, shapes: list[tuple[int, ...]], **options: Any) -> torch.optim.Optimizer:
    """A rule of this library with its defaults; wrappers change nothing while they are measured."""
    info = hf_optim.info(name)
    hyper: dict[str, Any] = {"lr": 1e-3} if "lr" in info.required else {}
    hyper |= {"interval": 1000} if "interval" in info.defaults else {}
    hyper |= {"k": 1000} if "k" in info.defaults and info.family == "wrapper" else {}
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
    torch.set_num_threads(threads)
    shapes = MODELS[model]()
    n = sum(torch.Size(s).numel() for s in shapes)
    entries = contestants(name, shapes, written)
    for opt in entries.values():
        step(opt), step(opt), step(opt)
    times: dict[str, list[float]] = {label: [] for label in entries}
    bounds = []
    for _ in range(repeats):
        bounds.append(BYTES[name] * n / bandwidth(max(n // 4, 1 << 22), 3))
        for label, opt in entries.items():
            times[label].append(step(opt))
    rows = []
    for label, opt in entries.items():
        fused = label == "torch AdamW fused"
        ratios = [a / b for a, b in zip(times[label], times["torch AdamW fused"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        bound = [
            a / (b * BYTES["adamw"] / BYTES[name] if fused else b) for a, b in zip(times[label], bounds, strict=True)
        ]
        rows.append(
            {
                "model": model,
                "tensors": len(shapes),
                "parameters": n,
                "threads": threads,
                "rule": name,
                "optimizer": label,
                "F": middle,
                "F quartiles": [low, high],
                "B": statistics.median(bound),
                "milliseconds": 1e3 * statistics.median(times[label]),
                "temporaries per parameter": temporaries(opt) / n,
                "execution": getattr(opt, "execution", ""),
            }
        )
    del entries
    gc.collect()
    return rows


def first_step(name: str) -> float:
    """Run in a fresh process: seconds of the first two steps, in which everything is built."""
    optimizer = ours(name, resnet18())
    return step(optimizer) + step(optimizer)


def first_steps(names: list[str]) -> list[dict[str, Any]]:
    """`first_step` of each rule, with nothing cached and again."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as empty:
            seconds = [
                float(
                    subprocess.run(
                        [sys.executable, __file__, "--first-step", name],
                        check=True,
                        text=True,
                        env={**os.environ, "HF_OPTIM_CACHE": empty},
                        capture_output=True,
                    ).stdout.split()[-1]
                )
                for _ in range(2)
            ]
        rows.append({"optimizer": name, "cold": seconds[0], "cached": seconds[1]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| model | threads | optimizer | x F | (quartiles) | x B | ms | temporaries, bytes/parameter |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        low, high = r["F quartiles"]
        cells = [
            r["model"],
            str(r["threads"]),
            r["optimizer"],
            f"{r['F']:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{r['B']:.2f}",
            f"{r['milliseconds']:.2f}",
            f"{r['temporaries per parameter']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def first_table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| optimizer | first two steps, nothing cached, s | the same in a later process, s |", "|---|---|---|"]
    lines += [f"| {r['optimizer']} | {r['cold']:.2f} | {r['cached']:.2f} |" for r in rows]
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of x B, a panel a model and number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = sorted({(r["threads"], r["model"]) for r in rows})
    most = max(sum((r["threads"], r["model"]) == panel for r in rows) for panel in panels)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.5 * len(panels), 0.24 * most + 1.2), squeeze=False)
    for axis, (threads, model) in zip(axes[0], panels, strict=True):
        own = [r for r in rows if (r["threads"], r["model"]) == (threads, model)][::-1]
        own = [r for r in own if r["optimizer"] != "torch AdamW fused" or r["rule"] == "adamw"]
        colours = ["#e45756" if "kernels" in r["execution"] else "#4c78a8" if r["execution"] else "#999" for r in own]
        axis.barh([r["optimizer"] for r in own], [r["B"] for r in own], color=colours)
        axis.axvline(1, color="#444", linewidth=1)
        axis.set(title=f"{model}, {threads} thread(s)", xlabel="time of a step / bound")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet18", "many-small"])
    parser.add_argument("--optimizers", nargs="+", choices=sorted(BYTES), default=RULES)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=30, help="turns; above 30M parameters a tenth")
    parser.add_argument(
        "--kernels-only", action="store_true", help="leave out the forms that run as written, and the first steps"
    )
    parser.add_argument("--output", type=Path, help="folder for steps.json, steps.md, first.md, steps.png")
    parser.add_argument("--first-step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_step:
        torch.set_num_threads(1)
        print(first_step(options.first_step))
        return
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        for model in options.models:
            large = sum(torch.Size(s).numel() for s in MODELS[model]()) > 30_000_000
            repeats = max(5, options.repeats // 10) if large else options.repeats
            for name in options.optimizers:
                new = compare(model, name, repeats, not options.kernels_only, threads)
                rows += new
                print(table(new), flush=True)
    costs = [] if options.kernels_only else first_steps(options.optimizers)
    print(first_table(costs))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        setting = {"threads": options.threads, "repeats": options.repeats, "torch": torch.__version__}
        report = {"setting": setting, "bytes": BYTES, "rows": rows, "first steps": costs}
        (options.output / "steps.json").write_text(json.dumps(report, indent=1))
        kept = [r for r in rows if r["optimizer"] != "torch AdamW fused" or r["rule"] == "adamw"]
        (options.output / "steps.md").write_text(table(kept) + "\n")
        (options.output / "first.md").write_text(first_table(costs) + "\n")
        plot(rows, options.output / "steps.png")


if __name__ == "__main__":
    main()
