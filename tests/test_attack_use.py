"""Optimizers in use, badly: lost memory, threads, other defaults of torch, values that callbacks spoil."""

import copy
import math
import pickle

import pytest
import ranks
import torch
from contract import PLAIN, make

import hf_optim
from hf_optim.errors import UserError

#: what would end the process runs in one of its own
FATAL = """
import threading, torch, hf_optim

def made(name):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(6, 5)), torch.nn.Parameter(torch.randn(5000))]
    optimizer = hf_optim.create(name, params)
    for p in params:
        p.grad = torch.randn_like(p)
    step = lambda: optimizer.step(loss=1.0, evaluate=lambda: 0.5)
    step()
    return optimizer, params, step

def lose(tensor, bytes):
    tensor.untyped_storage().resize_(bytes)

for name in ("adamw", "muon", "sls", "smaran"):
    for what in ("parameter", "half", "gradient", "state"):
        optimizer, params, step = made(name)
        state = [t for t in optimizer.state[params[1]].values() if t.numel() == 5000]
        gone = {"parameter": params[0], "half": params[1], "gradient": params[0].grad, "state": (state or params)[0]}
        lose(gone[what].data, 5000 if what == "half" else 0)
        try:
            step()
            print(name, what, "moved")
        except hf_optim.UserError as error:
            print(name, what, "has lost its memory" in str(error))

optimizer, params, step = made("adamw")
lose(params[0].data, 0)
params[0].grad = None  # as it is between the steps that use it
step()
print("idle", len(optimizer.state))

for name in ("adamw", "muon"):
    optimizer, params, step = made(name)
    threads = [threading.Thread(target=lambda: [step() for _ in range(50)]) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(name, "counts", int(optimizer.state[params[0]]["step"]))
"""


def test_lost_memory_is_said_and_threads_take_turns():
    said = ranks.program(FATAL).splitlines()
    lines = [line for line in said if " was given tensors, " not in line]
    names, parts = ("adamw", "muon", "sls", "smaran"), ("parameter", "half", "gradient", "state")
    assert lines[:16] == [f"{name} {part} True" for name in names for part in parts]
    assert lines[16:] == ["idle 2", "adamw counts 201", "muon counts 201"]


def _stepped(name, around, **hyper):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(8, 6)), torch.nn.Parameter(torch.randn(5000))]
    optimizer = make(name, params, **hyper)
    for seed in range(3):
        gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) for p in params]
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient
        with around():
            optimizer.step()
    return params


@pytest.mark.parametrize("name", [*PLAIN, "tlr_adam", "lookahead"])
def test_another_default_device_or_autocast_changes_no_step(name):
    plain = _stepped(name, lambda: torch.device("cpu"))
    for around in (lambda: torch.device("meta"), lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        assert all(torch.equal(a, b) for a, b in zip(plain, _stepped(name, around), strict=True))


@pytest.mark.parametrize("name", ["muon", "soap", "adamw"])
def test_gradients_may_have_a_precision_of_their_own(name):
    p = torch.nn.Parameter(torch.randn(6, 5))
    if not hasattr(p, "grad_dtype"):
        pytest.skip("torch has no grad_dtype here")
    p.grad_dtype = torch.bfloat16
    optimizer, before = make(name, [p]), p.detach().clone()
    for _ in range(2):
        p.square().sum().backward()
        optimizer.step()
        assert p.grad.dtype is torch.bfloat16
    assert not torch.equal(p, before)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("adamw", "lr", torch.tensor(math.nan)),
        ("adamw", "lr", torch.ones(2)),
        ("muon", "lr", torch.empty((), device="meta")),
        ("adamw", "lr", "0.1"),
        ("schedule_free_adamw", "lr", None),
        ("adamw", "weight_decay", math.nan),
        ("adamw", "betas", (0.9, math.nan)),
        ("muon", "momentum", math.nan),
    ],
)
def test_what_a_callback_spoils_moves_nothing(name, key, value):
    params = [torch.nn.Parameter(torch.randn(6, 5))]
    optimizer = make(name, params)
    params[0].grad = torch.ones(6, 5)
    before = params[0].detach().clone()
    optimizer.param_groups[0][key] = value
    with pytest.raises(UserError, match=f"{key} of parameter group 0 is .*nothing was moved"):
        optimizer.step()
    assert torch.equal(params[0], before)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    "params",
    [3, None, torch.nn.Linear, "ab", ["a"], [None], [{}], [{"params": None}], {"params": [torch.ones(2)]},
     [torch.nn.Parameter(torch.ones(2)), {"params": []}], [*torch.nn.LazyLinear(3).parameters()]],
)  # fmt: skip
def test_what_are_no_parameters_is_said(name, params):
    with pytest.raises(UserError, match="params|parameter"):
        hf_optim.create(name, params)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("group", [[torch.ones(3)], {"lr": 1}, {"params": None}, {"params": "ab"}, {"params": [3]}])
def test_what_is_no_group_is_said(name, group):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = make(name, [p])
    with pytest.raises(UserError, match="group"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("loss", [torch.empty((), device="meta"), torch.tensor(1j), 10**400])
def test_what_is_no_loss_is_said(loss):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(UserError, match="the loss must be one number"):
        make("smaran", [p]).step(loss=loss)


def test_a_rate_without_a_number_is_said():
    for lr in (torch.empty((), device="meta"), torch.tensor(1j), torch.tensor(True)):
        with pytest.raises(UserError, match="lr must be a number"):
            hf_optim.create("adamw", [torch.nn.Parameter(torch.ones(3))], lr=lr)


def test_copies_share_no_lock():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = make("adamw", [p])
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        other.step()
