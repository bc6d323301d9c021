"""What a wrapper around any torch.optim.Optimizer needs: it is an Optimizer itself, and its state is the base's.

`param_groups` and `state` are the base's own objects, read through properties, so that whatever replaces them
(`load_state_dict`, `accelerator.prepare`, a scheduler) is seen. A wrapper's tensors live in `state[p]` beside the
base's, put there only after the base's first step (torch's optimizers take a non-empty state for a made one), and its
numbers in every parameter group: both survive torch's and its distributed checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from hf_optim.core import validate
from hf_optim.engine import blocks as execute
from hf_optim.errors import BadCheckpoint, UserError


class Wrapper(torch.optim.Optimizer):
    """Base of the wrappers.

    Args:
        base: any torch.optim.Optimizer instance, of this library or not.
    """

    family: ClassVar[str] = "wrapper"
    #: numbers kept in every parameter group, with their first values
    memory: ClassVar[dict[str, Any]] = {}
    #: tensors kept in state[p]
    tensors: ClassVar[tuple[str, ...]] = ()
    #: bytes of them for each parameter in fp32
    state_bytes: ClassVar[int] = 0
    base: torch.optim.Optimizer
    #: GradScaler must not hand its scale through: the base may accept it, the wrapper's own arithmetic would not
    _step_supports_amp_scaling = False

    def __init__(self, base: torch.optim.Optimizer) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            what = "a class: give an instance" if isinstance(base, type) else f"{type(base).__name__}"
            raise UserError(f"{type(self).__name__} wraps a torch.optim.Optimizer, got {what}")
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
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: Any) -> None:
        if self._ready:
            self.base.param_groups = value

    @property
    def state(self) -> Any:  # type: ignore[override]
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
        if execute.capturing():
            raise UserError(
                f"{self.rule}: a wrapper counts its steps on the host: its step() cannot be captured in a "
                "CUDA graph; capture forward and backward, and step outside"
            )
        step: Any = self.base.step
        if hasattr(self.base, "feed"):
            return step(closure, loss=loss, evaluate=evaluate)
        result = step(closure) if closure is not None else step()
        return loss if closure is None else result

    def effective_lr(self) -> list[float]:
        """The rate in force, one number a group: the base's."""
        own = getattr(self.base, "effective_lr", None)
        return own() if own is not None else [float(g["lr"]) for g in self.param_groups]

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
        made = p in self.state and len(self.state[p]) > 0
        (self.state[p] if made else self._pending.setdefault(p, {}))[name] = value

    def _settle(self) -> None:
        """After a base step: what was held back goes into the state of parameters whose own state exists by now.

        A base that keeps none (plain SGD) never takes a non-empty state for its own.
        """
        for p in list(self._pending):
            if p.grad is not None:
                self.state[p].update(self._pending.pop(p))

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, which holds this wrapper's state too."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch; refuses a checkpoint that this wrapper around this base has not written.

        Raises:
            BadCheckpoint: nothing was changed.
        """
        groups = state_dict.get("param_groups") if isinstance(state_dict, dict) else None
        if not groups:
            raise BadCheckpoint(f"{self.rule}: not an optimizer state dict (it needs 'state' and 'param_groups')")
        mine, saved = self.param_groups[0]["wrapped_by"], groups[0].get("wrapped_by", [])
        if list(saved) != list(mine):

            def chain(names: list[str]) -> str:
                return " around ".join(reversed([type(self._innermost()).__name__, *names])) if names else "no wrapper"

            raise BadCheckpoint(f"this checkpoint was written by {chain(list(saved))}, not by {chain(list(mine))}")
        known = set(self.param_groups[0]) | set(self.memory)
        missing = sorted(known - {"skipped_steps"} - (validate.FOREIGN_KEYS - set(self.memory)) - set(groups[0]))
        if missing:
            raise BadCheckpoint(f"{self.rule}: the checkpoint lacks {', '.join(missing)}: another base wrote it")
        self.base.load_state_dict(state_dict)
        self._pending.clear()
        ids = [i for group in groups for i in group["params"]]
        for i, p in zip(ids, self._params(), strict=True):  # torch casts to the parameter's dtype and may alias
            for name in self.tensors:
                if name in state_dict["state"].get(i, {}):
                    self.state[p][name] = state_dict["state"][i][name].detach().to(p.device, copy=True)

    def _innermost(self) -> torch.optim.Optimizer:
        return self.base._innermost() if isinstance(self.base, Wrapper) else self.base

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "step" and not k.startswith("_optimizer_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.setdefault("_ready", False)
        super().__setstate__(state)
        if not isinstance(self.base.state, defaultdict):
            self.base.state = defaultdict(dict, self.base.state)
