"""A step in a CUDA graph, without one: every operator of a captured step is written down and done again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract import Problem, make
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hf_optim.engine import blocks as execute
from hf_optim.errors import UserError

SHAPES = ((6, 5), (5,), (3, 4, 2))


class Graph(TorchDispatchMode):
    """Records operators with their tensors and numbers, as a CUDA graph does; `replay` does them again in place."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.done.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, before in self.done:
            tree_map(_again, before, func(*args, **kwargs))


def _again(before: Any, now: Any) -> None:
    """Memory keeps its place; what was made without elements was given those of another tensor."""
    if isinstance(now, torch.Tensor) and now.numel() and before.data_ptr() != now.data_ptr():
        before.copy_(now)


@pytest.fixture
def accelerator(monkeypatch):
    """The shell's way of running on a GPU, its graphs run operator by operator; `switch(True)` begins a capture."""
    monkeypatch.setattr(execute, "BLOCKED", frozenset())
    monkeypatch.setattr(execute, "_compile", lambda kernel, dynamic: kernel)
    execute.compiled_list.cache_clear()

    def switch(on: bool) -> None:
        monkeypatch.setattr(execute, "capturing", lambda: on)

    yield switch
    execute.compiled_list.cache_clear()


def gradients(problem: Problem, t: int) -> None:
    """This step's gradients, in the memory of the last one's."""
    found = torch.autograd.grad(problem.loss(t), problem.params)
    for p, g in zip(problem.params, found, strict=True):
        if p.grad is None:
            p.grad = torch.empty_like(g)
        p.grad.copy_(g)


def capture(opt: Any, params: list[torch.nn.Parameter], switch: Any) -> Graph:
    """Record a step, which then has not been taken."""
    before = [p.detach().clone() for p in params]
    states = [{k: v.clone() for k, v in opt.state[p].items()} for p in params]
    switch(True)
    with Graph() as graph:
        opt.step()
    switch(False)
    with torch.no_grad():
        for p, x, state in zip(params, before, states, strict=True):
            assert float(opt.state[p]["step"]) == float(state["step"])  # recorded, not counted
            p.copy_(x)
            for k, v in state.items():
                opt.state[p][k].copy_(v)
    return graph


REPLAYED = [
    ("lion", {}),
    ("amvt", {}),
    ("amvt", {"clip": 0.1}),
    ("adamw_agr", {}),
    ("adan", {"max_grad_norm": 0.1}),
    ("lamb", {}),
    ("yogi", {}),
    ("sgd_agr", {"momentum": 0.9}),
]


@pytest.mark.parametrize(("name", "hyper"), REPLAYED)
def test_replays_are_steps(name, hyper, accelerator):
    """With every step's own gradients, rate and corrections."""
    runs = []
    for replayed in (False, True):
        problem = Problem(torch.float64, SHAPES)
        opt: Any = make(name, problem.params, compile=replayed, **hyper)
        graph = None
        for t in range(8):
            opt.param_groups[0]["lr"] *= 0.8
            gradients(problem, t)
            if replayed and t >= 3:
                graph = graph or capture(opt, problem.params, accelerator)
                opt.before_replay()
                graph.replay()
            else:
                opt.step()
        runs.append((problem, opt))
    for p, q in zip(runs[0][0].params, runs[1][0].params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
        assert float(runs[1][1].state[q]["step"]) == 8
    start = Problem(torch.float64, SHAPES)
    assert not any(torch.equal(p, x) for p, x in zip(runs[0][0].params, start.params, strict=True))


@pytest.mark.parametrize(
    ("name", "hyper", "steps", "why"),
    [
        ("lion", {}, 3, "compile=True"),
        ("amvt", {"compile": True}, 0, "take a few steps"),
        ("amvt", {"compile": True, "state_dtype": "bf16"}, 3, "state_dtype"),
        ("prodigy", {"compile": True}, 3, "on the host"),
        ("smaran", {"compile": True}, 3, "on the host"),
        ("adan", {"compile": True, "restart_every": 50}, 3, "restart_every"),
        ("tlr_adamw", {}, 3, "wrapper"),
    ],
)
def test_what_a_graph_would_repeat_wrongly_is_refused(name, hyper, steps, why, accelerator):
    problem = Problem(torch.float32, SHAPES)
    opt: Any = make(name, problem.params, **hyper)
    for t in range(steps):
        gradients(problem, t)
        opt.step(loss=1.0) if opt.needs else opt.step()
    gradients(problem, steps)
    before = problem.copy()
    accelerator(True)
    with pytest.raises(UserError, match=why):
        opt.step(loss=1.0) if opt.needs else opt.step()
    assert all(torch.equal(p, x) for p, x in zip(problem.params, before, strict=True))


def test_tensors_that_run_on_the_cpu_are_not_captured(accelerator, monkeypatch):
    monkeypatch.setattr(execute, "BLOCKED", frozenset({"cpu"}))
    problem = Problem(torch.float32, SHAPES)
    opt = make("lion", problem.params, compile=True)
    gradients(problem, 0)
    opt.step()
    accelerator(True)
    with pytest.raises(UserError, match="on the device only"):
        opt.step()


def test_a_replay_of_another_step_than_the_captured_one_is_refused(accelerator):
    def captured(**hyper: Any) -> Any:
        problem = Problem(torch.float64, SHAPES)
        opt: Any = make("adamw_agr", problem.params, compile=True, **hyper)
        for t in range(3):
            gradients(problem, t)
            opt.step()
        capture(opt, problem.params, accelerator)
        return opt

    opt = captured(agr_steps=5)
    opt.before_replay(), opt.before_replay()
    with pytest.raises(UserError, match="transform of step 6"):
        opt.before_replay()
    assert all(float(state["step"]) == 5 for state in opt.state.values())
    loaded = captured()
    loaded.before_replay()
    loaded.load_state_dict(loaded.state_dict())
    with pytest.raises(UserError, match="capture a step again"):
        loaded.before_replay()
    fresh: Any = make("lion", Problem().params, compile=True)
    with pytest.raises(UserError, match="capture step"):
        fresh.before_replay()
