"""A step in a CUDA graph, without one: what it launches is written down and done again, in Triton's interpreter.

`test_triton.py` runs this file in a process of its own.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contract import Problem, make
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from hf_optim.engine import capture, launch_triton
from hf_optim.errors import BadLoss, UserError

SHAPES = ((6, 5), (3,))


class Graph(TorchDispatchMode):
    """Records kernels and operators with their tensors and numbers, as a CUDA graph does; `replay` does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.done.append(lambda: tree_map(_again, out, func(*args, **(kwargs or {}))))
        return out

    def replay(self) -> None:
        for work in self.done:
            work()


def _again(before: Any, now: Any) -> None:
    """Memory keeps its place; what was made without elements was given those of another tensor."""
    if isinstance(now, torch.Tensor) and now.numel() and before.data_ptr() != now.data_ptr():
        before.copy_(now)


class Accelerator:
    """Stands for a CUDA device that can record graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.graph: Graph | None = None
        monkeypatch.setattr(capture, "_possible", lambda device: True)
        monkeypatch.setattr(capture, "capturing", lambda: self.graph is not None)
        self._launch = launch_triton._launch
        monkeypatch.setattr(launch_triton, "_launch", self.launch)

    def launch(self, *work: Any) -> None:
        if self.graph is None:
            self._launch(*work)
        else:
            self.graph.done.append(lambda: self._launch(*work))

    def record(self, opt: Any, loss: torch.Tensor | None = None) -> Graph:
        """Record a step, which is not taken."""
        params = [p for group in opt.param_groups for p in group["params"]]
        before = [(p, p.detach().clone(), float(opt.state[p]["step"]) if opt.state[p] else None) for p in params]
        self.graph = graph = Graph()
        try:
            with graph:
                opt.step() if loss is None else opt.step(loss=loss)
        finally:
            self.graph = None
        for p, x, count in before:
            assert torch.equal(p, x), "a recorded step moved something"
            assert count is None or float(opt.state[p]["step"]) == count, "a recorded step was counted"
        return graph


@pytest.fixture
def accelerator(monkeypatch):
    return Accelerator(monkeypatch)


def gradients(problem: Problem, t: int) -> torch.Tensor:
    """This step's gradients, in the memory of the last one's; the loss."""
    loss = problem.loss(t)
    for p, g in zip(problem.params, torch.autograd.grad(loss, problem.params), strict=True):
        if p.grad is None:
            p.grad = torch.empty_like(g)
        p.grad.copy_(g)
    return loss.detach()


REPLAYED = [
    ("lion", {}),
    ("amvt", {"clip": 0.1}),
    ("adamw_agr", {}),
    ("lamb", {}),
    ("yogi", {"grad_transform": "normalize"}),
    ("smaran", {}),
    ("l4_mom", {}),
    ("decgd", {}),
    ("prodigy", {"use_bias_correction": True}),
    ("hd_adam", {}),
    ("yogi", {"state_dtype": "bf16"}),
]


@pytest.mark.parametrize(("name", "hyper"), REPLAYED)
def test_replays_are_steps(name, hyper, accelerator):
    """With every step's own gradients, loss, rate and corrections; ordinary steps between them are steps, too."""
    runs = []
    for replayed in (False, True):
        problem = Problem(torch.float32, SHAPES)
        opt: Any = make(name, problem.params, **hyper)
        graph, loss = None, torch.zeros(())
        for t in range(5):
            if opt.fixed_lr is False:
                opt.param_groups[0]["lr"] *= 0.8
            loss.copy_(gradients(problem, t))
            more = {"loss": loss} if opt.needs else {}
            if replayed and t in (1, 2, 4):
                graph = graph or accelerator.record(opt, **more)
                opt.before_replay()
                graph.replay()
            else:
                opt.step(**more)
        runs.append((problem, opt))
    for p, q in zip(runs[0][0].params, runs[1][0].params, strict=True):
        assert torch.equal(p, q)
        assert float(runs[1][1].state[q]["step"]) == 5
    assert runs[0][1].figures() == runs[1][1].figures()


def test_a_replay_that_nobody_numbered_does_nothing(accelerator):
    problem = Problem(torch.float32, SHAPES)
    opt: Any = make("smaran", problem.params)
    loss = gradients(problem, 0)
    opt.step(loss=loss)
    before, figures = problem.copy(), opt.figures()
    graph = accelerator.record(opt, loss)
    graph.replay()
    assert all(torch.equal(p, x) for p, x in zip(problem.params, before, strict=True))
    assert opt.figures() == figures


def test_gradients_of_ordinary_steps_do_not_reach_a_graph(accelerator):
    problem = Problem(torch.float32, SHAPES)
    opt: Any = make("sgd_agr", problem.params, lr=1.0, agr_steps=0)
    gradients(problem, 0)
    opt.step()
    graph = accelerator.record(opt)
    own = [p.grad for p in problem.params]
    for p in problem.params:
        p.grad = torch.full_like(p, 100.0)
    before = problem.copy()
    opt.before_replay()
    graph.replay()
    for p, x, g in zip(problem.params, before, own, strict=True):
        torch.testing.assert_close(p, x - g)


def test_a_bad_loss_of_a_replay_is_raised_later(accelerator):
    problem = Problem(torch.float32, SHAPES)
    opt: Any = make("smaran", problem.params)
    loss = gradients(problem, 0)
    opt.step(loss=loss)
    graph = accelerator.record(opt, loss)
    before = problem.copy()
    loss.fill_(math.nan)
    opt.before_replay()
    graph.replay()
    assert all(torch.equal(p, x) for p, x in zip(problem.params, before, strict=True))
    with pytest.raises(BadLoss):
        opt.hear()
    assert all(float(state["step"]) == 1 for state in opt.state.values())


@pytest.mark.parametrize(
    ("name", "hyper", "steps", "why"),
    [
        ("amvt", {}, 0, "take a few steps"),
        ("lion", {"compile": False}, 2, "blocks: compile=False"),
        ("sls", {}, 2, "on the host"),
        ("prodigy", {"slice_p": 2}, 2, "every 2th element"),
        ("adan", {"restart_every": 50}, 2, "begin the state anew"),
        ("yogi", {"grad_transform": "centralize"}, 2, "centralize"),
        ("tlr_adamw", {}, 2, "wrapper"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(name, hyper, steps, why, accelerator):
    problem = Problem(torch.float32, SHAPES)
    opt: Any = make(name, problem.params, **hyper)
    for t in range(steps):
        loss = gradients(problem, t)
        more = {"evaluate": lambda t=t: problem.loss(t)} if "evaluate" in opt.needs else {}
        opt.step(loss=loss, **more) if opt.needs else opt.step()
    loss = gradients(problem, steps)
    with pytest.raises(UserError, match=why):
        accelerator.record(opt, loss if opt.needs else None)


def test_a_replay_of_another_step_than_the_captured_one_is_refused(accelerator):
    def captured(**hyper: Any) -> Any:
        problem = Problem(torch.float32, SHAPES)
        opt: Any = make("adamw_agr", problem.params, **hyper)
        gradients(problem, 0)
        opt.step()
        accelerator.record(opt)
        return opt

    opt = captured(agr_steps=3)
    opt.before_replay(), opt.before_replay()
    with pytest.raises(UserError, match="another transform"):
        opt.before_replay()
    assert all(float(state["step"]) == 3 for state in opt.state.values())
    loaded = captured()
    loaded.before_replay()
    loaded.load_state_dict(loaded.state_dict())
    with pytest.raises(UserError, match="capture one again"):
        loaded.before_replay()
    fresh: Any = make("lion", Problem().params)
    with pytest.raises(UserError, match=r"capture step\(\)"):
        fresh.before_replay()
