"""The world put back: the random state that a forward pass uses, what an optimizer had before a step that failed
half-way; and gathered weights, let go."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class RandomState:
    """The state of every generator that a forward pass may use: Python, NumPy, torch on the CPU and on `devices`."""

    def __init__(self, *devices: torch.device) -> None:
        self._python = random.getstate()
        numpy = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None
        self._cpu = torch.get_rng_state()
        self._accelerators = []
        for device in {torch.device(d) for d in devices}:
            module: Any = None if device.type == "cpu" else getattr(torch, device.type, None)
            if hasattr(module, "get_rng_state"):
                self._accelerators.append((module, device, module.get_rng_state(device)))

    def restore(self) -> None:
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for module, device, state in self._accelerators:
            module.set_rng_state(state, device)


class Standing:
    """Parameters, state and numbers of an optimizer, and what wrappers in it hold back, kept and put back in place."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self._optimizer = optimizer
        self._params = [(p, p.detach().clone()) for p in params]
        self._state = {p: _kept(optimizer.state[p]) for p in params if p in optimizer.state}
        self._groups = [_kept(group) for group in optimizer.param_groups]
        self._pending = []
        wrapper: Any = optimizer
        while hasattr(wrapper, "_pending"):
            self._pending.append((wrapper, {p: dict(own) for p, own in wrapper._pending.items()}))
            wrapper = wrapper.base

    @torch.no_grad()
    def restore(self) -> None:
        state = self._optimizer.state
        for p, value in self._params:
            p.copy_(value)
            if p in self._state:
                _put_back(state[p], self._state[p])
            else:
                state.pop(p, None)
        for group, before in zip(self._optimizer.param_groups, self._groups, strict=True):
            _put_back(group, before)
        for wrapper, pending in self._pending:
            wrapper._pending = pending


def _kept(values: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each value, and what it was: a tensor stays the one that others hold, and gets its numbers back."""
    return {
        name: (value, value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value))
        for name, value in values.items()
        if name != "params"
    }


def _put_back(values: dict[str, Any], before: dict[str, tuple[Any, Any]]) -> None:
    for name in set(values) - set(before) - {"params"}:
        del values[name]
    for name, (value, was) in before.items():
        values[name] = value.copy_(was) if isinstance(value, torch.Tensor) else was


def reshard(models: Iterable[nn.Module]) -> None:
    """Let go of what FSDP2 has gathered: after a forward pass without a graph the root and the last modules keep whole
    weights, which are stale as soon as the shards change.
    """
    kind: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for model in models:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()
