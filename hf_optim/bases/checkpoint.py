"""A checkpoint of another rule, another structure or another model is refused in words, before anything changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol

import torch

from hf_optim.errors import BadCheckpoint

log = logging.getLogger("hf_optim")


class Holder(Protocol):
    """What of an optimizer its checkpoints are held against."""

    param_groups: list[dict[str, Any]]
    state: Any
    choices: ClassVar[dict[str, tuple[Any, ...]]]
    structural: ClassVar[tuple[str, ...]]
    slots: ClassVar[dict[str, float | str]]
    optional_slots: ClassVar[dict[str, tuple[str, Any]]]
    scalar_slots: ClassVar[dict[str, float]]
    _names: tuple[str, ...]

    @property
    def rule(self) -> str: ...


def check(opt: Holder, state_dict: dict[str, Any]) -> None:
    """Raise BadCheckpoint if `state_dict` is not one of this rule with this structure."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise BadCheckpoint(f"{opt.rule}: not an optimizer state dict (it needs 'state' and 'param_groups')")
    groups = state_dict["param_groups"]
    for mine, saved in zip(opt.param_groups, groups, strict=False):
        rule = saved.get("made_by")
        if rule != opt.rule:
            keys = ", ".join(sorted(set(saved) - {"params"}))
            other = f"rule {rule!r}" if rule else f"another optimizer (its groups have {keys})"
            raise BadCheckpoint(
                f"this checkpoint was written by {other}, not by {opt.rule!r}: "
                "create the optimizer it names, or start without its state"
            )
        for name in (*opt.choices, *opt.structural):
            if saved.get(name) != mine[name]:
                raise BadCheckpoint(
                    f"{opt.rule}: the checkpoint has {name} = {saved.get(name)!r}, this optimizer "
                    f"{mine[name]!r}; they must agree"
                )
        slots = [set(opt._slots({**mine, **own})) for own in ({}, saved)]
        for name in sorted(slots[0] ^ slots[1]):
            switch = opt.optional_slots[name][0]
            raise BadCheckpoint(
                f"{opt.rule}: the checkpoint has {switch} = {saved[switch]!r}, this optimizer {mine[switch]!r}: only "
                f"one of them keeps {name}; they must agree"
            )
        changed = [
            k
            for k in opt._names
            if k in saved
            and k != "lr"
            and saved[k] != mine[k]
            and not (isinstance(saved[k], Iterable) and list(saved[k]) == list(mine[k]))
        ]
        if changed:
            log.warning(
                "%s: the checkpoint's %s replace those of the constructor",
                opt.rule,
                ", ".join(f"{k} = {saved[k]!r} (was {mine[k]!r})" for k in changed),
            )
    mine_counts, saved_counts = [[len(g["params"]) for g in gs] for gs in (opt.param_groups, groups)]
    if mine_counts != saved_counts:
        raise BadCheckpoint(
            f"{opt.rule}: the checkpoint has parameter groups of {saved_counts} tensors, this optimizer {mine_counts}"
        )
    for p, saved_state in _pairs(opt, state_dict):
        for name in opt.slots:
            value = saved_state.get(name)
            if isinstance(value, torch.Tensor) and value.shape != p.shape:
                raise BadCheckpoint(
                    f"{opt.rule}: the checkpoint's {name} has shape {tuple(value.shape)}, "
                    f"its parameter {tuple(p.shape)}: it belongs to another model"
                )


def _pairs(opt: Holder, state_dict: dict[str, Any]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Every parameter with the state that was saved of it."""
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in opt.param_groups for p in group["params"]]
    for i, p in zip(ids, params, strict=True):
        yield p, state_dict["state"].get(i, {})


def copy_states(opt: Holder, state_dict: dict[str, Any]) -> None:
    """Own copies of the states in their own precision: torch casts to the parameter's, and may alias."""
    for p, saved_state in _pairs(opt, state_dict):
        for name, value in saved_state.items():
            if isinstance(value, torch.Tensor):
                scalar = name == "step" or name in opt.scalar_slots
                opt.state[p][name] = value.detach().to(value.device if scalar else p.device, copy=True)
