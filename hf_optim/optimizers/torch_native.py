"""torch's own optimizers by name, fused where the device can, with the `step` of this library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: name -> class, what the name fixes, its defaults (torch's), state slots an element, and where to search
PRESETS: dict[str, dict[str, Any]] = {
    "sgd": {
        "of": "SGD",
        "fixed": {},
        "slots": 0,
        "paper": "Robbins and Monro 1951",
        "defaults": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
        "search_space": {"lr": ("log", 1e-3, 1.0), "weight_decay": ("log", 1e-5, 1e-2)},
    },
    "sgdm": {
        "of": "SGD",
        "fixed": {"momentum": 0.9},
        "slots": 1,
        "paper": "Polyak 1964",
        "defaults": {"lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False},
        "search_space": {"lr": ("log", 1e-4, 1.0), "weight_decay": ("log", 1e-5, 1e-2)},
    },
    "nesterov": {
        "of": "SGD",
        "fixed": {"momentum": 0.9, "nesterov": True},
        "slots": 1,
        "paper": "Nesterov 1983",
        "defaults": {"lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0, "nesterov": True},
        "search_space": {"lr": ("log", 1e-4, 1.0), "weight_decay": ("log", 1e-5, 1e-2)},
    },
    "adagrad": {
        "of": "Adagrad",
        "fixed": {},
        "slots": 1,
        "paper": "Duchi et al. 2011",
        "defaults": {"lr": 1e-2, "lr_decay": 0.0, "weight_decay": 0.0, "initial_accumulator_value": 0.0, "eps": 1e-10},
        "search_space": {"lr": ("log", 1e-4, 1.0)},
    },
    "rmsprop": {
        "of": "RMSprop",
        "fixed": {},
        "slots": 1,
        "paper": "Tieleman and Hinton 2012",
        "defaults": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
        "search_space": {"lr": ("log", 1e-5, 1e-1)},
    },
    "adam": {
        "of": "Adam",
        "fixed": {},
        "slots": 2,
        "paper": "Kingma and Ba 2015",
        "defaults": {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "amsgrad": False,
            "decoupled_weight_decay": False,
        },
        "search_space": {"lr": ("log", 1e-5, 1e-1)},
    },
    "amsgrad": {
        "of": "Adam",
        "fixed": {"amsgrad": True},
        "slots": 3,
        "paper": "Reddi et al. 2018",
        "defaults": {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "amsgrad": True,
            "decoupled_weight_decay": False,
        },
        "search_space": {"lr": ("log", 1e-5, 1e-1)},
    },
    "adamw": {
        "of": "AdamW",
        "fixed": {},
        "slots": 2,
        "paper": "Loshchilov and Hutter 2019",
        "defaults": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "amsgrad": False},
        "search_space": {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)},
    },
    "radam": {
        "of": "RAdam",
        "fixed": {},
        "slots": 2,
        "paper": "Liu et al. 2020",
        "defaults": {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "decoupled_weight_decay": False,
        },
        "search_space": {"lr": ("log", 1e-5, 1e-1)},
    },
}
#: arguments of torch's classes that choose a way of running, not a rule
EXECUTION_OPTIONS = ("foreach", "maximize", "capturable", "differentiable", "fused")


class Native(torch.optim.Optimizer):
    """What every optimizer of this library answers, for torch's own classes: they need neither loss nor feed."""

    needs: frozenset[str] = frozenset()

    def feed(self, loss: Any = None, evaluate: Callable[[], Any] | None = None) -> None:
        """Nothing to publish: the rule reads no loss."""

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,  # type: ignore[override]
        evaluate: Callable[[], Any] | None = None,
    ) -> Any:
        """torch's step; returns the closure's loss, or the one given."""
        bound = super().step  # type: ignore[safe-super]
        if getattr(bound, "hooked", False):  # torch's own instances exist: hooks have run for this step already
            result = bound.__wrapped__(self, closure)  # type: ignore[attr-defined]
        else:
            result = bound(closure)
        return loss if closure is None else result

    def effective_lr(self) -> list[float]:
        """The rate in force, one number a group."""
        return [float(group["lr"]) for group in self.param_groups]

    def figures(self) -> dict[str, float]:
        """No figures beyond the rate."""
        return {}

    @property
    def execution(self) -> str:
        """How the step runs."""
        group = self.param_groups[0]
        return "fused" if group.get("fused") else "foreach" if group.get("foreach") else "torch"


class SGD(Native, torch.optim.SGD):
    """torch.optim.SGD."""

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,  # type: ignore[override]
        evaluate: Callable[[], Any] | None = None,
    ) -> Any:
        """As torch's; returns the closure's loss, or the one given."""
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        mixed = [group for group in self.param_groups if group["fused"] and self._begins_in_parts(group)]
        for group in mixed:
            group["fused"] = False
        try:
            super().step(loss=loss)
        finally:
            for group in mixed:
                group["fused"] = True
        return loss

    def _begins_in_parts(self, group: dict[str, Any]) -> bool:
        """Some parameters get their first gradient after others: torch's fused kernel wants all momenta or none."""
        begun = {self.state[p].get("momentum_buffer") is not None for p in group["params"] if p.grad is not None}
        return group["momentum"] != 0 and len(begun) == 2


class Adagrad(Native, torch.optim.Adagrad):
    """torch.optim.Adagrad."""


class RMSprop(Native, torch.optim.RMSprop):
    """torch.optim.RMSprop."""


class Adam(Native, torch.optim.Adam):
    """torch.optim.Adam."""


class AdamW(Native, torch.optim.AdamW):
    """torch.optim.AdamW."""


class RAdam(Native, torch.optim.RAdam):
    """torch.optim.RAdam."""


_FUSED = (SGD, Adagrad, Adam, AdamW)


def build(name: str, params: Any, hyper: dict[str, Any]) -> torch.optim.Optimizer:
    """The preset `name` with `hyper`; fused unless told otherwise or impossible."""
    preset = PRESETS[name]
    cls = globals()[preset["of"]]
    options = {**preset["fixed"], **hyper}
    params = list(params)
    tensors = [p for g in params for p in (g["params"] if isinstance(g, dict) else [g])]
    tensors = [p[1] if isinstance(p, tuple) else p for p in tensors]
    chosen = any(options.get(k) for k in ("foreach", "fused", "capturable", "differentiable")) or "fused" in options
    if cls in _FUSED and not chosen and all(_fusable(p) for p in tensors):
        options["fused"] = True
    return cls(params, **options)


def _fusable(p: Any) -> bool:
    plain = isinstance(p, torch.Tensor) and p.is_floating_point() and not hasattr(p, "to_local")
    return plain and p.device.type in ("cpu", "cuda")
