"""Which tensor a number of a checkpoint belongs to: by its name, where names are known, and never by luck.

A state dict numbers its tensors group by group. Another order of groups, or a tensor that changed its group, would hand
every following tensor the state of another one. Optimizers made from a model keep the names of their tensors in their
groups, and a checkpoint is turned into the order of the optimizer that loads it before anything moves. Checkpoints
without names (plain torch, release 0.1.0) are taken where their groups fit, or where they fit as that release would
have divided the same model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from hf_optim.core import validate
from hf_optim.errors import BadCheckpoint

log = logging.getLogger("hf_optim")

#: where a group keeps the names of its tensors; torch's own key serves as well
KEY = "hf_optim_names"
KEYS = (KEY, "param_names")
#: state of one number an element, as torch's classes and this library's call it
_ELEMENTWISE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "square_avg", "m", "v")


def name(optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str], earlier: list[list[str]]) -> None:
    """Write the names of an optimizer's tensors into its groups; checkpoints that it loads are matched by them.

    Args:
        names: of every tensor.
        earlier: the groups that release 0.1.0 would have made, by names.
    """
    for group in optimizer.param_groups:
        group[KEY] = [names[p] for p in group["params"]]
    optimizer.__dict__["_earlier_layout"] = earlier
    if "made_by" not in optimizer.param_groups[0]:  # those of this library do it themselves
        optimizer.register_load_state_dict_pre_hook(aligned)


def aligned(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict in the optimizer's own order of groups and tensors; itself where it is so already.

    Raises:
        BadCheckpoint: tensors are missing or left over, or belong to another model; nothing was changed.
    """
    groups = state_dict.get("param_groups") if isinstance(state_dict, dict) else None
    if not groups or not all(isinstance(group, dict) and "params" in group for group in groups):
        return state_dict
    mine = [_names(group) for group in optimizer.param_groups]
    if not all(mine):
        return state_dict
    saved = [_names(group) for group in groups]
    if not all(saved):
        current = _fits(optimizer, state_dict, mine)
        inner: Any = optimizer
        while hasattr(inner, "base"):
            inner = inner.base
        earlier = getattr(inner, "_earlier_layout", None)
        if current or earlier is None:
            return state_dict
        if not _fits(optimizer, state_dict, earlier):
            counts = [[len(g["params"]) for g in some] for some in (groups, optimizer.param_groups)]
            raise BadCheckpoint(
                f"the checkpoint has groups of {counts[0]} tensors without names, this optimizer {counts[1]}; "
                "it belongs to another model, or to groups divided in another way"
            )
        saved = earlier
    if saved == mine:
        return state_dict
    _same_names(mine, saved)
    return _turned(optimizer, state_dict, mine, saved)


def _names(group: Mapping[str, Any]) -> list[str]:
    names = group.get(KEY) or group.get("param_names") or []
    return list(names) if len(names) == len(group["params"]) else []


def _same_names(mine: Sequence[Sequence[str]], saved: Sequence[Sequence[str]]) -> None:
    have, had = ({n for names in some for n in names} for some in (mine, saved))
    for left, whose in ((have - had, "the checkpoint lacks"), (had - have, "this model lacks")):
        if left:
            some = ", ".join(sorted(left)[:3]) + (f" and {len(left) - 3} more" if len(left) > 3 else "")
            raise BadCheckpoint(
                f"{whose} the optimizer's state of {some}: it belongs to a model with other parameters; start without "
                "the optimizer's state, or train the same parameters"
            )


def _fits(optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any], layout: Sequence[Sequence[str]]) -> bool:
    """Whether a checkpoint without names may be one of this layout: counts, shapes, and which groups decay."""
    groups = state_dict["param_groups"]
    if [len(g["params"]) for g in groups] != [len(names) for names in layout]:
        return False
    params = {n: p for g in optimizer.param_groups for n, p in zip(_names(g), g["params"], strict=True)}
    now = {n: bool(g.get("weight_decay")) for g in optimizer.param_groups for n in _names(g)}
    then = [bool(g.get("weight_decay")) for g in groups]
    majority = [sum(now.get(n, False) for n in names) * 2 > len(names) for names in layout]
    if any(then) and any(majority) and then != majority:
        return False
    ids = [i for g in groups for i in g["params"]]
    for i, n in zip(ids, (n for names in layout for n in names), strict=True):
        if n not in params:
            return False
        for key, value in state_dict["state"].get(i, {}).items():
            if key in _ELEMENTWISE and isinstance(value, torch.Tensor) and value.shape != params[n].shape:
                return False
    return True


def _turned(
    optimizer: torch.optim.Optimizer,
    state_dict: Mapping[str, Any],
    mine: Sequence[Sequence[str]],
    saved: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """In the optimizer's order; a group's hyper-parameters come from the saved one that it shares most names with."""
    ids = dict(_pairs(state_dict["param_groups"], saved))
    groups = []
    for group, names in zip(optimizer.param_groups, mine, strict=True):
        shared = [len(set(names) & set(others)) for others in saved]
        best = shared.index(max(shared))
        new = {**state_dict["param_groups"][best], "params": [ids[n] for n in names], KEY: list(names)}
        if set(names) != set(saved[best]) and "weight_decay" in group:
            if not validate.equal(new.get("weight_decay"), group["weight_decay"]):
                log.warning(
                    "the checkpoint divided its parameters in another way: weight_decay = %g, of this optimizer, is in "
                    "force for %d tensors that start with %s",
                    float(group["weight_decay"]),
                    len(names),
                    names[0],
                )
            new["weight_decay"] = group["weight_decay"]
            opt_out = getattr(getattr(optimizer, "transform", None), "opt_out", "")
            new.pop(opt_out, None)
            new.update({opt_out: group[opt_out]} if opt_out in group else {})
        groups.append(new)
    log.info("the checkpoint's groups come in another order: matched by the names of their parameters")
    return {**state_dict, "param_groups": groups}


def _pairs(groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]) -> Iterator[tuple[str, Any]]:
    for group, own in zip(groups, names, strict=True):
        yield from zip(own, group["params"], strict=True)
