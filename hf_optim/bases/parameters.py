"""What cannot be optimised is refused where it is handed over, with its reason, and not in the middle of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_optim.core import validate
from hf_optim.core.reduce import local
from hf_optim.engine.passes import flat
from hf_optim.errors import MissingLoss, UserError, one_line


def check_parameters(rule: str, params: Iterable[Tensor], others: Iterable[Tensor]) -> None:
    """Raise a UserError for parameters that no rule here can move; `others` are those of the groups before. What is
    frozen is handed over, and never moved: it may be anything.
    """
    params, others = [p for p in params if p.requires_grad], [p for p in others if p.requires_grad]
    for p in params:
        shown = f"{rule}: a parameter of shape {tuple(p.shape)}"
        if why := validate.unmovable(p):
            raise UserError(f"{shown} {why}")
        if p.is_inference():
            raise UserError(f"{shown} was made in inference mode, in which nothing is trained: make it outside")
        if _lost(p):
            raise UserError(
                f"{shown} is on the meta device, where it has no numbers, and to_empty() or loading puts others in its "
                "place: materialise the model first, then make its optimizer"
            )
        if p.layout is torch.strided and p.numel() and flat(local(p)) is None:
            raise UserError(f"{shown} has gaps or overlaps in memory; replace it by p.contiguous()")
    _apart(rule, [*others, *params])


def check_any(rule: str, params: Iterable[Tensor]) -> None:
    """Raise a UserError if a step could move none of them, now or later; where there are none, that is for torch."""
    params = list(params)
    if not params or any(not validate.unmovable(p) and (p.numel() or _elsewhere(p)) for p in params):
        return
    p = params[0]
    why = validate.unmovable(p) or "has no elements"
    several = "" if len(params) == 1 else f", and of the {len(params)} that were given no other can be moved either"
    raise UserError(f"{rule}: there is nothing to optimise: a tensor of shape {tuple(p.shape)} {why}{several}")


def _lost(p: Tensor) -> bool:
    """Whether a parameter is on the meta device and will be another object when it has numbers. A shard (FSDP2's, a
    tensor of a class of its own) stays the same, and so does every parameter where torch swaps them.
    """
    plain = type(p) in (Tensor, torch.nn.Parameter)
    return p.is_meta and plain and not torch.__future__.get_swap_module_params_on_conversion()


def _elsewhere(p: Tensor) -> bool:
    """Whether an empty tensor may stand for elements that other processes or DeepSpeed's ZeRO keep."""
    return hasattr(p, "ds_id") or (torch.distributed.is_available() and torch.distributed.is_initialized())


def _apart(rule: str, params: list[Tensor]) -> None:
    """Raise a UserError for two parameters that hold the same memory, which a step would move twice."""
    spans = []
    for p in {id(p): p for p in params}.values():
        if type(p) in (Tensor, torch.nn.Parameter) and p.layout is torch.strided and p.numel() and not p.is_meta:
            spans.append((p.device.index or 0, p.data_ptr(), p.numel() * p.element_size(), tuple(p.shape)))
    spans.sort(key=lambda span: span[:3])
    for (device, start, size, shape), (other, after, _, later) in zip(spans, spans[1:], strict=False):
        if device == other and start and after < start + size:
            raise UserError(
                f"{rule}: parameters of shapes {shape} and {later} share memory, which a step would move twice: "
                "give one of them, or clone() the other"
            )


def check_step(rule: str, groups: Iterable[Mapping[str, Any]], names: Iterable[str]) -> None:
    """Raise a UserError for a step that would spoil what it moves: a rate that is not finite, another of the
    hyper-parameters `names` that is NaN, or inference mode."""
    if torch.is_inference_mode_enabled():
        raise UserError(f"{rule}: step() within torch.inference_mode(), whose state no later step could use")
    for i, group in enumerate(groups):
        for name in names:
            value = group.get(name)
            some = value if isinstance(value, (tuple, list)) else (value,)
            if any(v != v for v in some if isinstance(v, float)):
                raise _unusable(rule, name, i, value)
        rate = group.get("lr", 0.0)
        if isinstance(rate, Tensor):
            fine = rate.numel() == 1 and not rate.is_meta and not rate.is_complex() and math.isfinite(rate)
        else:
            fine = hasattr(rate, "__float__") and abs(rate) < math.inf
        if not fine:
            raise _unusable(rule, "lr", i, rate)


def check_idle(rule: str, groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise MissingLoss for a step without the loss that it needs, but for the one with rates and gradients of zero by
    which torch's distributed checkpointing makes state."""
    for group in groups:
        if float(group["lr"]) != 0 or any(p.grad is not None and local(p.grad).any() for p in group["params"]):
            raise MissingLoss(
                f"{rule} needs the loss of the batch: call step(loss=loss) or step(closure); "
                "in transformers.Trainer use hf_optim.attach(trainer, ...), "
                "in an Accelerate loop hf_optim.Session, with every optimizer of the loss"
            )


def _unusable(rule: str, name: str, group: int, value: Any) -> UserError:
    return UserError(
        f"{rule}: {name} of parameter group {group} is {value} (a schedule or a callback sets it): nothing was moved"
    )


def called(rule: str, closure: Any) -> Any:
    """What the closure returns; a `UserError` for a loss in its place, as in `step(loss)`."""
    if not callable(closure):
        raise UserError(
            f"{rule}: what step() takes first is a closure, not a {type(closure).__name__}; a loss goes by its name: "
            "step(loss=loss)"
        )
    return closure()


def number(rule: str, loss: Any) -> float:
    """The loss as a number; a `UserError` for what is none, or many."""
    one = isinstance(loss, torch.Tensor) and loss.numel() == 1
    if not one and (isinstance(loss, torch.Tensor) or not hasattr(loss, "__float__")):
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else repr(loss)
        raise UserError(f"{rule}: the loss must be one number or a tensor of one, got {got}")
    try:
        return float(loss.detach()) if one else float(loss)
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:  # complex, on the meta device, 10**400
        raise UserError(f"{rule}: the loss must be one number: {one_line(error)}") from None
