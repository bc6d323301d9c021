"""Rates that are learned: by windows of K steps (TLR, its published form, HDK) and by hypergradients."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn
from wrapper_parts import advance, same, saved, weights

import hf_optim
from hf_optim import UserError

# --- rates learned from windows --------------------------------------------------------------------------------------


def run_scalar(opt, p, curvature, steps, lr_of=None):
    """Gradient descent on curvature x^2 / 2, noted as the rates after each step."""
    rates = []
    for t in range(steps):
        p.grad = curvature * p.detach() + math.cos(t)
        if lr_of is not None:
            opt.param_groups[0]["lr"] = lr_of(t)
        opt.step()
        rates.append(opt.effective_lr()[0])
    return rates


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
@pytest.mark.parametrize("average", ["mean", "sum"])
def test_hdk_in_plain_python(rule, average):
    k, eta, lr = 3, 1e-3, 0.02
    x = before = 1.5
    p = nn.Parameter(torch.tensor([x], dtype=torch.float64))
    opt = hf_optim.HDK(torch.optim.SGD([p], lr=lr), eta, k, rule, average)
    rates, old, wanted = run_scalar(opt, p, 2.0, 15), None, []
    for t in range(15):
        x -= lr * (2.0 * x + math.cos(t))
        if (t + 1) % k == 0:
            new = (before - x) / lr / (k if average == "mean" else 1)
            if old is not None:
                lr = lr + eta * old * new if rule == "additive" else lr * (1 + eta * math.copysign(1, old * new))
            old, before = new, x
        wanted.append(lr)
    assert rates == pytest.approx(wanted, rel=1e-12) and p.item() == pytest.approx(x, rel=1e-12)


def test_hdk_shifts_every_group_by_the_same_amount():
    params = weights()
    opt = hf_optim.HDK(torch.optim.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.2}], lr=0.02), 1e-2, 2)
    advance(opt, params, range(4))
    first, second = opt.effective_lr()
    assert first != 0.02 and second - 0.2 == pytest.approx(first - 0.02, rel=1e-9)


def test_hdk_learns_a_rate_for_the_schedule_to_multiply():
    """What a window adds is added to the rate that the schedule multiplies, however small its factor is by then."""
    scales = []
    for factor in (1.0, 1e-3):
        p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        opt = hf_optim.HDK(torch.optim.SGD([p], lr=0.1), eta=1e-2, interval=1)
        opt.param_groups[0]["lr"] = 0.1 * factor
        for _ in range(2):
            p.grad = torch.ones_like(p)
            opt.step()
        scales.append(opt.param_groups[0]["hf_optim_lr_scale"])
    assert scales == pytest.approx([1.1, 1.1], rel=1e-9)


def test_legacy_moves_first_at_3k_plus_1_and_may_turn_negative():
    k, lr, gamma = 4, 0.01, 0.2
    x = 1.5
    p = nn.Parameter(torch.tensor([x], dtype=torch.float64))
    opt = hf_optim.TLRLegacy(torch.optim.SGD([p], lr=lr), interval=k)
    rates, before, old, wanted = run_scalar(opt, p, -3.0, 26), None, None, []  # on a concave function u grows
    for t in range(26):
        x -= lr * (-3.0 * x + math.cos(t))
        if t > 0 and t % k == 0:
            if before is not None:
                new = (before - x) / lr
                if old is not None:
                    lr *= 1 + gamma * old * new / (old * old - old * new + 1e-10)
                old = new
            before = x
        wanted.append(lr)
    assert rates == pytest.approx(wanted, rel=1e-9)
    assert set(rates[: 3 * k]) == {0.01} and rates[3 * k] != 0.01 and min(rates) < 0


def test_legacy_with_an_empty_window_never_moves_and_says_so(caplog):
    p = nn.Parameter(torch.ones(1))
    with caplog.at_level(logging.WARNING, logger="hf_optim"):
        opt = hf_optim.TLRLegacy(torch.optim.SGD([p], lr=0.01), p=0.1, steps_per_epoch=5)
    assert "never moves" in caplog.text
    assert set(run_scalar(opt, p, 1.0, 20)) == {0.01}


def test_tlr_by_tensor_is_a_tlr_for_each_tensor():
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        starts = [torch.randn(6, generator=draw, dtype=torch.float64) for _ in range(2)]
        curvature = (0.5, 20.0)
        joint = [nn.Parameter(s.clone()) for s in starts]
        alone = [nn.Parameter(s.clone()) for s in starts]
        opts = [hf_optim.TLR(torch.optim.SGD(joint, lr=1e-2, momentum=0.5), interval=2, scope="tensor")]
        opts += [hf_optim.TLR(torch.optim.SGD([p], lr=1e-2, momentum=0.5), interval=2) for p in alone]
        for _ in range(11):
            for p, q, c in zip(joint, alone, curvature, strict=True):
                p.grad, q.grad = c * p.detach(), c * q.detach()
            for opt in opts:
                opt.step()
        for p, q in zip(joint, alone, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert opts[1].effective_lr() != opts[2].effective_lr()


@pytest.mark.parametrize("make", [lambda b: hf_optim.TLR(b, interval=2), lambda b: hf_optim.HDK(b, 1e-2, 2)])
def test_schedules_multiply_what_was_learned(make):
    params = weights()
    opt = make(torch.optim.SGD(params, lr=0.05))
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.0 if t in (0, 5) else 0.5)
    for t in range(20):
        before = [p.detach().clone() for p in params]
        advance(opt, params, range(t, t + 1))
        assert same(params, before) == (t in (0, 5))
        assert opt.effective_lr()[0] == pytest.approx(
            opt.param_groups[0]["lr"] * opt.param_groups[0]["hf_optim_lr_scale"]
        )
        schedule.step()
    assert opt.param_groups[0]["lr"] == 0.025 and opt.param_groups[0]["hf_optim_lr_scale"] != 1


def test_the_exact_form_of_tlr_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
    opt = hf_optim.TLR(torch.optim.SGD(model.parameters(), lr=0.1), interval=1, lookahead=True)
    seen, drawn = [], []

    def closure():
        drawn.append(torch.get_rng_state())
        opt.zero_grad()
        loss = (model(torch.ones(4, 3, dtype=torch.float64)) ** 2).mean()
        loss.backward()
        seen.append([p.grad.clone() for p in model.parameters()])
        return loss

    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    (twin(torch.ones(4, 3, dtype=torch.float64)) ** 2).mean().backward()
    wanted = torch.get_rng_state()
    torch.manual_seed(1)
    opt.step(closure)
    assert torch.equal(torch.get_rng_state(), wanted) and len(seen) == 2
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), seen[0], strict=True))
    assert torch.equal(*drawn), "the second evaluation saw other randomness"


# --- hypergradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["additive", "multiplicative"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_hd_sgd_in_plain_python(rule, nesterov):
    lr, beta, mu, decay = 0.05, 1e-3, 0.8, 0.1
    x, u, b = [1.5, -0.5], [0.0, 0.0], [0.0, 0.0]
    p = nn.Parameter(torch.tensor(x, dtype=torch.float64))
    opt = hf_optim.HDSGD([p], lr, beta, rule, mu, nesterov, decay)
    for t in range(12):
        g = [3 * x[0] + math.sin(t) + decay * x[0], x[1] - math.cos(t) + decay * x[1]]
        p.grad = torch.tensor([3.0, 1.0], dtype=torch.float64) * p.detach() + torch.tensor(
            [math.sin(t), -math.cos(t)], dtype=torch.float64
        )
        opt.step()
        h = sum(i * j for i, j in zip(g, u, strict=True))
        norms = math.hypot(*g) * math.hypot(*u)
        lr = lr + beta * h if rule == "additive" else lr * (1 + beta * h / norms) if norms else lr
        b = [mu * i + j for i, j in zip(b, g, strict=True)]
        u = [j + mu * i for i, j in zip(b, g, strict=True)] if nesterov else b
        x = [i - lr * j for i, j in zip(x, u, strict=True)]
        assert p.tolist() == pytest.approx(x, rel=1e-12) and opt.effective_lr()[0] == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize("name", ["hd_sgd", "hd_adam"])
def test_a_schedule_multiplies_a_shifted_rate(name):
    """Under a decay to 0 a rate that was shifted down goes to 0 and not below, and at 0 nothing moves."""
    params = weights()
    opt = hf_optim.create(name, params, lr=0.1, hypergrad_lr=0.01)
    advance(opt, params, range(5))
    group = opt.param_groups[0]
    learned = 0.1 + group["lr_shift"]
    assert group["lr_shift"] != 0 and group["lr"] == 0.1
    assert opt.effective_lr()[0] == pytest.approx(learned, rel=1e-12)
    for factor in (0.5, 1e-3):
        group["lr"] = 0.1 * factor
        assert opt.effective_lr()[0] == pytest.approx(learned * factor, rel=1e-12)
    group["lr"] = 0.0
    before = [p.detach().clone() for p in params]
    advance(opt, params, range(5, 8))
    assert same(params, before)


@pytest.mark.parametrize("name", ["hd_sgd", "hd_adam"])
def test_groups_keep_their_first_rate_through_a_checkpoint(name):
    def make(p, lr=0.1):
        return hf_optim.create(name, [{"params": p[:1]}, {"params": p[1:], "lr": 0.02}], lr=lr, hypergrad_lr=1e-3)

    params, again = weights(), weights()
    opt = make(params)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 0.5)
    advance(opt, params, range(3))
    with torch.no_grad():
        for p, q in zip(params, again, strict=True):
            q.copy_(p)
    resumed = make(again)
    resumed.load_state_dict(saved(opt))
    advance(opt, params, range(3, 6))
    advance(resumed, again, range(3, 6))
    assert same(params, again)
    shift = opt.param_groups[0]["lr_shift"]
    assert resumed.effective_lr() == opt.effective_lr() == pytest.approx([0.05 + shift / 2, 0.01 + shift / 2])


def test_nesterov_needs_a_momentum():
    with pytest.raises(UserError, match="momentum above 0"):
        hf_optim.HDSGD(weights(), 0.1, nesterov=True)
