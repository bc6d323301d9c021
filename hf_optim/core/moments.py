"""Numbers of a step that many papers share: two averages with their bias corrections, and a decoupled decay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def adam(lr: float, betas: tuple[float, float], eps: float, t: int) -> dict[str, Any]:
    """What m = beta1 m + w1 g, v = beta2 v + w2 g^2 and x = x - step m / (sqrt(v) unbias + eps) read: Adam's step, with
    m / (1 - beta1^t) in `step` and v / (1 - beta2^t) in `unbias`."""
    beta1, beta2 = betas
    return {
        "w1": 1 - beta1,
        "beta2": beta2,
        "w2": 1 - beta2,
        "eps": eps,
        "unbias": (1 - beta2**t) ** -0.5,
        "step": lr / (1 - beta1**t),
    }


def decoupled(h: SimpleNamespace) -> dict[str, Any]:
    """What x = x shrink, done if `decay`, reads: x (1 - lr weight_decay)."""
    return {"decay": h.weight_decay != 0, "shrink": 1 - h.lr * h.weight_decay}
