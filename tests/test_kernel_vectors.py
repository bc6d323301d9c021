"""Kernels of a CPU compute with whole registers, whatever the processor's are, and to the same bits in all."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest
import torch
from test_kernels import BF16, F16, F32, F64, SPECIAL, everything

from hf_optim.core.vocabulary import isfinite, where
from hf_optim.engine import emit_cpp, kernels, passes
from hf_optim.engine.trace import trace

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads a processor's assembly")


def knows(feature: str) -> bool:
    try:
        return feature in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def assembly(program, kind: str) -> list[str]:
    """What the compiler makes of a program for a kind of processor, which need not be this one."""
    path, said = kernels.compiler()
    if "clang" in said:
        pytest.skip("reads what gcc makes")
    flags = [f"-march={kind}" if flag == "-march=native" else flag for flag in kernels._FLAGS[0]]
    command = [path, *flags, "-S", "-x", "c++", "-", "-o", "-"]
    out = subprocess.run(command, input=emit_cpp.emit(program), text=True, capture_output=True, check=True).stdout
    return out.splitlines()


def test_a_root_is_taken_of_a_whole_vector():
    def divided(x, c):
        x.div_(x.sqrt())

    roots = [line for line in assembly(trace(divided, {"x": F32}, {}, (), F32), "x86-64-v4") if "vsqrtps" in line]
    assert roots and all("zmm" in line for line in roots), roots


def choices(x, g, m, c):
    m.copy_(m.maximum(g).minimum(c.most))
    x.copy_(where((g > m) & isfinite(g), g.sign(), x.lerp(g, m)))


@pytest.mark.parametrize("kind", ["x86-64", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize(("stored", "dtype"), [(F32, F32), (BF16, F32), (F64, F64)], ids=str)
def test_no_element_is_compared_by_itself(stored, dtype, kind):
    """gcc compares a vector that is wider than a register one element after the other, and is ten times slower."""
    lines = assembly(trace(choices, dict.fromkeys("xgm", stored), {"most": 2.0}, (), dtype), kind)
    assert not [line for line in lines if "comiss" in line or "comisd" in line]


@pytest.mark.parametrize(("stored", "dtype"), [(F32, F32), (BF16, F32), (F16, F32), (F64, F64)], ids=str)
def test_registers_of_any_width_give_the_same_bits(stored, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_OPTIM_CACHE", str(tmp_path))
    widths = [(), *((f"-m{name}", "-mf16c") for name in ("avx2", "avx512f") if knows(name))]
    values = torch.tensor([u for u in SPECIAL for _ in SPECIAL] + [v / 7 for v in range(1605)], dtype=F64)
    others = torch.tensor([v for _ in SPECIAL for v in SPECIAL] + [(v * 37 % 101 - 50) / 9 for v in range(1605)])
    numbers = {"two": 2.0, "half": 0.5, "three": 3.0, "small": 0.1}
    results = []
    for flags in widths:
        monkeypatch.setattr(kernels, "_flags", [((*kernels._BASE, *flags),)])
        kernels.build.cache_clear()
        columns = {"x": values.to(stored), "g": others.to(stored), "a": values.to(dtype), "b": others.to(dtype)}
        columns = {k: t.clone() for k, t in columns.items()}
        table = passes.Table({k: [t] for k, t in columns.items()}, dtype)
        results.append([*columns.values(), table.run(everything, [passes.Cohort([0], c=numbers)])])
        assert table.why is None
    kernels.build.cache_clear()
    assert len(list((tmp_path / "kernels").glob("*.so"))) == len(widths)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
