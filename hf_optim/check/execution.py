"""Checks of the ways to run one rule: block by block, foreach, fused, compiled; and of what a step waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_optim.bases.optimizer import Optimizer
from hf_optim.check.candidate import Candidate, TrainingRun
from hf_optim.check.outcome import DoesNotApply, Fails, check
from hf_optim.check.rounding import alike
from hf_optim.core.rule import Rule
from hf_optim.core.wording import counted
from hf_optim.engine.fallback import limits
from hf_optim.engine.kernels import build


def _innermost(opt: Any) -> Any:
    while hasattr(opt, "base"):
        opt = opt.base
    return opt


@check(
    "execution",
    "every way of execution equals one tensor at a time",
    "The fast way of running a rule is another rule than the plain one.",
)
def execution(s: Candidate) -> str:
    plain = TrainingRun(s, s.wide)
    runs: dict[str, TrainingRun] = {}
    if isinstance(_innermost(plain.opt), Optimizer):
        with limits(kernels=False):
            plain.go()
        ways: dict[str, dict[str, Any]] = {
            "kernels": {},
            "blocks of 7": {"kernels": False, "block": 7},
            "lists": {"kernels": False, "blocked": frozenset()},
        }
        for name, way in ways.items():
            with limits(**way):
                runs[name] = TrainingRun(s, s.wide).go()
    else:
        options = [o for o in ("foreach", "fused") if s.accepts(o)]
        if not options:
            raise DoesNotApply("has one way of running")
        if s.kind == "sparse":
            raise DoesNotApply("sparse gradients run one way")
        off: dict[str, Any] = dict.fromkeys(options, False)
        plain = TrainingRun(s, s.wide, **off).go()
        for name in options:
            runs[name] = TrainingRun(s, s.wide, **{**off, name: True}).go()
    for name, walk in runs.items():
        alike(plain, walk, 1e-7, f"{name} against one tensor at a time, {s.precision}")
    return ", ".join(runs)


@check(
    "compile",
    "kernels for all tensors, equal to the rule, built once",
    slow=True,
    breaking="The rule is slower than it says, compile=True changes the result, or a schedule makes steps slow.",
)
def compiled(s: Candidate) -> str:
    if not s.accepts("compile"):
        raise DoesNotApply("offers no compiled mode")
    with limits(kernels=False):
        eager = TrainingRun(s).go(0, 12)
    build.cache_clear()  # what other runs have built would hide what this one builds
    fast = TrainingRun(s, compile=True).go(0, 8)
    before = build.cache_info().misses
    fast.go(8, 12)
    again = build.cache_info().misses - before
    if again:
        raise Fails(f"{counted(again, 'kernel')} built when lr and t changed")
    how = getattr(fast.opt, "execution", "")
    if isinstance(_innermost(fast.opt), Optimizer) and "kernels" not in how.partition(":")[0]:
        raise DoesNotApply(f"there are no kernels here ({how})")
    return alike(eager, fast, 1e-4, "compiled against eager, float32")


# --- host synchronisation --------------------------------------------------------------------------------------------

#: operators whose result the host must wait for
_READS = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::masked_select"}
#: methods that read a CPU tensor without an operator
_METHODS = {getattr(torch.Tensor, k): k for k in ("tolist", "numpy")}


class _Operators(TorchDispatchMode):
    """Counts what reads a tensor on the host, but the counters of the state, which live there."""

    def __init__(self, counters: set[int]) -> None:
        super().__init__()
        self.counters, self.calls = counters, []  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in _READS and not (args and id(args[0]) in self.counters):
            self.calls.append(func._schema.name.removeprefix("aten::").replace("_local_scalar_dense", "item"))
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Counts methods that read a tensor, but of memory that the counters of the state lie in."""

    def __init__(self, calls: list[str], counters: set[int]) -> None:
        super().__init__()
        self.calls, self.counters = calls, counters

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS and args[0].untyped_storage().data_ptr() not in self.counters:
            self.calls.append(_METHODS[func])
        return func(*args, **(kwargs or {}))


@check(
    "host_sync",
    "a plain rule never waits for the device",
    promised=False,
    breaking="Each step stops until the GPU has caught up, which can cost more than the step.",
)
def host_sync(s: Candidate) -> str:
    if s.needs:
        raise DoesNotApply("it reads the loss once a step, as its rule says")
    if s.style != "bare":
        raise DoesNotApply("it steps with a closure, whose loss it may read")
    if "hf_optim_lr_scale" in getattr(s.cls, "memory", ()):
        raise DoesNotApply("adapts a rate at the end of a window, where it reads it once")
    if issubclass(s.cls, Optimizer) and s.cls.control is not Rule.control:
        raise DoesNotApply("adapts one global number and reads it once a step, as its file declares")
    walk = TrainingRun(s).go(0, 2)
    counters = [
        v
        for state in walk.opt.state.values()
        if isinstance(state, dict)
        for k, v in state.items()
        if isinstance(v, torch.Tensor) and (v.dim() == 0 or k == "step")
    ]
    operators = _Operators(set(map(id, counters)))
    counted = {v.untyped_storage().data_ptr() for v in counters}
    most: list[str] = []
    for t in (2, 3):
        walk.closure(t)()
        operators.calls.clear()
        with operators, _Methods(operators.calls, counted):
            walk.opt.step()
        most = max(most, list(operators.calls), key=len)
    if most:
        kinds = ", ".join(sorted(set(most)))
        raise Fails(f"{len(most)} reads on the host in a step of {len(walk.start)} tensors ({kinds})")
    return "none"
