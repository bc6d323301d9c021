"""What changes between two steps besides tensors: which group a parameter is in, and whether kernels are wanted."""

from __future__ import annotations

import pytest
import torch

import hf_optim


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "adamw_agr", "schedule_free_adamw"])
@pytest.mark.parametrize("compile", [None, False])
def test_a_parameter_that_goes_into_the_next_group_steps_as_that_one(name, compile):
    """In place, so that the same parameters stand in the same order, in the same groups."""
    params = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(3)]
    groups = [{"params": params[:2], "lr": 0.1}, {"params": params[2:], "lr": 0.0}]
    opt = hf_optim.create(name, groups, lr=0.1, compile=compile)

    def moved():
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.ones(3, 2)
        opt.step()
        return [not torch.equal(p, old) for p, old in zip(params, before, strict=True)]

    assert moved() == [True, True, False]
    one, other = (group["params"] for group in opt.param_groups)
    other.insert(0, one.pop())
    assert moved() == [True, False, False]
    one.append(other.pop(0))
    assert moved() == [True, True, False]


def test_kernels_that_are_not_wanted_any_more_are_not_used():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    opt = hf_optim.create("adamw", [weight])

    def step():
        weight.grad = torch.ones(3, 2)
        opt.step()

    step()
    assert all(table.why is None for table in opt._steps.tables)
    opt.compile = False
    step()
    assert {table.why for table in opt._steps.tables} == {"compile=False"} and "compile=False" in opt.execution
    opt.compile = True
    step()
    assert all(table.why is None for table in opt._steps.tables) and "kernels" in opt.execution
