"""What a forward pass may use or leave behind: random state, kept and put back; gathered weights, let go."""

from __future__ import annotations

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


def reshard(models: Iterable[nn.Module]) -> None:
    """Let go of what FSDP2 has gathered: after a forward pass without a graph the root and the last modules keep whole
    weights, which are stale as soon as the shards change.
    """
    kind: Any = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for model in models:
        for module in model.modules():
            if isinstance(module, kind):
                module.reshard()
