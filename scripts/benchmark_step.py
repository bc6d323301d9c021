"""How long a step takes: ours eager and compiled, torch's fused AdamW, and the same rules of other packages.

All of them step in turn in one process, so that a noisy machine is noisy for all; what is printed is the median of the
ratios to torch's fused AdamW (F) and to the bound B, the time in which the bytes of one fused pass (parameters,
gradients and states read once, what changes written once) move at the bandwidth that is measured in the same run.

    python scripts/benchmark_step.py --models resnet18 albert --optimizers adamw_agr amvt --threads 1 --output DIR
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import hf_optim

#: an optimizer, and the rule whose bytes it moves
Entry = tuple[torch.optim.Optimizer, str]
#: peers' classes for the same rule: package, class, arguments
PEERS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "adan": [("adan_pytorch", "Adan", {}), ("pytorch_optimizer", "Adan", {}), ("optimi", "Adan", {})],
    "lion": [("lion_pytorch", "Lion", {}), ("pytorch_optimizer", "Lion", {}), ("optimi", "Lion", {"lr": 1e-4})],
    "adabelief": [("pytorch_optimizer", "AdaBelief", {})],
    "prodigy": [("prodigyopt", "Prodigy", {}), ("pytorch_optimizer", "Prodigy", {})],
    "lamb": [("pytorch_optimizer", "Lamb", {})],
    "yogi": [("pytorch_optimizer", "Yogi", {})],
    "adamw_agr": [("optimi", "AdamW", {"lr": 1e-3}), ("heavyball", "ForeachAdamW", {})],
}


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
    """About the 35.7M parameters of the CIFAR DDPM network."""
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
    made = [torch.nn.Parameter(torch.randn(s) * 0.02) for s in shapes]
    for p in made:
        p.grad = torch.randn_like(p) * 0.01
    return made


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


def moved_bytes(name: str, parameters: int) -> int:
    """What one fused pass over the rule's tensors moves: x and slots both ways, g in."""
    return parameters * (2 * (4 + hf_optim.info(name).state_bytes) + 4)


def contestants(name: str, shapes: list[tuple[int, ...]], compiled: bool) -> dict[str, Entry]:
    """The rule in all its forms, by label."""
    hyper: dict[str, Any] = {"lr": 1e-3} if "lr" in (*hf_optim.info(name).required,) else {}
    if hf_optim.info(name).family == "wrapper":
        hyper = {"base": {"name": "adamw"}} if hf_optim.info(name).base is None else {}
        hyper |= {"interval": 1000} if "interval" in hf_optim.info(name).defaults else {}
    found = {name: (hf_optim.create(name, tensors(shapes), **hyper), name)}
    if compiled and "compile" in hf_optim.info(name).options:
        found[f"{name} compiled"] = (hf_optim.create(name, tensors(shapes), compile=True, **hyper), name)
    for package, cls, options in PEERS.get(name, []):
        try:
            peer = getattr(importlib.import_module(package), cls)
            found[f"{package}.{cls}"] = (peer(tensors(shapes), **options), name)
        except (ImportError, AttributeError):
            continue
        except Exception as error:  # a peer that refuses these tensors is left out, by name
            print(f"left out: {package}.{cls}: {error}")
    return found


def step(optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step."""
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


def compare(model: str, names: list[str], repeats: int, compiled: bool) -> list[dict[str, Any]]:
    """One row a contestant: ratios to F and to B, temporaries, seconds of the first compiled step."""
    shapes = MODELS[model]()
    n = sum(torch.Size(s).numel() for s in shapes)
    fused = torch.optim.AdamW(tensors(shapes), fused=True)
    foreach = torch.optim.AdamW(tensors(shapes), foreach=True)
    entries: dict[str, Entry] = {"torch AdamW fused": (fused, "adamw"), "torch AdamW foreach": (foreach, "adamw")}
    for name in names:
        entries |= contestants(name, shapes, compiled)
    first = {label: step(o) + step(o) for label, (o, _) in entries.items()}
    speed = bandwidth(max(n // 4, 1 << 22), 5)
    times: dict[str, list[float]] = {label: [] for label in entries}
    bounds = []
    for _ in range(repeats):
        bounds.append(bandwidth(1 << 22, 3))
        for label, (o, _) in entries.items():
            times[label].append(step(o))
    speed = statistics.median([speed, *bounds])
    rows = []
    for label, (o, rule) in entries.items():
        ratios = [a / b for a, b in zip(times[label], times["torch AdamW fused"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({
            "model": model, "tensors": len(shapes), "parameters": n, "optimizer": label, "F": middle,
            "F quartiles": [low, high], "B": statistics.median(times[label]) / (moved_bytes(rule, n) / speed),
            "milliseconds": 1e3 * statistics.median(times[label]), "temporaries per parameter": temporaries(o) / n,
            "first steps seconds": first[label], "execution": getattr(o, "execution", ""),
        })
    del entries
    gc.collect()
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| model | optimizer | x F | (quartiles) | x B | ms | temporaries, bytes/parameter | first steps, s |",
             "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        low, high = r["F quartiles"]
        cells = [r["model"], r["optimizer"], f"{r['F']:.2f}", f"{low:.2f}-{high:.2f}", f"{r['B']:.2f}",
                 f"{r['milliseconds']:.2f}", f"{r['temporaries per parameter']:.2f}", f"{r['first steps seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of x F, a panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = sorted({r["model"] for r in rows})
    most = max(sum(r["model"] == m for r in rows) for m in models)
    figure, axes = pyplot.subplots(1, len(models), figsize=(5 * len(models), 0.3 * most + 1.2), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        own = [r for r in rows if r["model"] == model][::-1]
        axis.barh([r["optimizer"] for r in own], [r["F"] for r in own], color="#4c78a8")
        axis.axvline(1, color="#888", linewidth=1)
        axis.set(title=model, xlabel="time of a step / torch's fused AdamW")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=["resnet18", "many-small"])
    parser.add_argument("--optimizers", nargs="+", default=["adamw_agr", "adan", "amvt", "smaran", "lion", "tlr_adamw"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled forms out")
    parser.add_argument("--output", type=Path, help="folder for steps.json, steps.md, steps.png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        rows += compare(model, options.optimizers, options.repeats, not options.no_compile)
        print(table(rows[-len([r for r in rows if r["model"] == model]):]), flush=True)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        setting = {"threads": options.threads, "repeats": options.repeats, "torch": torch.__version__}
        (options.output / "steps.json").write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
        (options.output / "steps.md").write_text(table(rows) + "\n")
        plot(rows, options.output / "steps.png")


if __name__ == "__main__":
    main()
