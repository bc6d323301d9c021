"""What a step holds and launches: temporaries, graphs, and storage in another precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from contract import OURS, Problem, make, step
from torch.profiler import ProfilerActivity, profile

import hf_optim
from hf_optim.engine import blocks as execute

SHAPES = ((1000, 1200), (50,))


def temporaries(opt: torch.optim.Optimizer, loss: float) -> int:
    """Most bytes that one step holds at once beyond what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        opt.step(loss=loss)  # type: ignore[call-arg]
    held = peak = 0
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def launched(run: Callable[[], Any], name: str) -> int:
    """How many of the events of a step have a name that matches."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    return sum(e.count for e in seen.key_averages() if re.fullmatch(name, e.key))


@pytest.mark.parametrize("name", [n for n in OURS if "evaluate" not in hf_optim.info(n).needs])
def test_temporaries_stay_in_the_cache(name, monkeypatch):
    """A few blocks, however large the model; only a line search keeps a copy of the parameters to come back to."""
    monkeypatch.setattr(execute, "THREADS", 1)
    problem = Problem(shapes=SHAPES)
    opt = make(name, problem.params)
    for t in range(2):  # the first step makes the state
        loss = problem.loss(t)
        loss.backward()
        if t == 0:
            opt.step(loss=loss)
    blocks = temporaries(opt, float(loss.detach())) / (4 * execute.BLOCK)
    assert 0 < blocks < 5.5


def test_every_thread_has_a_block_of_its_own(monkeypatch):
    monkeypatch.setattr(execute, "THREADS", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    seen = []
    execute.over_blocks(lambda x: seen.append(len(x)), {"x": torch.ones(5 * execute.BLOCK)}, [], torch.float32)
    assert seen == [2 * execute.BLOCK, 2 * execute.BLOCK, execute.BLOCK]


def test_the_measure_of_temporaries_sees_a_whole_tensor():
    params = [torch.nn.Parameter(torch.ones(1000, 1200))]
    params[0].grad = torch.ones(1000, 1200)

    class Wasteful(torch.optim.SGD):
        def step(self, closure=None, *, loss=None):
            with torch.no_grad():
                params[0].sub_(params[0].grad * 2)

    assert temporaries(Wasteful(params), 1.0) >= 4 * 1_200_000


def test_stochastic_rounding_is_unbiased_and_exact_where_it_can_be():
    generator = torch.Generator().manual_seed(0)
    value = torch.full((1 << 16,), 1 + 2**-10)  # a quarter of the way between two bf16 neighbours, 2^-8 apart below 2
    target = torch.empty(1 << 16, dtype=torch.bfloat16)
    execute.store(target, value, generator)
    assert set(target.float().unique().tolist()) == {1.0, 1 + 2**-7}
    assert float(target.float().mean()) == pytest.approx(1 + 2**-10, abs=2e-4)
    whole = torch.tensor([1.0, -2.5, 0.0, float("inf"), float("nan")])
    kept = torch.empty(5, dtype=torch.bfloat16)
    execute.store(kept, whole, generator)
    assert torch.equal(kept[:4].float(), whole[:4]) and kept[4].isnan()


def test_bf16_parameters_lose_nothing_that_compensation_keeps():
    """Steps of a thousandth of the distance between two bf16 numbers add up, to what they add up to in float32."""
    ends, left = {}, {}
    for dtype, state_dtype in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "bf16")):
        p = torch.nn.Parameter(torch.ones(3000, dtype=dtype))
        opt = hf_optim.create("smaran", [p], lr=1e-3, weight_decay=0.0, state_dtype=state_dtype)
        for _ in range(300):
            p.grad = torch.ones_like(p)
            opt.step(loss=1.0)
        ends[dtype, state_dtype] = float(p.detach().float().mean())
        left[dtype, state_dtype] = float(opt.state[p].get("compensation", torch.zeros(1)).float().mean())
    moved = 1 - ends[torch.float32, None]
    assert 0.001 < moved < 0.2
    assert ends[torch.bfloat16, None] == 1  # rounding to nearest takes every step
    kept = torch.bfloat16, "bf16"
    assert 1 - ends[kept] == pytest.approx(moved, abs=2**-9)  # as near as bf16 comes
    assert 1 - ends[kept] - left[kept] == pytest.approx(moved, rel=0.04)  # the state is rounded, too


def test_compensation_is_state_like_any_other(tmp_path):
    def start():
        p = torch.nn.Parameter(torch.linspace(1, 2, 5000, dtype=torch.bfloat16))
        return p, hf_optim.create("amvt", [p], lr=1e-4, state_dtype="bf16")

    def go(p, opt, steps):
        for t in steps:
            p.grad = torch.full_like(p, 1.0 + t)
            opt.step()

    p, opt = start()
    go(p, opt, range(4))
    torch.save((p.detach(), opt.state_dict()), tmp_path / "half.pt")
    go(p, opt, range(4, 8))
    q, second = start()
    q.data, state = torch.load(tmp_path / "half.pt", weights_only=True)
    second.load_state_dict(state)
    go(q, second, range(4, 8))
    assert torch.equal(p, q) and torch.equal(opt.state[p]["compensation"], second.state[q]["compensation"])
    assert opt.state[p]["compensation"].abs().max() > 0


PASSES = [("lion", 1), ("amvt", 1), ("smaran", 2), ("adamw_agr", 2), ("prodigy", 2)]


@pytest.mark.parametrize(("name", "graphs"), PASSES)
def test_a_step_launches_as_few_graphs_as_the_rule_has_passes(name, graphs):
    """One update pass, one reduction pass where the rule needs sums; vectors run as one, eagerly."""
    from torch._dynamo.utils import counters

    def calls(shapes):
        params = [torch.nn.Parameter(torch.ones(s)) for s in shapes]
        opt = hf_optim.create(name, params, compile=True)
        for t in range(3):
            for p in params:
                p.grad = torch.full_like(p, 0.1 + t)
            opt.step(loss=1.0)
        return launched(lambda: opt.step(loss=1.0), "Torch-Compiled Region.*")

    torch._dynamo.reset()
    execute.compiled.cache_clear()
    before = counters["stats"]["unique_graphs"]
    matrix, kernel, vectors = [(300, 200)], [(64, 64, 3, 3)], [(70,), (60,)]
    assert calls(matrix) == calls(matrix + vectors) == graphs
    assert calls(3 * matrix + 2 * kernel + 5 * vectors) == 5 * graphs
    assert counters["stats"]["unique_graphs"] - before == graphs


def test_autograd_notices_a_compiled_step():
    w = torch.nn.Parameter(torch.ones(300, 200))
    opt = hf_optim.create("lion", [w], compile=True)
    loss = (w * w).sum()
    loss.backward(retain_graph=True)
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_small_tensors_share_calls():
    """158 small tensors must not cost 158 times the calls of one."""

    def calls(count: int) -> int:
        params = [torch.nn.Parameter(torch.ones(64)) for _ in range(count)]
        for p in params:
            p.grad = torch.ones(64)
        opt = hf_optim.create("amvt", params)
        opt.step()
        return launched(opt.step, "aten::_foreach.*")

    assert calls(158) == calls(2)


@pytest.mark.parametrize("name", ["adamw_agr", "smaran"])
def test_on_an_accelerator_a_pass_over_all_tensors_is_one_graph(name, monkeypatch):
    """The compiled path of a GPU, run on a CPU: as eager, one call a pass however many tensors, nothing made again."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(execute, "BLOCKED", frozenset())
    runs, called = [], 0
    for compile in (False, True):
        problem = Problem(torch.float32, ((6, 5), (40, 30), (6, 5), (7, 3)))
        opt = make(name, problem.params, compile=compile)
        for t in range(5):
            loss = problem.loss(t)
            opt.zero_grad()
            loss.backward()
            opt.param_groups[0]["lr"] *= 0.9
            before = counters["stats"]["unique_graphs"]
            called = launched(partial(opt.step, loss=loss), "Torch-Compiled Region.*")
        assert called == 2 * compile
        assert counters["stats"]["unique_graphs"] == before
        runs.append(problem)
    for a, b in zip(runs[0].params, runs[1].params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_low_precision_parameters_on_an_accelerator_are_not_cut_into_blocks(monkeypatch):
    monkeypatch.setattr(execute, "BLOCKED", frozenset())

    def calls(size: int) -> int:
        p = torch.nn.Parameter(torch.ones(size, dtype=torch.bfloat16))
        p.grad = torch.ones_like(p)
        opt = make("lion", [p])
        opt.step()
        return launched(opt.step, "aten::lerp")

    assert calls(8 * execute.BLOCK) == calls(8) == 1


def test_a_strided_slice_is_not_read_as_if_it_were_dense():
    """Prodigy's slice_p measures every third element."""
    found = []
    for compile in (False, True):
        problem = Problem(torch.float32, ((300, 200),))
        opt = make("prodigy", problem.params, slice_p=3, compile=compile)
        for t in range(4):
            step(opt, partial(problem.loss, t))
        found.append(opt.figures()["d"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] > 1e-6
