"""Every Triton kernel that a registered optimizer launches, compiled to machine code for GPUs on a machine without one.

    python scripts/compile_kernels.py                        # all names, compute capabilities 8.0 and 9.0
    python scripts/compile_kernels.py --names smaran lion --capabilities 90

Steps are taken over tensors of a CPU as if Triton's interpreter ran them, but nothing is launched: each launch is
written down with its source and the kinds of its arguments. Triton and its assembler then make each distinct one for
each GPU, in parallel. Prints what fails, and which kernels spill registers; exits with 1 if one fails.
"""

from __future__ import annotations

import argparse
import inspect
import json
import linecache
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

#: a matrix whose state is kept in 8 bits where that is asked for, and a vector
SHAPES, STEPS = ((64, 64), (64,)), 6
_KINDS = {
    "float64": "*fp64", "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16", "int64": "*i64", "int32": "*i32",
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--names", nargs="*", default=[], help="optimizers (default: all)")
    parser.add_argument("--capabilities", nargs="*", type=int, default=[80, 90], help="of GPUs (default: 80 90)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time (default: cores)")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.record:
        record(args.names, args.record)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "launches.json"
        interpreted = {**os.environ, "TRITON_INTERPRET": "1", "HF_OPTIM_KERNELS": "triton"}
        command = [sys.executable, __file__, "--record", str(file), "--names", *args.names]
        subprocess.run(command, env=interpreted, check=True)
        launches = json.loads(file.read_text())
    work = [(launch, capability) for launch in launches for capability in args.capabilities]
    print(f"{len(launches)} kernels of {len({n for launch in launches for n in launch['by']})} optimizers", flush=True)
    failed, spilled = [], []
    with ProcessPoolExecutor(args.jobs) as pool:
        made = pool.map(compiled, work, chunksize=4)
        for done, ((launch, capability), (why, spills)) in enumerate(zip(work, made, strict=True), 1):
            where = f"{launch['kernel']} of {', '.join(launch['by'][:3])} for {capability}"
            if why:
                failed.append(where)
                print(f"FAILED {where}: {why}", flush=True)
            elif spills:
                spilled.append((spills, where))
            if done % 100 == 0:
                print(f"{done} of {len(work)}", flush=True)
    for spills, where in sorted(spilled, reverse=True)[:20]:
        print(f"spills {spills} bytes: {where}")
    print(f"{len(work) - len(failed)} of {len(work)} compiled, {len(spilled)} spill registers")
    return 1 if failed else 0


# --- what is launched ------------------------------------------------------------------------------------------------


def record(names: list[str], file: Path) -> None:
    """Write down every distinct launch of these optimizers, in all precisions."""
    import torch
    import triton

    import hf_optim
    from hf_optim.check.candidate import Candidate
    from hf_optim.engine import launch_triton

    found: dict[str, dict[str, Any]] = {}
    owner = "a trial"

    def note(kernel: Any, grid: int, arguments: tuple[Any, ...], more: dict[str, Any]) -> None:
        source = "".join(linecache.cache[kernel.fn.__globals__["__name__"]][2])  # type: ignore[index]
        parameters = list(inspect.signature(kernel.fn).parameters)
        signature = {k: kind(v) for k, v in zip(parameters, arguments, strict=False)}
        options = {k: v for k, v in more.items() if k in ("num_warps", "enable_fp_fusion")}
        constants = {k: v for k, v in more.items() if k not in options}
        launch = {"source": source, "kernel": kernel.fn.__name__, "signature": signature, "constants": constants,
                  "options": options}  # fmt: skip
        by = found.setdefault(json.dumps(launch, sort_keys=True), {**launch, "by": []})["by"]
        if owner not in by:
            by.append(owner)

    def closure(params: list[Any]) -> Any:
        for p in params:
            p.grad = torch.randn_like(p)
        return torch.tensor(0.5)

    def kind(value: Any) -> str:
        return _KINDS[str(value.dtype).removeprefix("torch.")] if isinstance(value, torch.Tensor) else "i32"

    assert launch_triton.interpreted(), triton.__version__
    launch_triton._launch = note
    for name in names or hf_optim.list_optimizers():
        candidate = Candidate(name)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for state in (None, "bf16", "int8"):
                owner = " ".join([name, str(dtype).removeprefix("torch."), *([f"state {state}"] if state else [])])
                params = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]
                try:
                    opt = candidate.make(params, **({"state_dtype": state} if state else {}))
                except (hf_optim.UserError, TypeError):  # a state that does not suit it
                    continue
                for _ in range(STEPS):
                    opt.step(partial(closure, params))
    file.write_text(json.dumps(list(found.values())))


# --- what becomes of it ----------------------------------------------------------------------------------------------


def compiled(work: tuple[dict[str, Any], int]) -> tuple[str, int]:
    """Why a kernel cannot be made for a GPU ("" if it can), and the bytes of registers that it spills."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from hf_optim.engine.launch_triton import module

    launch, capability = work
    constants = launch["constants"]
    signature = launch["signature"] | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    try:
        source = ASTSource(getattr(module(launch["source"]), launch["kernel"]), signature, constants, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch["options"])
    except Exception as error:  # whatever a compiler may raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", 0
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return "", max(int(stack) for _, stack in usage)


if __name__ == "__main__":
    sys.exit(main())
