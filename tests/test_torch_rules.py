"""SGD, Adagrad, RMSprop, Adam, AdamW, RAdam and NAdam are torch's: in numbers, layouts, schedules and hooks."""

from __future__ import annotations

import importlib
import itertools
from functools import cache

import pytest
import torch
from stock import CASES, gradients, groups, start

import hf_optim
from hf_optim.errors import UserError

register_optimizer_step_post_hook = importlib.import_module("torch.optim.optimizer").register_optimizer_step_post_hook
DECAY = [{}, {"weight_decay": 0.1}]
COUPLING = [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "decoupled_weight_decay": True}]
CLIMB = [{}, {"maximize": True}]
FILLED = [{}, {"initial_accumulator_value": 0.2, "eps": 0.1}]
AVERAGES = [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.3}]
#: rule -> torch's class and every value of each of its options with every one of the others
OPTIONS = {
    "sgd": ("SGD", [DECAY, CLIMB, AVERAGES]),
    "adagrad": ("Adagrad", [DECAY, CLIMB, [{}, {"lr_decay": 0.1}], FILLED]),
    "rmsprop": ("RMSprop", [DECAY, CLIMB, [{}, {"centered": True, "alpha": 0.8}], [{}, {"momentum": 0.9, "eps": 0.1}]]),
    "adam": ("Adam", [COUPLING, CLIMB, [{}, {"amsgrad": True, "betas": (0.5, 0.6)}], [{}, {"eps": 0.1}]]),
    "adamw": ("AdamW", [DECAY, CLIMB, [{}, {"amsgrad": True, "betas": (0.5, 0.6)}], [{}, {"eps": 0.1}]]),
    "radam": ("RAdam", [COUPLING, CLIMB, [{}, {"betas": (0.5, 0.6)}, {"betas": (0.9, 0.99), "eps": 0.1}]]),
    "nadam": ("NAdam", [COUPLING, CLIMB, [{}, {"momentum_decay": 0.5}], [{}, {"betas": (0.5, 0.6), "eps": 0.1}]]),
}
NAMES = tuple(OPTIONS)
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}


def settings(name):
    for parts in itertools.product(*OPTIONS[name][1]):
        yield {k: v for part in parts for k, v in part.items()}


def pair(name, shapes=((3, 4), (5,), ()), dtype=torch.float64, **hyper):
    """torch's class and ours over equal parameters: (theirs, its parameters), (ours, its parameters)."""
    params = [[torch.nn.Parameter(drawn(s, dtype, i).clone()) for i, s in enumerate(shapes)]
              for _ in range(2)]  # fmt: skip
    return (getattr(torch.optim, OPTIONS[name][0])(params[0], **hyper), params[0]), (
        hf_optim.create(name, params[1], **hyper),
        params[1],
    )


@cache
def drawn(shape, dtype, seed):
    return torch.randn(shape, generator=torch.manual_seed(seed)).to(dtype)


def noise(params, t):
    return [drawn(p.shape, p.dtype, 100 * t + i) for i, p in enumerate(params)]


def stepped(both, grads):
    """One step of both with the same gradients."""
    for opt, params in both:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        opt.step()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_option_with_every_other_is_torchs(name, dtype):
    """Within rounding (single precision: a third of them).

    A step is at most 16 roundings of the update and one of x, and an average carries those of all steps before: after T
    steps of sizes s, T (u |x| + 16 T u max s). Gradients are missing now and then, and the rate changes.
    """
    steps, u = 7, ROUNDING[dtype]
    for hyper in list(settings(name))[:: 1 if dtype is torch.float64 else 3]:
        both = pair(name, dtype=dtype, lr=0.01, **hyper)
        size = torch.zeros(())
        for t in range(steps):
            before = [p.detach().clone() for p in both[0][1]]
            stepped(both, [g if (t + i) % 4 else None for i, g in enumerate(noise(both[0][1], t))])
            for group in (*both[0][0].param_groups, *both[1][0].param_groups):
                group["lr"] *= 0.9
            size = max(size, *((p.detach() - b).abs().max() for p, b in zip(both[0][1], before, strict=True)))
        for p, q in zip(both[0][1], both[1][1], strict=True):
            bound = steps * (u * p.detach().abs() + 16 * steps * u * size)
            gap = (p - q).detach().abs()
            assert (gap <= bound).all(), f"{hyper}: {gap.max()} against {bound.max()}"
            assert dtype is torch.float32 or gap.max() < 1e-12
        assert size > 0


def test_a_momentum_that_was_zero_starts_its_average():
    both = pair("sgd", lr=0.1)
    for t in range(2):
        stepped(both, noise(both[0][1], t))
    for opt, _ in both:
        opt.param_groups[0]["momentum"] = 0.9
    for t in range(2, 5):
        stepped(both, noise(both[0][1], t))
    for p, q in zip(both[0][1], both[1][1], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw", "nadam"])
def test_one_cycle_moves_momentum_and_betas_as_in_torch(name):
    """The schedule finds `momentum` or `betas` in `defaults`, and turns them with the rate."""
    both = pair(name, lr=0.01, **({"momentum": 0.9} if name in ("sgd", "rmsprop") else {}))
    cycles = [torch.optim.lr_scheduler.OneCycleLR(opt, 0.1, total_steps=8) for opt, _ in both]
    for t in range(7):
        stepped(both, noise(both[0][1], t))
        for cycle in cycles:
            cycle.step()
        assert both[0][0].param_groups[0]["lr"] == both[1][0].param_groups[0]["lr"]
    for p, q in zip(both[0][1], both[1][1], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-13)


# --- layouts: what torch's fused kernels got wrong ------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda g: g.transpose(-1, -2).contiguous().transpose(-1, -2),
    "expanded": lambda g: g.flatten()[:1].reshape([1] * g.dim()).expand(g.shape),
    "every other": lambda g: torch.stack([g, g + 1], -1).flatten(-2)[..., ::2],
    "channels last": lambda g: g.to(memory_format=torch.channels_last) if g.dim() == 4 else g,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 12], ids=["packed", "alone"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_any_layout(name, size, layout):
    both = pair(name, ((3 * size, 5 * size), (2, 3, 4 * size, 5 * size)), torch.float32)
    for t in range(3):
        stepped(both, [LAYOUTS[layout](g) for g in noise(both[0][1], t)])
    for p, q in zip(both[0][1], both[1][1], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_are_views_leave_their_neighbours_alone(name):
    """Two rows of one matrix, and a parameter that lies in memory as its transpose does."""
    memories = []
    for make in (
        getattr(torch.optim, OPTIONS[name][0]),
        lambda params, **hyper: hf_optim.create(name, params, **hyper),
    ):
        memory = torch.arange(60.0).reshape(10, 6) / 60
        whole = memory.clone()
        params = [torch.nn.Parameter(memory[2:4]), torch.nn.Parameter(memory[6]), torch.nn.Parameter(memory[7:9].t())]
        opt = make(params, lr=0.1)
        for t in range(3):
            for p, g in zip(params, noise(params, t), strict=True):
                p.grad = g
            opt.step()
        assert all(p.data_ptr() == memory[i].data_ptr() for p, i in zip(params, (2, 6, 7), strict=True))
        rest = [0, 1, 4, 5, 9]
        assert torch.equal(memory[rest], whole[rest]) and not torch.equal(memory, whole)
        memories.append(memory)
    torch.testing.assert_close(memories[1], memories[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [8, 40_000], ids=["packed", "alone"])
@pytest.mark.parametrize("name", ["adamw", "sgdm", "lion"])
def test_another_shape_at_the_same_address_is_noticed(name, size):
    """`p.data = p.data[:n]`: nothing beyond n is written."""
    p, other = torch.nn.Parameter(torch.ones(size)), torch.nn.Parameter(torch.ones(3))
    opt = hf_optim.create(name, [p, other], lr=0.1)
    for t in range(3):
        p.grad, other.grad = torch.ones_like(p), torch.ones_like(other)
        if t < 2:
            opt.step()
            whole = p.data
    p.grad = None
    p.data = p.data[: size // 2]
    p.grad = torch.ones_like(p)
    before = whole.clone()
    with pytest.raises(UserError, match=rf"of shape \({size // 2},\) on cpu has shape \({size},\)") as error:
        opt.step()
    assert torch.equal(before, whole) and "\n" not in str(error.value)
    del opt.state[p]
    opt.step()
    assert torch.equal(before[size // 2 :], whole[size // 2 :]) and not torch.equal(before, whole)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_that_moves_or_turns_keeps_its_numbers(name):
    """`p.data` put elsewhere, then in channels-last order: the state goes along by place."""
    both = pair(name, ((2, 3, 4, 5), (3,)), torch.float32)
    for t in range(6):
        if t == 2:
            for _, params in both:
                params[0].data = params[0].data.clone()
        if t == 4:
            for _, params in both:
                params[0].data = params[0].data.contiguous(memory_format=torch.channels_last)
        stepped(both, noise(both[0][1], t))
    for p, q in zip(both[0][1], both[1][1], strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-7)


# --- what stands around a step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", CASES)
def test_an_overflow_is_no_step(stem):
    """GradScaler skips it, Accelerate says so, the schedule waits, and the state knows nothing of it."""
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    Accelerator(cpu=True)
    params = [torch.nn.Parameter(p.detach().float()) for p in start()]
    opt = hf_optim.create(stem, groups(params, 0.1), **CASES[stem][1])
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    around = AcceleratedOptimizer(opt, scaler=scaler)
    for t, bad in ((2, False), (3, True), (4, False)):
        scaler.scale(torch.zeros(()))
        for p, g in zip(params, gradients(t), strict=True):
            p.grad = g.float() * scaler.get_scale()
        if bad:
            params[0].grad[0, 0] = torch.inf
        before = [p.detach().clone() for p in params]
        around.step()
        assert around.step_was_skipped == bad
        assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True)) == bad
    assert all(float(opt.state[p]["step"]) == 2 for p in params)


def test_hooks_run_once_also_beside_a_stock_instance():
    params = start()
    stock = torch.optim.AdamW(params)
    opt = hf_optim.create("adamw", params)
    ran = []
    handles = [
        opt.register_step_pre_hook(lambda *_: ran.append("before")),
        opt.register_step_post_hook(lambda *_: ran.append("after")),
        register_optimizer_step_post_hook(lambda *_: ran.append("anyone")),
    ]
    try:
        for p, g in zip(params, gradients(2), strict=True):
            p.grad = g
        opt.step()
        assert ran == ["before", "after", "anyone"]
        stock.step()
        assert ran == ["before", "after", "anyone", "anyone"]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_group_dicts_are_the_callers_own(name):
    params = start()
    given = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
    before = [dict(group) for group in given]
    first, second = hf_optim.create(name, given), hf_optim.create(name, given)
    first.param_groups[0]["lr"] = first.param_groups[1]["lr"] = 7.0
    assert given == before and second.param_groups[1]["lr"] == 0.5


@pytest.mark.parametrize("name", CASES)
def test_a_loss_comes_back_and_the_rate_is_told(name):
    params = start()
    opt = hf_optim.create(name, params, lr=0.25)
    for p, g in zip(params, gradients(2), strict=True):
        p.grad = g
    assert opt.step(loss=3.0) == 3.0 and opt.step(lambda: 2.0) == 2.0
    assert opt.effective_lr() == [0.25] and opt.figures() == {}


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hyper", "said"),
    [
        ("adam", {"betas": 0.9}, "betas must be 2 numbers"),
        ("adamw", {"betas": (0.9, 1.0)}, r"betas\[1\] = 1.0 is outside"),
        ("sgd", {"lr": "abc"}, "lr must be a number"),
        ("sgd", {"momentum": "0.9"}, "momentum must be a number"),
        ("nesterov", {"dampening": 0.1}, "nesterov wants a momentum and no dampening"),
        ("sgd", {"nesterov": True}, "nesterov wants a momentum and no dampening"),
        ("rmsprop", {"centered": 1}, "centered must be True or False"),
        ("rmsprop", {"alfa": 0.9}, "did you mean alpha"),
        ("adagrad", {"lr_decay": -1.0}, "lr_decay = -1.0 is outside"),
        ("adagrad", {"initial_accumulator_value": -1.0}, "is outside"),
        ("radam", {"amsgrad": True}, "radam has no hyper-parameter 'amsgrad'"),
        ("nadam", {"momentum_decay": -0.1}, "is outside"),
        ("adam", {"fused": True}, "adam has no hyper-parameter 'fused'"),
        ("amsgrad", {"amsgrad": False}, "take adam"),
    ],
)
def test_a_mistake_is_one_clear_line(name, hyper, said):
    with pytest.raises(UserError, match=said) as error:
        hf_optim.create(name, start(), **hyper)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_sparse_gradients_are_refused_as_by_every_rule(name):
    """In the words of the other rules, where torch's SGD and Adagrad take them: `torch.optim:SGD` by path does."""
    table = torch.nn.Embedding(4, 2, sparse=True)
    opt = hf_optim.create(name, table.parameters())
    table(torch.tensor([1])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(UserError, match="cannot use sparse gradients") as error:
        opt.step()
    assert torch.equal(before, table.weight) and "\n" not in str(error.value)
    hf_optim.create("torch.optim:SGD", table.parameters(), lr=0.1).step()
    assert not torch.equal(before, table.weight)
