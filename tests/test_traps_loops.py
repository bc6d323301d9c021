"""Traps in loops of one's own: two optimizers, losses that are no function, skipped steps, what outlives a session."""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

import hf_optim
from hf_optim.hub.feed import LossFeed


def _accelerator(accumulation=1):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=accumulation)


def _flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def _net(i, o, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(i, 6), nn.Tanh(), nn.Linear(6, o))


def _noise(t, n=4):
    return torch.randn(5, n, generator=torch.Generator().manual_seed(t))


# --- two optimizers ---------------------------------------------------------------------------------------------------


def _gan_losses(D, G, t):
    real, z = _noise(t, 3) + 2, _noise(100 + t, 2)
    d = lambda: nn.functional.softplus(-D(real)).mean() + nn.functional.softplus(D(G(z).detach())).mean()  # noqa: E731
    g = lambda: nn.functional.softplus(-D(G(z))).mean()  # noqa: E731
    return d, g


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_gan_trains_each_network_on_its_own_loss(accumulation):
    """Two sessions against the two updates written out; G's loss reaches D and must not train it."""
    accelerator = _accelerator(accumulation)
    D, G = _net(3, 1, 0), _net(2, 3, 1)
    mine_d, mine_g = _net(3, 1, 0), _net(2, 3, 1)
    od, og = hf_optim.create("sgd", D, lr=0.1), hf_optim.create("smaran", G, lr=0.1)
    D, G, od, og = accelerator.prepare(D, G, od, og)
    sd, sg = hf_optim.Session(accelerator, od), hf_optim.Session(accelerator, og)
    plain_d = torch.optim.SGD(mine_d.parameters(), lr=0.1)
    plain_g = hf_optim.create("smaran", mine_g, lr=0.1)
    for t in range(6):
        with accelerator.accumulate(D, G):
            d, g = _gan_losses(D, G, t)
            sd.loss(d)
            sg.loss(g)
            sd.step()
            sg.step()
        if t % accumulation == 0:
            plain_d.zero_grad()
            plain_g.zero_grad()
            total = 0.0
        d, g = _gan_losses(mine_d, mine_g, t)
        grads = torch.autograd.grad(d() / accumulation, list(mine_d.parameters()))
        value = g() / accumulation
        total += value.detach()
        own = torch.autograd.grad(value, list(mine_g.parameters()))
        for p, grad in zip([*mine_d.parameters(), *mine_g.parameters()], [*grads, *own], strict=True):
            p.grad = grad if p.grad is None else p.grad + grad
        if t % accumulation == accumulation - 1:
            plain_d.step()
            plain_g.step(loss=total)
    torch.testing.assert_close(_flat(D), _flat(mine_d), rtol=0, atol=1e-6)
    torch.testing.assert_close(_flat(G), _flat(mine_g), rtol=0, atol=1e-6)


def test_what_another_backward_left_is_cleared_and_said(caplog):
    accelerator = _accelerator()
    model, twin = _net(4, 1, 0), _net(4, 1, 0)
    model, opt = accelerator.prepare(model, hf_optim.create("adan", model, lr=0.1))
    session, plain = hf_optim.Session(accelerator, opt), hf_optim.create("adan", twin, lr=0.1)
    for t in range(3):
        (100 * model(_noise(t))).sum().backward()  # somebody else's
        session.loss(lambda t=t: model(_noise(t)).square().mean())
        session.step()
        plain.zero_grad()
        twin(_noise(t)).square().mean().backward()
        plain.step()
    assert torch.equal(_flat(model), _flat(twin))
    assert caplog.text.count("had left gradients") == 1


def test_one_loss_for_two_optimizers():
    """Matrices by one rule, the rest by a loss-aware one: both are told the one loss."""
    accelerator = _accelerator()
    model, twin = _net(4, 1, 0), _net(4, 1, 0)

    def pair(m):
        two = [p for p in m.parameters() if p.dim() > 1], [p for p in m.parameters() if p.dim() < 2]
        return hf_optim.create("adan", two[0], lr=0.05), hf_optim.create("smaran", two[1], lr=0.05)

    model, a, b = accelerator.prepare(model, *pair(model))
    session = hf_optim.Session(accelerator, [a, b])
    c, d = pair(twin)
    for t in range(4):
        session.loss(lambda t=t: model(_noise(t)).square().mean())
        assert session.step()
        c.zero_grad()
        d.zero_grad()
        loss = twin(_noise(t)).square().mean()
        loss.backward()
        c.step()
        d.step(loss=loss)
    assert torch.equal(_flat(model), _flat(twin))
    assert "hf_optim_V" in session.figures()
    with pytest.raises(hf_optim.UserError, match="one optimizer for it"):
        hf_optim.Session(accelerator, [a, accelerator.prepare(hf_optim.create("sls", list(model.parameters())))])


@pytest.mark.parametrize("why", ["too large", "backward", "left out"])
@pytest.mark.parametrize("name", ["smaran", "sls"])
def test_a_batch_that_is_given_up_leaves_nothing_in_its_window(name, why):
    """It raises, in the forward or the backward pass, or gradients are cleared after a look at its loss: the steps are
    those of a loop that never saw it."""
    accelerator = _accelerator()
    model = accelerator.prepare(_net(4, 1, 0))
    opt = accelerator.prepare(hf_optim.create(name, model))
    session = hf_optim.Session(accelerator, opt, steps_per_epoch=4)

    def loss(t, broken=False):
        value = model(_noise(t)).square().mean() + 1
        if broken and why == "too large":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        if broken and why == "backward":
            value.register_hook(lambda _: 1 / 0)
        return value * (50 if broken else 1)

    for t in range(4):
        if t % 2:
            with contextlib.suppress(torch.cuda.OutOfMemoryError, ZeroDivisionError):
                session.loss(loss, 10 + t, broken=True)
            if why == "left out":
                opt.zero_grad()
        session.loss(loss, t)
        assert session.step()
    twin = _net(4, 1, 0)
    plain = hf_optim.create(name, twin)
    if name == "sls":
        plain.set_steps_per_epoch(4)
    for t in range(4):
        plain.zero_grad()

        def again(t=t):
            return twin(_noise(t)).square().mean() + 1

        value = again()
        value.backward()
        with torch.no_grad():
            plain.step(loss=value, **({"evaluate": again} if name == "sls" else {}))
    assert torch.equal(_flat(model), _flat(twin))


def test_a_gradient_that_no_optimizer_has_is_said_once(caplog):
    """A head that was added after the optimizer was made."""
    accelerator = _accelerator()
    model, head = accelerator.prepare(_net(4, 3, 0), nn.Linear(3, 1))
    session = hf_optim.Session(accelerator, accelerator.prepare(hf_optim.create("adan", model)))
    for t in range(3):
        session.loss(lambda t=t: head(model(_noise(t))).square().mean())
        session.step()
    assert caplog.text.count("weight, bias got a gradient and no optimizer has them") == 1


# --- skipped steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adamw", "smaran", "torch.optim:AdamW"])
def test_an_overflow_is_a_skipped_step_for_every_family(kind):
    """torch's fused kernels were told as steps, and schedules advanced."""
    accelerator = _accelerator()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    model = _net(4, 1, 0)
    hyper = {"fused": True} if "torch" in kind else {}
    model, opt = accelerator.prepare(model, hf_optim.create(kind, model, lr=0.1, **hyper))
    opt.scaler = accelerator.scaler
    opt.__setstate__(opt.__getstate__())
    session = hf_optim.Session(accelerator, opt)
    steps = []
    for t in range(3):
        before = _flat(model)
        session.loss(lambda t=t: model(_noise(t) * (3e38 if t == 1 else 1)).square().mean() + 1)
        steps.append(session.step())
        assert torch.equal(before, _flat(model)) != steps[-1]
    assert steps == [True, False, True]


# --- losses that are not f(x) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sls", "ponos"])
def test_a_policy_loss_is_refused_before_anything_moves(name):
    """Its ratio is exp(logp - logp.detach()): 1 wherever it is evaluated."""
    accelerator = _accelerator()
    model = _net(4, 3, 0)
    model, opt = accelerator.prepare(model, hf_optim.create(name, model))
    session = hf_optim.Session(accelerator, opt, steps_per_epoch=5)
    before = _flat(model)

    def policy():
        logp = model(_noise(0)).log_softmax(-1)[:, 0]
        return -((logp - logp.detach()).exp() * torch.tensor([1.0, -1.0, 2.0, 0.5, -0.3])).mean()

    session.loss(policy)
    with pytest.raises(hf_optim.UserError, match="no function of them"):
        session.step()
    assert torch.equal(before, _flat(model))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_real_loss_is_not_refused(scale):
    accelerator = _accelerator()
    model = _net(4, 3, 0)
    model, opt = accelerator.prepare(model, hf_optim.create("sls", model))
    session = hf_optim.Session(accelerator, opt, steps_per_epoch=5)
    for t in range(3):
        session.loss(lambda t=t: scale * nn.functional.cross_entropy(model(_noise(t)), torch.arange(5) % 3))
        assert session.step()


def test_local_gradients_are_not_the_mean_loss_of_all():
    """LocalSGD leaves gradients local; played here, test_hub_distributed has two processes."""
    wrapper = nn.Identity()
    wrapper.require_backward_grad_sync = False
    accelerator = SimpleNamespace(
        num_processes=2, backward=lambda loss, **_: None, sync_gradients=True,
        gradient_accumulation_steps=1, reduce=lambda value, reduction: value,
    )  # fmt: skip
    opt = hf_optim.create("smaran", [nn.Parameter(torch.zeros(2))])
    feed = LossFeed(accelerator, opt)
    feed.wrappers.add(wrapper)
    feed.install()
    with pytest.raises(hf_optim.UserError, match="LocalSGD"):
        accelerator.backward(torch.tensor(1.0))
    feed.reset()
    wrapper.require_backward_grad_sync = True
    accelerator.backward(torch.tensor(1.0))
    assert float(feed.fed) == 1.0


# --- life of things ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smaran", "sls", "adan"])
def test_attempts_that_ran_out_of_memory_are_forgotten(name):
    """find_executable_batch_size starts anew again and again: no earlier model stays alive."""
    from accelerate.utils import find_executable_batch_size

    accelerator = _accelerator()
    alive, told = [], []

    @find_executable_batch_size(starting_batch_size=8)
    def inner(batch_size):
        accelerator.free_memory()
        model = _net(4, 1, 0)
        alive.append(weakref.ref(model))
        model, opt = accelerator.prepare(model, hf_optim.create(name, model))
        session = hf_optim.Session(accelerator, opt, steps_per_epoch=4)
        session.loss(lambda: model(_noise(0)).square().mean() + 1)
        if batch_size > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        assert session.step()
        told.append(session.figures()["effective_lr"])
        gc.collect()
        assert [ref() is not None for ref in alive] == [False] * (len(alive) - 1) + [True]
        assert len(accelerator._hf_optim_sessions) == 1

    inner()
    assert told


def test_swapped_parameters_are_forgotten():
    model = nn.Linear(3, 2)
    opt = hf_optim.create("adan", list(model.parameters()))
    for _ in range(3):
        new = [nn.Parameter(p.detach().clone()) for p in opt.param_groups[0]["params"]]
        opt.param_groups[0]["params"] = new
        for p in new:
            p.grad = torch.ones_like(p)
        opt.step()
    gone = [weakref.ref(p) for p in new]
    opt.param_groups[0]["params"] = [nn.Parameter(p.detach().clone()) for p in new]
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
        opt.state.pop(p, None)
    for p in new:
        opt.state.pop(p, None)
    opt.step()
    del new, p
    gc.collect()
    assert all(ref() is None for ref in gone)


def test_a_step_without_gradients_is_none(caplog):
    """As in torch and in Accelerate's own tests; said once."""
    for name in ("adan", "smaran", "sls"):
        p = nn.Parameter(torch.ones(3))
        opt = hf_optim.create(name, [p])
        with caplog.at_level(logging.WARNING, logger="hf_optim"):
            assert opt.step() is None and opt.step() is None
        assert torch.equal(p.detach(), torch.ones(3)) and not opt.state
        assert caplog.text.count(f"{name}: step() without any gradient") == 1
