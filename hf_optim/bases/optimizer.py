"""The one torch.optim.Optimizer behind every rule.

It owns what no optimizer file should write twice: parameter groups and their validation, lazy state, step counts,
missing gradients, the loss, the way a step is executed, precision, shards and checkpoints. See `hf_optim.core.rule` for
what a rule writes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch

from hf_optim.bases import parameters
from hf_optim.bases.declarations import check_rule
from hf_optim.bases.state import Stateful
from hf_optim.core import validate
from hf_optim.core.compiling import uncompiled, unmarked
from hf_optim.core.groups import as_group, as_groups
from hf_optim.core.hooks import Hyper, alone, explains
from hf_optim.core.interrupts import Uninterrupted
from hf_optim.core.rule import Transform
from hf_optim.core.wording import counted
from hf_optim.engine import capture, int8_codes, launchers
from hf_optim.engine.rows import takes_part
from hf_optim.engine.step import Stepper
from hf_optim.engine.step_ahead import Ahead
from hf_optim.errors import BadLoss, UserError

log = logging.getLogger("hf_optim")

_NOTHING_MORE = nullcontext()
_STATE_DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16, "int8": None}


class Optimizer(Stateful):
    """Base of every rule of this library. A rule hands over its constructor's `locals()`.

    Keyword-only options that rules share:
        compile: None or True run each pass as one kernel over all tensors, made of the rule's own text: C++ on a CPU
            with a compiler, Triton on a CUDA device. It is built once for a rule, whatever the model, and kept on
            disk. Where there is no compiler, and with False, the rule runs as it is written, over blocks (a CPU) or
            lists (an accelerator): `execution` says which, and why.
        grad_transform: a gradient transform by name ("agr", "centralize", ...), as a mapping with `name` and its
            arguments, or an instance; None for none.
        state_dtype: None keeps the state in the parameters' precision, at least float32; "bf16" halves it, rounded
            stochastically so that slow averages do not stall. bfloat16 parameters then keep what rounding takes from
            them, too, in two bytes more (Kahan). "int8" keeps averages of gradients and of their squares in a byte and
            a scale for each 256 (`int8_slots`), rounded stochastically, of tensors with 4,096 elements and more; other
            slots stay as they are. A rule without such averages and a sharded parameter are refused.
        on_bad_loss: for rules that read the loss: "raise" on a NaN, infinite or too small loss, or "skip" the step
            and count it in `figures()["skipped_steps"]`.

    bfloat16 and float16 parameters are computed in float32, element by element. A NaN in a gradient is not looked for:
    that would make every step wait for the device; clipping or GradScaler see it.
    """

    #: whether a CUDA graph can hold its step
    capturable: ClassVar[bool] = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Before a constructor that may not even be the rule's own."""
        check_rule(cls)  # type: ignore[arg-type]  # a class is hashable
        return super().__new__(cls)

    def __init__(self, params: Any, arguments: dict[str, Any]) -> None:
        # Of a constructor's locals, its arguments: another local would become a hyper-parameter.
        mine = validate.parameters(arguments.get("__class__", type(self)).__init__)
        hyper = validate.handed_over(arguments, mine)
        self.needs = frozenset(type(self).needs)
        validate.shell(self.rule, arguments)
        self.compile = self._wants_kernels(arguments.get("compile"))
        self.on_bad_loss = arguments.get("on_bad_loss", "raise")
        state_dtype = arguments.get("state_dtype")
        if state_dtype == "int8" and not self.int8_slots:
            raise UserError(f"{self.rule}: state_dtype='int8' suits none of its state: leave it out")
        self.state_dtype = _STATE_DTYPES[state_dtype]
        #: how slots of large tensors are coded
        self.coded = {k: int8_codes.KINDS[v] for k, v in self.int8_slots.items()} if state_dtype == "int8" else {}
        if self.fixed_lr:
            hyper["lr"] = 1.0
        defaults = validate.defaults(type(self))
        whole = validate.whole_numbers(type(self))
        validate.values(self.rule, hyper, defaults, self.choices, self.bounds, whole)
        #: hyper-parameters that somebody chose, here or in a group
        self.given = {k for k, v in hyper.items() if v != defaults[k]}
        self.transform = self._make_transform(arguments.get("grad_transform"), hyper)
        self._transform_found = False
        self._idle_said = False
        self._fed: tuple[Any, Any] | None = None
        self._stepper: Stepper | None = None
        self._ahead: Ahead | None = None
        self._on_host: str | None = None
        self._twin: capture.Captured | None = None
        self._captured: capture.Captured | None = None
        self._names = tuple(hyper)  # torch adds keys of its own to self.defaults
        #: the slots of each group at the last step
        self._wanted: list[list[str]] = []
        self._shared = SimpleNamespace()
        super().__init__(as_groups(params), hyper)
        parameters.check_any(self.rule, (p for group in self.param_groups for p in group["params"]))

    # --- construction and groups -----------------------------------------------------------------------------------

    @property
    def rule(self) -> str:  # type: ignore[override]
        """The rule's name in errors and checkpoints: the stem of its file, or the class of a foreign one."""
        module = type(self).__module__
        return module.rsplit(".", 1)[1] if module.startswith("hf_optim.optimizers.") else f"{type(self).__name__}"

    @classmethod
    def _wants_kernels(cls, given: Any) -> bool:
        """compile=False asks for none, unless it is only what the constructor of a plugin has for a default."""
        default = validate.parameters(cls).get("compile")
        return given is not False or (default is not None and default.default is False)

    def _make_transform(self, given: Any, hyper: dict[str, Any]) -> Transform | None:
        """The transform a configuration asks for; rules with a built-in one override this."""
        if given is None:
            return None
        if self.no_transform:
            raise UserError(f"{self.rule} takes no grad_transform: {self.no_transform}")
        from hf_optim.transforms import make

        return make(given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch; keys that nothing reads raise instead of being ignored."""
        group, names = as_group(param_group), [*self._names, *self.memory, *self.kept]
        own = {"made_by"} | ({self.transform.opt_out} - {""} if self.transform is not None else set())
        keys = [k for k in group if k not in validate.FOREIGN_KEYS and k not in own]
        validate.unknown(f"{self.rule}: a parameter group", keys, names)
        first = self.param_groups[0] if getattr(self, "param_groups", None) else None
        for name in (*self.choices, *self.structural):
            if name in group and group[name] != self.defaults[name]:
                raise UserError(f"{self.rule}: {name} may not differ between groups; set it in the constructor")
        for name in self.shared:
            if first is not None and group.get(name, self.defaults[name]) != first[name]:
                raise UserError(f"{self.rule}: {name} must be equal in all groups ({first[name]!r} in the first)")
        for name, value in self.memory.items():
            start = group.get(value, self.defaults[value]) if isinstance(value, str) else value
            group.setdefault(name, first[name] if first is not None else start)
        for name, value in self.kept.items():
            group.setdefault(name, float(group.get(value, self.defaults[value])))
        group["made_by"] = self.rule
        self.given |= {k for k in self._names if k in group}
        given = {k: group.get(k, self.defaults[k]) for k in self._names}
        defaults, whole = validate.defaults(type(self)), validate.whole_numbers(type(self))
        validate.values(self.rule, given, defaults, self.choices, self.bounds, whole)
        unmarked(super().add_param_group)(group)
        try:
            mine = self.param_groups[-1]["params"]
            parameters.check_parameters(
                self.rule, mine, [p for before in self.param_groups[:-1] for p in before["params"]]
            )
        except UserError:
            self.param_groups.pop()
            raise

    def _hyper(self, group: dict[str, Any]) -> SimpleNamespace:
        h = Hyper(**{k: group[k] for k in (*self._names, *self.kept)})
        if isinstance(getattr(h, "lr", None), torch.Tensor):
            h.lr = float(h.lr)
        return h

    @property
    def _memory(self) -> dict[str, float]:
        return {k: float(self.param_groups[0][k]) for k in self.memory}  # on an accelerator it is there

    def _remember(self, memory: dict[str, float]) -> None:
        for group in self.param_groups:
            group.update(memory)

    def set_steps_per_epoch(self, n: int) -> None:
        """Tell a rule that counts epochs how many steps one has, unless the caller chose `steps_per_epoch`."""
        if "steps_per_epoch" in self._names and "steps_per_epoch" not in self.given:
            for group in (self.defaults, *self.param_groups):
                group["steps_per_epoch"] = n

    # --- the loss --------------------------------------------------------------------------------------------------

    def feed(self, loss: Any = None, evaluate: Callable[[], Any] | None = None) -> None:
        """Publish the arguments of the next `step()` for callers that step without any; `feed()` withdraws them."""
        self._fed = None if loss is None and evaluate is None else (loss, evaluate)

    def _checked_loss(self, loss: Any) -> float | None:
        """The loss as a number, or None when it is bad and bad losses are skipped."""
        f = parameters.number(self.rule, loss)
        if math.isfinite(f) and f >= self._floor:
            return f
        self._bad(self._why(f))
        return None

    @property
    def _floor(self) -> float:
        """The smallest loss that every group allows."""
        return max((self.loss_floor(self._hyper(g)) for g in self.param_groups), default=-math.inf)

    def _why(self, f: float) -> str:
        """What is wrong with a loss."""
        floor = f"below {self._floor:g}, the smallest its theory allows"
        return f"the loss {f:g} is {floor if math.isfinite(f) else 'not finite'}"

    def _bad(self, why: str, steps: int = 1) -> None:
        """Count steps that cannot be taken, or raise."""
        if self.on_bad_loss != "skip":
            late = f", nor by the {counted(steps - 1, 'step')} since" if steps > 1 else ""
            raise BadLoss(f"{self.rule}: {why}; nothing was moved{late} (on_bad_loss='skip' skips such steps)")
        for group in self.param_groups:
            group["skipped_steps"] = group.get("skipped_steps", 0) + steps

    def hear(self, wait: bool = True) -> None:
        """Count back what an accelerator did not do: steps of rules that read the loss are launched there before
        anybody has looked at it. `step`, `state_dict` and `figures` hear of a bad one by themselves, at the end of a
        training loop call this.

        Args:
            wait: for the device; False takes what it has said by now.

        Raises:
            BadLoss: unless such steps are skipped.
        """
        news = self._ahead.news(wait) if self._ahead is not None else None
        if news is not None:
            steps, f = news
            self._steps.count(-steps)
            self._bad(self._why(f), steps)

    # --- a step ----------------------------------------------------------------------------------------------------

    @uncompiled
    @alone
    @torch.no_grad()
    @explains
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,
        evaluate: Callable[[], Any] | None = None,
    ) -> Any:
        """One update.

        Args:
            closure: torch's: zeroes the gradients, runs forward and backward, returns the loss.
            loss: the loss (float or 0-d tensor) at the current parameters when the gradients are already there.
            evaluate: forward only, returns the loss at the current parameters on the same batch (line searches).

        Returns:
            The loss, if it is known.

        Raises:
            MissingLoss, BadLoss: before anything moves. On an accelerator a bad loss moves nothing either, but the
                error comes with a later step: see `hear`.
            UserError: no gradients, gradients this rule cannot use, or a CUDA graph that cannot hold the step.
        """
        if closure is None and loss is None and self._fed is not None:
            loss, evaluate = self._fed
        self._fed = None
        if closure is not None:
            loss, evaluate = self._run_closure(closure, evaluate)
            if self._fed is not None:  # said while it ran: the loss of the whole window, of which it is the last part
                loss, self._fed = self._fed[0], None
        if capture.capturing():
            self._captured, self._twin = capture.record(self, loss, self._twin), None
            return loss
        parameters.check_step(self.rule, self.param_groups, self._names)
        self.hear(wait=False)
        if not self._begin():  # as in torch
            if not self._idle_said:
                self._idle_said = True
                log.warning("%s: step() without any gradient moves nothing", self.rule)
            return loss
        f: float | None = None
        if "loss" in self.needs or "evaluate" in self.needs:
            if loss is None:
                parameters.check_idle(self.rule, self.param_groups)
                return None
            f = loss if self._ahead is not None else self._checked_loss(loss)
            if f is None:
                return loss
        with Uninterrupted(), self._moving():
            self._advance(f, evaluate)
            self._steps.count()
        if self._ahead is not None:
            self._ahead.tell()
            if not self._steps.whole:  # the host would not know which counts to take back
                self.hear()
            if self._twin is None or not self._twin.fits():
                self._twin = capture.prepare(self, loss)
        return loss

    def before_replay(self) -> None:
        """Count a step and hand its numbers to the CUDA graph that captured `step()`; see `hf_optim.engine.capture`."""
        capture.renew(self, self._captured)

    def _run_closure(self, closure: Callable[[], Any], evaluate: Callable[[], Any] | None) -> tuple[Any, Any]:
        with torch.enable_grad():
            return parameters.called(self.rule, closure), evaluate

    def _moving(self) -> AbstractContextManager[None]:
        """What a base does around a step that has been looked at and will be taken."""
        return _NOTHING_MORE

    def _advance(self, f: float | None, evaluate: Callable[[], Any] | None) -> None:
        """Measure, control, update."""
        if self._ahead is not None:
            self._ahead.control(self._steps, f, self._floor if f is not None else 0.0)
            self._steps.update()
            return
        memory = self._memory
        shared = self._steps.control(f, memory)
        self._remember(memory)
        self._shared = SimpleNamespace(**shared)
        self._steps.update()

    @property
    def _steps(self) -> Stepper:  # type: ignore[override]
        """What runs the steps; made anew in a copy."""
        if self._stepper is None:
            self._stepper = Stepper(self, self.rule, self._hyper, self._entries, self._make_state)
        return self._stepper

    def _begin(self) -> bool:
        """See what this step runs over; False if there is nothing."""
        if self.transform is not None and not self._transform_found:
            self._find_transformed()
        self._add_slots()
        if not self._steps.begin():
            return False
        device = self._steps.accelerator() if self._on_host is None else None
        if device is None or "evaluate" in self.needs:
            self.hear()
            self._ahead = None
        elif self._ahead is None or self._ahead.device.device != device:
            self.hear()
            self._ahead = Ahead(self, self._hyper, device)
            self._on_host = self._ahead.why_not(self._steps)
            if self._on_host is not None:
                self._ahead = None
        return True

    def _find_transformed(self) -> None:
        """A transform that reaches no tensor at all is a mistake, not a silence."""
        assert self.transform is not None
        self._transform_found = any(
            takes_part(self.transform, group) and self.transform.covers(p)
            for group in self.param_groups
            for p in group["params"]
        )
        if not self._transform_found:
            more = [f"{k}={v!r}" for k, v in (self.everywhere or self.transform.everywhere).items()]
            raise UserError(
                f"{self.rule}: {self.transform.name} finds no tensor to transform: it is made for others, or their "
                f"groups say {self.transform.opt_out}=False{f' ({more[0]} takes vectors, too)' if more else ''}"
            )

    # --- what the engine asks ----------------------------------------------------------------------------------------

    @property
    def noisy(self) -> frozenset[str]:
        """Slots that are rounded stochastically."""
        return frozenset(self.slots) if self.state_dtype is torch.bfloat16 else frozenset()

    @property
    def without_kernels(self) -> str | None:
        """Why no kernels are wanted; None if they are."""
        return None if self.compile else "compile=False"

    @property
    def execution(self) -> str:
        """How the step runs: kernels, or blocks (a CPU) or lists (accelerators) and why."""
        params = [p for group in self.param_groups for p in group["params"]]
        said = launchers.execution(params, self._steps.why(), self.without_kernels)
        return f"{said}; {', '.join(self.coded)} in int8" if self.coded else said

    # --- what it is doing ------------------------------------------------------------------------------------------

    @explains
    def effective_lr(self) -> list[float]:
        """The rate in force, one number a group."""
        return [float(self.rate(self._hyper(g), self._memory)) for g in self.param_groups]

    def figures(self) -> dict[str, float]:
        """The rule's own numbers after the last step, for logs."""
        self.hear()
        own = self._ahead.device.figures() if self._ahead is not None else {**self._memory, **vars(self._shared)}
        skipped = self.param_groups[0].get("skipped_steps")
        return {k: float(v) for k, v in own.items()} | ({"skipped_steps": float(skipped)} if skipped else {})
