"""A small problem, steps on it, and checkpoints, for the tests of wrappers and of learned rates."""

from __future__ import annotations

import io

import torch
from torch import nn


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((4, 3), (4,))
    return [nn.Parameter(torch.randn(s, generator=draw, dtype=torch.float64).to(dtype)) for s in shapes]


def loss_of(params: list[nn.Parameter], t: int) -> torch.Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(t), dtype=torch.float64).to(params[0].dtype)
    return ((x @ params[0].T + params[1] - x.sum(1, keepdim=True)) ** 2).mean()


def advance(opt: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> list[float]:
    losses = []
    for t in steps:

        def closure(t: int = t) -> torch.Tensor:
            for p in params:
                p.grad = None
            loss = loss_of(params, t)
            loss.backward()
            return loss

        losses.append(opt.step(closure).item())
    return losses


def saved(opt: torch.optim.Optimizer) -> dict:
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: list[nn.Parameter], b: list[nn.Parameter]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
