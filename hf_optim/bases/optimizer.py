"""The one torch.optim.Optimizer behind every rule.

It owns what no optimizer file should write twice: parameter groups and their validation, lazy state, step counts,
missing gradients, the loss, the way a step is executed, precision, shards and checkpoints. See `hf_optim.core.rule` for
what a rule writes.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.bases import checkpoint, parameters
from hf_optim.core import reduce, validate
from hf_optim.core.groups import as_groups
from hf_optim.core.reduce import local
from hf_optim.core.rule import Rule, Transform
from hf_optim.engine import blocks as execute
from hf_optim.engine import capture, units
from hf_optim.engine.cell import NOTHING, Cell, Scalars, Way
from hf_optim.engine.units import Unit
from hf_optim.errors import BadLoss, MissingLoss, UserError

log = logging.getLogger("hf_optim")

_STATE_DTYPES = {None: None, "fp32": torch.float32, "bf16": torch.bfloat16}


class Optimizer(torch.optim.Optimizer, Rule):
    """Base of every rule of this library. A rule hands over its constructor's `locals()`.

    Keyword-only options that rules share:
        compile: run the update as one compiled graph (torch.compile); no change of a rate recompiles. On a CPU the
            graph is made once for a rule and dtype whatever the model, and tensors of up to 16,384 elements share
            eager calls; on an accelerator it is made once a model. False: blocks on a CPU, foreach on an accelerator.
        grad_transform: a gradient transform by name ("agr", "centralize", ...), as a mapping with `name` and its
            arguments, or an instance; None for none.
        state_dtype: None keeps the state in the parameters' precision, at least float32; "bf16" halves it, rounded
            stochastically so that slow averages do not stall (such steps run eagerly). bfloat16 parameters then keep
            what rounding takes from them, too, in two bytes more (Kahan).
        on_bad_loss: for rules that read the loss: "raise" on a NaN, infinite or too small loss, or "skip" the step
            and count it in `figures()["skipped_steps"]`.

    bfloat16 and float16 parameters are computed in float32, a block at a time. A NaN in a gradient is not looked for:
    that would make every step wait for the device; clipping or GradScaler see it.
    """

    #: whether small tensors may run as one; a rule that works on its cells itself says no
    _together = True

    def __init__(self, params: Any, arguments: dict[str, Any]) -> None:
        # Of a constructor's locals, its arguments: another local would become a hyper-parameter.
        mine = inspect.signature(arguments.get("__class__", type(self)).__init__).parameters
        hyper = {k: arguments[k] for k in mine if k not in ("self", "params", *validate.SHELL_OPTIONS)}
        self.needs = frozenset(type(self).needs)
        self.compile = bool(arguments.get("compile", False))
        self.on_bad_loss = arguments.get("on_bad_loss", "raise")
        if self.on_bad_loss not in ("raise", "skip"):
            raise UserError(f"{self.rule}: on_bad_loss must be 'raise' or 'skip', got {self.on_bad_loss!r}")
        state_dtype = arguments.get("state_dtype")
        if state_dtype not in _STATE_DTYPES:
            raise UserError(f"{self.rule}: state_dtype must be None, 'fp32' or 'bf16', got {state_dtype!r}")
        self.state_dtype = _STATE_DTYPES[state_dtype]
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
        self._known: dict[torch.Tensor, Cell] = {}
        self._units = units.Units()
        self._tables: dict[tuple[int, bool], dict[Any, torch.Tensor]] = {}
        self._captured: capture.Captured | None = None
        self._names = tuple(hyper)  # torch adds keys of its own to self.defaults
        #: the slots of each group at the last step
        self._wanted: list[list[str]] = []
        self._shared = SimpleNamespace()
        self._generator: torch.Generator | None = None
        super().__init__(as_groups(params), hyper)

    # --- construction and groups -----------------------------------------------------------------------------------

    @property
    def rule(self) -> str:
        """The rule's name in errors and checkpoints: the stem of its file, or the class of a foreign one."""
        module = type(self).__module__
        return module.rsplit(".", 1)[1] if module.startswith("hf_optim.optimizers.") else f"{type(self).__name__}"

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
        names = [*self._names, *self.memory, *self.kept]
        extra = {"agr"} if self.transform is not None and self.transform.weights_only else set()
        keys = [k for k in param_group if k not in validate.FOREIGN_KEYS and k not in extra and k != "made_by"]
        if "agr" in param_group and not extra:
            raise UserError(f"{self.rule} has no AGR or centralization: a group's 'agr' would be ignored, leave it out")
        validate.unknown(f"{self.rule}: a parameter group", keys, names)
        first = self.param_groups[0] if getattr(self, "param_groups", None) else None
        for name in (*self.choices, *self.structural):
            if name in param_group and param_group[name] != self.defaults[name]:
                raise UserError(f"{self.rule}: {name} may not differ between groups; set it in the constructor")
        for name in self.shared:
            if first is not None and param_group.get(name, self.defaults[name]) != first[name]:
                raise UserError(f"{self.rule}: {name} must be equal in all groups ({first[name]!r} in the first)")
        group = dict(param_group)
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
        super().add_param_group(group)
        try:
            mine = self.param_groups[-1]["params"]
            parameters.check(self.rule, mine, [p for before in self.param_groups[:-1] for p in before["params"]])
        except UserError:
            self.param_groups.pop()
            raise

    def _hyper(self, group: dict[str, Any]) -> SimpleNamespace:
        h = SimpleNamespace(**{k: group[k] for k in (*self._names, *self.kept)})
        if isinstance(getattr(h, "lr", None), torch.Tensor):
            h.lr = float(h.lr)
        return h

    @property
    def _memory(self) -> dict[str, float]:
        return {k: self.param_groups[0][k] for k in self.memory}

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
        f = float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss)
        floor = max((self.loss_floor(self._hyper(g)) for g in self.param_groups), default=-math.inf)
        if math.isfinite(f) and f >= floor:
            return f
        why = f"below {floor:g}, the smallest its theory allows" if math.isfinite(f) else "not finite"
        self._bad(f"the loss {f:g} is {why}")
        return None

    def _bad(self, why: str) -> None:
        """Count a step that cannot be taken, or raise."""
        if self.on_bad_loss != "skip":
            raise BadLoss(f"{self.rule}: {why}; nothing was moved (on_bad_loss='skip' skips such steps)")
        for group in self.param_groups:
            group["skipped_steps"] = group.get("skipped_steps", 0) + 1

    def _missing_loss(self) -> None:
        """torch's distributed checkpointing steps once with zero rates and gradients to make state: allow only that."""
        idle = all(
            float(g["lr"]) == 0 and not any(p.grad is not None and local(p.grad).any() for p in g["params"])
            for g in self.param_groups
        )
        if not idle:
            raise MissingLoss(
                f"{self.rule} needs the loss of the batch: call step(loss=loss) or step(closure); "
                "in transformers.Trainer use hf_optim.attach(trainer, ...), "
                "in an Accelerate loop hf_optim.Session"
            )

    # --- a step ----------------------------------------------------------------------------------------------------

    @torch.compiler.disable
    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,  # type: ignore[override]
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
            MissingLoss, BadLoss: before anything moves.
            UserError: no gradients, gradients this rule cannot use, or a CUDA graph that cannot hold the step.
        """
        if closure is None and loss is None and self._fed is not None:
            loss, evaluate = self._fed
        self._fed = None
        if closure is not None:
            loss, evaluate = self._run_closure(closure, evaluate)
            if self._fed is not None:  # said while it ran: the loss of the whole window, of which it is the last part
                loss, self._fed = self._fed[0], None
        if execute.capturing():
            self._captured = capture.record(self)
            return loss
        parameters.check_step(self.rule, self.param_groups)
        parts = self._begin()
        if not parts:  # as in torch
            if not self._idle_said:
                self._idle_said = True
                log.warning("%s: step() without any gradient moves nothing", self.rule)
            return loss
        f: float | None = None
        if "loss" in self.needs or "evaluate" in self.needs:
            if loss is None:
                self._missing_loss()
                return None
            f = self._checked_loss(loss)
            if f is None:
                return loss
        self._advance(parts, f, evaluate)
        self._count(parts)
        return loss

    def _count(self, parts: Sequence[Unit]) -> None:
        """Count the step, and keep what `scalars` made of each parameter's own numbers."""
        units.count(parts)
        for name in self.scalar_slots:
            for unit in parts:
                torch._foreach_zero_(kept := [self.state[p][name] for p in unit.params])
                torch._foreach_add_(kept, getattr(unit.c, name))

    def before_replay(self) -> None:
        """Count a step and hand its numbers to the CUDA graph that captured `step()`; see `hf_optim.engine.capture`."""
        capture.renew(self, self._captured)

    def _run_closure(self, closure: Callable[[], Any], evaluate: Callable[[], Any] | None) -> tuple[Any, Any]:
        with torch.enable_grad():
            return closure(), evaluate

    def _advance(self, parts: list[Unit], f: float | None, evaluate: Callable[[], Any] | None) -> None:
        """Measure, control, update."""
        self._control(parts, f)
        units.update(parts, self.update, self._way)

    def _control(self, parts: Sequence[Unit], f: float | None) -> None:
        """Fill every unit's `c`: sums over tensors and shards, shared numbers, the group's scalars."""
        h0, memory = self._hyper(self.param_groups[0]), self._memory
        self._transform_sums(parts)
        controlled = type(self).control is not Rule.control
        names, everywhere, floats = self.measures(h0), self.scope(h0) == "global", {}
        if names:
            self._fill(parts, lambda h, t: self.prepare(h, t, memory))
            total = self._summed(parts, self.measure)
            if everywhere:
                total = total.sum(0)
            if everywhere and controlled:
                floats = dict(zip(names, total.tolist(), strict=True))
            else:
                derived = self.derive(h0, dict(zip(names, total.unbind(-1), strict=True)))
                if everywhere:
                    for unit in parts:
                        unit.sums.update(derived)
                else:
                    units.add_sums(parts, tuple(derived), torch.stack(list(derived.values()), 1))
        shared = self.control(h0, max(unit.t for unit in parts), floats, f, memory) if controlled else {}
        self._remember(memory)
        self._shared = SimpleNamespace(**shared)
        self._fill(parts, lambda h, t: self.scalars(h, t, self._shared))

    def _summed(self, parts: Sequence[Unit], f: Callable[..., Any], raw: bool = False) -> torch.Tensor:
        """f's sums over all shards, a row a parameter."""
        return reduce.combine(units.measure(parts, f, self._way, raw), [p for unit in parts for p in unit.params])

    def _fill(self, parts: Sequence[Unit], numbers: Callable[[SimpleNamespace, int], dict[str, Any]]) -> None:
        """Add numbers(h, t) to every unit's `c`, which a group's units with the same step count share."""
        made: dict[tuple[Any, ...], Scalars] = {}
        for unit in parts:
            own = {name: float(self.state[unit.params[0]][name]) for name in self.scalar_slots}
            key = (id(unit.group), unit.t, *own.values())
            if key not in made:
                h = SimpleNamespace(**vars(self._hyper(unit.group)), **own)
                made[key] = Scalars(**{**vars(unit.c), **numbers(h, unit.t)})
                made[key].tables = self._tables.setdefault((len(made), unit.c is NOTHING), {})
            unit.c = made[key]

    def _transform_sums(self, parts: Sequence[Unit]) -> None:
        chosen = [unit for unit in parts if unit.transform is not None and unit.transform.sums]
        if chosen:
            transform = chosen[0].transform
            assert transform is not None
            table = transform.derive(self._summed(chosen, transform.measure, raw=True))
            units.add_sums(chosen, transform.sums, table)

    @property
    def _way(self) -> Way:
        return Way(self.compile, self._generator)

    # --- units: parameters with gradients, their state and their views ---------------------------------------------

    def _begin(self) -> list[Unit]:
        """What this step runs over."""
        if self.transform is not None and not self._transform_found:
            self._find_transformed()
        self._add_slots()
        covers = self.transform.covers if self.transform is not None else lambda p: False
        parts = self._units.now(self.param_groups, self.state, self._cell, covers if self._together else None)
        if len(self._known) > sum(len(group["params"]) for group in self.param_groups):  # some were swapped for others
            there = {p for group in self.param_groups for p in group["params"]}
            self._known = {p: cell for p, cell in self._known.items() if p in there}
        for unit in parts:
            unit.begin(self._transform_of(unit.params[0], unit.group, unit.t))
        if self.state_dtype is torch.bfloat16 and parts:
            self._generator = torch.Generator(parts[0].params[0].device)
            self._generator.manual_seed(parts[0].t)  # rounding noise repeats after a resume
        return parts

    def _transform_of(self, p: torch.Tensor, group: dict[str, Any], t: int) -> Transform | None:
        """The transform of the t-th update of p, and of all that share its group and that it covers alike."""
        chosen = self.transform
        if chosen is None or not (self._takes(chosen, group) and chosen.covers(p) and chosen.active(t)):
            return None
        return chosen

    @staticmethod
    def _takes(transform: Transform, group: dict[str, Any]) -> bool:
        return not transform.weights_only or group.get("agr", True)

    def _find_transformed(self) -> None:
        """A transform that reaches no tensor at all is a mistake, not a silence."""
        assert self.transform is not None
        self._transform_found = any(
            self._takes(self.transform, group) and self.transform.covers(p)
            for group in self.param_groups
            for p in group["params"]
        )
        if not self._transform_found:
            raise UserError(
                f"{self.rule}: {self.transform.name} finds no tensor to transform: all are vectors, or "
                "their groups say agr=False (agr_scope='all' takes vectors too)"
            )

    def _cell(self, p: torch.Tensor, group: dict[str, Any]) -> Cell:
        grad = p.grad
        assert grad is not None
        if grad.layout is not torch.strided:
            raise UserError(f"{self.rule} cannot use sparse gradients: build the embedding with sparse=False")
        state = self.state[p]
        if not state:
            self._make_state(p, state, group)
        if group.get("restart_every"):
            self._restart(p, state, group)
        cell = self._known.get(p)
        if cell is None or not cell.fits(group, state):
            cell = self._known[p] = self._view(p, group, state)
        cell.t = int(cell.counter.item()) + 1
        return cell

    def _view(self, p: torch.Tensor, group: dict[str, Any], state: dict[str, Any]) -> Cell:
        for k in self._slots(group):
            if state[k].shape != p.shape:
                raise UserError(
                    f"{self.rule}: the shape of a parameter was {tuple(state[k].shape)} and is now {tuple(p.shape)}, "
                    "so that its state does not fit: make a new optimizer, or delete optimizer.state[p]"
                )
            if state[k].stride() != p.stride():  # kept, or saved, of the parameter in another layout
                state[k] = torch.empty_like(p, dtype=state[k].dtype, requires_grad=False).copy_(state[k])
        kept = {k: state[k] for k in (*self._slots(group), "step")}
        if self.state_dtype is p.dtype is torch.bfloat16:
            kept["compensation"] = state.setdefault("compensation", torch.zeros_like(p))
        x = local(p).detach()
        for k, v in kept.items():
            if v.shape == p.shape and v.stride() != p.stride():  # the model has changed its layout
                kept[k] = state[k] = torch.empty_like(p, dtype=v.dtype).copy_(v)
        views = {k: execute.flat(local(v), x) for k, v in {"x": x, **kept}.items() if k != "step"}
        if any(v is None for v in views.values()):
            raise UserError(
                f"{self.rule}: a parameter of shape {tuple(p.shape)} has gaps or overlaps in memory; "
                "replace it by p.contiguous()"
            )
        return Cell(p, group, state, kept, views, self._compute_dtype(p))  # type: ignore[arg-type]

    @staticmethod
    def _compute_dtype(p: torch.Tensor) -> torch.dtype:
        return torch.promote_types(p.dtype, torch.float32)

    def _slots(self, group: dict[str, Any]) -> list[str]:
        absent = {
            k
            for k, (name, value) in self.optional_slots.items()
            if (bool(group[name]) if value is True else group[name]) != value
        }
        return [k for k in self.slots if k not in absent]

    def _first_value(self, name: str, p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        dtype = self.state_dtype or self._compute_dtype(p)
        value = self.slots[name]
        if value == "param":
            return p.detach().to(dtype, copy=True)
        return torch.full_like(p, float(group[value] if isinstance(value, str) else value), dtype=dtype)

    def _add_slots(self) -> None:
        """Make the slots that a hyper-parameter asks for since it has changed: a momentum that was 0."""
        wanted = [self._slots(group) for group in self.param_groups] if self.optional_slots else []
        if wanted == self._wanted:
            return
        self._wanted = wanted
        for group, names in zip(self.param_groups, wanted, strict=True):
            for p in group["params"]:
                state = self.state.get(p, {})
                for name in (k for k in names if state and k not in state):
                    state[name] = self._first_value(name, p, group)
                    state["step"] = state["step"].clone()  # whoever holds views of this state sees that it is another

    def _make_state(self, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        slots = self._slots(group)
        # torch's full distributed state dicts find the device by a tensor with a dimension: one must have it
        state["step"] = torch.zeros(() if slots else (1,), dtype=torch.float32)
        for name, value in self.scalar_slots.items():
            state[name] = torch.tensor(value, dtype=torch.float32)
        for name in slots:
            state[name] = self._first_value(name, p, group)

    def _restart(self, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if int(state["step"]) == group["restart_every"]:
            state.clear()
            self._make_state(p, state, group)

    @property
    def execution(self) -> str:
        """How the step runs: compiled, blocks (CPU) or foreach (accelerators)."""
        on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        return "compiled" if self.compile else "blocks" if on_cpu else "foreach"

    # --- what it is doing ------------------------------------------------------------------------------------------

    def effective_lr(self) -> list[float]:
        """The rate in force, one number a group."""
        return [float(self.rate(self._hyper(g), self._memory)) for g in self.param_groups]

    def figures(self) -> dict[str, float]:
        """The rule's own numbers after the last step, for logs."""
        own = {**self._memory, **vars(self._shared)}
        skipped = self.param_groups[0].get("skipped_steps")
        return {k: float(v) for k, v in own.items()} | ({"skipped_steps": float(skipped)} if skipped else {})

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, but tensors are matched by name where names are known, a hyper-parameter that the checkpoint lacks
        keeps its value here, another rule or structure is refused, and fp32 state of bf16 parameters survives.

        Raises:
            BadCheckpoint: nothing was changed.
        """
        checkpoint.form(self.rule, state_dict)
        read: dict[str, Any] = {}

        def before(_: Any, given: dict[str, Any]) -> dict[str, Any]:  # after everybody's hooks
            read.update(checkpoint.prepared(self, self._translated(given)))
            return read

        hooks = (
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(lambda _: checkpoint.copy_states(self, read), prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()
        self._wanted = []

    def _translated(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of another make of this rule as this one would have written it."""
        return saved

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_shared", SimpleNamespace())
        self.__dict__.setdefault("_fed", None)

    def __getstate__(self) -> dict[str, Any]:
        # a scheduler has put a `step` here that is bound to this instance: a copy must not move our parameters
        keep = {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}
        return {
            **keep,
            "_fed": None,
            "_generator": None,
            "_known": {},
            "_units": units.Units(),
            "_tables": {},
            "_captured": None,
        }
