"""Kernels of a CPU: what is traced and emitted equals torch; what is built is kept safely, and done without."""

from __future__ import annotations

import ctypes
import os

import pytest
import ranks
import torch
from contract import OURS, Problem, make, run

import hf_optim
from hf_optim.core.reduce import dot, l1
from hf_optim.core.vocabulary import isfinite, maximum, minimum, sqrt, where
from hf_optim.engine import emit_cpp, fallback, kernels, passes
from hf_optim.engine.fallback import limits
from hf_optim.engine.reference import evaluate
from hf_optim.engine.stochastic_rounding import noise, noise_key
from hf_optim.engine.trace import Untraceable, trace, trace_scalars
from hf_optim.errors import UserError

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def viewed(address: int, dtype: torch.dtype, size: int) -> torch.Tensor:
    """The tensor that a kernel sees at an address."""
    if size == 0:
        return torch.empty(0, dtype=dtype)
    memory = (ctypes.c_char * (size * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)


class Evaluated(passes.Launcher):
    """Runs a program with torch, over the tables of a launch."""

    chunk = emit_cpp.CHUNK
    launched = 0

    def __init__(self, program) -> None:
        self.program = program

    def launch(self, request):
        program = self.program
        Evaluated.launched += 1
        total = torch.zeros(len(request.sizes), len(program.terms), dtype=F64)
        for i, (size, row) in enumerate(zip(request.sizes.tolist(), request.row.tolist(), strict=True)):
            if row < 0:
                continue
            tensors = {
                name: viewed(int(request.table[j, i]), dtype, size) for j, (name, dtype) in enumerate(program.tensors)
            }
            numbers = dict(zip(program.numbers, request.numbers[row], strict=True))
            sums = {} if request.sums is None else dict(zip(program.sums, request.sums[i].tolist(), strict=True))
            key = 0 if request.keys is None else int(request.keys[i]) & 0xFFFFFFFF
            out = evaluate(program, tensors, numbers, sums, key, int(request.origin[i]))
            if out:
                total[i] = torch.stack(out)
        return total if program.terms else None


@pytest.mark.parametrize("name", OURS)
def test_the_trace_of_a_rule_says_what_the_rule_says(name, monkeypatch):
    """Evaluated by torch, operation by operation, in float64; and no rule does what a trace cannot hold."""
    results = []
    for evaluated in (False, True):
        monkeypatch.setattr(passes, "launcher", lambda device: Evaluated)
        before = Evaluated.launched
        with limits(kernels=evaluated):
            problem, opt = run(name, 4, Problem(F64))
        assert (Evaluated.launched > before) == evaluated and not (evaluated and opt._steps.why())
        results.append(problem)
    for a, b in zip(results[0].params, results[1].params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# --- every operation -------------------------------------------------------------------------------------------------

SPECIAL = [0.0, -0.0, 1.0, -1.5, 1e-30, -1e-42, 3e38, -3e38, float("inf"), -float("inf"), float("nan"), 0.3]


def everything(x, g, a, b, c):
    """Every word of the vocabulary, a result a tensor of `x`'s length; NaN and infinities go through."""
    total = x.add(g, alpha=c.two).sub(g, alpha=c.half).mul(c.two).div(c.three)
    a.copy_(x.maximum(g).minimum(c.three).sub(x.neg()))
    b.copy_(where(g > x, x.abs(), g.sign()).add(g.reciprocal()).addcmul(x, g, value=c.half).addcdiv(x, g, value=c.two))
    x.copy_(
        total.abs().sqrt().lerp(g, c.half).lerp(g, c.small).clamp(-c.three, c.three).add(where(isfinite(g), g, 7.0))
    )
    x.add_(g.abs().pow(c.half))
    return dot(g, a) * c.two, l1(b) / c.three


@pytest.mark.parametrize("dtypes", [(F32, F32), (F64, F64), (BF16, F32), (F16, F32)], ids=str)
def test_every_operation_equals_torch(dtypes):
    stored, dtype = dtypes
    values = torch.tensor([u for u in SPECIAL for _ in SPECIAL] + [v / 7 for v in range(600)], dtype=F64)
    others = torch.tensor([v for _ in SPECIAL for v in SPECIAL] + [(v * 37 % 101 - 50) / 9 for v in range(600)])
    numbers = {"two": 2.0, "half": 0.5, "three": 3.0, "small": 0.1}
    columns = {"x": values.to(stored), "g": others.to(stored), "a": values.to(dtype), "b": others.to(dtype)}
    columns = {k: t.clone() for k, t in columns.items()}
    program = trace(everything, {k: t.dtype for k, t in columns.items()}, numbers, (), dtype)
    expected = {k: t.clone() for k, t in columns.items()}
    sums = evaluate(program, expected, numbers, {})
    table = passes.Table({k: [t] for k, t in columns.items()}, dtype)
    totals = table.run(everything, [passes.Cohort([0], c=numbers)])
    assert table.why is None
    for k in columns:
        torch.testing.assert_close(
            columns[k], expected[k], rtol=2e-7 if dtype is F32 else 1e-15, atol=0, equal_nan=True
        )
    torch.testing.assert_close(totals[0], torch.stack(sums), rtol=1e-6, atol=0, equal_nan=True)


def test_sums_have_the_same_bits_for_any_number_of_threads():
    g = torch.randn(3 * emit_cpp.CHUNK + 77, generator=torch.Generator().manual_seed(0))
    totals = set()
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            table = passes.Table({"g": [g, g[:1000].clone(), g[:3].clone()]})
            totals.add(tuple(table.run(squares, [passes.Cohort([0, 1, 2])]).flatten().tolist()))
        finally:
            torch.set_num_threads(before)
    assert len(totals) == 1
    assert next(iter(totals))[0] == pytest.approx(float((g.double() ** 2).sum()), rel=1e-7)


def squares(g, c):
    return (dot(g, g),)


@pytest.mark.parametrize("kernel", [True, False])
def test_stochastic_rounding_is_unbiased_exact_where_it_can_be_and_the_same_everywhere(kernel):
    value = 1 + 2**-10  # an eighth of the way between two bf16 neighbours
    x, m = torch.full((1 << 16,), value), torch.empty(1 << 16, dtype=BF16)
    special = torch.tensor([1.0, -2.5, 0.0, float("inf"), float("nan")])
    kept = torch.empty(5, dtype=BF16)

    def store(x, m, c):
        m.copy_(x)

    table = passes.Table({"x": [x, special], "m": [m, kept]}, noisy=frozenset({"m"}))
    with limits(kernels=kernel):
        table.run(store, [passes.Cohort([0, 1], t=3)])
    assert set(m.float().unique().tolist()) == {1.0, 1 + 2**-7}
    assert float(m.float().mean()) == pytest.approx(value, abs=2e-4)
    assert torch.equal(kept[:4].float(), special[:4]) and kept[4].isnan()
    bits = noise(torch.arange(1 << 16), noise_key(0, 3, 0), 1)
    assert torch.equal(m.float() > 1, (x.view(torch.int32) & 0xFFFF) + bits.int() > 0xFFFF)


# --- what a trace refuses --------------------------------------------------------------------------------------------

REFUSED = {
    "truth": lambda x, g, c: x.add_(g) if c.lr else None,
    "float": lambda x, g, c: x.mul_(float(c.lr)),
    "equality": lambda x, g, c: x.mul_(1.0 if c.lr == 0 else 2.0),
    "another method": lambda x, g, c: x.add_(g.sigmoid()),
    "torch's function": lambda x, g, c: x.add_(torch.sin(g)),
    "an operand of another kind": lambda x, g, c: x.add_("1"),
    "a sum that is used": lambda x, g, c: x.add_(dot(g, g)),
    "a sum plus a number": lambda x, g, c: (dot(g, g) + 1.0,),
    "an element for a sum": lambda x, g, c: (g * g,),
    "min": lambda x, g, c: x.add_(min(c.lr, 1.0)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_kernel_cannot_say_is_refused_while_it_is_traced(case):
    with pytest.raises(Untraceable):
        trace(REFUSED[case], {"x": F32, "g": F32}, {"lr": 0.1}, (), F32)


@pytest.mark.parametrize(
    "rule",
    [
        lambda x, g, c: x.sub_(g / g.norm()),
        lambda x, g, c: x.sub_(g * (g * x).sum()),
        lambda x, g, c: x.sub_(g * torch.mean(g)),
        lambda x, g, c: x.sub_(g / torch.linalg.norm(g)),
    ],
)
def test_a_sum_of_its_own_is_refused_since_a_rule_sees_pieces(rule):
    with pytest.raises(UserError, match="may be a piece of a tensor: let `measure` give the sum"):
        trace(rule, {"x": F32, "g": F32}, {"lr": 0.1}, (), F32)


class Rated(hf_optim.Optimizer):
    """A rate, and no rule yet."""

    def __init__(self, params, lr: float = 0.1, *, compile: bool | None = None):
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return {"lr": h.lr}


def test_a_rule_that_cannot_be_traced_runs_as_it_is_written_and_says_so():
    class Sine(Rated):
        @staticmethod
        def update(x, g, c):
            x.sub_(torch.sin(g) * c.lr)

    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.full((5,), 2.0)
    opt = Sine([p])
    opt.step()
    torch.testing.assert_close(p.detach(), 1 - 0.1 * torch.sin(torch.full((5,), 2.0)))
    assert opt.execution.startswith("blocks: ")


@pytest.mark.parametrize("word", ["x.square().mean()", "torch.square(x).sum()", "len(x)", "x.square().shape[0]"])
@pytest.mark.parametrize("compile", [True, False])
def test_no_sum_and_no_shape_is_that_of_a_piece(word, compile):
    class Scaled(Rated):
        @staticmethod
        def update(x, g, c):
            x.sub_(g * eval(word, {"x": x, "torch": torch}) * c.lr)

    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    with pytest.raises(UserError, match="may be a (flat )?piece of a tensor"):
        Scaled([p], compile=compile).step()


def test_one_text_of_the_numbers_serves_floats_tensors_and_symbols():
    def control(v):
        norm = sqrt(v["a"]) + v["b"]
        return {
            "low": minimum(norm, 2.0), "high": maximum(1.0, v["b"]), "chosen": where(v["a"] > 3, norm, 1 - v["b"] ** 2),
            "fine": where(isfinite(v["b"]), 2 ** v["a"], 1 / norm),
            "both": where((v["a"] > 0) & (v["b"] > 0), 1.0, 0.0),
        }  # fmt: skip

    program = trace_scalars(control, ("a", "b"))
    program = program[0] if isinstance(program, tuple) else program
    for a, b in ((4.0, 0.5), (1.0, 3.0), (9.0, float("inf")), (0.0, -1.0)):
        floats = control({"a": a, "b": b})
        tensors = control({"a": torch.tensor([a], dtype=F64), "b": torch.tensor([b], dtype=F64)})
        evaluated = evaluate(program, {}, {"a": a, "b": b}, {})
        for value, tensor, symbol in zip(floats.values(), tensors.values(), evaluated, strict=True):
            assert float(tensor) == pytest.approx(value) and float(symbol) == pytest.approx(value)


# --- building --------------------------------------------------------------------------------------------------------

SOURCE = emit_cpp.emit(trace(squares, {"g": F32}, {}, (), F32))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_OPTIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_a_kernel_is_kept_and_found_again(folder):
    first = kernels.Building(SOURCE)
    first.kernel()
    files = list(folder.iterdir())
    assert len(files) == 1 and files[0].stat().st_mode & 0o777 == 0o700 and folder.stat().st_mode & 0o777 == 0o700
    again = kernels.Building(SOURCE)
    assert again._process is None
    again.kernel()


def test_what_others_could_write_is_not_loaded(folder):
    kernels.Building(SOURCE).kernel()
    file = next(folder.iterdir())
    file.chmod(0o722)
    assert kernels.Building(SOURCE)._process is not None  # built anew
    folder.chmod(0o777)
    with pytest.raises(kernels.Unbuildable, match="others may write"):
        kernels.Building(SOURCE).kernel()


def test_a_folder_of_somebody_else_is_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345678)
    with pytest.raises(kernels.Unbuildable, match="belongs to somebody else"):
        kernels.Building(SOURCE).kernel()


def test_a_folder_of_which_nothing_may_be_loaded_is_left_for_the_next(tmp_path, monkeypatch):
    noexec, good = tmp_path / "noexec", tmp_path / "good"
    monkeypatch.setattr(kernels, "_folders", lambda: iter([noexec / "k", good / "k"]))
    load = ctypes.CDLL

    def refuses(path, *more):
        if path.startswith(str(noexec)):
            raise OSError("failed to map segment from shared object")
        return load(path, *more)

    monkeypatch.setattr(ctypes, "CDLL", refuses)
    kernels.Building(SOURCE).kernel()
    assert not list((noexec / "k").iterdir()) and len(list((good / "k").iterdir())) == 1


def test_builds_at_the_same_time_do_not_disturb_each_other(folder):
    several = [kernels.Building(SOURCE) for _ in range(3)]
    assert all(b.kernel() for b in several) and len(list(folder.iterdir())) == 1


def test_flags_that_a_compiler_does_not_know_are_left_out(folder, monkeypatch):
    good = kernels._FLAGS[-1]
    monkeypatch.setattr(kernels, "_flags", [((*good, "--no-such-flag"), good)])
    kernels.Building(SOURCE).kernel()
    assert kernels._flags == [(good,)]


WITHOUT = """
import torch, hf_optim
p = torch.nn.Parameter(torch.ones(50)); p.grad = torch.ones(50)
opt = hf_optim.create("amvt", [p]); print(opt.execution); opt.step(); print(opt.execution, float(p.detach().mean()))
"""


@pytest.mark.parametrize(
    ("environment", "why"),
    [({"HF_OPTIM_KERNELS": "0"}, "HF_OPTIM_KERNELS=0"), ({"CXX": "", "PATH": ""}, "there is no C++ compiler")],
)
def test_without_a_compiler_blocks_run_and_execution_says_why(environment, why, monkeypatch):
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        first, second = ranks.program(WITHOUT).splitlines()
    assert first == f"blocks: {why}" or first.startswith(f"blocks: {why}")
    p = torch.nn.Parameter(torch.ones(50))
    p.grad = torch.ones(50)
    make("amvt", [p]).step()
    assert second.startswith(first) and float(second.split()[-1]) == pytest.approx(float(p.detach().mean()))


def test_a_compiler_that_fails_is_no_error(folder, monkeypatch):
    monkeypatch.setattr(kernels, "_flags", [(("--no-such-flag",),)])
    kernels.build.cache_clear()
    try:
        p = torch.nn.Parameter(torch.ones(5))
        p.grad = torch.ones(5)
        opt = make("lion", [p])
        opt.step()
        assert opt.execution.startswith("blocks: the C++ compiler fails") and (p < 1).all()
    finally:
        kernels.build.cache_clear()


def test_limits_end_with_their_block():
    with limits(block=7):
        assert fallback.current().block == 7
        with pytest.raises(TypeError):
            limits(nothing=1).__enter__()
    assert fallback.current().block == 1 << 16


def test_only_a_step_that_builds_a_kernel_is_waited_for(monkeypatch):
    """At a terminal a wait has a thread of its own: none for every launch."""
    p = torch.nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    opt = make("lion", [p])
    opt.step()
    monkeypatch.setattr(kernels, "waiting", lambda *_: pytest.fail("there is nothing to wait for"))
    opt.step()
    assert "kernels" in opt.execution
