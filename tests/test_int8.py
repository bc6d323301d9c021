"""State in 8 bits: what codes keep, that every way of running makes the same ones, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from contract import make

from hf_optim.engine import int8_codes
from hf_optim.engine.stochastic_rounding import noise
from hf_optim.errors import BadCheckpoint, UserError

SHAPES = ((70, 70), (4400,), (30,))  # blocks that end within a tensor; one tensor below the smallest


def params(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[torch.nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=g)) for s in shapes]


def advance(opt: Any, some: list[torch.nn.Parameter], steps: range) -> None:
    for t in steps:
        g = torch.Generator().manual_seed(t)
        for p in some:
            p.grad = torch.randn(p.shape, generator=g) ** 3
        opt.step(loss=1.0 + 0.1 * t)


def eight_bit(name: str, **more: Any) -> tuple[list[torch.nn.Parameter], Any]:
    some = params()
    return some, make(name, some, state_dtype="int8", **({"momentum": 0.9} if name == "sgd" else {}), **more)


@pytest.mark.parametrize(("dtype", "sign"), [(torch.int8, -1), (torch.uint8, 0)])
def test_codes_are_unbiased_and_fine_where_numbers_are_small(dtype, sign):
    size = torch.logspace(-3.5, 0, int8_codes.BLOCK)
    size = size if sign else size**2
    values = torch.where(torch.arange(int8_codes.BLOCK) % 2 == 0, size, sign * size if sign else size)
    mean = torch.zeros(int8_codes.BLOCK, dtype=torch.float64)
    for key in range(400):
        bits = noise(torch.arange(int8_codes.BLOCK), key * 7919, 0)
        mean += int8_codes.decode(*int8_codes.encode(values, bits, dtype)) / 400
    q = torch.arange(1, 128) / 127.0 if sign else torch.arange(1, 256) / 255.0
    grid = torch.cat([torch.zeros(1), q**2 if sign else q**4])
    gap = (grid[1:] - grid[:-1])[torch.bucketize(size.clamp(max=0.999999), grid[1:])]
    inside = size > (0 if sign else float(grid[1]))  # below, an unsigned one is raised
    assert ((mean - values).abs() <= 5 * 0.5 * gap / 20)[inside].all()  # five standard errors
    exact = int8_codes.decode(*int8_codes.encode(values[-1:], torch.zeros(1, dtype=torch.int64), dtype))
    assert torch.equal(exact, values[-1:])


def test_nothing_small_becomes_zero_and_nothing_infinite_is_lost():
    bits = torch.full((512,), 65535)
    values = torch.zeros(512)
    values[1], values[2], values[300] = 1.0, 1e-30, float("nan")
    kept, scales = int8_codes.encode(values, bits, torch.uint8)
    assert kept[0] == 0 and kept[2] == 1 and scales.tolist() == [1.0, float("inf")]
    back = int8_codes.decode(kept, scales)
    assert back[:256].isfinite().all() and back[256:].isnan().all()
    assert torch.equal(int8_codes.decode(*int8_codes.filled(values, 0.25, torch.uint8)), torch.full((512,), 0.25))
    assert torch.equal(int8_codes.decode(*int8_codes.filled(values, -0.25, torch.int8)), torch.full((512,), -0.25))


@pytest.mark.parametrize("name", ["adamw", "adan", "lamb", "lion", "sgd", "smaran"])
def test_kernels_and_the_rule_as_written_agree_and_the_state_is_small(name):
    (fast, ours), (alone, others) = eight_bit(name), eight_bit(name, compile=False)
    start = [p.detach().clone() for p in fast]
    plain = params()
    exact = make(name, plain, **({"momentum": 0.9} if name == "sgd" else {}))
    for opt, some in ((ours, fast), (others, alone), (exact, plain)):
        advance(opt, some, range(4))
    assert ours.execution == f"C++ kernels; {', '.join(ours.coded)} in int8"
    for a, b, c, x in zip(fast, alone, plain, start, strict=True):
        moved = float((b - x).detach().norm())
        assert float((a - b).detach().norm()) < 0.01 * moved  # the last bit of a sum may turn a rounding
        assert 0 <= float((a - c).detach().norm()) < 0.3 * moved
    p, coded = fast[0], [k for k in ours.coded if k in ours.state[fast[0]]]
    assert coded and all(ours.state[p][k].itemsize == 1 and ours.state[fast[2]][k].itemsize == 4 for k in coded)
    held = sum(v.nbytes for k, v in ours.state[p].items() if k != "step")
    whole = sum(v.nbytes for k, v in exact.state[plain[0]].items() if k != "step")
    assert held == whole - len(coded) * (3 * p.numel() - 4 * int8_codes.blocks(p.numel()))


@pytest.mark.parametrize("name", ["adan", "lamb"])
def test_a_resumed_run_is_the_same_to_the_bit(name, tmp_path):
    some, opt = eight_bit(name)
    advance(opt, some, range(3))
    torch.save(opt.state_dict(), tmp_path / "opt.pt")
    others, again = eight_bit(name)
    for p, q in zip(others, some, strict=True):
        p.data.copy_(q.data)
    again.load_state_dict(torch.load(tmp_path / "opt.pt", weights_only=True))
    advance(opt, some, range(3, 6))
    advance(again, others, range(3, 6))
    assert all(map(torch.equal, some, others))
    assert all(torch.equal(opt.state[p][k], again.state[q][k]) for p, q in zip(some, others, strict=True) for k in "mv")


def test_what_does_not_suit_is_refused_in_a_line():
    for name in ("prodigy", "adagrad", "muon"):
        with pytest.raises(UserError, match="state_dtype='int8' suits none of its state"):
            make(name, params(), state_dtype="int8")
    some, opt = eight_bit("adan")
    advance(opt, some, range(1))
    assert opt.state[some[0]]["previous"].dtype is torch.float32  # a copy of a gradient stays as it is
    broken = copy.deepcopy(opt.state_dict())
    broken["state"][0]["previous"] = broken["state"][0]["m"].clone()
    with pytest.raises(BadCheckpoint, match="keeps previous in int8, this optimizer in full precision"):
        opt.load_state_dict(broken)
    with pytest.raises(BadCheckpoint, match="keeps m in int8"):
        make("adan", params()).load_state_dict(opt.state_dict())
    plain = params()
    other = make("adan", plain)
    advance(other, plain, range(1))
    with pytest.raises(BadCheckpoint, match="keeps m in float32, this optimizer in int8"):
        opt.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda s, p: s.pop("m_scale"), "lacks the scales"),
        (lambda s, p: s.update(m_scale=s["m_scale"][:-1]), "lacks the scales"),
        (lambda s, p: s.update(m=s["m"].t().contiguous().t()), "another memory format"),
        (lambda s, p: s.update(m=s["m"].to(torch.uint8)), "torch.uint8"),
    ],
)
def test_codes_that_no_kernel_may_see_are_refused_and_nothing_moves(edit, match):
    some, opt = eight_bit("lion")
    advance(opt, some, range(2))
    edit(opt.state[some[0]], some[0])
    before = [p.detach().clone() for p in some]
    with pytest.raises(UserError, match=match):
        advance(opt, some, range(2, 3))
    assert all(map(torch.equal, before, [p.detach() for p in some]))


def test_channels_last_has_blocks_of_its_memory():
    runs = []
    for memory in (torch.contiguous_format, torch.channels_last):
        p = torch.nn.Parameter(torch.ones(16, 32, 3, 3).to(memory_format=memory))
        opt = make("adamw", [p], state_dtype="int8")
        for t in range(3):
            g = torch.randn(16, 32, 3, 3, generator=torch.Generator().manual_seed(t))
            p.grad = g.to(memory_format=memory)
            opt.step()
        assert opt.execution.startswith("C++ kernels;") and opt.state[p]["exp_avg"].stride() == p.stride()
        runs.append(p.detach())
    assert not torch.equal(*runs)
    torch.testing.assert_close(*runs, rtol=0, atol=3e-4)  # other blocks, other rounding: a tenth of a step


def test_a_shard_is_refused():
    p = torch.nn.Parameter(torch.ones(5000))
    p._fsdp_flattened = True  # as FSDP1 marks the flat pieces that it hands out
    p.grad = torch.ones(5000)
    with pytest.raises(UserError, match="shards would cut"):
        make("lion", [p], state_dtype="int8").step()
