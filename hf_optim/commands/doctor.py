"""The command `hf-optim doctor`: what is installed, what this machine has, and what will be used of it."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from hf_optim.commands.parser import Parser
from hf_optim.core.caches import safe
from hf_optim.core.private import Scrubber
from hf_optim.core.safe_text import terminal
from hf_optim.errors import one_line

ABOUT = "show versions, compiler, GPU and caches, and what will be used"
Line = tuple[str, str, str]  # "ok" | "note" | "bad", what, how it is


def main(argv: Sequence[str] | None = None) -> int:
    """Print what there is; gives 1 where something that is installed cannot work, else 0."""
    parser = Parser(
        "hf-optim doctor",
        "Show the versions, the compiler, Triton, the GPU and the caches; what will be used, and why not better.",
        ("hf-optim doctor",),
        "Paste its output into a bug report: it holds no path of your home, no names and no environment.",
    )
    parser.parse_args(sys.argv[1:] if argv is None else argv)
    lines = [*versions(), *machine(), *caches(), *use()]
    width = max(len(topic) for _, topic, _ in lines)
    marks = {"ok": " ", "note": "·", "bad": "✗"}
    private, home = Scrubber(), re.compile(re.escape(str(Path.home()).rstrip("/") or "\0") + r"(?=/|$)")
    for sign, topic, how in lines:
        print(terminal(f"{marks[sign]} {topic:{width}s}  {private.unnamed(home.sub('~', how))}"))
    return int(any(sign == "bad" for sign, _, _ in lines))


def versions() -> Iterator[Line]:
    """Python, and every package of the extras: its version, or that it is absent; too old ones are bad."""
    yield "ok", "python", platform.python_version()
    try:
        listed = requires("hf-optim") or []
        yield "ok", "hf-optim", version("hf-optim")
    except PackageNotFoundError:
        yield "bad", "hf-optim", "not installed: pip install hf-optim"
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:  # every extra brings it
        yield "ok", "torch", version("torch")
        yield (
            "note",
            "extras",
            "none installed: pip install 'hf-optim[hf]' for Trainer, 'hf-optim[study]' for studies",
        )
        return

    absent: dict[str, list[str]] = {}
    seen = set()
    for line in listed:
        requirement = Requirement(line)
        extra = str(requirement.marker).rpartition("extra == ")[2].strip('"') if requirement.marker else ""
        if extra in ("dev", "docs") or requirement.name == "hf-optim" or requirement.name in seen:
            continue
        seen.add(requirement.name)
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            absent.setdefault(extra, []).append(requirement.name)
            continue
        fits = requirement.specifier.contains(there, prereleases=True)
        yield (
            ("ok", requirement.name, there)
            if fits
            else ("bad", requirement.name, f"{there}, and {requirement.specifier} is needed")
        )
    for extra, names in absent.items():
        yield "note", ", ".join(names), f"not installed: pip install 'hf-optim[{extra}]'"


def machine() -> Iterator[Line]:
    """Cores, GPUs, Triton and the C++ compiler."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "ok", "cores", f"{cores} ({platform.machine()}, {platform.system()})"
    try:
        import torch

        from hf_optim.engine import kernels
    except ImportError:
        yield "bad", "torch", "cannot be imported: pip install torch"
        return
    try:
        path, said = kernels.compiler()
        yield "ok", "C++ compiler", f"{path}: {said.splitlines()[0]}"
    except kernels.Unbuildable as why:
        yield "note", "C++ compiler", f"{why}: steps run as the rule is written"
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            yield "ok", f"GPU {i}", f"{name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free"
    else:
        built = torch.version.cuda or torch.version.hip
        yield "note", "GPU", "none that torch sees" if built else "none: this torch is built for the CPU alone"
    if find_spec("torchvision") is not None:
        try:
            import torchvision

            yield "ok", "torchvision", torchvision.__version__
        except (ImportError, RuntimeError) as why:
            yield (
                "bad",
                "torchvision",
                f"was built for another torch ({one_line(why)}): install the one for {torch.__version__}",
            )
    try:
        import triton

        yield "ok", "triton", triton.__version__
    except ImportError:
        yield "note", "triton", "not installed" + (": pip install triton" if torch.cuda.is_available() else "")


def caches() -> Iterator[Line]:
    """Where kernels and the Hub's data are kept."""
    folder, why = safe("kernels")
    if folder is None:
        yield "note", "kernel cache", f"none, so every process builds its kernels: {why}"
    else:
        yield "note" if why else "ok", "kernel cache", f"{folder}{f', since {why}' if why else ''}"
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    yield "ok", "Hub cache", str(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield "ok", "Hub", "offline, as HF_HUB_OFFLINE says" if offline else "asked at size paper alone"


def use() -> Iterator[Line]:
    """A step of AdamW as it runs here, by the optimizer's own word."""
    try:
        import torch

        import hf_optim
    except ImportError:
        return
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        weight = torch.nn.Parameter(torch.ones(4, 4, device=device))
        opt = hf_optim.create("adamw", [weight])
        weight.grad = torch.ones_like(weight)
        opt.step()
        execution = str(getattr(opt, "execution", ""))
        yield "ok" if "kernels" in execution.partition(":")[0] else "note", f"a step on {device}", execution
