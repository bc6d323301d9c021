"""Emitted kernels as machine code for GPUs, compiled on a machine without one; `test_triton.py` runs this file."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import sqrt, where
from hf_optim.engine.emit_triton import Place, emit, emit_scalars
from hf_optim.engine.launch_triton import module
from hf_optim.engine.trace import trace, trace_scalars

POINTERS = {
    "table": "*i64", "which": "*i32", "where": "*i64", "sizes": "*i64", "row": "*i32", "numbers": "*fp64",
    "sums": "*fp64", "partial": "*fp64", "index": "*i64", "origin": "*i64", "halt": "*fp64",
}  # fmt: skip


def update(x: Any, g: Any, m: Any, v: Any, c: Any) -> tuple:
    m.lerp_(g, c.w1)
    v.mul_(c.beta2).addcmul_(g, g, value=c.w2)
    x.addcdiv_(m, v.sqrt().add_(c.eps).pow_(c.power), value=-c.lr)
    return (dot(m, g),)


def assembly(kernel: Any, signature: dict[str, str], constants: dict[str, Any], capability: int) -> str:
    """The PTX of a kernel; ptxas made machine code of it, too."""
    signature = signature | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, attrs=aligned)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    return str(compiled.asm["ptx"])


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("stored", "noisy"), [(torch.float32, ()), (torch.bfloat16, ("m", "v"))])
def test_whole_chunks_move_16_bytes_at_a_time(stored: torch.dtype, noisy: tuple, capability: int) -> None:
    numbers = {"w1": 0.1, "beta2": 0.9, "w2": 0.1, "eps": 1e-8, "power": 0.3, "lr": 0.1}
    program = trace(update, dict.fromkeys(("x", "g", "m", "v"), stored), numbers, (), torch.float32, noisy)
    constants = {"CHUNK": 1024, "ALIGNED": True}
    ptx = assembly(module(emit(program)).hf_optim_pass, POINTERS | {"rows": "i32"}, constants, capability)
    per_tensor = 1024 * stored.itemsize // 16 // 128
    assert len(re.findall(r"ld\.global\.v4", ptx)) == 4 * per_tensor
    assert len(re.findall(r"st\.global\.v4", ptx)) == 3 * per_tensor
    assert not re.findall(r"\bfma\.rn\.f32", ptx), "contracted: other bits than the C++ kernel's"
    assert "sqrt.rn.f32" in ptx
    assert "div.rn.f32" in ptx
    assembly(
        module(emit(program)).hf_optim_gather,
        {"partial": "*fp64", "first": "*i32", "row": "*i32", "total": "*fp64"}, {"TERMS": 1, "LANES": 256}, capability,
    )  # fmt: skip


def test_scalar_programs_compile() -> None:
    def call(v: dict[str, Any]) -> dict[str, Any]:
        return {"memory": where(v["total"] > 0, v["memory"] * v["lr"] ** v["t"], sqrt(v["memory"]))}

    reads = {"total": Place("total", 0, 2, summed=True), "memory": Place("memory", 0, 1, common=True)}
    reads |= {"lr": Place("given", 0, 2, common=True), "t": Place("given", 1, 2, common=True)}
    program = trace_scalars(call, tuple(reads))
    dtypes = dict.fromkeys(("total", "memory", "given"), torch.float64)
    source = emit_scalars(program, reads, {"memory": [reads["memory"]]}, dtypes, alone=True)
    signature = dict.fromkeys(dtypes, "*fp64") | {"count": "i32", "rows": "i32"}
    assembly(module(source).hf_optim_scalars, signature, {"BLOCK": 256}, 90)


@pytest.mark.parametrize("capability", [80, 90])
def test_codes_of_8_bits_compile_to_the_same_operations(capability: int) -> None:
    numbers = {"w1": 0.1, "beta2": 0.9, "w2": 0.1, "eps": 1e-8, "power": 0.3, "lr": 0.1}
    kept = {"x": torch.float32, "g": torch.float32, "m": torch.int8, "v": torch.uint8}
    program = trace(update, kept, numbers, (), torch.float32, ("m", "v"))
    constants = {"CHUNK": 1024, "ALIGNED": True}
    ptx = assembly(module(emit(program)).hf_optim_pass, POINTERS | {"rows": "i32"}, constants, capability)
    assert not re.findall(r"\bfma\.rn\.f32", ptx), "contracted: other codes than the C++ kernel's"
    assert not re.findall(r"\b(sqrt|div)\.(approx|full)", ptx)
