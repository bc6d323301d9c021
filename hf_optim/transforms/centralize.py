"""Gradient centralization (Yong et al. 2020): the gradient of each output unit is shifted to mean zero."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.core.rule import Transform
from hf_optim.errors import UserError


class Centralize(Transform):
    """g - mean(g) over all dimensions but the first, for tensors of two dimensions and more.

    Args:
        conv_only: only tensors of more than two dimensions (the variant for convolutional layers).
    """

    name = "centralize"
    opt_out = "agr"
    blockwise = False

    def __init__(self, conv_only: bool = False) -> None:
        if not isinstance(conv_only, bool):
            raise UserError(f"centralize: conv_only must be True or False, got {conv_only!r}")
        self.conv_only = conv_only

    def covers(self, p: torch.Tensor) -> bool:
        if p.dim() <= (2 if self.conv_only else 1):
            return False
        if any(place.is_shard() and not place.is_shard(0) for place in getattr(p, "placements", ())):
            raise UserError(
                "centralize takes means over an output unit's whole gradient, and a parameter of shape "
                f"{tuple(p.shape)} is split across it: shard dimension 0, as fully_shard does by itself"
            )
        return True

    @staticmethod
    def apply(g: Any, c: SimpleNamespace) -> Any:
        return g - g.mean(dim=tuple(range(1, g.dim())), keepdim=True)


TRANSFORM = Centralize
