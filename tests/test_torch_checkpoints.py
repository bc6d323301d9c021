"""torch's checkpoints are ours and ours are torch's, in the middle of a run; those of another rule are refused."""

from __future__ import annotations

import copy
import itertools
import logging

import pytest
import torch
from stock import CASES, FOLDER, STEPS, gradients, groups, start, theirs, walk

import hf_optim
from hf_optim.errors import BadCheckpoint

EXECUTION = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}


def ours(stem, params, **extra):
    hyper = CASES[stem][1] | extra
    return hf_optim.create(stem, groups(params, hyper["lr"]), **hyper)


def same(a, b, rtol=1e-12):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=rtol / 10, check_dtype=False)


@pytest.mark.parametrize("stem", CASES)
def test_ours_goes_on_where_torch_stopped(stem):
    """From a file that torch wrote; what it reaches later is in the file."""
    checkpoint = torch.load(FOLDER / f"{stem}.pt", weights_only=True)
    params = [torch.nn.Parameter(p) for p in checkpoint["parameters"]]
    opt = ours(stem, params)
    opt.load_state_dict(checkpoint["optimizer"])
    assert not set(EXECUTION) & set(opt.param_groups[0])
    walk(opt, params, STEPS + 1, 2 * STEPS)
    same(params, checkpoint["later"])
    assert opt.param_groups[1]["lr"] == checkpoint["optimizer"]["param_groups"][1]["lr"]


@pytest.mark.parametrize("stem", CASES)
def test_a_run_changes_hands_and_back(stem):
    """torch, ours, torch, ours: the run of torch alone. After every change both keep what torch keeps."""
    # torch's own load makes a float64 of NAdam's float32 product, which it then rounds no more
    rtol = 1e-7 if stem == "nadam" else 1e-12
    whole, params = start(), start()
    alone = theirs(stem, whole)
    opt = theirs(stem, params)
    for leg, make in enumerate((theirs, ours, theirs, ours)):
        saved = copy.deepcopy(opt.state_dict())
        params = [torch.nn.Parameter(p.detach().clone()) for p in params]
        opt = make(stem, params)
        opt.load_state_dict(saved)
        for runner, its in ((alone, whole), (opt, params)):
            walk(runner, its, 2 * leg + 1, 2 * leg + 2)
        same(params, whole, rtol)
        wanted, state = alone.state_dict(), opt.state_dict()
        for a, b in zip(wanted["param_groups"], state["param_groups"], strict=True):
            assert {k: b[k] for k in a} == a and set(b) - set(a) <= {"made_by"}
        for i, entry in wanted["state"].items():
            for k, v in entry.items():
                same([state["state"][i][k]], [v], rtol)


def test_nothing_of_execution_is_taken_and_torchs_defaults_are_written():
    params = start()
    saved = theirs("adamw", params, fused=True).state_dict()
    opt = ours("adamw", params)
    opt.load_state_dict(saved)
    written = opt.state_dict()["param_groups"][0]
    assert not set(EXECUTION) & set(opt.param_groups[0])
    assert {k: written[k] for k in EXECUTION} == EXECUTION and written["decoupled_weight_decay"] is True
    stock = theirs("adamw", start())
    stock.load_state_dict(opt.state_dict())
    assert not stock.param_groups[0]["fused"]


@pytest.mark.parametrize(("mine", "theirs"), list(itertools.permutations(CASES, 2)))
@pytest.mark.parametrize("make", [theirs, ours], ids=["torch", "ours"])
def test_another_rules_checkpoint_is_refused_in_one_line(mine, theirs, make):
    """Of torch's classes and of our names, each from each: also adam's by amsgrad, sgd's by sgdm, adam's by adamw."""
    params, other = start(), start()
    opt, foreign = ours(mine, params), make(theirs, other)
    walk(opt, params, 1, 2)
    walk(foreign, other, 1, 2)
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(BadCheckpoint) as error:
        opt.load_state_dict(foreign.state_dict())
    assert "\n" not in str(error.value)
    after = opt.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert all(torch.equal(v, after["state"][i][k]) for i, s in before["state"].items() for k, v in s.items())


OLD = {
    "sgdm": ("maximize", "foreach", "differentiable", "fused", "nesterov"),
    "adagrad": ("maximize", "foreach", "differentiable", "fused"),
    "rmsprop": ("maximize", "foreach", "differentiable", "capturable"),
    "amsgrad": ("maximize", "foreach", "differentiable", "capturable", "fused", "decoupled_weight_decay"),
    "adamw": ("maximize", "foreach", "differentiable", "capturable", "fused", "decoupled_weight_decay"),
    "nadam": ("maximize", "foreach", "differentiable", "capturable"),
}


@pytest.mark.parametrize("stem", OLD)
def test_checkpoints_of_old_versions_load_and_what_they_lack_is_said_once(stem, caplog):
    """Fewer keys, numbers where tensors are now, None where SGD kept no average."""
    checkpoint = torch.load(FOLDER / f"{stem}.pt", weights_only=True)
    saved = checkpoint["optimizer"]
    for group in saved["param_groups"]:
        for key in OLD[stem]:
            del group[key]
    for entry in saved["state"].values():
        if "step" in entry:
            entry["step"] = int(entry["step"])
        if "mu_product" in entry:
            entry["mu_product"] = float(entry["mu_product"])
    params = [torch.nn.Parameter(p) for p in checkpoint["parameters"]]
    opt = ours(stem, params)
    with caplog.at_level(logging.WARNING, "hf_optim"):
        opt.load_state_dict(saved)
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1 and "maximize (False is taken)" in said[0]
    assert ("Adam's and AdamW's cannot be told apart" in said[0]) == ("decoupled_weight_decay" in OLD[stem])
    walk(opt, params, STEPS + 1, 2 * STEPS)
    same(params, checkpoint["later"])


def test_sgd_without_momentum_has_no_state_or_an_empty_one():
    params = start()
    stock = theirs("sgd", params)
    walk(stock, params, 1, 2)
    for entry in ({}, {"momentum_buffer": None}):
        saved = stock.state_dict()
        saved["state"] = {i: dict(entry) for i in range(3)}
        opt = ours("sgd", params)
        opt.load_state_dict(saved)
        walk(opt, params, 3, 3)
        stock.load_state_dict(opt.state_dict())
        walk(stock, params, 4, 4)


def test_torchs_half_precision_state_becomes_single():
    """torch keeps bf16 averages of bf16 parameters, which stall; ours are float32, also after a load, and back."""
    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    stock = torch.optim.AdamW(params)
    params[0].grad = torch.ones_like(params[0])
    stock.step()
    opt = hf_optim.create("adamw", params)
    opt.load_state_dict(stock.state_dict())
    assert opt.state[params[0]]["exp_avg"].dtype is torch.float32
    assert torch.equal(opt.state[params[0]]["exp_avg"].bfloat16(), stock.state[params[0]]["exp_avg"])
    opt.step()
    stock.load_state_dict(opt.state_dict())
    assert stock.state[params[0]]["exp_avg"].dtype is torch.bfloat16 and stock.state[params[0]]["step"] == 2


def test_a_contiguous_checkpoint_goes_on_in_channels_last():
    """State is saved as its parameter lies; where that lies otherwise now, numbers go by place, not by memory."""
    first = torch.randn(2, 3, 4, 5, generator=torch.manual_seed(9))
    whole, part = ([torch.nn.Parameter(first.clone())] for _ in range(2))
    grads = [torch.randn(2, 3, 4, 5, generator=torch.manual_seed(t)) for t in range(4)]
    straight, stopped = hf_optim.create("adamw", whole, lr=0.1), hf_optim.create("adamw", part, lr=0.1)
    for g in grads[:2]:
        for opt, p in ((straight, whole[0]), (stopped, part[0])):
            p.grad = g.clone()
            opt.step()
    last = [torch.nn.Parameter(part[0].detach().to(memory_format=torch.channels_last))]
    resumed = hf_optim.create("adamw", last, lr=0.1)
    resumed.load_state_dict(stopped.state_dict())
    for g in grads[2:]:
        whole[0].grad, last[0].grad = g.clone(), g.to(memory_format=torch.channels_last)
        straight.step()
        resumed.step()
    torch.testing.assert_close(last[0], whole[0], rtol=1e-6, atol=1e-7)


def test_the_order_of_a_reordered_state_dict_counts():
    """Entries are found by their numbers, whatever order a file has them in."""
    params, again = start(), start()
    opt, other = ours("adamw", params), ours("adamw", again)
    walk(opt, params, 1, 3)
    saved = opt.state_dict()
    saved["state"] = dict(reversed(saved["state"].items()))
    for p, q in zip(params, again, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(saved)
    walk(opt, params, 4, 5)
    walk(other, again, 4, 5)
    same(again, params)


def test_gradients_are_as_the_fixtures_say():
    assert [g is None for g in gradients(1)] == [False, False, True] and len(CASES) == 10
