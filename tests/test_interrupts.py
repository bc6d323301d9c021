"""Ctrl-C at any line of a step: it is taken whole, or not begun."""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import contract
import pytest
import torch

import hf_optim


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """Python's, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Lines:
    """Counts the lines of ours that run within the block, and sends SIGINT at one of them."""

    def __init__(self, at: int = -1) -> None:
        self.at, self.count = at, 0

    def __enter__(self) -> Lines:
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _called(self, frame: FrameType, *_: object) -> Any:
        return self._line if "hf_optim" in frame.f_globals.get("__name__", "") else None

    def _line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self.at:
                signal.raise_signal(signal.SIGINT)
        return self._line


def stepped(name: str, lines: Lines) -> tuple[Any, Any, bool]:
    """What two steps have made, what a third one within `lines` makes of it, and whether it was interrupted."""
    problem, optimizer = contract.run(name, 2)
    how: dict[str, Any] = {}

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = problem.loss(2)
        loss.backward()
        return loss

    if "evaluate" in hf_optim.info(name).needs:
        how["closure"] = closure
    else:
        how["loss"] = closure()
    before, interrupted = numbers(problem, optimizer), False
    try:
        with lines:
            optimizer.step(**how)
    except KeyboardInterrupt:
        interrupted = True
    return before, numbers(problem, optimizer), interrupted


def numbers(problem: contract.Problem, optimizer: torch.optim.Optimizer) -> Any:
    return copy.deepcopy((problem.copy(), optimizer.state_dict()))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", contract.NAMES)
def test_an_interrupted_step_is_taken_or_not_begun(name: str) -> None:
    """Nearly all of a step is a kernel, after which Python raises what came meanwhile: its count was lacking."""
    stepped(name, Lines())  # what is kept for later steps takes lines, too
    before, after, _ = stepped(name, whole := Lines())
    assert not same(before, after)
    for part in (0.3, 0.5, 0.7, 0.8, 0.9, 0.97):
        at = int(whole.count * part)
        _, there, interrupted = stepped(name, Lines(at))
        assert interrupted and (same(there, before) or same(there, after)), f"line {at} of {whole.count}"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_that_is_another_s_stays_theirs() -> None:
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    stepped("adamw", Lines(100))
    assert heard == [1]


@pytest.mark.parametrize("name", ["sls", "tlr", "lookahead", "adamw"])
def test_a_model_that_does_not_end_is_interrupted(name: str) -> None:
    """Within the step, too: a closure, and the trial steps of a line search."""
    problem, optimizer = contract.run(name, 2)
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        if calls == (2 if name == "sls" else 1):
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")
        loss = problem.loss(2)
        loss.backward()
        return loss

    before = numbers(problem, optimizer)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert same(before, numbers(problem, optimizer))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
