"""What a step holds and launches: temporaries, graphs, and storage in another precision."""

from __future__ import annotations

import pytest
import torch
from contract import OURS, Problem, make
from torch.profiler import ProfilerActivity, profile

import hf_optim
from hf_optim import execute

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


@pytest.mark.parametrize("name", [n for n in OURS if "evaluate" not in hf_optim.info(n).needs])
def test_temporaries_stay_in_the_cache(name):
    """A few blocks, however large the model; only a line search keeps a copy of the parameters to come back to."""
    problem = Problem(shapes=SHAPES)
    opt = make(name, problem.params)
    for t in range(2):  # the first step makes the state
        loss = problem.loss(t)
        loss.backward()
        if t == 0:
            opt.step(loss=loss)
    blocks = temporaries(opt, float(loss.detach())) / (4 * execute.BLOCK)
    assert 0 < blocks < 5.5


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


def test_small_tensors_share_calls():
    """158 small tensors must not cost 158 times the calls of one."""
    def calls(count: int) -> int:
        params = [torch.nn.Parameter(torch.ones(64)) for _ in range(count)]
        for p in params:
            p.grad = torch.ones(64)
        opt = hf_optim.create("amvt", params)
        opt.step()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            opt.step()
        return sum(e.count for e in seen.key_averages() if e.key.startswith("aten::_foreach"))

    assert calls(158) == calls(2)
