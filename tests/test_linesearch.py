"""Step sizes from the loss: what a search leaves behind, what it remembers, and how schedules act on it."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

import hf_optim
from hf_optim import BadLoss, MissingLoss, UserError

SEARCHES = ("sls", "ponos")
RATELESS = (*SEARCHES, "sps", "l4_mom", "l4_adam")


class Noisy(nn.Module):
    """Dropout, running averages and a buffer that a forward pass replaces: everything an evaluation can disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.body(x)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 4, generator=draw)
    return x, x.sum(1, keepdim=True) + 0.1 * torch.randn(16, 1, generator=draw)


def noisy(name: str, **hyper):
    torch.manual_seed(3)
    model = Noisy()
    return model, hf_optim.create(name, model, **hyper)


def closure_of(model: nn.Module, opt: torch.optim.Optimizer, seed: int = 0, seen: list | None = None):
    x, y = batch(seed)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        if seen is not None:
            seen.append(loss.item())
        return loss

    return closure


def quadratic(name: str, start=(3.0, -2.0), **hyper):
    p = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    scale = torch.tensor([4.0, 1.0], dtype=torch.float64)
    return p, hf_optim.create(name, [p], **hyper), lambda: 0.5 * (scale * p * p).sum()


def advance(p: nn.Parameter, opt: torch.optim.Optimizer, f) -> float:
    p.grad = None
    loss = f()
    loss.backward()
    return float(opt.step(loss=loss.detach(), **({"evaluate": f} if "evaluate" in opt.needs else {})))


# --- a search leaves no trace ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("forward_only", [False, True])
@pytest.mark.parametrize("name", SEARCHES)
def test_a_step_disturbs_what_one_forward_pass_disturbs(name, forward_only):
    hyper = {"init_step_size": 500.0} if name == "sls" else {"c_p": 1e-3, "max_eta": 1e4}
    model, opt = noisy(name, **hyper)
    twin = copy.deepcopy(model)
    x, y = batch()
    torch.manual_seed(11)
    ((twin(x) - y) ** 2).mean().backward()
    wanted = torch.get_rng_state()

    torch.manual_seed(11)
    if forward_only:
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        grads = [p.grad for p in model.parameters()]
        opt.step(loss=loss, evaluate=lambda: ((model(x) - y) ** 2).mean())
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    else:
        opt.step(closure_of(model, opt))
    assert opt.figures()["trials"] > 3
    assert torch.equal(torch.get_rng_state(), wanted)
    for (key, a), (_, b) in zip(model.named_buffers(), twin.named_buffers(), strict=True):
        assert torch.equal(a, b), key
    assert model.calls.item() == 1
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", SEARCHES)
def test_every_trial_is_the_same_function(name):
    """With trial points that coincide with the start, dropout and all, each loss is that of the step to the bit."""
    model, opt = noisy(name, **({"init_step_size": 1e-30} if name == "sls" else {"min_eta": 0.0, "max_eta": 1e-30}))
    seen: list[float] = []
    for seed in range(3):
        opt.step(closure_of(model, opt, seed, seen))
    assert len(seen) >= 6 and len(set(seen)) == 3
    random = [v for _ in range(4) for v in [closure_of(model, opt, 0)().item()]]
    assert len(set(random)) > 1, "the model is not random: this test shows nothing"


def test_a_parameter_outside_of_the_search_keeps_its_gradient():
    model, _ = noisy("sls")
    opt = hf_optim.create("sls", [model.body[0].weight])
    opt.watch(model)
    frozen = model.body[3].weight
    opt.step(closure_of(model, model))  # model.zero_grad: all parameters
    wanted = frozen.grad.clone()
    model.zero_grad()
    torch.manual_seed(5)
    closure_of(model, model)()
    kept = frozen.grad
    opt.step(loss=1e9, evaluate=lambda: torch.tensor(0.0))
    assert frozen.grad is kept and wanted.shape == kept.shape


def test_a_copy_watches_the_copied_model():
    pair = noisy("sls", init_step_size=500.0)
    model, opt = copy.deepcopy(pair)
    opt.step(closure_of(model, opt))
    assert model.calls.item() == 1 and pair[0].calls.item() == 0


@pytest.mark.parametrize("name", SEARCHES)
def test_an_evaluation_that_raises_changes_nothing(name):
    p, opt, f = quadratic(name)
    advance(p, opt, f)
    before, state = p.detach().clone(), copy.deepcopy(opt.state_dict())
    p.grad = torch.ones_like(p)
    grad, calls = p.grad, []

    def broken():
        calls.append(p.detach().clone())
        if len(calls) > 2:
            raise KeyboardInterrupt
        return torch.tensor(1e9)

    with pytest.raises(KeyboardInterrupt):
        opt.step(loss=1.0, evaluate=broken)
    assert not torch.equal(calls[0], before)
    assert torch.equal(p, before) and p.grad is grad
    assert opt.state_dict()["param_groups"] == state["param_groups"]


# --- what is taken ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lrs", [(1.0, 1.0), (0.3, 0.3), (0.7, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("name", SEARCHES)
def test_the_step_is_exactly_lr_eta_g(name, lrs):
    a, b = (nn.Parameter(torch.randn(5, generator=torch.Generator().manual_seed(i))) for i in (1, 2))
    opt = hf_optim.create(name, [{"params": [a], "lr": lrs[0]}, {"params": [b], "lr": lrs[1]}])
    f = lambda: (50 * a * a).sum() + (b**4).sum()  # noqa: E731
    for _ in range(3):
        a.grad = b.grad = None
        loss = f()
        loss.backward()
        starts, grads = [p.detach().clone() for p in (a, b)], [p.grad.clone() for p in (a, b)]
        opt.step(loss=loss, evaluate=f)
        eta = opt.param_groups[0]["eta"]
        assert opt.figures()["trials"] > 1 or opt.param_groups[0]["eta"] < 1
        for p, x, g, lr, rate in zip((a, b), starts, grads, lrs, opt.effective_lr(), strict=True):
            torch.testing.assert_close(p.detach(), torch.add(x, g, alpha=-(eta * lr)), rtol=0, atol=1e-6)
            assert rate == eta * lr


@pytest.mark.parametrize("name", SEARCHES)
def test_a_schedule_shortens_the_step_and_not_the_search(name):
    taken = []
    for lr in (1.0, 0.25):
        p, opt, f = quadratic(name)
        opt.param_groups[0]["lr"] = lr
        x = p.detach().clone()
        advance(p, opt, f)
        taken.append((x - p.detach(), opt.param_groups[0]["eta"]))
    assert taken[0][1] == taken[1][1]
    torch.testing.assert_close(taken[1][0], 0.25 * taken[0][0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", RATELESS)
def test_a_warm_up_from_zero_does_not_stick(name):
    p, opt, f = quadratic(name)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: min(t / 3, 1.0))
    start, losses = p.detach().clone(), []
    for t in range(60):
        losses.append(advance(p, opt, f))
        if t == 0:
            assert torch.equal(p.detach(), start) and opt.effective_lr() == [0.0]
        schedule.step()
    assert losses[-1] < (0.6 if name.startswith("l4") else 1e-2) * losses[0]


def test_a_failed_search_takes_a_last_resort_and_is_not_remembered():
    p, opt, _ = quadratic("sls")
    p.grad = torch.ones_like(p)
    calls, x = [], p.detach().clone()
    opt.step(loss=1.0, evaluate=lambda: calls.append(1) or 2.0)
    assert len(calls) == 100
    assert torch.equal(p.detach(), x - 1e-6) and opt.effective_lr() == [1e-6]
    assert opt.param_groups[0]["eta_previous"] == 1.0
    opt.step(loss=1.0, evaluate=lambda: 0.0)
    assert opt.effective_lr()[0] == 2.0 ** (1 / 500)


@pytest.mark.parametrize(("option", "wanted"), [(0, 0.9), (1, 0.9 * 8 ** (1 / 3)), (2, 1.0)])
def test_where_the_next_search_begins(option, wanted):
    p, opt, _ = quadratic("sls", reset_option=option, gamma=8.0, steps_per_epoch=3)
    for value in [9.0] if option != 1 else []:  # the first trial fails once: 1 -> 0.9
        p.grad = torch.ones_like(p)
        answers = iter([value, 0.0])
        opt.step(loss=1.0, evaluate=lambda: next(answers))  # noqa: B023
    if option == 1:
        opt.param_groups[0]["eta_previous"] = 0.9
    p.grad = torch.ones_like(p)
    opt.step(loss=1.0, evaluate=lambda: 0.0)
    assert math.isclose(opt.effective_lr()[0], wanted, rel_tol=1e-14)


def test_ponos_against_the_formulas():
    """Lines 1 to 5 in plain Python, on a function that forces backtracks."""
    p, opt, f = quadratic("ponos", c_p=0.02, zhang_xi=0.7, delta=0.6, max_eta=5.0)
    x, q, c_bar, kept, backtracked = [3.0, -2.0], 0.0, 0.0, 0, 0
    value = lambda z: 0.5 * (4 * z[0] ** 2 + z[1] ** 2)  # noqa: E731
    for _ in range(12):
        advance(p, opt, f)
        g = [4 * x[0], x[1]]
        square, now = g[0] ** 2 + g[1] ** 2, value(x)
        q, c_bar = 0.7 * q + 1, (0.7 * q * c_bar + now) / (0.7 * q + 1)
        eta, n = min(max(0.6**kept * now / (0.02 * square + 1e-8), 1e-6), 5.0), 0
        while value([a - eta * b for a, b in zip(x, g, strict=True)]) > max(c_bar, now) - 0.5 * eta * square:
            eta, n = eta * 0.6, n + 1
        x, kept = [a - eta * b for a, b in zip(x, g, strict=True)], max(kept + n - 1, 0)
        backtracked += n
        assert opt.param_groups[0]["backtracks"] == kept
        torch.testing.assert_close(p.detach(), torch.tensor(x, dtype=torch.float64), rtol=1e-12, atol=1e-14)
    assert backtracked > 5


def test_l4_in_plain_python():
    p, opt, f = quadratic("l4_adam", fraction=0.2, minloss_factor=0.8, init_factor=0.6, forget=20.0, adam_eps=1e-3)
    x, m, s, lowest = [3.0, -2.0], [0.0, 0.0], [0.0, 0.0], math.inf
    for t in range(1, 15):
        advance(p, opt, f)
        g, now = [4 * x[0], x[1]], 0.5 * (4 * x[0] ** 2 + x[1] ** 2)
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        s = [0.999 * a + 0.001 * b * b for a, b in zip(s, g, strict=True)]
        estimate = [a / (1 - 0.9**t) for a in m]
        v = [a / (math.sqrt(b / (1 - 0.999**t)) + 1e-3) for a, b in zip(estimate, s, strict=True)]
        lowest = 0.6 * now if t == 1 else min(lowest, now)
        eta = 0.2 * (now - 0.8 * lowest) / (sum(a * b for a, b in zip(estimate, v, strict=True)) + 1e-12)
        x, lowest = [a - eta * b for a, b in zip(x, v, strict=True)], lowest * (1 + 1 / 20)
        torch.testing.assert_close(p.detach(), torch.tensor(x, dtype=torch.float64), rtol=1e-11, atol=1e-13)
        assert math.isclose(opt.effective_lr()[0], eta, rel_tol=1e-10)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEARCHES)
def test_what_is_missing_or_bad_is_said_before_anything_moves(name):
    p, opt, f = quadratic(name, on_bad_loss="raise")
    start = p.detach().clone()
    p.grad = torch.ones_like(p)
    for arguments, error in (
        ({}, MissingLoss),
        ({"loss": 1.0}, MissingLoss),
        ({"loss": float("nan"), "evaluate": f}, BadLoss),
        ({"loss": float("inf"), "evaluate": f}, BadLoss),
    ):
        with pytest.raises(error):
            opt.step(**arguments)
    p.grad[0] = float("nan")
    with pytest.raises(BadLoss, match="gradient"):
        opt.step(loss=1.0, evaluate=f)
    assert torch.equal(p.detach(), start)


def test_negative_losses():
    p, opt, _ = quadratic("sls")
    p.grad = torch.ones_like(p)
    opt.step(loss=-1.0, evaluate=lambda: -5.0)
    for name in ("ponos", "sps", "l4_mom", "l4_adam"):
        p, opt, _ = quadratic(name)
        p.grad = torch.ones_like(p)
        with pytest.raises(BadLoss, match="below 0"):
            opt.step(loss=-1.0, evaluate=lambda: -5.0)
    p, opt, _ = quadratic("sps", adapt="constant", f_star=-2.0)
    p.grad = torch.ones_like(p)
    opt.step(loss=-1.0)
    assert math.isclose(opt.effective_lr()[0], 1 / (0.5 * 2 + 1e-8))


def test_bad_steps_can_be_skipped_and_are_counted():
    p, opt, f = quadratic("ponos", on_bad_loss="skip")
    start = p.detach().clone()
    p.grad = torch.full_like(p, float("inf"))
    opt.step(loss=1.0, evaluate=f)
    opt.step(loss=float("nan"), evaluate=f)
    assert torch.equal(p.detach(), start) and opt.figures()["skipped_steps"] == 2


@pytest.mark.parametrize("name", ["sps", "sls", "ponos"])
def test_a_gradient_transform_is_refused_with_the_reason(name):
    with pytest.raises(UserError, match=r"\|\|g\|\|\^2"):
        quadratic(name, grad_transform="agr")


def test_unequal_numbers_in_groups_are_refused():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match="equal in all groups"):
        hf_optim.create("sls", [{"params": [a]}, {"params": [b], "c": 0.3}])


# --- epochs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sps", "sls"])
def test_steps_per_epoch_is_filled_in_unless_it_was_chosen(name):
    p = nn.Parameter(torch.ones(2))
    opt = hf_optim.create(name, [p])
    for n in (7, 9):
        opt.set_steps_per_epoch(n)
        assert opt.param_groups[0]["steps_per_epoch"] == n
    opt.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    assert opt.param_groups[1]["steps_per_epoch"] == 9
    for given in (500, 30):
        opt = hf_optim.create(name, [p], steps_per_epoch=given)
        opt.set_steps_per_epoch(7)
        assert opt.param_groups[0]["steps_per_epoch"] == given
    opt = hf_optim.create(name, [{"params": [p], "steps_per_epoch": 4}])
    opt.set_steps_per_epoch(7)
    assert opt.param_groups[0]["steps_per_epoch"] == 4
    wrapped = hf_optim.create("lookahead", [p], base={"name": name})
    wrapped.set_steps_per_epoch(11)
    assert wrapped.param_groups[0]["steps_per_epoch"] == 11


# --- checkpoints and precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RATELESS)
def test_a_resumed_run_is_the_same_to_the_bit(name):
    whole, opt, f = quadratic(name)
    for _ in range(4):
        advance(whole, opt, f)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    resumed, second, g = quadratic(name, start=tuple(whole.tolist()))
    second.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(4):
        advance(whole, opt, f)
        advance(resumed, second, g)
    assert torch.equal(whole, resumed) and opt.effective_lr() == second.effective_lr()


@pytest.mark.parametrize("name", RATELESS)
def test_bfloat16_parameters(name):
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.linspace(1, 2, 64).to(dtype))
        opt = hf_optim.create(name, [p])
        f = lambda: (p.float() ** 2).sum()  # noqa: B023, E731
        first, *_, last = [advance(p, opt, f) for _ in range(20)]
        assert p.dtype is dtype and last < 0.8 * first
        ends.append(last)
    assert ends[1] == pytest.approx(ends[0], rel=0.1, abs=1e-3)
