"""The optimizer under test: how to make it, what it declares, how it wants to be stepped, and a training run of it."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from hf_optim import registry
from hf_optim.bases.optimizer import Optimizer
from hf_optim.bases.wrapper import Wrapper
from hf_optim.check.problem import KINDS, STEPS, Problem, moved
from hf_optim.errors import UserError, one_line

#: arguments that make something happen within a dozen steps
ACTING: dict[str, Any] = {"interval": 2, "k": 2}
#: what a wrapper of this library is put around unless its name says; it has state that could be forgotten
BASE = {"name": "sgdm", "lr": 0.01}
#: arguments without a default that foreign classes ask for
REQUIRED: dict[str, Any] = {"lr": 0.01, "base_optimizer": torch.optim.SGD}
#: names of a first argument that takes an optimizer instead of parameters
WRAPS = ("optimizer", "base_optimizer", "base")
#: how the styles of stepping are called
CALLS = {
    "bare": "step()",
    "loss": "step(loss=...)",
    "closure": "step(closure)",
    "value": "step(closure without backward)",
}
#: arguments that choose a way of running and belong to the base of a wrapper
RUNNING = ("compile", "foreach", "fused")


def expand(names: Iterable[str]) -> list[str]:
    """Names with wildcards written out: "*agr*" among the registered ones, "package.module:*" in a module."""
    expanded: list[str] = []
    for name in names:
        module, colon, pattern = name.rpartition(":")
        if not colon:
            matches = registry.list_optimizers(name) if any(c in name for c in "*?[") else [name]
        elif not module.endswith(".py") and any(c in pattern for c in "*?["):
            try:
                there = vars(importlib.import_module(module))
            except ImportError as error:
                raise UserError(f"{name}: cannot import {module} ({error})") from None
            matches = sorted(
                f"{module}:{k}"
                for k, v in there.items()
                if fnmatch.fnmatchcase(k, pattern)
                and isinstance(v, type)
                and issubclass(v, torch.optim.Optimizer)
                and v is not torch.optim.Optimizer
            )
        else:
            matches = [name]
        if not matches:
            raise UserError(f"no optimizer matches {name!r}")
        expanded += matches
    return list(dict.fromkeys(expanded))


class Candidate:
    """One optimizer under test.

    Args:
        name: a registered name, "package.module:Class" or "file.py:Class".
        hyper: hyper-parameters other than its defaults.
        reference: a specification of an optimizer that must compute the same, or None.

    Attributes:
        family: what it declares ("plain", "loss-aware", "wrapper", ...); None for undeclared foreign classes.
        needs: what step() must be given.
        state_bytes: declared fp32 bytes of state a parameter, or None.
        kind: the tensors it takes: "mixed", "matrices" or "sparse" (gradients).
        style: how it is stepped: "bare" step(), "loss" step(loss=...), "closure" step(closure), "primed" the same with
            the gradients already there, "value" with a closure that only returns the loss.
        idle: first steps, beyond two, in which it moves nothing (a variance that is not yet trusted).
        wide: the precision of runs that are compared: float64, or float32 for what takes no more.
        trouble: why it cannot be stepped at all; empty when it can.
    """

    def __init__(self, name: str, hyper: dict[str, Any] | None = None, reference: Any = None) -> None:
        self.name, self.reference = name, reference
        self.hyper = dict(hyper or {})
        self.cls = registry.resolve(name)
        if not isinstance(self.cls, type):
            raise UserError(f"{name} is a factory, and the suite makes optimizers of tensors: give the class")
        self.info = None if ":" in name else registry.info(name)
        family = self.info.family if self.info is not None else getattr(self.cls, "family", None)
        self.family: str | None = family if isinstance(family, str) else None
        self.state_bytes = self._declared_bytes()
        self._wraps = self._first_argument() in WRAPS and self.info is None
        self._fill()
        self.kind, self.style, self.trouble, self.idle = "mixed", "bare", "", 0
        self.wide = torch.float64
        self._probe()

    @property
    def declared(self) -> bool:
        """Whether it says of itself what family it is, and so is held to more than step, groups and state."""
        return self.family is not None

    @property
    def ours(self) -> bool:
        """Whether the arithmetic runs in this library's shell."""
        return issubclass(self.cls, (Optimizer, Wrapper))

    def spec(self) -> dict[str, Any]:
        """What makes this candidate again, as plain data."""
        return {
            "name": self.name,
            "hyper": {k: v for k, v in self.hyper.items() if k not in self._filled},
            "reference": self.reference,
        }

    # --- making ------------------------------------------------------------------------------------------------------

    def make(self, params: Any, **extra: Any) -> torch.optim.Optimizer:
        """A fresh optimizer over tensors or parameter groups; `extra` goes over the candidate's hyper-parameters."""
        if self._wraps:
            base = torch.optim.SGD(params, lr=0.05, momentum=0.9)
            wrapper = self.cls(base, **{**self.hyper, **extra})
        elif self.family == "wrapper" and self.info is not None:
            running = {k: v for k, v in extra.items() if k in RUNNING}
            own = {**self.hyper, **{k: v for k, v in extra.items() if k not in RUNNING}}
            if running:
                own["base"] = {**own.get("base", {}), **running}
            wrapper = registry.create(self.name, params, **own)
        elif self.info is not None:
            wrapper = registry.create(self.name, params, **{**self.hyper, **extra})
        else:
            wrapper = self.cls(params, **{**self.hyper, **extra})
        train = getattr(wrapper, "train", None)  # schedule-free rules want to be told that training begins
        if callable(train):
            train()
        return wrapper

    def accepts(self, option: str) -> bool:
        """Whether the optimizer, or the base that a registered wrapper gets, takes this way of running."""
        if self.family == "wrapper" and self.info is not None:
            base = {**(self.info.base or {}), **self.hyper.get("base", {})}["name"]
            return ":" not in base and option in registry.info(base).options
        if self.info is not None:
            return option in self.info.options and option in inspect.signature(self.cls).parameters
        return option in inspect.signature(self.cls).parameters

    def _first_argument(self) -> str:
        return next(iter(inspect.signature(self.cls).parameters), "")

    def _fill(self) -> None:
        before = set(self.hyper)
        if self.info is not None:
            known = (*self.info.required, *self.info.defaults)
            wrapper = self.info.family == "wrapper"
            if wrapper and self.info.base is None:
                self.hyper.setdefault("base", dict(BASE))
            for name in known if wrapper else self.info.required:
                if name in ACTING:
                    self.hyper.setdefault(name, ACTING[name])
                elif name in self.info.required:
                    kind, *ends = self.info.search_space.get(name, ("log", 1e-3, 1e-1))
                    self.hyper.setdefault(name, math.sqrt(ends[0] * ends[1]) if kind == "log" else ends[0])
        else:
            for name, parameter in list(inspect.signature(self.cls).parameters.items())[1:]:
                if name in REQUIRED and parameter.default is parameter.empty:
                    self.hyper.setdefault(name, REQUIRED[name])
        self._filled = set(self.hyper) - before

    def _missing(self) -> list[str]:
        """Arguments without a default, and without a value here."""
        if self.info is not None:
            return []
        parameters = list(inspect.signature(self.cls).parameters.values())[1:]
        named = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        return [name for name in named if name not in self.hyper]

    def _declared_bytes(self) -> int | None:
        if self.info is not None:
            return self.info.state_bytes
        declared = getattr(self.cls, "state_bytes", None)
        if isinstance(declared, int):
            return declared
        return 4 * len(self.cls.slots) if issubclass(self.cls, Optimizer) else None

    # --- how it is stepped -------------------------------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """What step() must be given besides gradients."""
        return self._needs

    def _probe(self) -> None:
        """Find the tensors and the call it takes; the complaints about a mixed model are kept when none works."""
        self._needs: frozenset[str] = frozenset()
        if missing := self._missing():
            self.trouble = f"cannot be made: {', '.join(missing)} of its constructor has no default: give one (--hyper)"
            return
        complaints: list[str] = []
        for kind in KINDS:
            try:
                needs = frozenset(getattr(self.make(Problem(kind).params), "needs", ()))
            except Exception as error:  # noqa: BLE001
                complaints = complaints or [f"cannot be made: {one_line(error)}"]
                continue
            styles = (
                ("closure",) if "evaluate" in needs else ("loss",) if "loss" in needs else ("bare", "closure", "value")
            )
            refusals: dict[str, list[str]] = {}
            for style in styles:
                self.kind, self.style = kind, style
                try:
                    self._try()
                except Exception as error:  # noqa: BLE001
                    refusals.setdefault(one_line(error), []).append(CALLS[style])
                    continue
                self._needs = needs
                self._widen()
                return
            said = "; ".join(
                f"{', '.join(calls)}: {why}" if len(refusals) > 1 else why for why, calls in refusals.items()
            )
            complaints = complaints or [f"cannot be stepped: {said}"]
        self.trouble = complaints[0]

    def _widen(self) -> None:
        """Fall back to float32 for a class that breaks with float64."""
        try:
            TrainingRun(self, torch.float64).go()
        except Exception:  # noqa: BLE001 - what else is wrong the checks find out in float32
            self.wide = torch.float32

    @property
    def precision(self) -> str:
        """`wide`, as a note writes it."""
        return str(self.wide).removeprefix("torch.")

    def _try(self) -> None:
        """A few steps; notes how many of the first move nothing, and whether a closure finds the gradients ready."""
        walk = TrainingRun(self)
        for t in range(2):
            walk.step(t)
        while self.idle < STEPS and not moved(walk.start, walk.params()):
            self.idle += 1
            walk.step(1 + self.idle)
        if self.ours and not moved(walk.start, walk.params()):
            raise UserError(
                f"{2 + self.idle} steps move no parameter: `update` has to write x in place, as "
                "x.add_(m, alpha=-c.lr), where x = x - c.lr * m only gives the name x to another tensor"
            )
        if self.style == "closure" and not self.declared:
            primed = TrainingRun(self)
            primed.style = "primed"
            if moved(TrainingRun(self).go(0, 3).params(), primed.go(0, 3).params()):
                self.style = "primed"


class TrainingRun:
    """A training run of a candidate on the problem.

    The attributes are the seams: `model` (a wrapped problem), `share` (this process's samples), `mean` (a loss -> its
    mean over processes), `backward` and `opt` (prepared ones).
    """

    def __init__(
        self,
        candidate: Candidate,
        dtype: torch.dtype = torch.float32,
        problem: Problem | None = None,
        opt: Any = None,
        groups: Callable[[list[nn.Parameter]], Any] | None = None,
        **extra: Any,
    ) -> None:
        self.candidate = candidate
        self.problem = problem or Problem(candidate.kind, dtype)
        self.start = self.params()
        params: Any = self.problem.params
        self.opt: Any = opt if opt is not None else candidate.make(groups(params) if groups else params, **extra)
        self.model: nn.Module = self.problem
        self.share: Callable[[torch.Tensor], torch.Tensor] = lambda batch: batch
        self.mean: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss
        self.backward: Callable[[torch.Tensor], None] = lambda loss: loss.backward()
        self.style = candidate.style

    def closure(
        self,
        t: int,
        parts: int = 1,
        twist: Callable[[torch.Tensor], torch.Tensor] | None = None,
        spoil: Callable[[list[nn.Parameter]], None] | None = None,
    ) -> Callable[[], torch.Tensor]:
        """What torch calls a closure, for step t: `parts` micro-batches; `twist` changes the loss before the backward
        pass, `spoil` the gradients after it."""
        data = self.share(self.problem.batch(t))

        def run() -> torch.Tensor:
            self.opt.zero_grad()
            losses = []
            for piece in data.chunk(parts):
                loss = self.model(piece) / parts
                loss = loss if twist is None else twist(loss)
                self.backward(loss)
                losses.append(loss.detach())
            if spoil is not None:
                spoil(self.problem.params)
            return self.mean(torch.stack(losses).sum())

        return run

    def step(self, t: int, **how: Any) -> Any:
        """Step t as the candidate wants it; `how` goes to `closure`."""
        torch.default_generator.manual_seed(t)  # rules that draw random numbers draw the same ones in every run
        closure = self.closure(t, **how)
        if self.style == "closure":
            return self.opt.step(closure)
        loss = closure()
        if self.style == "primed":
            return self.opt.step(closure)
        if self.style == "value":
            return self.opt.step(lambda: loss)
        return self.opt.step(loss=loss) if self.style == "loss" else self.opt.step()

    def go(self, start: int = 0, stop: int = STEPS, **how: Any) -> TrainingRun:
        """Steps start, ..., stop - 1."""
        for t in range(start, stop):
            self.step(t, **how)
        return self

    def params(self) -> list[torch.Tensor]:
        """Copies of the parameters as they are."""
        return [p.detach().clone() for p in self.problem.params]

    def loss(self) -> float:
        """The loss on a batch that no step used."""
        with torch.no_grad():
            return float(self.problem(self.problem.batch(-1)))

    def rate(self, factor: float) -> None:
        """Multiply every group's rate, as a scheduler does, where groups have one."""
        for group in self.opt.param_groups:
            if "lr" in group:
                group["lr"] = group["lr"] * factor
