"""Rules that torch has, too: the gradient they start from, and checkpoints with which either goes on for the other."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.validate import FOREIGN_KEYS, defaults, equal
from hf_optim.errors import BadCheckpoint

log = logging.getLogger("hf_optim")

#: what a group of torch's says of how it runs, and what torch takes where nobody chose
EXECUTION = {"foreach": None, "fused": None, "capturable": False, "differentiable": False}


def start(h: SimpleNamespace, decoupled: bool = False) -> dict[str, Any]:
    """The scalars that `gradients` and a decoupled decay read: weight decay is an L2 term unless `decoupled`."""
    decays = h.weight_decay != 0
    numbers = {"maximize": h.maximize, "l2": decays and not decoupled, "decay": decays and decoupled}
    if decoupled:
        return {**numbers, "shrink": 1 - h.lr * h.weight_decay}
    return {**numbers, "weight_decay": float(h.weight_decay)}


def gradient(x: Any, g: Any, c: Any) -> Any:
    """What is averaged: -g with `maximize`, then with weight_decay x where the decay is an L2 term."""
    if c.maximize:
        g = g.neg()
    if c.l2:
        g = g.add(x, alpha=c.weight_decay)
    return g


def gradients(x: Any, g: Any, raw: Any, c: Any) -> tuple[Any, Any]:
    """`gradient` of what first and second moments see, once where they see the same."""
    first = gradient(x, g, c)
    return first, first if raw is g else gradient(x, raw, c)


class TorchRule(Optimizer):
    """Base of a rule that torch has, too, with the same names of slots and hyper-parameters.

    A checkpoint of torch's class is read without what it says of execution (`foreach`, `fused`, `capturable`,
    `differentiable`), with the state in this library's precision; ours is written with it, so that torch's class goes
    on with it.
    """

    #: what torch's class keeps in a group and this rule does not: names of EXECUTION, and what this rule fixes
    torch_keys: ClassVar[tuple[str, ...]] = tuple(EXECUTION)
    torch_fixed: ClassVar[dict[str, Any]] = {}
    #: hyper-parameters and fixed keys that torch's class did not have from the beginning
    torch_later: ClassVar[tuple[str, ...]] = ("maximize",)

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the group keys of torch's class."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            group.update({k: EXECUTION[k] for k in self.torch_keys} | self.torch_fixed)
        return saved

    def _translated(self, saved: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint of torch's class or ours as this rule would have it; any other as it is, to be refused."""
        if not all(self._ours(group) for group in saved["param_groups"]):
            return saved
        missing: set[str] = set()
        groups = [self._group(group, missing) for group in saved["param_groups"]]
        if missing:
            log.warning("%s: %s", self.rule, self._said(sorted(missing)))
        owners = {
            i: p
            for mine, group in zip(self.param_groups, groups, strict=False)
            for i, p in zip(group["params"], mine["params"], strict=False)
        }
        state = {i: self._entry(entry, owners.get(i)) for i, entry in saved["state"].items()}
        return {**saved, "state": state, "param_groups": groups}

    def _ours(self, group: dict[str, Any]) -> bool:
        """Whether a group is of this rule: by the name in it, or by the hyper-parameters of torch's class."""
        if "made_by" in group:
            return equal(group["made_by"], self.rule)
        wanted = {*self._names, *self.torch_fixed}
        beside = set(self.param_groups[0]) - wanted  # what wrappers around this rule keep
        names = set(group) - FOREIGN_KEYS - set(EXECUTION) - beside
        return names <= wanted <= names | set(self.torch_later)

    def _group(self, group: dict[str, Any], missing: set[str]) -> dict[str, Any]:
        for name, value in self.torch_fixed.items():
            if name not in group and "made_by" not in group:
                missing.add(name)
            elif not equal(group.get(name, value), value):
                raise BadCheckpoint(
                    f"{self.rule}: the checkpoint has {name} = {group[name]!r}, which here is {value!r}: "
                    "it is another rule's"
                )
        missing |= {name for name in self._names if name not in group}
        known = defaults(type(self))
        kept = {k: v for k, v in group.items() if k not in EXECUTION and k not in self.torch_fixed}
        return {**{k: known[k] for k in self._names}, **kept, "made_by": self.rule}

    def _said(self, missing: list[str]) -> str:
        """One line of what an old checkpoint leaves open."""
        known = defaults(type(self)) | self.torch_fixed
        line = f"the checkpoint says nothing of {', '.join(f'{k} ({known[k]!r} is taken)' for k in missing)}"
        if "decoupled_weight_decay" in missing:
            line += "; Adam's and AdamW's cannot be told apart without it: make sure that it is the one of this name"
        return line

    def _entry(self, entry: dict[str, Any], p: torch.Tensor | None) -> dict[str, Any]:
        """One parameter's state. SGD counts no steps: where it has averaged, one or more were taken."""
        state = {k: v for k, v in entry.items() if v is not None}
        if not state:
            return state
        for name in ("step", *self.scalar_slots):
            value = state.get(name, 1.0)
            if isinstance(value, (int, float, torch.Tensor)):  # else it is refused in words
                state[name] = torch.as_tensor(value, dtype=torch.float32).detach().cpu()
        for name in self.slots:
            value = state.get(name)
            if p is not None and isinstance(value, torch.Tensor) and value.dtype is p.dtype:
                state[name] = value.to(self.state_dtype or self._compute_dtype(p))
        return state
