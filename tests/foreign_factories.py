"""Optimizers of other packages as a study names them: functions that get the model, its names or its groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Chained(torch.optim.Optimizer):
    """Several optimizers of different tensors as one: their groups and states side by side."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Each part steps with this one's groups and states, so that schedules and checkpoints reach it."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss


def torch_muon(model: nn.Module, lr: float = 0.02, adamw_lr: float = 3e-4) -> torch.optim.Optimizer:
    """torch's Muon takes matrices only: AdamW for the rest, and for the head."""
    head = list(model.modules())[-1]
    hidden = [p for p in model.parameters() if p.dim() == 2 and p is not getattr(head, "weight", None)]
    rest = [p for p in model.parameters() if all(p is not q for q in hidden)]
    return Chained(
        torch.optim.Muon(hidden, lr=lr, weight_decay=0.1),
        torch.optim.AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.1),
    )


def soap(groups: list[dict[str, Any]], lr: float = 3e-3, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(groups, lr=lr, weight_decay=weight_decay)


def heavyball_muon(named_parameters: list[tuple[str, nn.Parameter]], lr: float = 2.5e-3) -> torch.optim.Optimizer:
    from heavyball import Muon

    return Muon([p for _, p in named_parameters], lr=lr)


def of_tensors(params: list[torch.Tensor], lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)


def nothing_asked(lr: float = 0.1) -> Any:
    return lr


def no_optimizer(params: list[torch.Tensor]) -> Any:
    return params
