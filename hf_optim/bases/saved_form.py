"""Whether a state dict has the form that its rule steps with: what is damaged is refused before anything changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hf_optim.core import validate
from hf_optim.engine import int8_codes
from hf_optim.engine.passes import flat
from hf_optim.errors import BadCheckpoint, UserError

#: values within one of a group or a state; lists of names have one for each parameter
MOST_VALUES = 1_000_000


def plain(rule: str, value: Any) -> None:
    """Raise BadCheckpoint for a value of more values than any rule keeps: a list within itself, thirty times over, has
    some hundred bytes in a file and no end where it is copied or printed. Nor does any keep a tensor that is not dense
    or of complex numbers, or a whole number beyond 64 bits.
    """
    left, waiting = MOST_VALUES, [value]
    while waiting and left and len(waiting) <= MOST_VALUES:
        entry = waiting.pop()
        left -= 1
        if isinstance(entry, Mapping):
            waiting += (*entry, *entry.values())
        elif isinstance(entry, (list, tuple, set, frozenset)):
            waiting += entry
        elif isinstance(entry, torch.Tensor) and (
            entry.layout is not torch.strided
            or entry.is_meta
            or entry.is_nested
            or entry.is_quantized
            or entry.is_complex()
        ):
            kind = "on the meta device, without numbers" if entry.is_meta else "sparse, nested, quantised or complex"
            raise BadCheckpoint(f"{rule}: a damaged state dict: one of its tensors is {kind}")
        elif isinstance(entry, int) and not -(2**63) <= entry < 2**64:
            raise BadCheckpoint(f"{rule}: a damaged state dict: one of its whole numbers has more than 64 bits")
    if waiting:
        raise BadCheckpoint(f"{rule}: a damaged state dict: one of its values holds more than {MOST_VALUES:,} others")


def values(opt: Any, group: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint unless a saved group has every hyper-parameter and all that a step reads beside them, each of
    its kind and in its range.
    """
    names = [name for name in (*opt._names, *opt.memory, *opt.kept, *opt.counted) if name not in group]
    if names:
        raise BadCheckpoint(f"{opt.rule}: the checkpoint's groups have no {names[0]}")
    try:
        given = {name: group[name] for name in opt._names}
        validate.values(opt.rule, given, validate.defaults(type(opt)), opt.choices, opt.bounds)
    except UserError as error:
        raise BadCheckpoint(f"the checkpoint cannot be used: {error}") from None
    for name in (*opt.memory, *opt.kept, *({"initial_lr", "skipped_steps"} & set(group))):
        if isinstance(group[name], bool) or not isinstance(group[name], (int, float)):
            raise BadCheckpoint(f"{opt.rule}: the checkpoint's {name} is no number: {str(group[name])[:40]}")
    for name, (least, most) in opt.counted.items():
        if not least <= group[name] <= most:
            raise BadCheckpoint(f"{opt.rule}: the checkpoint's {name} is none that a group counts: {group[name]}")


def kinds(rule: str, mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint unless what is a number or a switch in a group of this optimizer is one as saved, too."""
    for name in (name for name in mine if name in saved and isinstance(mine[name], (int, float))):
        value, switch = saved[name], isinstance(mine[name], bool)
        value = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        fits = isinstance(value, bool) == switch and isinstance(value, (int, float))
        if not fits or (math.isfinite(mine[name]) and not math.isfinite(value)):
            kind = "neither True nor False" if switch else "no number"
            raise BadCheckpoint(f"{rule}: the checkpoint's {name} is {kind}: {str(value)[:40]}")


def counts(rule: str, memory: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint unless what a wrapper begins as a whole number, which counts, is one as saved, too."""
    for name in (name for name, first in memory.items() if type(first) is int and name in saved):
        if not 0 <= saved[name] < 2**53 or saved[name] % 1:
            raise BadCheckpoint(f"{rule}: the checkpoint's {name} is no count: {str(saved[name])[:40]}")


def beside(
    rule: str, p: torch.Tensor, saved: Mapping[str, Any], tensors: Iterable[str], scalars: Iterable[str]
) -> None:
    """Raise BadCheckpoint unless those of a wrapper's `tensors` that are saved have the parameter's shape, and its
    `scalars` one number."""
    for name in (name for name in tensors if name in saved):
        value = saved[name]
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype.itemsize < 2:
            raise BadCheckpoint(f"{rule}: the checkpoint's {name} is no tensor of numbers")
        if name in scalars and value.numel() != 1:
            raise BadCheckpoint(f"{rule}: the checkpoint's {name} is not one number")
    _shapes(rule, p, saved, (name for name in tensors if name not in scalars))


def state(opt: Any, p: torch.Tensor, group: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint unless the saved state of `p` is none, or whole and of its shape."""
    if not saved:
        return
    slots = [name for name in opt._slots(group) if name in saved or name not in opt.optional_slots]
    counts = saved.get("step")  # a number where others have written it, as in torch
    if isinstance(counts, (int, float)) and not isinstance(counts, bool):
        saved = {**saved, "step": torch.tensor(float(counts), dtype=torch.float64)}
    for name in ("step", *opt.scalar_slots, *slots):
        if not isinstance(saved.get(name), torch.Tensor) or not (saved[name].is_floating_point() or name in slots):
            raise BadCheckpoint(f"{opt.rule}: the checkpoint's {name} is missing, or no tensor of numbers")
    for name in ("step", *opt.scalar_slots):
        if saved[name].numel() != 1:
            raise BadCheckpoint(f"{opt.rule}: the checkpoint's {name} is not one number")
    if not 0 <= float(saved["step"]) < 2**53:
        raise BadCheckpoint(f"{opt.rule}: the checkpoint counts {float(saved['step'])} steps")
    _shapes(opt.rule, p, saved, (*opt.slots, "compensation", "y"))  # "y": of hf_optim.bases.averaged
    for name, shape in opt._sides(p, group).items():
        value = saved.get(name)
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.shape != shape:
            raise BadCheckpoint(f"{opt.rule}: the checkpoint's {name} is missing, or no tensor of shape {shape}")
    for name in slots:
        _codes(opt, p, name, saved)


def _codes(opt: Any, p: torch.Tensor, name: str, saved: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint unless a slot is in int8 where this optimizer keeps it so, with its scales."""
    value, kind = saved.get(name), opt.kept_as(name, p)
    if value is None:
        return
    if kind is None and value.is_floating_point():
        return
    if value.dtype is not kind:
        mine, its = (str(d).removeprefix("torch.") for d in (kind or "full precision", value.dtype))
        raise BadCheckpoint(
            f"{opt.rule}: the checkpoint keeps {name} in {its}, this optimizer in {mine}: create it with the "
            "state_dtype of the run that wrote it"
        )
    scales = saved.get(name + int8_codes.SCALE)
    shape = (int8_codes.blocks(p.numel()),)
    if not isinstance(scales, torch.Tensor) or (scales.dtype, scales.shape) != (torch.float32, shape):
        raise BadCheckpoint(f"{opt.rule}: the checkpoint's {name} lacks the scales of its blocks")
    if flat(value, p) is None:
        raise BadCheckpoint(f"{opt.rule}: the checkpoint keeps {name} in int8 for another memory format of the model")


def _shapes(rule: str, p: torch.Tensor, saved: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        value = saved.get(name)
        if isinstance(value, torch.Tensor) and value.shape != p.shape:
            raise BadCheckpoint(
                f"{rule}: the checkpoint's {name} has shape {tuple(value.shape)}, its parameter {tuple(p.shape)}: "
                "it belongs to another model"
            )
