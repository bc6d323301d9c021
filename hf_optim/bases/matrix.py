"""Rules that work on whole matrices: a hook turns gradients into directions, the ordinary `update` does the rest.

`matrices` gets the gradients of equal shape as one batch, with their state, and returns a direction for each. For the
length of the ordinary step these stand in the place of the gradients: weight decay, rate, precision and the way a step
runs are everybody's. What a direction replaces is put back afterwards.

Shards are gathered, every process computes the whole direction and keeps its part: half a matrix has other singular
vectors. The direction is rounded to the gradient's precision, as that was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from hf_optim.bases.routed import Routed
from hf_optim.core.reduce import local
from hf_optim.errors import UserError


class MatrixOptimizer(Routed):
    """Base of rules with a `matrices` hook; groups of its first route are handed to it, in the parameters' shape."""

    family = "matrix"
    #: backends that hand out pieces of tensors are refused
    whole: ClassVar[bool] = True
    capturable: ClassVar[bool] = False

    def __init__(self, params: Any, arguments: dict[str, Any]) -> None:
        super().__init__(params, arguments)
        if self.state_dtype is torch.bfloat16:
            raise UserError(
                f"{self.rule}: state_dtype='bf16' would round what whole matrices are made of: leave it out"
            )

    @staticmethod
    def sides(shape: torch.Size, h: SimpleNamespace) -> dict[str, tuple[int, ...]]:
        """State of a parameter that has not its shape: name -> shape. It starts at zero."""
        return {}

    @staticmethod
    def matrices(g: torch.Tensor, s: SimpleNamespace, h: SimpleNamespace, t: int) -> torch.Tensor:
        """The directions of n parameters of one shape.

        Args:
            g: gradients (n, *shape), at least float32; may be written.
            s: their slots, (n, *shape), and `sides`, (n, *side). What is written there, or put in their place, is
                kept.
            h: the group's hyper-parameters.
            t: 1, 2, ..., the parameters' own step count.
        """
        raise NotImplementedError

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Directions in the place of the gradients of all matrices."""
        gradients: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        try:
            for params, group, t in self._batches():
                directions = self._directed(params, group, t)
                gradients += [(p, p.grad) for p in params]
                for p, direction in zip(params, directions, strict=True):
                    p.grad = _divided(direction.to(p.grad.dtype), p)  # type: ignore[union-attr]
            self._steps.begin()
            yield
        finally:
            for p, gradient in gradients:
                p.grad = gradient

    def _batches(self) -> Iterator[tuple[list[torch.Tensor], dict[str, Any], int]]:
        """Matrices of one group, shape and step count, with the count of this step."""
        batches: dict[Any, tuple[list[torch.Tensor], dict[str, Any], int]] = {}
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                if getattr(p, "_fsdp_flattened", False):
                    raise UserError(
                        f"{self.rule} works on whole matrices, and FullyShardedDataParallel (FSDP1) hands out flat "
                        "pieces of them: shard with fully_shard (FSDP2), or use DDP"
                    )
                if group["route"] != self.routed[0] or p.grad is None or not p.numel():
                    continue
                t = int(self.state[p]["step"].item()) + 1
                batches.setdefault((i, t, p.shape, p.dtype, p.device), ([], group, t))[0].append(p)
        yield from list(batches.values())

    def _directed(self, params: list[torch.Tensor], group: dict[str, Any], t: int) -> list[torch.Tensor]:
        h = self._hyper(group)
        names = [*self._slots(group), *self.sides(params[0].shape, h)]
        states = [self.state[p] for p in params]
        dtype = self._compute_dtype(params[0])
        s = SimpleNamespace(**{k: torch.stack([_gathered(state[k]).to(dtype) for state in states]) for k in names})
        g = torch.stack([_gathered(p.grad).to(dtype) for p in params])  # type: ignore[arg-type]
        with torch.autocast(g.device.type, enabled=False):  # of a loop that steps within it
            directions = self.matrices(g, s, h, t)
        for k in names:
            for p, state, value in zip(params, states, getattr(s, k).unbind(), strict=True):
                local(state[k]).copy_(local(_divided(value, p) if hasattr(state[k], "to_local") else value))
        return list(directions.unbind())

    def _sides(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, tuple[int, ...]]:
        return self.sides(p.shape, self._hyper(group)) if group["route"] == self.routed[0] else {}

    def _make_state(self, p: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        super()._make_state(p, state, group)
        sides = self._sides(p, group)
        if sides:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            for name, shape in sides.items():
                state[name] = torch.zeros(shape, dtype=self._compute_dtype(p), device=p.device)


def _gathered(t: torch.Tensor) -> torch.Tensor:
    """All of a DTensor."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def _divided(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A tensor that every process has, in shards like those of a DTensor."""
    if not hasattr(like, "to_local"):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh  # type: ignore[attr-defined]
    everywhere = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=like.placements)  # type: ignore[attr-defined]
