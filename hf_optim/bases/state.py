"""What an optimizer keeps of each parameter, and how it is saved, loaded and copied."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.bases import checkpoint
from hf_optim.core.hooks import LOCK
from hf_optim.core.rule import Rule
from hf_optim.engine import int8_codes
from hf_optim.engine.step import Stepper
from hf_optim.errors import UserError


class Stateful(torch.optim.Optimizer, Rule):
    """The part of `hf_optim.bases.optimizer.Optimizer` that makes state and checkpoints."""

    rule: str
    state_dtype: torch.dtype | None
    coded: dict[str, torch.dtype]
    _names: tuple[str, ...]
    _wanted: list[list[str]]
    _steps: Stepper

    def hear(self, wait: bool = True) -> None:
        """See `hf_optim.bases.optimizer.Optimizer.hear`."""
        raise NotImplementedError

    # --- state -------------------------------------------------------------------------------------------------------

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

    def _sides(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        """State of other shapes than the parameter's: name -> shape."""
        return {}

    def _entries(self, p: torch.Tensor, group: dict[str, Any]) -> list[str]:
        """Names of the state of one number an element."""
        kept = self.state_dtype is p.dtype is torch.bfloat16
        return [*self._slots(group), *(["compensation"] if kept else [])]

    def kept_as(self, name: str, p: torch.Tensor) -> torch.dtype | None:
        """As which codes a slot of a parameter is kept; None if it is kept as numbers."""
        return self.coded.get(name) if p.numel() >= int8_codes.SMALLEST else None

    def _first_values(self, name: str, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What a new slot is kept in."""
        kind, value = self.kept_as(name, p), self.slots[name]
        if kind is None:
            return {name: self._first_value(name, p, group)}
        if hasattr(p, "_local_tensor") or getattr(p, "_fsdp_flattened", False):
            raise UserError(
                f"{self.rule}: state_dtype='int8' has scales of blocks, which shards would cut: use state_dtype='bf16'"
            )
        tensors = int8_codes.filled(p, float(group[value] if isinstance(value, str) else value), kind)
        return dict(zip((name, name + int8_codes.SCALE), tensors, strict=True))

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
        self._steps.look_again()
        for group, names in zip(self.param_groups, wanted, strict=True):
            for p in group["params"]:
                state = self.state.get(p, {})
                for name in (k for k in names if state and k not in state):
                    state.update(self._first_values(name, p, group))

    def _make_state(self, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        slots = self._slots(group)
        # torch's full distributed state dicts find the device by a tensor with a dimension: one must have it
        state["step"] = torch.zeros(() if slots else (1,), dtype=torch.float32, device="cpu")
        for name, value in self.scalar_slots.items():
            state[name] = torch.tensor(value, dtype=torch.float32, device="cpu")
        for name in slots:
            state.update(self._first_values(name, p, group))
        if "compensation" in self._entries(p, group):
            state["compensation"] = torch.zeros_like(p, requires_grad=False)

    # --- checkpoints -------------------------------------------------------------------------------------------------

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

    def state_dict(self) -> dict[str, Any]:
        """As torch; step counts are copies, which later steps leave alone."""
        self.hear()
        saved = super().state_dict()
        saved["param_groups"] = [_with_floats(group, self.memory) for group in saved["param_groups"]]
        saved["state"] = {
            i: {k: v.clone() if k == "step" else v for k, v in state.items()} for i, state in saved["state"].items()
        }
        return saved

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_shared", SimpleNamespace())
        for name in ("_fed", "_stepper", "_ahead", "_twin", "_captured"):
            self.__dict__.setdefault(name, None)

    def __getstate__(self) -> dict[str, Any]:
        # a scheduler has put a `step` here that is bound to this instance: a copy must not move our parameters
        keep = {k: v for k, v in self.__dict__.items() if k not in ("step", LOCK) and not k.startswith("_optimizer_")}
        groups = [_with_floats(group, self.memory) for group in self.param_groups]
        own = dict.fromkeys(("_fed", "_stepper", "_ahead", "_twin", "_captured"))
        return {**keep, "param_groups": groups, **own}


def _with_floats(group: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A group whose memory may lie on an accelerator, with the numbers themselves."""
    return {**group, **{k: float(group[k]) for k in names if k in group}}
