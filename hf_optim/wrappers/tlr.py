"""TLR: a trainable learning rate around any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hf_optim.bases.rate_windows import RateWindows
from hf_optim.core import reduce, validate
from hf_optim.core.compiling import uncompiled
from hf_optim.core.interrupts import uninterrupted
from hf_optim.core.notes import once
from hf_optim.core.rewind import RandomState, Standing
from hf_optim.core.wording import counted
from hf_optim.errors import UserError

#: name -> what the base is
PRESETS = {
    "tlr_sgd": {"name": "sgd"},
    "tlr_sgdm": {"name": "sgdm"},
    "tlr_adam": {"name": "adam"},
    "tlr_adamw": {"name": "adamw"},
}


#: D as a share of a, below which it is the rounding of two equal products
ROUNDING = 1e-6


class TLR(RateWindows):
    """TLR: the rate follows Newton's method on the loss along the last K updates (Equation 8, practical form).

        every K steps of the base, with w the parameters now and lr the rate of those K steps:
        u_new = (w_previous - w) / lr
        a, b = <u_old, u_old>, <u_old, u_new>
        D = a - b
        factor = 1 if D <= 0 else min(1 + gamma b / D, cap)
        lr = lr factor;  u_old = u_new;  w_previous = w

    The snapshot is taken before the first step and the rate first moves at step 2 K. With D > 0 and gamma <= 1 the
    factor exceeds 1 - gamma, so the rate stays positive. Decay and momentum of the base are part of u.
    The factors' product is `group["hf_optim_lr_scale"]`: the base steps with lr times it, and `group["lr"]` stays the
    scheduler's. A rate that a scheduler moves within K steps enters as its mean; steps at rate 0 do not count.
    Three guards are ours, not the paper's (`guards=False` is without): D below 1e-6 a, and windows in which w moved by
    its rounding alone, change no rate; the product of all factors stays within [1 / bound, bound]; K = 1, a window of
    one step, is warned of.

    Args:
        base: any torch.optim.Optimizer instance.
        gamma: damping, 0.33, in (0, 1].
        p: K as a share of an epoch, 0.20: K = max(1, int(p steps_per_epoch)).
        steps_per_epoch: optimizer steps in an epoch (under accumulation: batches / accumulation). The Trainer and
            Accelerate doors fill it in; a plain loop gives it, or `interval`.
        interval: K itself.
        cap: largest factor, 100.
        scope: inner products over everything ("global": the paper has one rate), each group ("group": the published
            code), or each tensor ("tensor"; the paper's outlook is a rate for each layer; costs a copy of the
            parameters a step).
        lookahead: the exact form of Equations 3 and 8 instead: at every K-th step the gradient at the look-ahead point,
            on the same batch. Needs `step(closure)`.
        bound: how far the rate may move from the one given, as a factor, 1e4.
        guards: whether the guards above hold, which leave the rate as it is or within `bound`. Without them it follows
            the paper alone, which starts from rates (1e-9) at which parameters move by little more than their rounding.

    Source: TLR, Equation 8 and "Technical Considerations". The defaults are the text's; Figure 1 holds gamma at .2
    while p varies, and p at .33 while gamma does. `tlr_legacy` follows the published code: schedule, tests, defaults.
    """

    paper = "Newton-based Trainable Learning Rate (TLR)"
    cited = (
        "Retsinas, George and Sfikas, Giorgos and Filntisis, Panagiotis Paraskevas and Maragos, Petros",
        "Newton-based Trainable Learning Rate",
        "",
        0,
    )
    state_bytes = 8
    choices = {"scope": ("global", "group", "tensor")}
    search_space = {"gamma": ("linear", 0.2, 0.5), "p": ("linear", 0.1, 0.5)}
    as_base = {"gamma": 1e-12}  # 0 itself is refused
    defaults_own = {
        "gamma": 0.33,
        "p": 0.20,
        "steps_per_epoch": None,
        "interval": None,
        "cap": 100.0,
        "scope": "global",
        "lookahead": False,
        "bound": 1e4,
        "guards": True,
    }
    bounds = {
        "gamma": (0.0, 1.0, False, True),
        "p": (0.0, 1.0, False, True),
        "cap": (1.0, float("inf"), False, True),
        "interval": (1, float("inf"), True, False),
        "bound": (1.0, float("inf"), False, True),
    }

    def __init__(
        self,
        base: torch.optim.Optimizer,
        gamma: float = 0.33,
        p: float = 0.20,
        steps_per_epoch: int | None = None,
        interval: int | None = None,
        cap: float = 100.0,
        scope: str = "global",
        lookahead: bool = False,
        bound: float = 1e4,
        guards: bool = True,
    ) -> None:
        own = {k: v for k, v in locals().items() if k in self.defaults_own}
        validate.values(
            self.rule, own, self.defaults_own, self.choices, self.bounds, validate.whole_numbers(type(self))
        )
        if steps_per_epoch is not None and interval is not None:
            raise UserError(f"{self.rule}: give steps_per_epoch or interval, not both")
        self.gamma, self.p, self.cap, self.scope, self.lookahead, self.bound = gamma, p, cap, scope, lookahead, bound
        self.guards = guards
        super().__init__(base)
        self._told = False
        if interval is not None:
            self._set_interval(interval)
        elif steps_per_epoch is not None:
            self._set_interval(self._window(steps_per_epoch))

    def _window(self, steps_per_epoch: int) -> int:
        K = max(1, int(self.p * steps_per_epoch))
        if K == 1 and not self.lookahead:
            steps = counted(steps_per_epoch, "step")
            once(
                f"{self.rule}: K = max(1, int(p steps_per_epoch)) = 1 with p = {self.p:g} and {steps} an epoch: the "
                f"rate follows single steps, and may grow by a factor of {self.cap:g} at each; give a larger p, or an "
                "interval"
            )
        return K

    @property
    def needs_closure(self) -> bool:
        """Whether step() re-evaluates gradients."""
        return self.lookahead

    def set_steps_per_epoch(self, n: int) -> None:
        """Fix K from the optimizer steps of an epoch, unless it was given or a checkpoint has brought it. What was told
        before counts no more: the epoch of an attempt that ran out of memory had other steps."""
        super().set_steps_per_epoch(n)
        if not self.param_groups[0]["tlr_interval"] or self._told:
            self._told = True
            self._set_interval(self._window(n))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._told = False

    def first_change(self) -> int:
        return super().first_change() // 2 if self.lookahead else super().first_change()

    def _snapshot(self) -> None:
        """The exact form keeps no windows, only the tensors' own scales: the same state whatever made it."""
        if not self.lookahead:
            super()._snapshot()
        elif self.scope == "tensor":
            for p in self._params():
                if p.requires_grad and self._get(p, "tlr_scale") is None:
                    self._put(p, "tlr_scale", torch.ones((), dtype=torch.float64, device="cpu"))

    def _rescaled(self, scale: float, products: tuple[float, float, float, float], group: dict[str, Any]) -> float:
        a, b, c, noise = products
        D = a - b
        if not self.guards:
            return scale if not D > 0 else scale * min(1 + self.gamma * b / D, self.cap)
        if not D > ROUNDING * abs(a) or min(a, c) < noise:
            return scale
        new = scale * min(1 + self.gamma * b / D, self.cap)
        if not 1 / self.bound <= new <= self.bound:
            self._tell_of_bound(new > 1)
        return min(max(new, 1 / self.bound), self.bound)

    def _tell_of_bound(self, up: bool) -> None:
        """A rate that runs to its bound is seldom what the loss asks for: u of a base that normalises its steps hardly
        turns, however long they are."""
        once(
            f"{self.rule}: the rate would go {'up' if up else 'down'} beyond its bound, {'' if up else '1/'}"
            f"{self.bound:g} times the one given: see whether the loss still falls; another lr to start from, gamma "
            "and bound change where it goes"
        )

    # --- the exact form ----------------------------------------------------------------------------------------------

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
        """One step of the base at the scaled rate, and every K-th time a new rate. Arguments are the base's."""
        if not self.lookahead or self._still():
            return super().step(closure, loss=loss, evaluate=evaluate)
        if closure is None:
            raise UserError(f"{self.rule}: lookahead=True evaluates the gradient again; call step(closure)")
        due = self._due(self.param_groups[0]["tlr_count"] + 1, self._interval())
        old = {p: p.detach().clone() for p in self._params()} if due else {}
        before = RandomState(*{p.device for p in self._params()})
        standing = Standing(self) if due else None
        self._snapshot()
        loss = self._scaled_step(closure, None, None)
        self._settle()
        for group in self.param_groups:
            group["tlr_count"] += 1
        if standing is not None:
            try:
                self._look(closure, old, before)
            except BaseException:  # the step whose gradients were asked for again is none
                standing.restore()
                raise
            self._settle()
        return loss

    def _look(self, closure: Callable[[], Any], old: dict[torch.Tensor, torch.Tensor], before: RandomState) -> None:
        """Equations 3, 7 and 8 as printed: u of this step, the gradients at both of its ends on one batch."""
        grads = {p: p.grad for p in old}
        first = {p: g.detach().clone() for p, g in grads.items() if g is not None}
        after = RandomState(*{p.device for p in old})
        before.restore()
        try:
            with torch.enable_grad():
                closure()
        finally:
            after.restore()
        used, rows = [], []
        for i, group in enumerate(self.param_groups):
            for p in group["params"]:
                rate = float(group["lr"]) * self._scale(p, group)
                if p in first and p.grad is not None and rate != 0:
                    u, start, end = (reduce.local(t).reshape(-1) for t in ((old[p] - p) / rate, first[p], p.grad))
                    a, b = reduce.dot(u, start), reduce.dot(u, end)
                    # a is no square here and may be negative: nothing is too small to count
                    rows.append(torch.stack([a, b, a, torch.full_like(a, -torch.inf)]))
                    used.append((i, p))
        for p, g in grads.items():
            if g is not None:
                p.grad = g.copy_(first[p])
        if not rows:
            return
        scales = [self._scale(p, self.param_groups[i]) for i, p in used]
        self._rescale(reduce.combine(torch.stack(rows), [p for _, p in used]).tolist(), used)
        for (i, p), scale in zip(used, scales, strict=True):  # the step is taken again, at the new rate
            p.copy_(old[p] + (self._scale(p, self.param_groups[i]) / scale) * (p - old[p]))

    def _scale(self, p: torch.Tensor, group: dict[str, Any]) -> float:
        own = self._get(p, "tlr_scale")
        return group["hf_optim_lr_scale"] if own is None else float(own)
