"""Triton's kernels in its interpreter, on a CPU; `test_triton.py` runs this file in a process of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_optim.core.reduce import dot, l1
from hf_optim.core.vocabulary import isfinite, maximum, minimum, sqrt, where
from hf_optim.engine import launch_triton
from hf_optim.engine.passes import Cohort, Sums, Table
from hf_optim.engine.reference import evaluate
from hf_optim.engine.stochastic_rounding import noise_key
from hf_optim.engine.trace import trace, trace_scalars

SIZES = (1, 1024, 1501, 0)
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e20, -1e20, 1e-40, 3.0, -2.0, 1e-20, 0.5)
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, at infinities


def filled(dtype: torch.dtype, size: int, seed: int, special: bool) -> torch.Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if special:
        values[: len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64)[: len(values)]
    return values.to(dtype)


def run_both(
    f: Callable[..., Any], tensors: dict[str, torch.dtype], dtype: torch.dtype, special: bool = False, noisy: tuple = ()
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]], torch.Tensor | None, list[Any]]:
    """Run f by Triton and its program by torch; the tensors afterwards, and the sums, of both."""
    mine = [
        {k: filled(d, n, i * 31 + j, special) for j, (k, d) in enumerate(tensors.items())} for i, n in enumerate(SIZES)
    ]
    theirs = [{k: t.clone() for k, t in own.items()} for own in mine]
    origin = [(100 * i, 3 + i) for i in range(len(SIZES))]
    table = Table({k: [own[k] for own in mine] for k in tensors}, dtype, noisy=frozenset(noisy), origin=origin)
    sums = Sums(("S",), torch.tensor([[0.5], [0.25], [-1.0], [0.0]], dtype=torch.float64))
    total = table.run(f, [Cohort([0, 1, 2, 3], t=7, c=dict(NUMBERS))], sums)
    assert table.why is None, table.why
    program = trace(f, tensors, NUMBERS, sums.names, dtype, noisy)
    wanted = [
        evaluate(program, own, NUMBERS, {"S": float(sums.values[i])}, noise_key(0, 7, 3 + i), 100 * i)
        for i, own in enumerate(theirs)
    ]
    return mine, theirs, total, wanted


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def arithmetic(x: Any, g: Any, m: Any, v: Any, c: Any) -> tuple:
    m.lerp_(g, c.w).clamp_(-3.0, 3.0)
    v.mul_(c.beta).addcmul_(g, g, value=1 - c.beta)
    root = (v + m.abs()).sqrt().add_(c.eps)
    x.addcdiv_(m, root, value=-c.lr).sub_(g.sign(), alpha=c.S).add_(g.reciprocal().minimum(x).maximum(m).neg() * 0.25)
    return dot(g, g), l1(m) * c.beta, dot(x, m)


def choices(x: Any, g: Any, m: Any, v: Any, c: Any) -> None:
    where_ = where((g > m) & (v <= 1.0) | ~isfinite(g), g / m, m - v)
    x.copy_(where(c.flag, where_, x))
    m.copy_(minimum(maximum(m, c.lr), 2.0))
    v.zero_()


def powers(x: Any, g: Any, m: Any, v: Any, c: Any) -> None:
    x.copy_(v.abs().pow(c.w))
    m.pow_(2.0)
    v.pow_(-0.5)


NUMBERS = {"w": 0.3, "beta": 0.9, "eps": 1e-8, "lr": 0.01, "flag": 1.0}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("f", [arithmetic, choices, powers])
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32),
     (torch.float16, torch.float32)],
)  # fmt: skip
def test_every_operation_equals_torch(
    f: Callable[..., Any], stored: torch.dtype, dtype: torch.dtype, special: bool
) -> None:
    tensors = {"x": stored, "g": stored, "m": torch.float32 if stored is torch.float16 else stored, "v": dtype}
    mine, theirs, total, wanted = run_both(f, tensors, dtype, special)
    for ours, right in zip(mine, theirs, strict=True):
        for k in ours:
            if f is powers:  # by way of exp2 and log2
                torch.testing.assert_close(ours[k], right[k], rtol=4e-7, atol=0, equal_nan=True, msg=k)
            else:
                assert same(ours[k], right[k]), k
    for i, row in enumerate(wanted):
        if row:
            torch.testing.assert_close(total[i], torch.stack(row), rtol=1e-12, atol=1e-300, equal_nan=True)


@pytest.mark.parametrize("special", [False, True])
def test_noise_and_compensation_to_the_last_bit(special: bool) -> None:
    tensors = dict.fromkeys(("x", "g", "m", "v", "compensation"), torch.bfloat16)
    mine, theirs, _, _ = run_both(arithmetic, tensors, torch.float32, special, ("m", "v"))
    assert all(same(a[k], b[k]) for a, b in zip(mine, theirs, strict=True) for k in a)
    nearest, _, _, _ = run_both(arithmetic, tensors, torch.float32, special)
    assert any(not same(a[k], b[k]) for a, b in zip(mine, nearest, strict=True) for k in ("m", "v"))
    assert all(same(a["x"], b["x"]) for a, b in zip(mine, nearest, strict=True))


def plain(x: Any, g: Any, c: Any) -> tuple:
    x.sub_(g, alpha=c.lr)
    return (dot(g, g),)


def test_rows_choose_numbers_and_leave_tensors_alone() -> None:
    memory = torch.zeros(4, 4001)
    x = [memory[0, :3000], memory[1, 1:3001], memory[2, :5], memory[3, 3:2003]]  # two of them begin between 16 bytes
    g = [torch.ones_like(t) for t in x]
    table = Table({"x": x, "g": g})
    numbers = [Cohort([1], c={"lr": 1.0}), Cohort([0, 3], c={"lr": 2.0})]
    total = table.run(plain, numbers)
    assert [set(t.tolist()) for t in x] == [{-2.0}, {-1.0}, {0.0}, {-2.0}]
    assert total.flatten().tolist() == [3000.0, 3000.0, 0.0, 2000.0]
    assert float(memory.sum()) == -2.0 * 3000 - 3000 - 2.0 * 2000, "what lies beside the tensors was written"
    table.halt = torch.ones(1, dtype=torch.float64)
    table.run(plain, numbers)
    assert float(memory.sum()) == -13000.0, "a halted pass moves nothing"
    table.halt.zero_()
    total = table.run(plain, numbers[:1])
    assert total.flatten().tolist() == [0.0, 3000.0, 0.0, 0.0]
    assert table.why is None


def test_a_scalar_program_alone() -> None:
    def call(v: dict[str, Any]) -> dict[str, Any]:
        memory = where(v["halt"] > 0, v["memory"], v["memory"] * 0.5 + v["total"])
        return {
            "memory": memory,
            "number": v["lr"] / (sqrt(memory) + 1e-8) * (1 - 0.9 ** v["t"]),
            "ok": isfinite(memory),
        }

    place = launch_triton.Place
    reads = {"halt": place("kept", 0, 2, common=True), "memory": place("kept", 1, 2, common=True)}
    reads |= {"lr": place("given", 0, 2), "t": place("given", 1, 2), "total": place("total", 1, 3, summed=True)}
    stores = {"memory": [place("kept", 1, 2, common=True), place("out", 2, 3)], "number": [place("out", 0, 3)]}
    stores["ok"] = [place("out", 1, 3)]
    dtypes = dict.fromkeys(("kept", "given", "total", "out"), torch.float64)
    run = launch_triton.Scalars(trace_scalars(call, tuple(reads)), reads, stores, dtypes, alone=True)
    kept = torch.tensor([0.0, 4.0], dtype=torch.float64)
    tables = {"kept": kept, "given": torch.tensor([0.1, 1.0], dtype=torch.float64), "out": kept.new_zeros(3)}
    total = torch.arange(900, dtype=torch.float64).view(300, 3)
    run(1, 300, total=total, **tables)
    memory = 2.0 + float(total[:, 1].sum())
    assert kept.tolist() == [0.0, memory]
    assert tables["out"][1:].tolist() == [1.0, memory]
    assert math.isclose(float(tables["out"][0]), 0.1 / (math.sqrt(memory) + 1e-8) * (1 - 0.9), rel_tol=1e-14)
    kept[0] = 1.0
    run(1, 300, total=total, **tables)
    assert kept[1] == memory


def test_scalar_programs_side_by_side() -> None:
    program = trace_scalars(lambda v: {"ratio": where((v["a"] > 0) & (v["b"] > 0), v["a"] / v["b"], 1.0)}, ("a", "b"))
    place = launch_triton.Place
    run = launch_triton.Scalars(
        program,
        {"a": place("total", 0, 2), "b": place("total", 1, 2)},
        {"ratio": [place("sums", 0, 1)]},
        {"total": torch.float64, "sums": torch.float64},
        alone=False,
    )
    total = torch.rand(300, 2, dtype=torch.float64)
    total[::7] = 0.0
    sums = torch.zeros(300, 1, dtype=torch.float64)
    run(300, 300, total=total, sums=sums)
    expected = torch.where((total > 0).all(1), total[:, 0] / total[:, 1], 1.0)
    assert torch.equal(sums[:, 0], expected)


def test_reasons() -> None:
    assert launch_triton.why_not(CPU) is None
    assert launch_triton.why_not(torch.device("meta")) == "there are no kernels for meta"
