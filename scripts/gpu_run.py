"""Runs the sections of the GPU's report, each in a process of its own, and writes one JSON; see scripts/gpu.sh."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SECTIONS = ("parity", "steps", "capture", "trainer", "ranks")
PACKAGES = ("torch", "triton", "transformers", "accelerate", "pytorch_optimizer", "timm", "optimi", "lion-pytorch")


def machine(device: str) -> dict[str, Any]:
    """The card and the versions."""
    facts: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        facts["card"] = torch.cuda.get_device_name()
        facts["cards"] = torch.cuda.device_count()
        facts["memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        facts["cuda"] = torch.version.cuda
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        )
        facts["driver"] = said.stdout.split("\n")[0].strip() or None
    else:
        facts["card"] = None
    return facts


def commit() -> str | None:
    """The checkout's commit, with a + if it has changes."""
    said = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() or None


def section(name: str, device: str, names: list[str], limit: float) -> dict[str, Any]:
    """What a section found, or why it found nothing."""
    environment = dict(os.environ)
    if device == "cpu":
        environment |= {"TRITON_INTERPRET": "1", "HF_OPTIM_KERNELS": "triton", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(HERE / f"gpu_{name}.py"), "--device", device, "--output", str(out)]
        start = time.time()
        try:
            done = subprocess.run([*command, "--names", *names], cwd=ROOT, env=environment, timeout=limit)
            failed = None if done.returncode == 0 else f"exit status {done.returncode}"
        except subprocess.TimeoutExpired:
            failed = f"not done after {limit:.0f} s"
        report = json.loads(out.read_text()) if out.exists() else {}
    return {**report, "seconds": round(time.time() - start, 1), **({"failed": failed} if failed else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--names", nargs="+", default=[], help="optimizers; all by default")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a section")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "gpu.json")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: torch sees no CUDA device (--device cpu makes a dry run)")
    before = json.loads(args.output.read_text()) if args.output.exists() else {}
    report: dict[str, Any] = {
        "command": shlex.join(["bash", "scripts/gpu.sh", *sys.argv[1:]]),
        "when": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "device": args.device,
        "machine": machine(args.device),
        "sections": {},
    }
    for name in args.only:
        print(f"== {name}", flush=True)
        report["sections"][name] = section(name, args.device, args.names, args.limit)
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    if before.get("device") == "cuda" and args.device == "cpu":
        print("note: the report of a GPU was replaced by a dry run")
    print(args.output)
    if args.output.resolve() == ROOT / "docs" / "gpu.json":
        subprocess.run([sys.executable, str(HERE / "build_gpu_docs.py")], check=True)


if __name__ == "__main__":
    main()
