"""What a number of weight decay does under a rule: `TrainingArguments.weight_decay` was meant for AdamW's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

#: what takes no more than so many times AdamW's share of a weight, and no less than one of so many, means the same
FACTOR = 2.0
#: steps after which the share is looked at: some rules only look at first gradients, or trust no variance of few
STEPS = 8


def differs(name: Any, hyper: Mapping[str, Any], lr: Any, weight_decay: Any) -> str | None:
    """A warning where this decay takes another share from weights than AdamW's, lr weight_decay; None where it does
    not, or where that cannot be seen: the rule is tried for some steps on a matrix whose gradient is zero.

    Args:
        name: a registered name; of others' classes nothing is tried.
        hyper: its hyper-parameters, without lr and weight_decay.
    """
    if not isinstance(name, str) or ":" in name or not all(isinstance(v, (int, float)) for v in (lr, weight_decay)):
        return None
    adamw = lr * weight_decay
    share = _share(name, {**hyper, "lr": lr, "weight_decay": weight_decay}) if adamw else None
    if share is None or adamw / FACTOR <= share <= adamw * FACTOR:
        return None
    return (
        f"TrainingArguments.weight_decay={weight_decay:g} is in force, and means something else to {name} than to "
        f"AdamW: at lr={lr:g} a step without gradients takes {share:.2g} of a weight, AdamW's {adamw:.2g} "
        f"(`hf-optim info {name}` says how; weight_decay=... gives another)"
    )


def _share(name: str, hyper: Mapping[str, Any]) -> float | None:
    """What a step takes of a matrix without gradients, in shares of it."""
    import torch
    from torch import nn

    from hf_optim import registry

    known = registry.info(name)
    if "evaluate" in known.needs:
        return None
    # Nothing is drawn at random (an empty model on "meta"); the last matrix would be taken for a head.
    layers = (nn.Linear(4, 4, bias=False, dtype=torch.float64, device="meta") for _ in "ab")
    model = nn.Sequential(*layers).to_empty(device="cpu")
    for p in model.parameters():
        p.data.fill_(1.0)
        p.grad = torch.zeros_like(p)
    weight: Any = model[0].weight
    own: dict[str, Any] = {"compile": False} if "compile" in known.options else {}
    log = logging.getLogger("hf_optim")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        opt: Any = registry.create(name, model, **hyper, **own)
        for _ in range(STEPS):
            before = weight.detach().clone()
            opt.step(loss=1.0) if known.needs else opt.step()
    except Exception:  # noqa: BLE001 - what is wrong with it is told where it is made in earnest
        return None
    finally:
        log.setLevel(level)
    return float(1 - weight.detach().mean() / before.mean())
