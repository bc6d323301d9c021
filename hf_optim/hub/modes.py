"""Optimizers with `train()` and `eval()`, which change what the parameters hold (Schedule-Free, whoever wrote it).

Trainer and Accelerate call both where they train and evaluate; here is what they leave out: whatever is saved,
loaded as the best, or left at the end of a training are the weights that are the answer.
"""

from __future__ import annotations

from typing import Any


def train(optimizer: Any) -> None:
    """Let the parameters hold what gradients are taken at, where the optimizer tells the two apart."""
    _call(optimizer, "train")


def evaluate(optimizer: Any) -> None:
    """Let the parameters hold the answer, where the optimizer tells the two apart."""
    _call(optimizer, "eval")


def holds(optimizer: Any) -> str | None:
    """ "average" or "iterate": what the parameters hold now; None where there is no difference, or nobody says."""
    group = optimizer.param_groups[0]
    if "holds_average" in group:
        return "average" if group["holds_average"] else "iterate"
    if isinstance(group.get("train_mode"), bool):  # the schedulefree package's
        return "iterate" if group["train_mode"] else "average"
    return None


def _call(optimizer: Any, name: str) -> None:
    method = getattr(optimizer, name, None)
    if callable(method):
        method()
