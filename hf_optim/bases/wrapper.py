"""What a wrapper around any torch.optim.Optimizer needs: it is an Optimizer itself, and its state is the base's.

`param_groups` and `state` are the base's own objects, read through properties, so that whatever replaces them
(`load_state_dict`, `accelerator.prepare`, a scheduler) is seen. A wrapper's tensors live in `state[p]` beside the
base's, put there only after the base's first step (torch's optimizers take a non-empty state for a made one), and its
numbers in every parameter group: both survive torch's and its distributed checkpoints.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from hf_optim.bases import checkpoint, parameter_names, saved_form
from hf_optim.core import validate
from hf_optim.engine import capture
from hf_optim.errors import BadCheckpoint, UserError

log = logging.getLogger("hf_optim")


class Wrapper(torch.optim.Optimizer):
    """Base of the wrappers.

    Args:
        base: any torch.optim.Optimizer instance, of this library or not.
    """

    family: ClassVar[str] = "wrapper"
    #: the values of hyper-parameters with which it is its base; {} where none make it so
    as_base: ClassVar[dict[str, float]] = {}
    #: numbers kept in every parameter group, with their first values
    memory: ClassVar[dict[str, Any]] = {}
    #: numbers that groups have from their beginning, which a checkpoint may lack
    kept: ClassVar[tuple[str, ...]] = ()
    #: tensors kept in state[p]
    tensors: ClassVar[tuple[str, ...]] = ()
    #: those of them that are one number, not one an element
    scalars: ClassVar[tuple[str, ...]] = ()
    #: bytes of them for each parameter in fp32
    state_bytes: ClassVar[int] = 0
    base: torch.optim.Optimizer
    #: GradScaler must not hand its scale through: the base may accept it, the wrapper's own arithmetic would not
    _step_supports_amp_scaling = False

    def __init__(self, base: torch.optim.Optimizer) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            kind = "a class: give an instance" if isinstance(base, type) else f"{type(base).__name__}"
            raise UserError(f"{type(self).__name__} wraps a torch.optim.Optimizer, got {kind}")
        inner = base
        while isinstance(inner, Wrapper):
            if set(inner.memory) & set(self.memory) or set(inner.tensors) & set(self.tensors):
                raise UserError(f"{self.rule} cannot wrap {inner.rule}: both would keep state under the same names")
            inner = inner.base
        self.base = base
        self._pending: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        self._ready = False  # torch's constructor assigns groups and state: not to the base
        super().__init__(base.param_groups, base.defaults)
        self._ready = True
        for group in self.param_groups:
            self._start_group(group)

    # --- being the base --------------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        if self._ready:
            self.base.param_groups = value

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        if self._ready:
            self.base.state = value

    @property
    def needs(self) -> frozenset[str]:
        """What step() must be given: what the base needs."""
        return frozenset(getattr(self.base, "needs", ()))

    @property
    def execution(self) -> str:
        """How the base's step runs."""
        return getattr(self.base, "execution", "torch")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base."""
        if self._ready:
            self.base.add_param_group(param_group)
            self._start_group(self.param_groups[-1])

    def feed(self, loss: Any = None, evaluate: Callable[[], Any] | None = None) -> None:
        """Publish the arguments of the base's next step."""
        if hasattr(self.base, "feed"):
            self.base.feed(loss, evaluate)

    def train(self) -> None:
        """Tell a base that training goes on, if it tells training and evaluation apart."""
        if hasattr(self.base, "train"):
            self.base.train()

    def eval(self) -> None:
        """Tell a base that what the parameters hold is evaluated or saved, if it tells the two apart."""
        if hasattr(self.base, "eval"):
            self.base.eval()

    def set_steps_per_epoch(self, n: int) -> None:
        """Tell a base that counts epochs."""
        if hasattr(self.base, "set_steps_per_epoch"):
            self.base.set_steps_per_epoch(n)

    def _step_base(self, closure: Callable[[], Any] | None, loss: Any, evaluate: Callable[[], Any] | None) -> Any:
        if capture.capturing():
            raise UserError(
                f"{self.rule}: a wrapper counts its steps on the host: its step() cannot be captured in a "
                "CUDA graph; capture forward and backward, and step outside"
            )
        if hasattr(self.base, "feed"):
            return self._hooked_step(closure, loss=loss, evaluate=evaluate)
        result = self._hooked_step(closure) if closure is not None else self._hooked_step()
        return loss if closure is None else result

    def _hooked_step(self, *args: Any, **kwargs: Any) -> Any:
        """The base's step with the base's own hooks. Those registered for all optimizers have run for the wrapper."""
        base = self.base
        bare = getattr(type(base).step, "__wrapped__", None) if getattr(type(base).step, "hooked", False) else None
        if bare is None or "step" in vars(base):  # a scheduler has put its own `step` there
            return base.step(*args, **kwargs)
        given = (base, *args)
        for before in base._optimizer_step_pre_hooks.values():
            changed = before(base, given, kwargs)
            if changed is not None:
                given, kwargs = changed
        result = bare(*given, **kwargs)
        for after in base._optimizer_step_post_hooks.values():
            after(base, given, kwargs)
        return result

    def effective_lr(self) -> list[float]:
        """The rate in force, one number a group: the base's."""
        own = getattr(self.base, "effective_lr", None)
        return own() if own is not None else [float(g["lr"]) for g in self.param_groups]

    def ways(self) -> list[str]:
        """What each group goes by, where the base has two ways: see `hf_optim.bases.routed`."""
        own = getattr(self.base, "ways", None)
        return list(own()) if own is not None else ["" for _ in self.param_groups]

    def figures(self) -> dict[str, float]:
        """The base's figures."""
        return dict(self.base.figures()) if hasattr(self.base, "figures") else {}

    # --- the wrapper's own state -----------------------------------------------------------------------------------

    @property
    def rule(self) -> str:
        """The wrapper's name in errors and checkpoints."""
        module = type(self).__module__
        return module.rsplit(".", 1)[1] if module.startswith("hf_optim.wrappers.") else type(self).__name__

    def _start_group(self, group: dict[str, Any]) -> None:
        first = self.param_groups[0]
        for name, value in self.memory.items():
            group.setdefault(name, first.get(name, value))
        group["wrapped_by"] = [*group.get("wrapped_by", []), self.rule]

    def _params(self) -> list[torch.Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _get(self, p: torch.Tensor, name: str) -> torch.Tensor | None:
        pending = self._pending.get(p)
        if pending and name in pending:
            return pending[name]
        return self.state[p].get(name) if p in self.state else None

    def _put(self, p: torch.Tensor, name: str, value: torch.Tensor) -> None:
        """Into the base's state once the base has made its own, else held back until then."""
        exists = p in self.state and len(self.state[p]) > 0
        (self.state[p] if exists else self._pending.setdefault(p, {}))[name] = value

    def _settle(self) -> None:
        """After a base step: what was held back goes into the state of parameters whose own state exists by now.

        A base that keeps none (plain SGD) never takes a non-empty state for its own.
        """
        for p in list(self._pending):
            if p.grad is not None:
                self.state[p].update(self._pending.pop(p))

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, which holds this wrapper's state too. Hooks of both run."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self.base.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            changed = after(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch, hooks included; refuses a checkpoint that this wrapper around this base has not written.

        Raises:
            BadCheckpoint: nothing was changed.
        """
        checkpoint.form(self.rule, state_dict)
        state_dict = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            changed = before(self, state_dict)
            state_dict = state_dict if changed is None else changed
        checkpoint.form(self.rule, state_dict)
        kept = [name for wrapper in self._chain() for name in wrapper.kept]
        mine = itertools.chain(self.param_groups, itertools.repeat({}))  # whether they are as many, the base says
        told = [
            {k: own[k] for k in kept if k in own} | group
            for own, group in zip(mine, state_dict["param_groups"], strict=False)
        ]
        groups = [self._of_this_chain(group) for group in told]
        state_dict = parameter_names.aligned(self, {**state_dict, "param_groups": groups})
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(ids, self._params(), strict=False):  # whether they are as many, the base says
            saved_form.beside(self.rule, p, state_dict["state"].get(i, {}), self.tensors, self.scalars)
        self.base.load_state_dict(state_dict)
        self._pending.clear()
        for i, p in zip(ids, self._params(), strict=True):  # torch casts to the parameter's dtype and may alias
            for name in self.tensors:
                if name in state_dict["state"].get(i, {}):
                    own = state_dict["state"][i][name].detach().to(p.device, copy=True)
                    if own.shape == p.shape and own.stride() != p.stride():
                        own = torch.empty_like(p, dtype=own.dtype).copy_(own)
                    self.state[p][name] = own
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _of_this_chain(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A saved group with this wrapper's numbers, once it is known to be of this wrapper around this base."""
        mine = self.param_groups[0]["wrapped_by"]
        written = list(saved.get("wrapped_by") or [])
        if written != list(mine):

            def chain(names: list[str]) -> str:
                return " around ".join(reversed([type(self._innermost()).__name__, *names])) if names else "no wrapper"

            raise BadCheckpoint(f"this checkpoint was written by {chain(written)}, not by {chain(list(mine))}")
        saved = self._converted(saved)
        numbers = {k: v for w in self._chain() for k, v in w.memory.items()}
        added = {k: v for k, v in numbers.items() if k not in saved}
        saved_form.kinds(self.rule, self.param_groups[0], saved)
        saved_form.counts(self.rule, numbers, saved)
        if added:
            log.warning("%s: the checkpoint lacks %s: they begin anew", self.rule, ", ".join(sorted(added)))
        ours = "made_by" in self.param_groups[0]  # then the base itself knows what to make of a group
        known = set() if ours else set(self.param_groups[0]) - set(numbers) - validate.FOREIGN_KEYS
        missing = sorted(known - {"skipped_steps"} - set(saved))
        if missing:
            raise BadCheckpoint(f"{self.rule}: the checkpoint lacks {', '.join(missing)}: another base wrote it")
        return {**saved, **added}

    def _chain(self) -> list[Wrapper]:
        return [self, *(self.base._chain() if isinstance(self.base, Wrapper) else [])]

    def _converted(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A group of an older release's checkpoint as this release writes it."""
        return self.base._converted(saved) if isinstance(self.base, Wrapper) else saved

    def _innermost(self) -> torch.optim.Optimizer:
        return self.base._innermost() if isinstance(self.base, Wrapper) else self.base

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.setdefault("_ready", False)
        super().__setstate__(state)
        if not isinstance(self.base.state, defaultdict):
            self.base.state = defaultdict(dict, self.base.state)
