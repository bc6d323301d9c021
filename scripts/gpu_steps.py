"""How long a step takes on the device, beside torch's AdamW and the peers that are installed.

pipe    milliseconds a step, ten of them back to back
host    milliseconds until step() returns, the device being idle
B       pipe over the time in which the bytes of a step move at the copy bandwidth measured just before
temp    bytes a parameter that a step takes and gives back
first   seconds of the first step and of the second, in a process of its own with nothing compiled
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
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
from benchmark_step import MODELS, PEERS, rules, traffic

from hf_optim.check.candidate import Candidate
from hf_optim.errors import one_line

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """161 tensors, 25.6M parameters."""
    shapes: Shapes = [(64, 3, 7, 7), (64,), (64,)]
    width = 64
    for middle, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += [(middle, width, 1, 1), (middle,), (middle,), (middle, middle, 3, 3), (middle,), (middle,)]
            shapes += [(4 * middle, middle, 1, 1), (4 * middle,), (4 * middle,)]
            if block == 0:
                shapes += [(4 * middle, width, 1, 1), (4 * middle,), (4 * middle,)]
            width = 4 * middle
    return [*shapes, (1000, 2048), (1000,)]


def llama() -> Shapes:
    """A tied model of 1.2 billion parameters: 147 tensors."""
    shapes: Shapes = [(128256, 2048)]
    for _ in range(16):
        shapes += [(2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192)]
        shapes += [(2048,), (2048,)]
    return [*shapes, (2048,), (2048,)]


CUDA_MODELS: dict[str, Callable[[], Shapes]] = {
    "resnet50": resnet50,
    "bert": MODELS["bert"],
    "500 small": lambda: [(64, 64), (64,)] * 250,
    "llama 1.2B": llama,
}
CPU_MODELS: dict[str, Callable[[], Shapes]] = {"2 small": lambda: [(64, 64), (64,)]}


def tensors(shapes: Shapes, device: torch.device) -> list[torch.nn.Parameter]:
    """Parameters with gradients."""
    parameters = [torch.nn.Parameter(torch.randn(s, device=device) * 0.02) for s in shapes]
    for p in parameters:
        p.grad = torch.randn_like(p) * 0.01
    return parameters


def contestants(names: list[str], device: torch.device) -> dict[str, Callable[[Any], Any]]:
    """What is measured, by label: parameters -> optimizer."""
    makers: dict[str, Callable[[Any], Any]] = {}
    for way in ("fused", "foreach") if device.type == "cuda" else ("foreach",):
        makers[f"torch AdamW {way}"] = lambda ps, way=way: torch.optim.AdamW(ps, lr=1e-3, **{way: True})
    for name in names:
        makers[name] = Candidate(name).make
        for package, cls, options in PEERS.get(name, []) if device.type == "cuda" else []:
            try:
                optimizer = getattr(importlib.import_module(package), cls)
            except (ImportError, AttributeError):
                continue
            makers[f"{package}.{cls}"] = lambda ps, optimizer=optimizer, options=options: optimizer(ps, **options)
    return makers


def stepping(opt: Any, device: torch.device) -> Callable[[], Any]:
    """One step, its loss on the device."""
    if "loss" in getattr(opt, "needs", ()):
        loss = torch.ones((), device=device)
        return lambda: opt.step(loss=loss)
    return lambda: opt.step()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(f: Callable[[], Any], device: torch.device, times: int) -> tuple[float, float]:
    """Until `times` calls return, and until the device is done with them."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        f()
    returned = time.perf_counter()
    wait(device)
    return (returned - start) * 1e3, (time.perf_counter() - start) * 1e3


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy, read and written."""
    n = 1 << (28 if device.type == "cuda" else 22)
    a, b = torch.empty(n, device=device), torch.empty(n, device=device)
    spent = [milliseconds(lambda: b.copy_(a), device, 5)[1] / 5 for _ in range(5)]
    return 8 * n / (statistics.median(spent) * 1e-3)


def measure(make: Callable[[Any], Any], shapes: Shapes, device: torch.device) -> dict[str, Any]:
    """One optimizer on one model."""
    params = tensors(shapes, device)
    numel = sum(p.numel() for p in params)
    opt = make(params)
    step = stepping(opt, device)
    repeats = 7 if device.type == "cuda" else 1
    for _ in range(3):
        step()
    figures: dict[str, Any] = {"execution": getattr(opt, "execution", None)}
    if isinstance(opt, torch.optim.AdamW):
        figures["bytes"] = 28  # x, m, v both ways, g
    elif "kernels" in (figures["execution"] or ""):
        figures["bytes"] = traffic(step)[0] / numel
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        wait(device)
        figures["temp"] = (torch.cuda.max_memory_allocated() - before) / numel
    figures["host"] = statistics.median(milliseconds(step, device, 1)[0] for _ in range(repeats))
    figures["pipe"] = statistics.median(milliseconds(step, device, 10)[1] / 10 for _ in range(repeats))
    return figures


def cold(name: str, device: torch.device) -> list[float]:
    """Seconds of the first two steps on ResNet-50, or what stands for it, in this process."""
    models = CUDA_MODELS if device.type == "cuda" else CPU_MODELS
    opt = Candidate(name).make(tensors(next(iter(models.values()))(), device))
    step = stepping(opt, device)
    return [milliseconds(step, device, 1)[1] / 1e3 for _ in range(2)]


def cold_elsewhere(name: str, device: torch.device) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": folder, "HF_OPTIM_CACHE": folder}
        command = [sys.executable, __file__, "--device", device.type, "--cold", name, "--output", folder + "/out.json"]
        subprocess.run(command, env=environment, check=True)
        return json.loads(Path(folder, "out.json").read_text())  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--names", nargs="*", default=[])
    parser.add_argument("--cold")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.cold:
        args.output.write_text(json.dumps(cold(args.cold, device)))
        return
    chosen = args.names or rules()
    chosen = [n for n in chosen if "evaluate" not in Candidate(n).needs]
    report: dict[str, Any] = {"columns": __doc__, "bandwidth": {}, "rows": {}, "first": {}}
    for model, shapes in (CUDA_MODELS if device.type == "cuda" else CPU_MODELS).items():
        model_shapes = shapes()
        numel = sum(math.prod(s) for s in model_shapes)
        report["bandwidth"][model] = speed = bandwidth(device)
        report["rows"][model] = rows = {}
        for label, make in contestants(chosen, device).items():
            try:
                row = measure(make, model_shapes, device)
                if "bytes" in row:
                    row["B"] = row["pipe"] * 1e-3 * speed / (row["bytes"] * numel)
            except Exception as e:
                row = {"error": one_line(e)}
            rows[label] = row
            print(f"{model:12s} {label:28s} {row}", flush=True)
            args.output.write_text(json.dumps(report))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    for name in chosen if device.type == "cuda" else chosen[:1]:
        report["first"][name] = cold_elsewhere(name, device)
        args.output.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
