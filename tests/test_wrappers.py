"""Wrappers around anybody's optimizer: state, copies, precision, nesting; and Lookahead."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from wrapper_parts import advance, loss_of, same, saved, weights

import hf_optim
from hf_optim import BadCheckpoint, UserError

FOREIGN = {
    "SGD without state": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "AMVT": lambda p: hf_optim.create("amvt", p, lr=0.02),
    "SPS": lambda p: hf_optim.create("sps", p),
    "SLS": lambda p: hf_optim.create("sls", p),
    "HDSGD": lambda p: hf_optim.create("hd_sgd", p, lr=0.05, hypergrad_lr=1e-3, momentum=0.5, nesterov=True),
} | ({"Muon": lambda p: torch.optim.Muon(list(p)[:1], lr=0.02)} if hasattr(torch.optim, "Muon") else {})
WRAPPERS = {
    "lookahead": lambda base: hf_optim.Lookahead(base, k=4),
    "lookahead pullback": lambda base: hf_optim.Lookahead(base, k=3, pullback_momentum="pullback"),
    "tlr": lambda base: hf_optim.TLR(base, interval=3),
    "tlr by tensor": lambda base: hf_optim.TLR(base, interval=2, scope="tensor"),
    "tlr_legacy": lambda base: hf_optim.TLRLegacy(base, interval=2),
    "hdk": lambda base: hf_optim.HDK(base, eta=1e-3, interval=3),
    "nested": lambda base: hf_optim.Lookahead(hf_optim.TLR(base, interval=2), k=3),
    "nested the other way": lambda base: hf_optim.TLR(hf_optim.Lookahead(base, k=2), interval=3),
}
WITHOUT_MOMENTUM = ("SGD without state", "Adagrad", "SPS", "SLS", "HDSGD")


# --- around anything -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", FOREIGN)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_stop_and_resume_at_every_step(wrapper, base):
    """Saved after any number of steps, mid-window or not, the rest of the run is the same to the bit."""
    if wrapper == "lookahead pullback" and base in WITHOUT_MOMENTUM:
        pytest.skip("there is no momentum to pull back")
    make = lambda p: WRAPPERS[wrapper](FOREIGN[base](p))  # noqa: E731
    params = weights()
    opt, checkpoints = make(params), []
    for t in range(10):
        if t in (1, 2, 3, 6):
            checkpoints.append((t, saved(opt), [p.detach().clone() for p in params]))
        advance(opt, params, range(t, t + 1))
    for t, state, values in checkpoints:
        again = [nn.Parameter(v) for v in values]
        resumed = make(again)
        resumed.load_state_dict(state)
        advance(resumed, again, range(t, 10))
        assert same(params, again), f"resumed after {t} steps"
        assert [float(r) for r in opt.effective_lr()] == [float(r) for r in resumed.effective_lr()]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_copy_is_a_run_of_its_own(wrapper):
    """With a scheduler attached, which leaves a `step` on the instance: a copy must not step the original."""
    params = weights()
    opt = WRAPPERS[wrapper](torch.optim.SGD(params, lr=0.05, momentum=0.9))
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2, 0.5)
    advance(opt, params, range(5))
    schedule.step()
    before = [p.detach().clone() for p in params]
    both = copy.deepcopy((params, opt)), pickle.loads(pickle.dumps((params, opt)))
    for others, twin in both:
        advance(twin, others, range(5, 9))
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))
    advance(opt, params, range(5, 9))
    assert all(same(params, others) for others, _ in both)


@pytest.mark.parametrize("name", ["hd_sgd", "hd_adam", "sps", "l4_adam", "sls"])
def test_a_copy_of_a_rule_is_a_run_of_its_own(name):
    params = weights()
    opt = hf_optim.create(name, params, **({"lr": 0.01} if name.startswith("hd") else {}))
    torch.optim.lr_scheduler.ConstantLR(opt)
    advance(opt, params, range(2))
    others, twin = copy.deepcopy((params, opt))
    before = [p.detach().clone() for p in params]
    advance(twin, others, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True)) and not same(params, others)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_accelerator_prepares_it_and_schedulers_reach_the_base(wrapper):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    params, plain = weights(), weights()
    opt, twin = (WRAPPERS[wrapper](torch.optim.SGD(p, lr=0.05, momentum=0.9)) for p in (params, plain))
    prepared = accelerator.prepare(opt)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in (opt, twin)]
    for t in range(6):
        for p in params:
            p.grad = None
        loss_of(params, t).backward()
        prepared.step()
        advance(twin, plain, range(t, t + 1))
        for schedule in schedules:
            schedule.step()
    assert same(params, plain)
    innermost = opt._innermost()
    assert innermost.param_groups[0]["lr"] == opt.param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_bfloat16_parameters(wrapper):
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        params = weights(dtype)
        opt = WRAPPERS[wrapper](torch.optim.SGD(params, lr=0.02, momentum=0.5))
        advance(opt, params, range(11))
        state = saved(opt)["state"][0]
        assert all(v.dtype is not torch.bfloat16 for k, v in state.items() if k in ("la_slow", "tlr_u"))
        opt.load_state_dict(saved(opt))
        assert all(opt.state[params[0]][k].dtype is state[k].dtype for k in state if k in ("la_slow", "tlr_u"))
        ends.append(torch.cat([p.detach().float().flatten() for p in params]))
    assert ends[1].isfinite().all()
    if wrapper not in ("tlr by tensor", "tlr_legacy"):  # these magnify a rounding within a few windows
        assert (ends[0] - ends[1]).abs().max() < 0.05


def test_checkpoints_of_others_are_refused():
    params = weights()
    state = saved(hf_optim.TLR(torch.optim.SGD(params, lr=0.1), interval=2))
    for other in (
        hf_optim.Lookahead(torch.optim.SGD(params, lr=0.1)),
        hf_optim.HDK(torch.optim.SGD(params, lr=0.1), 1e-3, 2),
        hf_optim.Lookahead(hf_optim.TLR(torch.optim.SGD(params, lr=0.1), interval=2)),
    ):
        with pytest.raises(BadCheckpoint, match="written by"):
            other.load_state_dict(state)


def test_wrappers_that_would_share_state_do_not_nest():
    base = hf_optim.TLR(torch.optim.SGD(weights(), lr=0.1), interval=2)
    outers = (lambda b: hf_optim.HDK(b, 1e-3, 2), hf_optim.TLR, lambda b: hf_optim.TLRLegacy(hf_optim.Lookahead(b)))
    for outer in outers:
        with pytest.raises(UserError, match="cannot wrap"):
            outer(base)


def test_a_base_without_a_rate():
    class Fixed(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.sub_(0.1 * p.grad)

    with pytest.raises(UserError, match="no lr"):
        hf_optim.TLR(Fixed(weights()), interval=2)
    params = weights()
    opt = hf_optim.Lookahead(Fixed(params), k=2)
    for t in range(2):
        loss_of(params, t).backward()
        opt.step()
    assert torch.equal(opt.state[params[0]]["la_slow"], params[0])


def test_effective_rate_of_a_nest_counts_the_scale_once():
    params = weights()
    opt = hf_optim.Lookahead(hf_optim.TLR(torch.optim.SGD(params, lr=0.01), interval=2), k=3)
    advance(opt, params, range(6))
    scale = opt.param_groups[0]["hf_optim_lr_scale"]
    assert scale != 1 and opt.effective_lr() == [0.01 * scale]
    assert opt.figures()["lr_scale"] == scale


# --- Lookahead -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pullback", ["none", "reset", "pullback"])
def test_lookahead_in_plain_python(pullback):
    k, alpha, lr, beta = 3, 0.7, 0.1, 0.9
    x = slow = 2.0
    p = nn.Parameter(torch.tensor([x], dtype=torch.float64))
    opt = hf_optim.Lookahead(torch.optim.SGD([p], lr=lr, momentum=beta), k, alpha, pullback)
    m = m_slow = 0.0
    for t in range(1, 14):
        p.grad = 3 * p.detach() + math.sin(t)
        opt.step()
        m = beta * m + 3 * x + math.sin(t)
        x -= lr * m
        if t % k == 0:
            slow += alpha * (x - slow)
            x = slow
            m = {"none": m, "reset": 0.0, "pullback": alpha * m + (1 - alpha) * m_slow}[pullback]
            m_slow = m
        assert p.item() == pytest.approx(x, rel=1e-12)


def test_lookahead_needs_a_momentum_to_pull_back():
    params = weights()
    before = [p.detach().clone() for p in params]
    opt = hf_optim.Lookahead(torch.optim.SGD(params, lr=0.1), k=1, pullback_momentum="reset")
    with pytest.raises(UserError, match="momentum_buffer, exp_avg, m, b"):
        advance(opt, params, range(1))
    assert same(params, before) and not opt.state_dict()["state"]


@pytest.mark.parametrize("idle", ["frozen", "without a gradient"])
def test_a_group_that_does_not_move_has_no_momentum_to_pull_back(idle):
    """A model's frozen part in a group of its own ended the first window with an error."""
    p, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2), requires_grad=idle != "frozen")
    base = torch.optim.Adam([{"params": [p]}, {"params": [other]}], lr=0.1)
    opt = hf_optim.Lookahead(base, k=2, pullback_momentum="reset")
    for _ in range(2):
        p.grad = torch.ones(3)
        opt.step()
    assert (p < 1).all() and not opt.state[p]["exp_avg"].any() and (other == 1).all()


def test_lookahead_is_its_base_between_its_moments_and_keeps_one_copy():
    params, plain = weights(), weights()
    opt, base = hf_optim.create("lookahead_adam", params, base={"lr": 0.01}), hf_optim.create("adam", plain, lr=0.01)
    advance(opt, params, range(4))
    advance(base, plain, range(4))
    assert same(params, plain)
    assert set(opt.state[params[0]]) - set(base.state[plain[0]]) == {"la_slow"}
    advance(opt, params, range(4, 5))
    advance(base, plain, range(4, 5))
    assert not same(params, plain)


def test_a_parameter_that_joins_late_gets_slow_weights_of_its_own():
    params = weights()
    opt = hf_optim.Lookahead(torch.optim.SGD(params[:1], lr=0.1), k=2)
    advance(opt, params, range(3))
    opt.add_param_group({"params": params[1:]})
    advance(opt, params, range(3, 8))
    assert {g["la_count"] for g in opt.param_groups} == {0, 1} or len({g["la_count"] for g in opt.param_groups}) == 1
    assert all("la_slow" in opt.state[p] for p in params)


def test_the_last_change_of_a_rate_is_told_after_going_on():
    """A run that went on told 1 until the next window's end, and its history was another one."""

    def new():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, hf_optim.create("tlr", model, base={"name": "sgd", "lr": 0.1}, interval=1)

    model, optimizer = new()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    _, again = new()
    again.load_state_dict(optimizer.state_dict())
    assert optimizer.figures()["lr_factor"] != 1 and again.figures() == optimizer.figures()
