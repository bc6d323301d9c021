"""A small run of each of torch's classes, and its checkpoints under tests/fixtures/torch_checkpoints.

    python tests/stock.py           write them anew

Each file holds the optimizer's state dict and the parameters after STEPS steps, the parameters after as many more, and
torch's version. What is there says how checkpoints of that version look.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent / "fixtures" / "torch_checkpoints"
SHAPES = ((3, 4), (5,), ())
STEPS = 3
#: file's stem -> torch's class, its arguments; the second parameter group has half the rate
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.01}),
    "sgdm": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adagrad": ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    "rmsprop": ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True, "weight_decay": 0.1}),
    "adam": ("Adam", {"lr": 0.01, "weight_decay": 0.1, "maximize": True}),
    "amsgrad": ("Adam", {"lr": 0.01, "amsgrad": True, "betas": (0.5, 0.6)}),
    "adamw": ("AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "radam": ("RAdam", {"lr": 0.01, "betas": (0.5, 0.8), "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "nadam": ("NAdam", {"lr": 0.01, "momentum_decay": 0.1}),
}


def start() -> list[torch.nn.Parameter]:
    """Parameters before the first step, in float64."""
    return [torch.nn.Parameter(_wave(shape, 0.5 + i)) for i, shape in enumerate(SHAPES)]


def gradients(t: int) -> list[torch.Tensor | None]:
    """Gradients of step t = 1, 2, ...; the last parameter's first one comes with step 2."""
    return [_wave(s, 10.0 * t + i) if (t, s) != (1, ()) else None for i, s in enumerate(SHAPES)]


def _wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    values = [math.sin(phase + 0.7 * k) for k in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def groups(params: list[torch.nn.Parameter], rate: float) -> list[dict[str, Any]]:
    """The parameter groups of every case."""
    return [{"params": params[:2]}, {"params": params[2:], "lr": rate / 2}]


def walk(opt: torch.optim.Optimizer, params: list[torch.nn.Parameter], first: int, last: int) -> None:
    """Steps `first` to `last`."""
    for t in range(first, last + 1):
        for p, g in zip(params, gradients(t), strict=True):
            p.grad = g
        opt.step()


def theirs(stem: str, params: list[torch.nn.Parameter], **extra: Any) -> torch.optim.Optimizer:
    """torch's optimizer of a case."""
    name, hyper = CASES[stem]
    return getattr(torch.optim, name)(groups(params, hyper["lr"]), **hyper, **extra)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for stem in CASES:
        params = start()
        opt = theirs(stem, params)
        walk(opt, params, 1, STEPS)
        checkpoint: dict[str, Any] = {"torch": str(torch.__version__), "optimizer": copy.deepcopy(opt.state_dict())}
        checkpoint["parameters"] = [p.detach().clone() for p in params]
        walk(opt, params, STEPS + 1, 2 * STEPS)
        checkpoint["later"] = [p.detach().clone() for p in params]
        torch.save(checkpoint, FOLDER / f"{stem}.pt")


if __name__ == "__main__":
    main()
