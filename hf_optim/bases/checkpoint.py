"""A checkpoint of another rule, another structure or another model is refused in words, before anything changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch

from hf_optim.bases import parameter_names, saved_form
from hf_optim.core import validate
from hf_optim.errors import BadCheckpoint

log = logging.getLogger("hf_optim")


class Holder(Protocol):
    """What of an optimizer its checkpoints are held against."""

    param_groups: list[dict[str, Any]]
    state: Any
    choices: ClassVar[dict[str, tuple[Any, ...]]]
    structural: ClassVar[tuple[str, ...]]
    slots: ClassVar[dict[str, float | str]]
    memory: ClassVar[dict[str, float | str]]
    kept: ClassVar[dict[str, str]]
    counted: ClassVar[dict[str, tuple[float, float]]]
    shared: ClassVar[tuple[str, ...]]
    optional_slots: ClassVar[dict[str, tuple[str, Any]]]
    scalar_slots: ClassVar[dict[str, float]]
    _names: tuple[str, ...]

    @property
    def rule(self) -> str: ...

    def _slots(self, group: dict[str, Any]) -> list[str]: ...

    def _sides(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, tuple[int, ...]]: ...


def form(rule: str, state_dict: Any) -> None:
    """Raise BadCheckpoint unless this is an optimizer's state dict: groups with parameters, states by parameter."""
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= set(state_dict):
        raise BadCheckpoint(f"{rule}: not an optimizer state dict (it needs 'state' and 'param_groups')")
    groups, state = state_dict["param_groups"], state_dict["state"]
    fine = isinstance(groups, list) and all(isinstance(g, dict) and isinstance(g.get("params"), list) for g in groups)
    if not fine or not isinstance(state, Mapping) or not all(isinstance(entry, Mapping) for entry in state.values()):
        raise BadCheckpoint(f"{rule}: a damaged state dict: its groups or states are not mappings")
    for entries in (*groups, *state.values()):
        for value in entries.values():
            saved_form.plain(rule, value)
    names = [name for group in groups for name in group["params"]]
    if not all(isinstance(name, (int, str)) for name in names) or len(set(names)) < len(names):
        raise BadCheckpoint(f"{rule}: a damaged state dict: its parameters are not named, each once")
    for group in groups:
        for key in (key for key in (*parameter_names.KEYS, "wrapped_by") if group.get(key) is not None):
            named = group[key]
            texts = isinstance(named, (list, tuple)) and all(isinstance(n, str) for n in named)
            if not texts or (key == "param_names" and len(named) != len(group["params"])):
                raise BadCheckpoint(f"{rule}: a damaged state dict: {key} is not a list of texts, one for each")


def prepared(opt: Holder, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict in this optimizer's order, with every hyper-parameter it needs; nothing is changed in place.

    Raises:
        BadCheckpoint: another rule, structure or model has written it.
    """
    form(opt.rule, state_dict)
    groups = [_of_this_rule(opt, group) for group in state_dict["param_groups"]]
    state_dict = parameter_names.aligned(opt, {**state_dict, "param_groups": groups})
    groups = state_dict["param_groups"]
    mine_counts, saved_counts = [[len(g["params"]) for g in gs] for gs in (opt.param_groups, groups)]
    if mine_counts != saved_counts:
        raise BadCheckpoint(
            f"{opt.rule}: the checkpoint has parameter groups of {saved_counts} tensors, this optimizer {mine_counts}"
        )
    complete = [
        {**{k: mine[k] for k in (*opt._names, *opt.kept) if k not in saved}, **saved}
        for mine, saved in zip(opt.param_groups, groups, strict=True)
    ]
    for mine, saved, group in zip(opt.param_groups, groups, complete, strict=True):
        saved_form.kinds(opt.rule, {k: v for k, v in mine.items() if k not in opt._names}, saved)
        saved_form.values(opt, group)
        numbers = {k: group[k].item() for k in opt._names if k != "lr" and isinstance(group[k], torch.Tensor)}
        group.update(numbers)  # as which rules calculate with them; a schedule may write into the rate's tensor
    for name in opt.shared:
        if not all(validate.equal(group[name], complete[0][name]) for group in complete):
            raise BadCheckpoint(f"{opt.rule}: the checkpoint's groups have several {name}, which must be equal in all")
    for mine, saved in zip(opt.param_groups, complete, strict=True):
        for name in sorted(set(opt._slots(mine)) ^ set(opt._slots(saved))):
            switch = opt.optional_slots[name][0]
            raise BadCheckpoint(
                f"{opt.rule}: the checkpoint has {switch} = {saved[switch]!r}, this optimizer {mine[switch]!r}: only "
                f"one of them keeps {name}; they must agree"
            )
    of_group = [group for group in complete for _ in group["params"]]
    for group, (p, saved_state) in zip(of_group, _pairs(opt, state_dict), strict=True):
        saved_form.state(opt, p, group, saved_state)
    _say(opt, groups, complete)
    return {**state_dict, "param_groups": complete}


def _of_this_rule(opt: Holder, saved: dict[str, Any]) -> dict[str, Any]:
    """A saved group as it is, once it is known to be of this rule and this structure."""
    rule = saved.get("made_by")
    if not validate.equal(rule, opt.rule):
        keys = ", ".join(sorted(set(saved) - {"params"}))
        other = f"rule {rule!r}" if isinstance(rule, str) else f"another optimizer (its groups have {keys})"
        raise BadCheckpoint(
            f"this checkpoint was written by {other}, not by {opt.rule!r}: "
            "create the optimizer it names, or start without its state"
        )
    mine, defaults = opt.param_groups[0], validate.defaults(type(opt))
    for name in (*opt.choices, *opt.structural):
        then = saved.get(name, defaults[name])  # an option added since: what it did before is its default
        if not validate.equal(then, mine[name]):
            raise BadCheckpoint(
                f"{opt.rule}: the checkpoint has {name} = {then!r}, this optimizer {mine[name]!r}; they must agree"
            )
    return saved


def _say(opt: Holder, groups: list[dict[str, Any]], complete: list[dict[str, Any]]) -> None:
    """What the checkpoint replaces, and what it lacks."""
    lines: dict[str, None] = {}
    for mine, saved, full in zip(opt.param_groups, groups, complete, strict=True):
        changed = [
            (k, saved[k], mine[k])
            for k in opt._names
            if k in saved and k != "lr" and not validate.equal(saved[k], mine[k])
        ]  # fmt: skip
        now, then = mine.get("initial_lr", mine.get("lr")), saved.get("initial_lr", saved.get("lr"))
        if then is not None and not validate.equal(then, now):
            changed.append(("lr", then, now))
        if changed:
            lines["the checkpoint's {} replace those of the constructor".format(
                ", ".join(f"{k} = {new!r} (was {old!r})" for k, new, old in changed)
            )] = None  # fmt: skip
        added = [k for k in opt._names if k not in saved]
        if added:
            lines["the checkpoint lacks {}: this optimizer's own hold".format(
                ", ".join(f"{k} (now {full[k]!r})" for k in added)
            )] = None  # fmt: skip
    for line in lines:
        log.warning("%s: %s", opt.rule, line)


def _pairs(opt: Holder, state_dict: dict[str, Any]) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """Every parameter with the state that was saved of it."""
    ids = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in opt.param_groups for p in group["params"]]
    for i, p in zip(ids, params, strict=True):
        yield p, state_dict["state"].get(i, {})


def copy_states(opt: Holder, state_dict: dict[str, Any]) -> None:
    """Own copies of the states in their own precision and in the parameter's layout: torch casts to the parameter's
    precision, keeps the checkpoint's layout, and may alias."""
    for p, saved_state in _pairs(opt, state_dict):
        for name, value in saved_state.items():
            if name == "step" and not isinstance(value, torch.Tensor):  # older checkpoints of torch count in numbers
                shape = () if any(k in saved_state for k in opt.slots) else (1,)
                opt.state[p][name] = torch.full(shape, float(value), dtype=torch.float32, device="cpu")
            elif isinstance(value, torch.Tensor):
                scalar = name == "step" or name in opt.scalar_slots
                device = value.device if scalar else p.device
                own = value.detach().to(device, copy=True)
                if not scalar and own.shape == p.shape and own.stride() != p.stride():
                    own = torch.empty_like(p, dtype=own.dtype).copy_(own)
                opt.state[p][name] = own
