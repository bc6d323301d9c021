"""Learning the rate from windows of K steps: the machinery of TLR, its published form, and its first-order rivals.

Whatever the base does in K steps is read as one step of gradient descent, w = w_previous - lr u (TLR, "Technical
Considerations"), and the rate changes by the inner products of the u of the last two windows. What changes is
`group["hf_optim_lr_scale"]`: the base steps with lr hf_optim_lr_scale, and `group["lr"]` stays the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from hf_optim.bases.parameters import check_step
from hf_optim.bases.wrapper import Wrapper
from hf_optim.core import reduce
from hf_optim.core.compiling import uncompiled
from hf_optim.core.interrupts import uninterrupted
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import Block
from hf_optim.engine import passes
from hf_optim.errors import UserError


class RateWindows(Wrapper):
    """Base of the wrappers that learn a rate; a subclass sets `scope` and writes `_rescaled`."""

    memory = {"hf_optim_lr_scale": 1.0, "tlr_count": 0, "tlr_rate_sum": 0.0, "tlr_interval": 0,
              "tlr_factor": 1.0}  # fmt: skip
    kept: ClassVar[tuple[str, ...]] = ("tlr_interval",)
    tensors, scalars = ("tlr_w", "tlr_u", "tlr_scale"), ("tlr_scale",)
    state_bytes = 8
    #: windows begin with the first step; else where the first due step ends
    from_start: ClassVar[bool] = True
    #: inner products over everything ("global"), each group or each tensor
    scope: str = "global"

    def __init__(self, base: torch.optim.Optimizer) -> None:
        if isinstance(base, torch.optim.Optimizer) and any("lr" not in group for group in base.param_groups):
            raise UserError(f"{self.rule}: {type(base).__name__} has no lr in its parameter groups to adapt")
        super().__init__(base)

    def _rescaled(self, scale: float, products: tuple[float, float, float, float], group: dict[str, Any]) -> float:
        """The new scale, from <u_old, u_old>, <u_old, u_new>, <u_new, u_new>, and what <u, u> would be if w had moved
        by its rounding alone."""
        raise NotImplementedError

    def _due(self, count: int, K: int) -> bool:
        """Whether a window ends with step `count`."""
        return count % K == 0

    def _set_interval(self, k: int) -> None:
        for group in self.param_groups:
            group["tlr_interval"] = k

    # --- a step ----------------------------------------------------------------------------------------------------

    @uncompiled
    @uninterrupted
    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,
        evaluate: Callable[[], Any] | None = None,
    ) -> Any:
        """One step of the base at the scaled rate, and at the end of a window a new rate. Arguments are the base's."""
        still = self._still()
        K = 0 if still else self._interval()
        self._snapshot()
        loss = self._scaled_step(closure, loss, evaluate)
        self._settle()
        if still:
            return loss
        for group in self.param_groups:
            group["tlr_count"] += 1
            group["tlr_rate_sum"] += float(group["lr"]) * group["hf_optim_lr_scale"]
        if self._due(self.param_groups[0]["tlr_count"], K):
            self._adapt(K)
        return loss

    def _still(self) -> bool:
        """Whether nothing can move: all rates are 0. Such steps (a warm-up's first; the one with which torch's
        distributed checkpointing makes state) belong to no window. A rate that is none is refused, whatever the base.
        """
        check_step(self.rule, self.param_groups, ())
        return all(float(group["lr"]) == 0 for group in self.param_groups)

    def _interval(self) -> int:
        K = int(self.param_groups[0]["tlr_interval"])
        if not K:
            raise UserError(
                f"{self.rule} does not know K: give steps_per_epoch or interval (hf_optim.attach and "
                "hf_optim.Session fill it in)"
            )
        return K

    def first_change(self) -> int:
        """The step after which the rate can be another one for the first time; 0 while K is not known."""
        return 2 * int(self.param_groups[0]["tlr_interval"])

    def _snapshot(self) -> None:
        """State of parameters that have none yet. No update yet is an update of 0: it changes no rate."""
        for p in self._params():
            if p.requires_grad and self._get(p, "tlr_w") is None:
                self._put(p, "tlr_w", p.detach().clone())
                self._put(p, "tlr_u", torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)))
                if self.scope == "tensor":
                    self._put(p, "tlr_scale", torch.ones((), dtype=torch.float64, device="cpu"))

    def _converted(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Up to release 0.1.0 the scale was called lr_scale, which belongs to timm's schedulers."""
        saved = super()._converted(saved)
        if "hf_optim_lr_scale" not in saved and "tlr_count" in saved and "lr_scale" in saved:
            saved = {k: v for k, v in saved.items() if k != "lr_scale"} | {"hf_optim_lr_scale": saved["lr_scale"]}
        return saved

    def _scaled_step(self, closure: Any, loss: Any, evaluate: Any) -> Any:
        """The base's step with lr hf_optim_lr_scale in place of lr."""
        rates = [group["lr"] for group in self.param_groups]
        before = {p: p.detach().clone() for p in self._params()} if self.scope == "tensor" else {}
        for group in self.param_groups:
            if group["hf_optim_lr_scale"] != 1.0:
                group["lr"] = group["lr"] * group["hf_optim_lr_scale"]
        try:
            loss = self._step_base(closure, loss, evaluate)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        for p, old in before.items():  # a base's step is proportional to its rate: scale the step of each tensor
            scale = self._get(p, "tlr_scale")
            if scale is not None:
                p.copy_(old + float(scale) * (p - old))
        return loss

    # --- the end of a window -----------------------------------------------------------------------------------------

    def _adapt(self, K: int) -> None:
        """New scales from the mean updates of the last two windows."""
        numbers: list[dict[str, Any]] = []
        grains: list[float] = []
        columns: dict[str, list[torch.Tensor]] = {"x": [], "w": [], "u": []}
        used = []
        begins = not self.from_start and self.param_groups[0]["tlr_count"] <= K + 1
        for i, group in enumerate(self.param_groups):
            rate = group["tlr_rate_sum"] / K
            group["tlr_rate_sum"] = 0.0
            for p in group["params"]:
                w, u, scale = (self._get(p, name) for name in self.tensors)
                if w is None or u is None or rate == 0:
                    continue
                own = 1.0 if scale is None else float(scale)
                numbers.append({"begins": begins, "rate": rate * own})
                grains.append((torch.finfo(p.dtype).eps / (rate * own)) ** 2)
                for name, t in (("x", p), ("w", w), ("u", u)):
                    columns[name].append(reduce.local(t))
                used.append((i, p))
        if used:
            sums = passes.once(_window, columns, numbers)
            if sums is not None:
                sums[:, 3] *= torch.tensor(
                    grains, dtype=sums.dtype, device=sums.device
                )  # what rounding the parameters does to u
                self._rescale(reduce.combine(sums, [p for _, p in used]).tolist(), used)

    def _rescale(self, table: list[list[float]], used: list[tuple[int, torch.Tensor]]) -> None:
        """New scales from a row of inner products for each of the tensors `used`, given with its group's index."""
        if self.scope == "tensor":
            for row, (i, p) in zip(table, used, strict=True):
                scale = self._get(p, "tlr_scale")
                value = self._rescaled(1.0 if scale is None else float(scale), _sums([row]), self.param_groups[i])
                self._put(p, "tlr_scale", torch.tensor(value, dtype=torch.float64, device="cpu"))
            return
        factor = self.param_groups[0]["tlr_factor"]
        for i, group in enumerate(self.param_groups):
            own = [row for row, (j, _) in zip(table, used, strict=True) if self.scope == "global" or i == j]
            if own:
                before = group["hf_optim_lr_scale"]
                group["hf_optim_lr_scale"] = self._rescaled(before, _sums(own), group)
                factor = group["hf_optim_lr_scale"] / before if before else 1.0
        for group in self.param_groups:
            group["tlr_factor"] = factor

    # --- what it is doing --------------------------------------------------------------------------------------------

    def effective_lr(self) -> list[float]:
        """The rate in force, one number a group: the base's times the learned scale."""
        return [
            rate * group["hf_optim_lr_scale"]
            for rate, group in zip(super().effective_lr(), self.param_groups, strict=True)
        ]

    def figures(self) -> dict[str, float]:
        """The base's figures, the scale in force and the last change of it."""
        return {
            **super().figures(),
            "lr_scale": self.param_groups[0]["hf_optim_lr_scale"],
            "lr_factor": self.param_groups[0]["tlr_factor"],
        }


def _sums(rows: list[list[float]]) -> tuple[float, float, float, float]:
    a, b, c, noise = (sum(column) for column in zip(*rows, strict=True))
    return a, b, c, noise


def _window(x: Block, w: Block, u: Block, c: SimpleNamespace) -> tuple[Any, ...]:
    """The window's mean update takes the place of the last one's; their inner products."""
    if c.begins:
        w.copy_(x)
        return ()
    new = w.sub(x).div(c.rate)
    sums = dot(u, u), dot(u, new), dot(new, new), dot(x, x)
    u.copy_(new)
    w.copy_(x)
    return sums
