"""What a backend or an argument would make silently wrong, refused or warned about in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hf_optim.errors import UserError
from hf_optim.hub.feed import needs


def refuse(accelerator: Any, optimizer: Any, name: str, closure: bool = False) -> None:
    """Raise where this run cannot give the rule what it needs.

    Args:
        closure: whether every step is given one.

    Raises:
        UserError: DeepSpeed or FSDP1 with a rule that needs the loss or looks at whole tensors; DeepSpeed with its
            optimizer's offload; fp16 loss scaling with a rule that evaluates the loss, or its gradient, again.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type)).upper()
    wanted = needs(optimizer) | ({"closure"} if closure else set())
    if kind == "DEEPSPEED" and (wanted or _looks_across(optimizer)):
        reason = f"needs the {' and the '.join(sorted(wanted))}" if wanted else "reads whole tensors"
        raise UserError(f"{name} {reason}, and DeepSpeed steps inside its own engine on flat shards: use DDP or FSDP2")
    if kind == "DEEPSPEED" and _replaced(accelerator, optimizer):
        raise UserError(
            f"{name} would not run: under DeepSpeed's offload_optimizer, accelerate puts DeepSpeedCPUAdam in its place "
            "with nothing but its lr and weight_decay: leave offload_optimizer out, or set "
            "zero_force_ds_cpu_optimizer to false"
        )
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if kind == "FSDP" and getattr(plugin, "fsdp_version", 1) == 1 and (wanted or _looks_across(optimizer)):
        reason = "needs the loss and whole tensors" if wanted else "reads whole tensors"
        raise UserError(f"{name} {reason}, and FSDP1 hands out flat pieces of them: use fsdp_version 2 or DDP")
    if "evaluate" in wanted and getattr(accelerator, "scaler", None) is not None:
        raise UserError(f"{name} re-evaluates the loss, which fp16 loss scaling makes wrong: use bf16")
    if closure and getattr(accelerator, "scaler", None) is not None:
        raise UserError(f"{name} steps with a closure, whose gradients fp16 loss scaling would leave scaled: use bf16")


def tell_skips(accelerator: Any, optimizer: Any) -> None:
    """A step that fp16 loss scaling skips is told as skipped, so that schedules wait, whatever the optimizer.

    torch's fused optimizers take the scale into their own kernels and are stepped even when nothing moves, and then
    Accelerate counts a step; the others are left out.
    """
    while optimizer is not None and getattr(accelerator, "scaler", None) is not None:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer._step_supports_amp_scaling = False
        optimizer = getattr(optimizer, "base", None)


def _replaced(accelerator: Any, optimizer: Any) -> bool:
    """Whether accelerate takes another optimizer than this one: it knows torch's Adam, AdamW and Adagrad and those of
    bitsandbytes, and has DeepSpeed's own in their place; anything else becomes Adam."""
    from torch import optim

    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    config = getattr(plugin, "deepspeed_config", None) or {}
    offload = config.get("zero_optimization", {}).get("offload_optimizer") or {}
    forced = offload.get("device", "none") != "none" and config.get("zero_force_ds_cpu_optimizer", True)
    known = isinstance(optimizer, optim.Adam | optim.AdamW | optim.Adagrad)
    return bool(forced) and not known and not type(optimizer).__module__.startswith("bitsandbytes")


def _looks_across(optimizer: Any) -> bool:
    """Whether the rule reads more than one element at a time, so that a piece of a tensor is not enough."""
    if getattr(optimizer, "base", None) is not None or getattr(optimizer, "transform", None) is not None:
        return True
    if getattr(optimizer, "whole", False):  # matrices
        return True
    measures = getattr(optimizer, "measures", None)
    return measures is not None and bool(measures(SimpleNamespace(**optimizer.param_groups[0])))


def clipping(optimizer: Any, name: str, closure: bool = False) -> str | None:
    """What clipping the gradient does to a rule that it breaks: its step size divides the loss by the gradient's own
    norm, or its closure returns the loss that the gradient should be of."""
    if closure:
        return f"shortens the gradients of {name}'s closure, which are then not those of the loss that it returns"
    if getattr(optimizer, "no_transform", "") or getattr(optimizer, "no_clipping", ""):
        return f"shortens the gradient that {name} divides the loss by, and makes its steps too long"
    return None
