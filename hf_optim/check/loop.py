"""Checks of what training loops do: closures, accumulation, groups, schedules, parameters that come and go."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import DoesNotApply, Fails, check
from hf_optim.check.problem import moved, same
from hf_optim.check.rounding import alike
from hf_optim.errors import one_line


@check(
    "closure",
    "step() and step(closure) agree",
    "A loop that steps with a closure, as Lightning's does, crashes or trains another way than one that does not; a "
    "rule that reads the loss may train with a wrong one.",
)
def closure(s: Candidate) -> str:
    if s.style == "primed":
        raise Fails("step(closure) takes the gradients that were there before it called the closure")
    if s.style == "value":
        raise Fails("a closure that runs a backward pass, as torch's do, is called with gradients switched off")
    walk = TrainingRun(s)
    walk.style = "closure"
    value = walk.step(0)
    if value is None:
        raise Fails("step(closure) does not return the closure's loss")
    walk.go(1, 6 + s.idle)
    if s.style == "bare":
        same(walk.params(), TrainingRun(s).go(0, 6 + s.idle).params(), "step() against step(closure)")
        return "the same"
    two = TrainingRun(s)
    two.closure(0)()
    before = two.params()
    try:
        two.opt.step()
    except Exception as error:  # noqa: BLE001
        if moved(before, two.params()):
            raise Fails(f"a bare step() raises after it moved parameters: {one_line(error)}") from None
    else:
        raise Fails("a bare step() without the loss it needs is not noticed")
    if s.style == "loss":
        same(walk.params(), TrainingRun(s).go(0, 6).params(), "step(loss=...) against step(closure)")
    return "a bare step() raises"


@check(
    "accumulation",
    "accumulated gradients equal a big batch",
    "The batch size that fits the memory changes the algorithm.",
)
def accumulation(s: Candidate) -> str:
    big, parts = TrainingRun(s, s.wide).go(), TrainingRun(s, s.wide).go(parts=2)
    return alike(big, parts, 1e-6, f"2 micro-batches against one batch, {s.precision}")


# --- parameter groups ------------------------------------------------------------------------------------------------


def _halves(params: list[Any]) -> list[list[Any]]:
    return [params[:1], params[1:]]


@check(
    "groups",
    "groups keep their own numbers",
    "Layer-wise rates and weights without decay cannot be given, are ignored, or act on other layers too.",
)
def groups(s: Candidate) -> str:
    for still in (0, 1):

        def split(params: list[Any]) -> list[dict[str, Any]]:
            return [{"params": part} for part in _halves(params)]

        walk = TrainingRun(s, groups=split)
        if "lr" not in walk.opt.param_groups[still]:
            raise Fails("its parameter groups have no 'lr'")
        half = _halves(walk.problem.params)[still]
        for group in walk.opt.param_groups:  # a rule with routes divides a group: its numbers are its parts'
            if any(p is q for p in group["params"] for q in half):
                group["lr"] = 0.0
        walk.go(0, 5 + s.idle)
        parts = list(zip(_halves(walk.start), _halves(walk.params()), strict=True))
        if moved(*parts[still]):
            raise Fails(f"group {still} has lr = 0 and moves")
        if not moved(*parts[1 - still]):
            raise Fails(f"group {1 - still} does not move because group {still} has lr = 0")
    return "lr" + _decay(s)


def _decay(s: Candidate) -> str:
    if "weight_decay" not in TrainingRun(s).opt.param_groups[0]:
        return ""
    runs = []
    for value in (0.0, 0.5):

        def split(params: list[Any], value: float = value) -> list[dict[str, Any]]:
            first, second = _halves(params)
            return [{"params": first, "weight_decay": 0.0}, {"params": second, "weight_decay": value}]

        runs.append(_halves(TrainingRun(s, s.wide, groups=split).go(0, 3 + s.idle).params()))
    if not moved(runs[0][1], runs[1][1]):
        raise Fails("a group's own weight_decay is ignored")
    return ", weight_decay"


@check("late_group", "a group that joins later", "Unfreezing layers during training has no effect, or crashes.")
def late_group(s: Candidate) -> None:
    walk = TrainingRun(s, groups=lambda params: params[:1])
    walk.go(0, 3 + s.idle)
    middle = walk.params()
    if moved(walk.start[1:], middle[1:]):
        raise Fails("parameters move that the optimizer was not given")
    walk.opt.add_param_group({"params": walk.problem.params[1:]})
    walk.go(3, 6 + s.idle)
    if not moved(middle[1:], walk.params()[1:]):
        raise Fails("parameters of a group added later do not move")
    if not moved(middle[:1], walk.params()[:1]):
        raise Fails("the first group stops when another joins")


@check(
    "missing",
    "parameters without gradients, and frozen ones",
    "Layers that a batch does not use, or that are frozen, are changed; or the step crashes.",
)
def missing(s: Candidate) -> None:
    walk = TrainingRun(s)
    frozen, unused = walk.problem.params[0], walk.problem.params[1]
    frozen.requires_grad_(False)

    def leave(params: list[Any]) -> None:
        unused.grad = None

    walk.go(0, 3, spoil=leave)
    now = walk.params()
    if moved(walk.start[:2], now[:2]):
        raise Fails("a parameter without a gradient moves")
    walk.go(3, 6 + s.idle)
    if moved(walk.start[:1], walk.params()[:1]):
        raise Fails("a frozen parameter moves")
    if not moved(now[1:2], walk.params()[1:2]):
        raise Fails("a parameter whose gradients come later does not move")
    walk.go(6, 7, spoil=leave)
    before = walk.params()
    walk.go(7, 9, spoil=leave)
    if moved(before[1:2], walk.params()[1:2]):
        raise Fails("a parameter whose gradients went away goes on moving")


# --- schedules -------------------------------------------------------------------------------------------------------


def _scheduled(s: Candidate, name: str, make: Callable[[Any], Any], steps: int) -> None:
    """A run under a scheduler against one whose rates are written by hand, those the scheduler gives to plain SGD."""
    walk = TrainingRun(s)
    bases = [float(group.get("lr", 0.0)) for group in walk.opt.param_groups]
    if not all(bases):
        raise Fails("its parameter groups have no 'lr' for a scheduler to write")
    by_hand = TrainingRun(s, problem=copy.deepcopy(walk.problem))
    dummy = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base} for base in bases])
    ours, plain = make(walk.opt), make(dummy)
    for t in range(steps):
        rates = [group["lr"] for group in dummy.param_groups]
        for i, (group, wanted, base) in enumerate(zip(walk.opt.param_groups, rates, bases, strict=True)):
            if abs(float(group["lr"]) - wanted) > 1e-9 * base:
                raise Fails(
                    f"{name}: group {i} has lr = {float(group['lr']):.6g} in step {t} instead of {wanted:.6g}: "
                    "the optimizer writes the scheduler's number"
                )
        for group, wanted in zip(by_hand.opt.param_groups, rates, strict=True):
            group["lr"] = wanted
        before = walk.params()
        walk.step(t)
        by_hand.step(t)
        if not any(rates) and moved(before, walk.params()):
            raise Fails(f"{name}: a rate of zero moves parameters")
        dummy.step()
        ours.step()
        plain.step()
    same(walk.params(), by_hand.params(), f"{name} against the same rates written by hand")
    if not moved(before, walk.params()):
        raise Fails(f"{name}: nothing moves although the rate is {rates[0]:.3g}")


@check(
    "schedulers",
    "torch's learning rate schedulers",
    "No schedule can be given, or the one that is logged is not the one that is trained with.",
)
def schedulers(s: Candidate) -> str:
    from torch.optim import lr_scheduler as lr

    schedulers: dict[str, Callable[[Any], Any]] = {
        "StepLR": lambda opt: lr.StepLR(opt, 2, 0.5),
        "ExponentialLR": lambda opt: lr.ExponentialLR(opt, 0.8),
        "CosineAnnealingLR": lambda opt: lr.CosineAnnealingLR(opt, 8 + 2 * s.idle),
    }
    for name, make in schedulers.items():
        _scheduled(s, name, make, 5 + s.idle)
    return ", ".join(schedulers)


@check(
    "hf_schedulers",
    "transformers' schedulers, with warm-up from zero",
    "No schedule can be given, or a warm-up from 0 moves weights at rate 0 or leaves the rate at 0 for good.",
)
def hf_schedulers(s: Candidate) -> str:
    if find_spec("transformers") is None:
        raise DoesNotApply("transformers is not installed")
    from transformers.optimization import get_scheduler

    names = ("linear", "cosine", "inverse_sqrt")
    for name in names:

        def make(opt: Any, name: str = name) -> Any:
            return get_scheduler(name, opt, num_warmup_steps=2, num_training_steps=8 + 2 * s.idle)

        _scheduled(s, name, make, 6 + s.idle)
    return ", ".join(names)
