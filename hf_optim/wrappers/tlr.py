"""TLR: a trainable learning rate around any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_optim import reduce, validate
from hf_optim.errors import UserError
from hf_optim.wrapper import Wrapper

#: name -> what the base is
PRESETS = {"tlr_sgd": {"name": "sgd"}, "tlr_sgdm": {"name": "sgdm"}, "tlr_adam": {"name": "adam"},
           "tlr_adamw": {"name": "adamw"}}


class TLR(Wrapper):
    """TLR: the rate follows Newton's method on the loss along the last K updates (Equation 8, practical form).

        every K steps of the base, with w the parameters now and lr the rate of those K steps:
        u_new = (w_previous - w) / lr
        a, b = <u_old, u_old>, <u_old, u_new>
        D = a - b
        factor = 1 if D <= 0 else min(1 + gamma b / D, cap)
        lr = lr factor;  u_old = u_new;  w_previous = w

    The snapshot is taken before the first step and the rate first moves at step 2 K. With D > 0 and gamma <= 1 the
    factor exceeds 1 - gamma, so the rate stays positive. Decay and momentum of the base are part of u.
    The factors' product is `group["lr_scale"]`: the base steps with lr times it, and `group["lr"]` stays the
    scheduler's. A rate that a scheduler moves within K steps enters as its mean; K steps at rate 0 are left out.

    Args:
        base: any torch.optim.Optimizer instance.
        gamma: damping, 0.33, in (0, 1].
        p: K as a share of an epoch, 0.20: K = max(1, int(p steps_per_epoch)).
        steps_per_epoch: optimizer steps in an epoch (under accumulation: batches / accumulation). The Trainer and
            Accelerate doors fill it in; a plain loop gives it, or `interval`.
        interval: K itself.
        cap: largest factor, 100.
        scope: inner products over everything ("global": the paper has one rate), each group ("group": the published
            code), or each tensor ("tensor": the paper's future work; costs a copy of the parameters a step).
        lookahead: the exact form of Equations 3 and 8 instead: at every K-th step the gradient at the look-ahead point,
            on the same batch. Needs `step(closure)`.

    Source: TLR, Equation 8 and "Technical Considerations". Text and figures disagree on the defaults (gamma .33, p .20
    in the text; .2, .33 in Figure 1); `tlr_legacy` follows the published code's schedule and tests.
    """

    paper = "Newton-based Trainable Learning Rate (TLR)"
    memory = {"lr_scale": 1.0, "tlr_count": 0, "tlr_rate_sum": 0.0, "tlr_interval": 0}
    tensors = ("tlr_w", "tlr_u", "tlr_scale")
    choices = {"scope": ("global", "group", "tensor")}
    search_space = {"gamma": ("linear", 0.2, 0.5), "p": ("linear", 0.1, 0.5)}
    defaults_own = {"gamma": 0.33, "p": 0.20, "steps_per_epoch": None, "interval": None, "cap": 100.0,
                    "scope": "global", "lookahead": False}
    bounds = {"gamma": (0.0, 1.0, False, True), "p": (0.0, 1.0, False, True), "cap": (1.0, float("inf"), False, True),
              "interval": (1, float("inf"), True, False)}

    def __init__(self, base: torch.optim.Optimizer, gamma: float = 0.33, p: float = 0.20,
                 steps_per_epoch: int | None = None, interval: int | None = None, cap: float = 100.0,
                 scope: str = "global", lookahead: bool = False) -> None:
        own = {k: v for k, v in locals().items() if k in self.defaults_own}
        validate.values(self.rule, own, self.defaults_own, self.choices, self.bounds)
        if steps_per_epoch is not None and interval is not None:
            raise UserError(f"{self.rule}: give steps_per_epoch or interval, not both")
        self.__dict__.update(gamma=gamma, p=p, cap=cap, scope=scope, lookahead=lookahead, last_factor=1.0)
        super().__init__(base)
        if interval is not None:
            self._set_interval(interval)
        elif steps_per_epoch is not None:
            self._set_interval(max(1, int(p * steps_per_epoch)))

    def set_steps_per_epoch(self, n: int) -> None:
        """Fix K from the optimizer steps of an epoch, unless it was given or a checkpoint has brought it."""
        super().set_steps_per_epoch(n)
        if not self.param_groups[0]["tlr_interval"]:
            self._set_interval(max(1, int(self.p * n)))

    def _set_interval(self, k: int) -> None:
        for group in self.param_groups:
            group["tlr_interval"] = k

    # --- a step ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None,  # type: ignore[override]
             evaluate: Callable[[], Any] | None = None) -> Any:
        """One step of the base at the scaled rate, and every K-th time a new rate. Arguments are the base's."""
        K = self.param_groups[0]["tlr_interval"]
        if not K:
            raise UserError(f"{self.rule} does not know K: give steps_per_epoch or interval (hf_optim.attach and "
                            "hf_optim.Session fill it in)")
        if self.lookahead:
            return self._exact(closure, K)
        for p in self._params():
            if p.requires_grad and self._get(p, "tlr_w") is None:
                self._put(p, "tlr_w", p.detach().clone())
        loss = self._scaled_step(closure, loss, evaluate)
        self._settle()
        for group in self.param_groups:
            group["tlr_count"] += 1
            group["tlr_rate_sum"] += float(group["lr"]) * group["lr_scale"]
        if self.param_groups[0]["tlr_count"] % K == 0:
            self._adapt(K)
        return loss

    def _scaled_step(self, closure: Any, loss: Any, evaluate: Any) -> Any:
        """The base's step with lr lr_scale in place of lr."""
        rates = [group["lr"] for group in self.param_groups]
        before = {p: p.detach().clone() for p in self._params()} if self.scope == "tensor" else {}
        for group in self.param_groups:
            if group["lr_scale"] != 1.0:
                group["lr"] = group["lr"] * group["lr_scale"]
        try:
            loss = self._step_base(closure, loss, evaluate)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        for p, old in before.items():  # a base's step is proportional to its rate: scale the step of each tensor
            scale = self._get(p, "tlr_scale")
            if scale is not None:
                p.copy_(old + scale.to(p.dtype) * (p - old))
        return loss

    def _adapt(self, K: int) -> None:
        """Equation 8 on the mean updates of the last two windows."""
        rows, params, fresh = [], [], []
        for i, group in enumerate(self.param_groups):
            rate = group["tlr_rate_sum"] / K
            group["tlr_rate_sum"] = 0.0
            for p in group["params"]:
                w, u_old = self._get(p, "tlr_w"), self._get(p, "tlr_u")
                if w is None or rate == 0:
                    continue
                scale = self._get(p, "tlr_scale")
                u = (w - p).to(torch.promote_types(p.dtype, torch.float32)).div_(rate)
                if scale is not None:
                    u.div_(scale.to(u.dtype))
                if u_old is not None:
                    rows.append(torch.stack([reduce.dot(*map(_local, pair)) for pair in ((u_old, u_old), (u_old, u))]))
                    params.append((i, p))
                fresh.append((p, u))
        if rows:
            table = reduce.combine(rows, [p for _, p in params]).tolist()
            self._rescale(table, params)
        for p, u in fresh:
            self._put(p, "tlr_u", u)
            w = self._get(p, "tlr_w")
            assert w is not None
            w.copy_(p)

    def _factor(self, a: float, b: float) -> float:
        D = a - b
        return 1.0 if not D > 0 else min(1 + self.gamma * b / D, self.cap)

    def _rescale(self, table: list[list[float]], params: list[tuple[int, torch.Tensor]]) -> None:
        if self.scope == "tensor":
            for (a, b), (_, p) in zip(table, params, strict=True):
                scale = self._get(p, "tlr_scale")
                value = self._factor(a, b) * (1.0 if scale is None else float(scale))
                self._put(p, "tlr_scale", torch.tensor(value, dtype=torch.float64))
            return
        for i, group in enumerate(self.param_groups):
            own = [row for row, (j, _) in zip(table, params, strict=True) if self.scope == "global" or i == j]
            if own:
                self.__dict__["last_factor"] = self._factor(sum(a for a, _ in own), sum(b for _, b in own))
                group["lr_scale"] *= self.last_factor

    def _exact(self, closure: Any, K: int) -> Any:
        """Equations 3, 7 and 8 as printed: u of this step, the gradients at both of its ends on one batch."""
        if closure is None:
            raise UserError(f"{self.rule}: lookahead=True re-evaluates the gradient; call step(closure)")
        old = {p: p.detach().clone() for p in self._params()}
        loss = self._scaled_step(closure, None, None)
        g_old = {p: p.grad.detach().clone() for p in self._params() if p.grad is not None}
        for group in self.param_groups:
            group["tlr_count"] += 1
        if self.param_groups[0]["tlr_count"] % K:
            return loss
        with torch.enable_grad():
            closure()
        used, rows = [], []
        for i, group in enumerate(self.param_groups):
            rate = float(group["lr"]) * group["lr_scale"]
            for p in group["params"]:
                if p in g_old and p.grad is not None and rate != 0:
                    u = (old[p] - p) / rate
                    pairs = (u, g_old[p]), (u, p.grad)
                    rows.append(torch.stack([reduce.dot(*map(_local, pair)) for pair in pairs]))
                    used.append((i, p))
        for p, g in g_old.items():
            p.grad = g
        if not rows:
            return loss
        before = [group["lr_scale"] for group in self.param_groups]
        self._rescale(reduce.combine(rows, [p for _, p in used]).tolist(), used)
        for group, scale in zip(self.param_groups, before, strict=True):
            for p in group["params"]:  # the step is taken again, at the new rate
                p.copy_(old[p] + (group["lr_scale"] / scale) * (p - old[p]))
        return loss

    def figures(self) -> dict[str, float]:
        """The base's figures, the factor in force and the last change of it."""
        return {**super().figures(), "lr_scale": self.param_groups[0]["lr_scale"], "lr_factor": self.last_factor}


def _local(t: torch.Tensor) -> torch.Tensor:
    t = t.to_local() if hasattr(t, "to_local") else t
    return t.reshape(-1)
