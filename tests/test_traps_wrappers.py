"""Traps of wrappers and of torch's contract: modes, hooks, late gradients, rates that run away, foreign layouts."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import hf_optim
from hf_optim.hub.rates import LoggedRates

WRAPPED = {
    "tlr": {"base": {"name": "adan"}, "interval": 2},
    "lookahead": {"base": {"name": "torch.optim:SGD", "lr": 0.1, "momentum": 0.9}, "k": 3},
    "hdk": {"base": {"name": "sgd", "lr": 0.1}, "eta": 1e-3, "interval": 2},
    "tlr_legacy": {"base": {"name": "sgd", "lr": 0.1}, "interval": 2},
}


def _step(opt, params, t, late=()):
    for i, p in enumerate(params):
        g = torch.Generator().manual_seed(31 * t + i)
        p.grad = None if i in late else torch.randn(p.shape, generator=g) * 0.1 + p.detach() * 0.2
    opt.step(loss=torch.tensor(2.0)) if hasattr(opt, "feed") else opt.step()


def _params():
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))]


class Modes(torch.optim.SGD):
    """A base that changes what the parameters hold, as schedule-free rules do."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


@pytest.mark.parametrize("name", list(WRAPPED))
def test_modes_are_passed_on(name):
    base = Modes(_params(), lr=0.1)
    own = {k: v for k, v in WRAPPED[name].items() if k != "base"}
    opt = hf_optim.create(name, None, base=base, **own)
    opt.eval()
    assert base.mode == "eval"
    opt.train()
    assert base.mode == "train"


@pytest.mark.parametrize("name", list(WRAPPED))
def test_step_hooks_run_once(name):
    opt = hf_optim.create(name, _params(), **WRAPPED[name])
    count = {"own": 0, "base": 0, "all before": 0, "all after": 0}

    def counted(key):
        def hook(*_):
            count[key] += 1

        return hook

    opt.register_step_pre_hook(counted("own"))
    opt.base.register_step_post_hook(counted("base"))
    handles = [
        register_optimizer_step_pre_hook(counted("all before")),
        register_optimizer_step_post_hook(counted("all after")),
    ]
    try:
        _step(opt, [p for g in opt.param_groups for p in g["params"]], 0)
    finally:
        for handle in handles:
            handle.remove()
    assert count == dict.fromkeys(count, 1)


@pytest.mark.parametrize("name", [*WRAPPED, "adan"])
def test_state_dict_hooks_run_and_have_the_last_word(name):
    opt = hf_optim.create(name, _params(), **WRAPPED.get(name, {}))
    params = [p for g in opt.param_groups for p in g["params"]]
    _step(opt, params, 0)
    seen = []
    opt.register_state_dict_pre_hook(lambda o: seen.append("before saving"))
    opt.register_state_dict_post_hook(lambda o, d: {**d, "mine": 7})
    saved = copy.deepcopy(opt.state_dict())
    assert saved.pop("mine") == 7

    def halved(o, d):
        for entry in d["state"].values():
            for k, v in entry.items():
                if isinstance(v, torch.Tensor) and v.dim():
                    entry[k] = v * 0.5

    opt.register_load_state_dict_pre_hook(halved)
    opt.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    expected = {k: v * 0.5 for k, v in opt.state[params[0]].items() if isinstance(v, torch.Tensor) and v.dim()}
    opt.load_state_dict(saved)
    assert seen == ["before saving", "loaded"] and expected
    assert all(torch.equal(opt.state[params[0]][k], v) for k, v in expected.items())


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("name", list(WRAPPED))
def test_a_first_gradient_after_a_resume(name, at):
    """Interrupted anywhere before a parameter's first gradient, the run is bit for bit the one that was not."""
    whole = hf_optim.create(name, (mine := _params()), **WRAPPED[name])
    first = hf_optim.create(name, (some := _params()), **WRAPPED[name])
    for t in range(9):
        _step(whole, mine, t, late=(1,) if t < 5 else ())
    for t in range(at):
        _step(first, some, t, late=(1,))
    fresh = [nn.Parameter(p.detach().clone()) for p in some]
    second = hf_optim.create(name, fresh, **WRAPPED[name])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for t in range(at, 9):
        _step(second, fresh, t, late=(1,) if t < 5 else ())
    assert all(torch.equal(a, b) for a, b in zip(mine, fresh, strict=True))


@pytest.mark.parametrize("name", ["tlr", "tlr_legacy", "hdk"])
def test_another_schedulers_scale_is_let_be(name):
    """timm's and MAE's group["lr_scale"]: neither read nor written, in the log under a prefix of ours."""
    own = {"base": {"name": "sgd", "lr": 0.1}, "interval": 2} | ({"eta": 1e-3} if name == "hdk" else {})
    scaled = hf_optim.create(name, [{"params": _params(), "lr_scale": 0.5}], **own)
    plain = hf_optim.create(name, _params(), **own)
    for opt in (scaled, plain):
        for t in range(8):
            _step(opt, opt.param_groups[0]["params"], t)
    assert scaled.param_groups[0]["lr_scale"] == 0.5 and "lr_scale" not in plain.param_groups[0]
    pairs = zip(scaled.param_groups[0]["params"], plain.param_groups[0]["params"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    logged = LoggedRates().figures(scaled)
    assert {k for k in logged if not k.startswith("hf_optim_")} == {"effective_lr"} and len(logged) > 1


def test_the_scale_under_its_own_name_and_older_checkpoints():
    """timm's and MAE's schedulers multiply group["lr_scale"] in themselves."""
    opt = hf_optim.create("tlr", [{"params": _params(), "lr_scale": 0.5}], base={"name": "sgd", "lr": 0.1}, interval=2)
    params = opt.param_groups[0]["params"]
    plain = hf_optim.create("tlr", (others := _params()), base={"name": "sgd", "lr": 0.1}, interval=2)
    for t in range(6):
        _step(opt, params, t)
        _step(plain, others, t)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    assert opt.param_groups[0]["lr_scale"] == 0.5 and opt.param_groups[0]["hf_optim_lr_scale"] != 1
    old = copy.deepcopy(plain.state_dict())
    for group in old["param_groups"]:
        group["lr_scale"] = group.pop("hf_optim_lr_scale")
    twin = hf_optim.create("tlr", (third := [nn.Parameter(p.detach().clone()) for p in others]), base="sgd", interval=2)
    twin.load_state_dict(old)
    for t in range(6, 10):
        _step(plain, others, t)
        _step(twin, third, t)
    assert all(torch.equal(a, b) for a, b in zip(others, third, strict=True))


# --- TLR's rate -------------------------------------------------------------------------------------------------------


def test_few_steps_an_epoch_are_warned_of(caplog):
    opt = hf_optim.create("tlr", _params(), base={"name": "sgd", "lr": 0.1})
    opt.set_steps_per_epoch(4)
    assert "K = max(1, int(p steps_per_epoch)) = 1" in caplog.text
    opt.set_steps_per_epoch(20)  # an attempt with another batch size
    assert opt.param_groups[0]["tlr_interval"] == 4
    other = hf_optim.create("tlr", _params(), base={"name": "sgd", "lr": 0.1}, interval=7)
    other.set_steps_per_epoch(20)
    assert other.param_groups[0]["tlr_interval"] == 7


def test_the_rate_stays_within_its_bound_and_says_so(caplog):
    """A slope that grows a little slower each step multiplied the rate by 100 at every window."""
    p = nn.Parameter(torch.zeros(3))
    opt = hf_optim.create("tlr", [p], base={"name": "sgd", "lr": 1e-6}, interval=1, bound=50.0)
    for t in range(20):
        p.grad = torch.full((3,), 1.0 - 1e-4 * t)
        opt.step()
    assert opt.param_groups[0]["hf_optim_lr_scale"] == 50.0
    assert caplog.text.count("tlr: the rate would go up beyond its bound, 50 times the one given") == 1


def test_without_guards_the_rate_leaves_any_start():
    """As the paper has it: from a rate at which w moves by little more than its rounding, the guards kept it there."""

    def scale(**options) -> float:
        torch.manual_seed(0)
        start = torch.cat([10 * torch.randn(100), 1e-3 * torch.randn(100)])  # rounding holds the first half still
        p, target = nn.Parameter(start.clone()), start + 1
        opt = hf_optim.create("tlr", [p], base={"name": "sgd", "lr": 1e-9}, interval=5, **options)
        for _ in range(300):
            p.grad = (p - target).detach() + torch.randn(200)
            opt.step()
        return float(opt.param_groups[0]["hf_optim_lr_scale"])

    assert scale() == 1.0
    assert scale(guards=False) > 1e7


def test_nothing_happens_after_convergence():
    """Where w moves by its rounding alone, D is noise, and the rate blew up."""
    torch.manual_seed(0)
    target = torch.randn(20)
    p = nn.Parameter(target.clone() + 0.1)
    opt = hf_optim.create("tlr", [p], base={"name": "sgd", "lr": 0.5}, interval=2)
    scales = []
    for _ in range(400):
        p.grad = (p - target).detach()
        opt.step()
        scales.append(opt.param_groups[0]["hf_optim_lr_scale"])
    assert torch.allclose(p, target, atol=1e-5)
    assert len(set(scales[100:])) == 1


# --- torch's contract -------------------------------------------------------------------------------------------------


def test_a_hyper_parameter_added_since_keeps_its_value_and_is_said(caplog):
    first = hf_optim.create("adan", (a := _params()), eps=1e-3)
    _step(first, a, 0)
    saved = copy.deepcopy(first.state_dict())
    for group in saved["param_groups"]:
        del group["eps"]
    second = hf_optim.create("adan", (b := [nn.Parameter(p.detach().clone()) for p in a]), eps=1e-3)
    with caplog.at_level(logging.WARNING, logger="hf_optim"):
        second.load_state_dict(saved)
    assert "lacks eps (now 0.001)" in caplog.text
    _step(first, a, 1)
    _step(second, b, 1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_rate_that_is_replaced_is_said(caplog, scheduled):
    """The checkpoint's is in force, as in torch; under a schedule it is the one that the schedule begins with."""
    one = hf_optim.create("adan", (a := _params()), lr=0.02, eps=1e-3)
    two = hf_optim.create("adan", _params(), lr=0.01, eps=1e-3)
    same = hf_optim.create("adan", _params(), lr=0.02, eps=1e-3)
    for opt in (one, two, same) if scheduled else ():
        scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: 1 / (1 + t))
        if opt is one:
            _step(one, a, 0)
            scheduler.step()
    saved = copy.deepcopy(one.state_dict())
    same.load_state_dict(saved)
    assert "replace" not in caplog.text
    two.load_state_dict(saved)
    assert caplog.text.count("the checkpoint's lr = 0.02 (was 0.01) replace those of the constructor") == 1
    assert two.param_groups[0]["lr"] == (0.01 if scheduled else 0.02)


def test_steps_counted_in_numbers():
    first = hf_optim.create("adan", (a := _params()))
    _step(first, a, 0)
    saved = copy.deepcopy(first.state_dict())
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])
    second = hf_optim.create("adan", (b := [nn.Parameter(p.detach().clone()) for p in a]))
    second.load_state_dict(saved)
    _step(first, a, 1)
    _step(second, b, 1)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("name", ["adan", "smaran", "lookahead"])
def test_a_tensor_as_a_rate(name, shape):
    rate = torch.full(shape, 0.01)
    hyper = {"base": {"name": "adan", "lr": rate}} if name == "lookahead" else {"lr": rate}
    plain = {"base": {"name": "adan", "lr": 0.01}} if name == "lookahead" else {"lr": float(rate)}
    first, second = hf_optim.create(name, (a := _params()), **hyper), hf_optim.create(name, (b := _params()), **plain)
    for t in range(3):
        _step(first, a, t)
        _step(second, b, t)
    assert all(torch.allclose(x, y, rtol=1e-6) for x, y in zip(a, b, strict=True))


def test_integers_without_gradients_are_let_be():
    table = nn.Parameter(torch.arange(4), requires_grad=False)
    opt = hf_optim.create("adan", [*(params := _params()), table])
    _step(opt, params, 0)
    assert torch.equal(table, torch.arange(4))


@pytest.mark.parametrize("name", ["adan", "lookahead", "tlr"])
def test_resumed_in_another_layout(name):
    """A contiguous checkpoint goes on with channels_last weights, and the other way."""
    hyper = {"base": {"name": "adan"}, **({"interval": 2} if name == "tlr" else {"k": 2})} if name != "adan" else {}

    def fresh(like, layout):
        return [nn.Parameter(like.detach().clone().contiguous(memory_format=layout))]

    formats = torch.contiguous_format, torch.channels_last
    for layout, other in (formats, formats[::-1]):
        torch.manual_seed(0)
        a = fresh(torch.randn(4, 3, 5, 2), layout)
        first = hf_optim.create(name, a, **hyper)
        for t in range(3):
            _step(first, a, t)
        b = fresh(a[0], other)
        second = hf_optim.create(name, b, **hyper)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        for t in range(3, 6):
            _step(first, a, t)
            _step(second, b, t)
        assert torch.allclose(a[0], b[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adan", "lookahead"])
def test_a_model_that_changes_its_layout_goes_on(name):
    hyper = {"base": {"name": "adan"}, "k": 2} if name == "lookahead" else {}
    torch.manual_seed(0)
    start = torch.randn(4, 3, 5, 2)
    a, b = [nn.Parameter(start.clone())], [nn.Parameter(start.clone())]
    first, second = hf_optim.create(name, a, **hyper), hf_optim.create(name, b, **hyper)
    for t in range(6):
        if t == 3:
            b[0].data = b[0].data.contiguous(memory_format=torch.channels_last)
        _step(first, a, t)
        _step(second, b, t)
    assert torch.allclose(a[0], b[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["smaran", "adan", "lookahead"])
def test_compiled_steps_are_the_same(name):
    hyper = {"base": {"name": "adan"}, "k": 2} if name == "lookahead" else {}
    ends = []
    for compiled in (False, True):
        params = _params()
        opt = hf_optim.create(name, params, **hyper)

        def step(loss, opt=opt):  # a function: before 2.7 torch lost the `self` of a method
            opt.step(loss=loss)

        step = torch.compile(step, backend="eager") if compiled else step
        for t in range(4):
            for i, p in enumerate(params):
                p.grad = torch.full_like(p, 0.1 * (t + i + 1))
            step(torch.tensor(2.0))
        ends.append(params)
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_the_conformance_suite_would_have_caught_it(monkeypatch):
    """Slow weights begun at the start of a window only: what Lookahead did."""
    from hf_optim.check import suite
    from hf_optim.wrappers.lookahead import Lookahead

    assert suite.run(["lookahead_adam"], checks=["resume"]).cells["lookahead_adam", "resume"].status == "pass"
    begin = Lookahead._begin
    monkeypatch.setattr(Lookahead, "_begin", lambda self, g: None if g["la_count"] else begin(self, g))
    verdict = suite.run(["lookahead_adam"], checks=["resume"]).cells["lookahead_adam", "resume"]
    assert verdict.status == "fail" and "first gradient comes after resuming" in verdict.why
