"""What torch, timm and Accelerate ask of an optimizer, asked of every name."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc

import pytest
import torch
from contract import FAMILY, NAMES, Problem, make, step
from torch import nn

import hf_optim

#: names whose step goes through a closure
SEARCHES = [n for n in NAMES if "evaluate" in hf_optim.info(n).needs]


def _flat(params):
    return torch.cat([p.detach().flatten() for p in params])


def _walk(opt, problem, start, stop):
    for t in range(start, stop):
        step(opt, lambda t=t: problem.loss(t))


@pytest.mark.parametrize("name", NAMES)
def test_copies_go_their_own_way(name):
    """deepcopy and pickle, together with the parameters: the copies go on alike and do not touch the original."""
    problem = Problem()
    opt = make(name, problem.params)
    _walk(opt, problem, 0, 3)
    before = _flat(problem.params)
    twins = [copy.deepcopy((problem, opt)), pickle.loads(pickle.dumps((problem, opt)))]
    for twin_problem, twin in twins:
        _walk(twin, twin_problem, 3, 6)
    assert torch.equal(before, _flat(problem.params))
    _walk(opt, problem, 3, 6)
    for twin_problem, _ in twins:
        assert torch.equal(_flat(problem.params), _flat(twin_problem.params))


@pytest.mark.parametrize("name", NAMES)
def test_state_that_was_away_and_came_back_goes_on(name):
    """What offloading does: every tensor of the state has other memory behind it, its step count too."""
    problem, stayed = Problem(), Problem()
    opt, other = make(name, problem.params), make(name, stayed.params)
    _walk(opt, problem, 0, 3)
    for state in opt.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.data = value.data.clone()
    _walk(opt, problem, 3, 6)
    _walk(other, stayed, 0, 6)
    assert torch.equal(_flat(problem.params), _flat(stayed.params))
    mine, theirs = (o.state_dict()["state"] for o in (opt, other))
    assert [s.get("step") for s in mine.values()] == [s.get("step") for s in theirs.values()]


@pytest.mark.parametrize("name", NAMES)
def test_hooks_and_closures(name):
    """Every kind of hook once a step; step(closure) returns the closure's loss; step(loss) and step(closure) agree."""
    first, second = Problem(), Problem()
    a, b = make(name, first.params), make(name, second.params)
    seen = []
    a.register_step_pre_hook(lambda *_: seen.append("before"))
    a.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        a.zero_grad()
        loss = first.loss(0)
        loss.backward()
        return loss

    value = a.step(closure)
    assert seen == ["before", "after"]
    assert torch.is_tensor(value) and torch.isfinite(value)
    step(b, lambda: second.loss(0))
    assert torch.equal(_flat(first.params), _flat(second.params))


def _spoilt_gradient(opt, problem):
    def closure():
        problem.loss(2).backward()
        problem.params[-1].grad = torch.ones(1).to_sparse()
        return problem.loss(2)

    opt.zero_grad()
    return opt.step(closure)


def _spoilt_rate(opt, problem):
    rates = [group["lr"] for group in opt.param_groups]
    opt.param_groups[0]["lr"] = float("nan")
    try:
        step(opt, lambda: problem.loss(2))
    finally:
        for group, rate in zip(opt.param_groups, rates, strict=True):
            group["lr"] = rate


def _spoilt_closure(opt, problem):
    def closure():
        problem.loss(2).backward()
        raise hf_optim.UserError("out of data")

    return opt.step(closure)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_step_leaves_everything_as_it_was(name):
    """Parameters, state and the numbers of groups."""
    problem = Problem()
    opt = make(name, problem.params)
    _walk(opt, problem, 0, 2)
    before, weights = copy.deepcopy(opt.state_dict()), _flat(problem.params)
    for spoilt in (_spoilt_gradient, _spoilt_rate, _spoilt_closure):
        with pytest.raises(hf_optim.UserError):
            spoilt(opt, problem)
        after = opt.state_dict()
        assert after["param_groups"] == before["param_groups"]
        torch.testing.assert_close(after["state"], before["state"], rtol=0, atol=0)
        assert torch.equal(_flat(problem.params), weights)


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_no_step(name):
    problem = Problem()
    opt = make(name, problem.params)
    before = _flat(problem.params)
    assert opt.step() is None
    opt.zero_grad()
    assert torch.equal(before, _flat(problem.params))
    _walk(opt, problem, 0, 2)  # and it goes on
    assert not torch.equal(before, _flat(problem.params))


@pytest.mark.parametrize("name", NAMES)
def test_named_parameters(name):
    """(name, tensor) pairs are tensors with names, which come back in the state dict and put a checkpoint in order."""
    first, second = Problem(), Problem()
    order = [2, 0, 3, 1]
    a = make(name, [(f"w{i}", p) for i, p in enumerate(first.params)])
    b = make(name, [(f"w{i}", second.params[i]) for i in order])
    assert all(set(g["param_names"]) <= {"w0", "w1", "w2", "w3"} for g in a.param_groups)
    _walk(a, first, 0, 3)
    with torch.no_grad():
        for p, q in zip(first.params, second.params, strict=True):
            q.copy_(p)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    _walk(a, first, 3, 6)
    _walk(b, second, 3, 6)
    torch.testing.assert_close(_flat(first.params), _flat(second.params), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_empty_tensors_and_tensors_without_gradients(name):
    """A tensor of no elements, an integer table and a frozen tensor ride along and change nothing."""
    first, second = Problem(), Problem()
    more = [
        nn.Parameter(torch.zeros(0, 3)),
        nn.Parameter(torch.arange(3), requires_grad=False),
        nn.Parameter(torch.ones(2), requires_grad=False),
    ]
    a, b = make(name, [*first.params, *more]), make(name, second.params)
    for t in range(3):
        for opt, problem, empty in ((a, first, more[0]), (b, second, None)):
            extra = 0.0 if empty is None else empty.sum()
            step(opt, lambda problem=problem, extra=extra, t=t: problem.loss(t) + extra)
            extra = None
    torch.testing.assert_close(_flat(first.params), _flat(second.params), rtol=1e-5, atol=1e-7)
    assert torch.equal(more[1], torch.arange(3)) and torch.equal(more[2], torch.ones(2))


#: what no rule can move, alone or trained beside others, and why
UNMOVABLE = {
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "complex64, which cannot be optimised"),
    "float8": (lambda: torch.zeros(2).to(torch.float8_e4m3fn), "float8_e4m3fn, too coarse"),
    "meta": (lambda: torch.zeros(2, device="meta"), "materialise the model first"),
}


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_moved_is_refused(name):
    """When it is to be trained, and where there is nothing else; frozen beside others it rides along."""
    for kind, (make_one, why) in UNMOVABLE.items():
        with pytest.raises(hf_optim.UserError, match=why):
            make(name, [nn.Parameter(torch.zeros(2)), nn.Parameter(make_one())])
        make(name, [nn.Parameter(torch.zeros(2)), nn.Parameter(make_one(), requires_grad=False)])
        if kind != "meta":  # frozen, it may be a layer that is loaded when it is needed
            with pytest.raises(hf_optim.UserError, match=f"there is nothing to optimise: .*{why}"):
                make(name, [make_one()])
    with pytest.raises(hf_optim.UserError, match=r"nothing to optimise: a tensor of shape \(0, 3\) has no elements"):
        make(name, [nn.Parameter(torch.zeros(0, 3))])


@pytest.mark.parametrize("name", [n for n in NAMES if n not in SEARCHES])
def test_groups_of_one_tensor_each_are_one_group(name):
    """How tensors are laid into groups of equal numbers changes nothing."""
    first, second = Problem(), Problem()
    a, b = make(name, first.params), make(name, [{"params": [p]} for p in second.params])
    _walk(a, first, 0, 4)
    _walk(b, second, 0, 4)
    torch.testing.assert_close(_flat(first.params), _flat(second.params), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILY[n] == "plain"])
def test_maximum_of_memory(name):
    """A step keeps what its rule declares: no Python object grows with the number of steps."""
    problem = Problem()
    opt = make(name, problem.params)
    _walk(opt, problem, 0, 3)
    gc.freeze()  # what was there before is not looked through
    tracemalloc.start()
    _walk(opt, problem, 3, 6)
    first = _held()
    _walk(opt, problem, 6, 36)
    grown = _held() - first
    tracemalloc.stop()
    gc.unfreeze()
    assert grown < 24_000, grown


def _held() -> int:
    """Bytes of Python's objects, without what waits to be collected: how often that is done is another's choice."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
