"""Checks of what is remembered: saving, resuming, copying, precision and size."""

from __future__ import annotations

import copy
import io
import pickle
import re
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import DoesNotApply, Fails, check
from hf_optim.check.problem import CUT, STEPS, Problem, healthy, moved, same


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict saved with torch.save and read back with weights_only=True."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)|Unsupported (\S+ \S+)", str(error))
        refused = (named.group(1) or named.group(2)).rstrip(".") if named else "what it holds"
        raise Fails(f"torch.load(weights_only=True) refuses its state dict: {refused} is not allowed there") from None


def copied(problem: Problem) -> Problem:
    """The problem with the same numbers in new parameters."""
    twin = Problem(problem.kind, problem.weights[0].dtype)
    twin.load_state_dict(problem.state_dict())
    return twin


@check(
    "resume",
    "save and resume, bit for bit",
    "A run that was interrupted cannot go on, or becomes another run: moments, counts or rates are lost.",
)
def resume(s: Candidate) -> None:
    whole, half = TrainingRun(s).go(0, CUT), TrainingRun(s).go(0, CUT)
    for walk in (whole, half):
        walk.rate(0.5)
        walk.step(CUT)
    again = TrainingRun(s, problem=copied(half.problem))
    again.opt.load_state_dict(through_disk(half.opt.state_dict()))
    _turned_on(again)
    whole.go(CUT + 1, CUT + 2)
    again.go(CUT + 1, CUT + 2)
    same(whole.params(), again.params(), "one step after resuming")
    whole.go(CUT + 2)
    again.go(CUT + 2)
    same(whole.params(), again.params(), f"{STEPS - CUT - 1} steps after resuming")
    _late(s)


def _late(s: Candidate) -> None:
    """A parameter without a gradient until after the resume: what was kept for it before must not be missed."""

    def leave(params: list[Any]) -> None:
        params[1].grad = None

    whole, half = (TrainingRun(s).go(0, CUT, spoil=leave) for _ in range(2))
    again = TrainingRun(s, problem=copied(half.problem))
    again.opt.load_state_dict(through_disk(half.opt.state_dict()))
    _turned_on(again)
    for walk in (whole, again):
        walk.go(CUT, STEPS)
    same(whole.params(), again.params(), "a parameter whose first gradient comes after resuming")


def _turned_on(walk: TrainingRun) -> None:
    train = getattr(walk.opt, "train", None)
    if callable(train):
        train()


@check(
    "accelerate", "save and resume through Accelerate", "accelerator.prepare, save_state or load_state changes the run."
)
def accelerate(s: Candidate) -> None:
    if find_spec("accelerate") is None:
        raise DoesNotApply("accelerate is not installed")
    if s.kind == "sparse":
        raise DoesNotApply("tried with dense gradients only")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    fresh = not AcceleratorState._shared_state
    if not fresh and AcceleratorState().device.type != "cpu":
        raise DoesNotApply(f"tried on the CPU, and this process has an Accelerator on {AcceleratorState().device.type}")
    plain = TrainingRun(s).go(0, 4)
    plain.rate(0.5)
    plain.go(4)
    try:
        with tempfile.TemporaryDirectory() as folder:
            first, door = _prepared(s, Accelerator(cpu=True))
            first.go(0, 4)
            first.rate(0.5)
            first.go(4, CUT)
            door.save_state(folder)
            first.go(CUT)
            same(plain.params(), first.params(), "prepared by Accelerate, against a plain loop")
            second, door = _prepared(s, Accelerator(cpu=True))
            door.load_state(folder)
            second.go(CUT)
        same(plain.params(), second.params(), "after load_state")
    finally:
        if fresh:
            AcceleratorState._reset_state(True)


def _prepared(s: Candidate, accelerator: Any) -> tuple[TrainingRun, Any]:
    """A walk whose model and optimizer went through `accelerator.prepare`; the loss is fed as the doors do."""
    walk = TrainingRun(s)
    inner = walk.opt
    walk.model, walk.opt = accelerator.prepare(walk.model, inner)
    walk.backward = accelerator.backward
    if s.style == "loss":
        walk.style = "bare"
        walk.mean = lambda loss: (inner.feed(loss=loss), loss)[1]
    return walk, accelerator


def _twins(s: Candidate, how: Callable[[Any], Any]) -> None:
    walk = TrainingRun(s).go(0, CUT)
    problem, opt = how((walk.problem, walk.opt))
    twin = TrainingRun(s, problem=problem, opt=opt)
    walk.go(CUT)
    twin.go(CUT)
    same(walk.params(), twin.params(), "the copy, trained on as the original")
    if not moved(twin.start, twin.params()):
        raise Fails("the copy moves nothing")


@check(
    "deepcopy",
    "copy.deepcopy goes on alike",
    "A copy (of a trainer, for a second run, in a search) cannot step, or is not the same optimizer.",
)
def deepcopy(s: Candidate) -> None:
    _twins(s, copy.deepcopy)


@check(
    "pickle",
    "pickle goes on alike",
    "Workers and launchers that send the optimizer along get one that cannot step, or another one.",
)
def pickled(s: Candidate) -> None:
    _twins(s, lambda pair: pickle.loads(pickle.dumps(pair)))


def _slots(s: Candidate, walk: TrainingRun) -> list[tuple[torch.nn.Parameter, str, torch.Tensor]]:
    """State tensors of more than one number; of a wrapper its own ones, the base's being the base's."""
    own = getattr(walk.opt, "tensors", None) if s.family == "wrapper" else None
    return [
        (p, k, v)
        for p in walk.problem.params
        for k, v in walk.opt.state.get(p, {}).items()
        if isinstance(v, torch.Tensor) and (v.dim() > 0 or p.dim() == 0) and (own is None or k in own)
    ]


@check(
    "bf16",
    "bf16 parameters, fp32 state",
    promised=False,
    breaking="bf16 weights do not move, or an average with a decay of 0.999 that is kept in bf16 silently stops.",
)
def bf16(s: Candidate) -> str:
    if s.kind == "sparse":
        raise DoesNotApply("takes sparse gradients only, which have no bf16 path")
    walk = TrainingRun(s, torch.bfloat16)
    seen = [walk.start]
    for t in range(4 + s.idle):
        walk.step(t)
        seen.append(walk.params())
    if not healthy(walk.params()):
        raise Fails("bf16 parameters become NaN or infinite")
    if not moved(walk.start, walk.params()):
        raise Fails("bf16 parameters do not move: its first steps are smaller than bf16 can express")
    if any(p.dtype is not torch.bfloat16 for p in walk.problem.params):
        raise Fails("the parameters do not stay in bf16")
    again = TrainingRun(s, problem=copied(walk.problem))
    again.opt.load_state_dict(copy.deepcopy(walk.opt.state_dict()))
    low: dict[str, str] = {}
    dtypes = set()
    for when, run in (("", walk), (" after a load", again)):
        index = {p: i for i, p in enumerate(run.problem.params)}
        for p, k, v in _slots(s, run):
            copies = [row[index[p]] for row in seen]  # an exact copy of bf16 weights loses nothing
            if v.is_floating_point() and not any(torch.equal(v, c) for c in copies if v.dtype is c.dtype):
                dtypes.add(k)
                if v.dtype in (torch.bfloat16, torch.float16):
                    low.setdefault(k, when)
    if low:
        raise Fails(f"keeps {', '.join(k + low[k] for k in sorted(low))} in bfloat16")
    return f"{', '.join(sorted(dtypes))} in fp32" if dtypes else "no state of this kind"


@check(
    "scaler",
    "a step that GradScaler skips",
    "With fp16, one overflow (common in the first steps) changes weights or state.",
)
def scaler(s: Candidate) -> None:
    if s.style not in ("bare", "loss"):
        raise DoesNotApply("it wants a closure, and torch's GradScaler takes none: use bf16")
    runs = []
    for skip in (False, True):
        walk = TrainingRun(s)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6)
        walk.backward = lambda loss, scaler=scaler: scaler.scale(loss).backward()  # type: ignore[misc]
        for t in range(5):
            if t == 2:
                if not skip:
                    continue
                before = walk.params()
                _scaled(walk, scaler, t, spoil=_overflow)
                if moved(before, walk.params()):
                    raise Fails("a skipped step moves parameters")
                continue
            _scaled(walk, scaler, t)
        runs.append(walk)
    same(runs[0].params(), runs[1].params(), "after a skipped step, against a run without that batch")


def _overflow(params: list[torch.nn.Parameter]) -> None:
    grad = params[0].grad
    assert grad is not None
    (grad._values() if grad.is_sparse else grad).view(-1)[0] = float("inf")


def _scaled(walk: TrainingRun, scaler: Any, t: int, **how: Any) -> None:
    torch.default_generator.manual_seed(t)
    loss = walk.closure(t, **how)()
    if walk.style == "loss":
        walk.opt.feed(loss=loss)
    scaler.step(walk.opt)
    scaler.update()
    if walk.style == "loss":
        walk.opt.feed()


@check(
    "state_bytes",
    "state as large as declared",
    "Memory is planned with a wrong number, and a run that should fit does not.",
)
def state_bytes(s: Candidate) -> str:
    walk = TrainingRun(s).go(0, 3)
    whole = hasattr(s.cls, "sides")  # what a matrix keeps of its sides depends on its shape
    kept = [v for p, _, v in _slots(s, walk) if v.numel() > 1 and (v.shape == p.shape or not whole)]
    size = sum(v.numel() * v.element_size() for v in kept)
    per = size / sum(p.numel() for p in walk.problem.params if p.numel() > 1)
    if s.state_bytes is None:
        raise DoesNotApply(f"declares nothing; measured {per:.3g} bytes a parameter")
    if per > s.state_bytes:
        raise Fails(f"declares {s.state_bytes} bytes a parameter and keeps {per:.3g}")
    if per < s.state_bytes - 4:  # an option may add one slot to the declared configuration
        raise Fails(f"declares {s.state_bytes} bytes a parameter and keeps only {per:.3g}")
    return f"{per:.3g} bytes a parameter"
