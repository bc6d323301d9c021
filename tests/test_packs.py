"""Small tensors updated as one: nothing of it shows from outside."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from contract import OURS, Problem, make

import hf_optim
from hf_optim.engine import blocks as execute
from hf_optim.errors import UserError

SHAPES = ((6, 5), (6,), (3, 4), (3,), (1,))
NAMES = [n for n in OURS if "evaluate" not in hf_optim.info(n).needs]


def walk(
    problem: Problem,
    opt: torch.optim.Optimizer,
    steps: range,
    without: int | None = None,
    change: Callable[[torch.optim.Optimizer, torch.Tensor], None] | None = None,
) -> None:
    """Steps of a run; `without` leaves out the gradient of one parameter, `change` does something before each step."""
    for t in steps:
        loss = problem.loss(t)
        opt.zero_grad()
        loss.backward()
        if without is not None:
            problem.params[without].grad = None
        if change is not None:
            change(opt, problem.params[0])
        opt.step(loss=loss)  # type: ignore[call-arg]


def together(opt: torch.optim.Optimizer) -> int:
    """How many of the states lie in memory that another one uses, too."""
    places: dict[int, int] = {}
    for state in opt.state.values():
        for value in {v.untyped_storage().data_ptr() for v in state.values() if isinstance(v, torch.Tensor)}:
            places[value] = places.get(value, 0) + 1
    return max(places.values(), default=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_parameter_without_gradient_stays_and_the_others_do_not_notice(name, monkeypatch):
    """Packs form, break and form again; every parameter's own count goes on."""
    runs = []
    for small in (1 << 14, 0):
        monkeypatch.setattr(execute, "SMALL", small)
        problem = Problem(torch.float64, SHAPES)
        opt = make(name, problem.params)
        walk(problem, opt, range(3))
        before = problem.params[0].detach().clone()
        walk(problem, opt, range(3, 5), without=0)
        assert torch.equal(before, problem.params[0].detach())
        walk(problem, opt, range(5, 8))
        runs.append((problem, opt))
    (packed, ours), (alone, others) = runs
    for a, b in zip(packed.params, alone.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert float(ours.state[a].get("step", 0)) == float(others.state[b].get("step", 0))


@pytest.mark.parametrize("name", ["adamw_agr", "amvt", "prodigy", "lamb"])
def test_tensors_without_elements_are_in_nobodys_way(name):
    params = [torch.nn.Parameter(torch.ones(s)) for s in ((3, 4), (0, 4), (3, 4), (0, 4), (0,), (2,), ())]
    opt = make(name, params)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    assert all(p.isfinite().all() and (p < 1).all() for p in params)


def test_states_of_small_tensors_lie_side_by_side_and_no_others():
    problem = Problem(torch.float32, (*SHAPES, (300, 200)))
    opt = make("amvt", problem.params)
    walk(problem, opt, range(2))
    assert together(opt) == len(SHAPES)
    large = opt.state[problem.params[-1]]
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in large.values())


@pytest.mark.parametrize("how", ["deepcopy", "state dict", "saved"])
def test_a_copy_goes_its_own_way(how, tmp_path):
    problem = Problem(torch.float32, SHAPES)
    opt = make("amvt", problem.params)
    walk(problem, opt, range(3))
    other = copy.deepcopy(problem)
    if how == "deepcopy":
        both = copy.deepcopy((problem, opt))
        other, second = both
    else:
        state = opt.state_dict()
        if how == "saved":
            torch.save(state, tmp_path / "opt.pt")
            state = torch.load(tmp_path / "opt.pt", weights_only=True)
        second = make("amvt", other.params)
        second.load_state_dict(state)
    walk(problem, opt, range(3, 6))
    walk(other, second, range(3, 6))
    for a, b in zip(problem.params, other.params, strict=True):
        assert torch.equal(a, b)
        assert float(opt.state[a]["step"]) == float(second.state[b]["step"]) == 6


@pytest.mark.parametrize("shapes", [SHAPES, ((40, 30), (200, 300))])
def test_state_that_was_moved_away_and_back_is_found_again(shapes):
    """Frameworks offload a state by giving the tensor other memory; views of the old one would be updated in vain."""
    runs = []
    for moved in (False, True):
        problem = Problem(torch.float32, shapes)
        opt = make("amvt", problem.params)
        walk(problem, opt, range(3))
        if moved:
            for state in opt.state.values():
                for value in state.values():
                    value.data = value.data.clone()
        walk(problem, opt, range(3, 6))
        runs.append(problem)
    for a, b in zip(runs[0].params, runs[1].params, strict=True):
        assert torch.equal(a, b)


def test_parameters_may_move_to_other_memory():
    problem = Problem(torch.float32, SHAPES)
    opt = make("amvt", problem.params)
    walk(problem, opt, range(2))
    for p in problem.params:
        p.data = p.data.clone()
    before = [p.detach().clone() for p in problem.params]
    walk(problem, opt, range(2, 3))
    assert not any(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))


def test_packs_of_the_past_are_not_kept():
    problem = Problem(torch.float32, SHAPES)
    opt = make("amvt", problem.params)
    arenas = []
    for t in range(6):
        for p in problem.params:
            p.data = p.data.clone()  # every step finds the parameters elsewhere
        walk(problem, opt, range(t, t + 1))
        arenas.append(weakref.ref(opt._units._all[0]))
    gc.collect()
    assert [a() is not None for a in arenas] == [False] * 5 + [True]


def replaced(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    opt.state[first] = {k: v.clone() for k, v in opt.state[first].items()}


def replaced_entry(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    opt.state[first]["m"] = torch.zeros_like(first)


def without_state(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    del opt.state[first]


def counted(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    opt.state[first]["step"].add_(5)


def out_of_agr(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    opt.param_groups[0]["agr"] = False


def transposed_gradient(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    assert first.grad is not None
    first.grad = first.grad.t().contiguous().t()


def another_group(opt: torch.optim.Optimizer, first: torch.Tensor) -> None:
    opt.param_groups[0]["params"].remove(first)
    opt.add_param_group({"params": [first], "lr": 0.3})


CHANGES = [replaced, replaced_entry, without_state, counted, out_of_agr, transposed_gradient, another_group]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_two_steps_is_noticed(change, monkeypatch):
    """A pack that serves again must not hold on to what it saw before."""
    runs = []
    for small in (1 << 14, 0):
        monkeypatch.setattr(execute, "SMALL", small)
        problem = Problem(torch.float64, SHAPES)
        opt = make("adamw_agr", problem.params)
        walk(problem, opt, range(3))
        walk(problem, opt, range(3, 4), change=change)
        walk(problem, opt, range(4, 6))
        runs.append((problem, opt))
    (packed, ours), (alone, others) = runs
    for a, b in zip(packed.params, alone.params, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert {k: v.sum().item() for k, v in ours.state[a].items()} == pytest.approx(
            {k: v.sum().item() for k, v in others.state[b].items()}, abs=1e-12
        )


def test_a_sparse_gradient_is_refused_when_it_comes_late():
    embedding = torch.nn.Parameter(torch.ones(6, 5))
    opt = make("amvt", [embedding, torch.nn.Parameter(torch.ones(6, 5))])
    for grad in (torch.ones(6, 5), torch.ones(6, 5), torch.ones(6, 5).to_sparse()):
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones(6, 5)
        embedding.grad = grad
        if grad.is_sparse:
            with pytest.raises(UserError, match="sparse"):
                opt.step()
        else:
            opt.step()


def test_gradients_of_another_precision_lose_nothing(monkeypatch):
    def run(small: int) -> list[torch.Tensor]:
        monkeypatch.setattr(execute, "SMALL", small)
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(4, 3).bfloat16()) for _ in range(3)]
        opt = make("amvt", params)
        for _ in range(4):
            for i, p in enumerate(params):
                p.grad_dtype = None  # any
                p.grad = torch.randn(4, 3, dtype=torch.float32 if i else torch.bfloat16)
            opt.step()
        return [opt.state[p]["m"].clone() for p in params]

    together, apart = run(1 << 14), run(0)
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b)
