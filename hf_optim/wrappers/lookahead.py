"""Lookahead: slow weights that follow the fast ones of any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from hf_optim.bases.wrapper import Wrapper
from hf_optim.core import validate
from hf_optim.core.compiling import uncompiled
from hf_optim.core.interrupts import uninterrupted
from hf_optim.core.reduce import local
from hf_optim.core.rewind import Standing
from hf_optim.core.vocabulary import Block
from hf_optim.engine import passes
from hf_optim.errors import UserError

#: name -> what the base is
PRESETS = {"lookahead_sgd": {"name": "sgd"}, "lookahead_adam": {"name": "adam"}, "lookahead_amvt": {"name": "amvt"}}

#: how optimizers call the first moment in their state: torch's SGD, RMSprop and Muon; its Adams; those of this library
MOMENTA = ("momentum_buffer", "exp_avg", "m", "b")


class Lookahead(Wrapper):
    """Lookahead: after k steps of the base, go back towards the weights before them (Zhang et al. 2019, Algorithm 1).

        every k steps of the base, with x the parameters now:
        slow = slow + alpha (x - slow);  x = slow
        m = 0                                                      pullback_momentum "reset"
        m_slow = m_slow + alpha (m - m_slow);  m = m_slow          pullback_momentum "pullback", m_slow from 0

    slow begins as a parameter before its own first step. Between these moments a step costs what the base's costs.
    Steps at `group["lr"]` = 0 do not count, so that they move nothing.

    Args:
        base: any torch.optim.Optimizer instance.
        k: 5.
        alpha: 0.5, in (0, 1]; the published code's default is 0.8.
        pullback_momentum: what becomes of the base's first moment (its state named momentum_buffer, exp_avg, m or b):
            "none" leaves it, "reset" and "pullback" as above. A base without one raises.

    Source: Lookahead Optimizer: k steps forward, 1 step back, Algorithm 1 and Appendix, and its published code. slow is
    kept in float32 for parameters of lower precision.
    """

    paper = "Lookahead Optimizer: k steps forward, 1 step back (Zhang et al. 2019)"
    cited = (
        "Zhang, Michael R. and Lucas, James and Hinton, Geoffrey and Ba, Jimmy",
        "Lookahead Optimizer: k steps forward, 1 step back",
        "Advances in Neural Information Processing Systems",
        2019,
    )
    memory = {"la_count": 0}
    tensors = ("la_slow", "la_momentum_buffer", "la_exp_avg", "la_m", "la_b")
    state_bytes = 4
    choices = {"pullback_momentum": ("none", "reset", "pullback")}
    search_space = {"k": ("choice", (5, 10)), "alpha": ("choice", (0.2, 0.5, 0.8))}
    as_base = {"alpha": 1.0}
    defaults_own = {"k": 5, "alpha": 0.5, "pullback_momentum": "none"}
    bounds = {"k": (1, float("inf"), True, False), "alpha": (0.0, 1.0, False, True)}

    def __init__(
        self, base: torch.optim.Optimizer, k: int = 5, alpha: float = 0.5, pullback_momentum: str = "none"
    ) -> None:
        own = {"k": k, "alpha": alpha, "pullback_momentum": pullback_momentum}
        validate.values(
            "lookahead", own, self.defaults_own, self.choices, self.bounds, validate.whole_numbers(type(self))
        )
        self.k, self.alpha, self.pullback_momentum = k, alpha, pullback_momentum
        super().__init__(base)

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
        """One step of the base, and every k-th time one of the slow weights. Arguments are the base's."""
        standing = Standing(self) if self.pullback_momentum != "none" and not self._any_moments() else None
        for group in self.param_groups:
            self._begin(group)
        loss = self._step_base(closure, loss, evaluate)
        self._settle()
        if standing is not None and self._is_without_moments():
            standing.restore()
            raise UserError(
                f"lookahead: {type(self._innermost()).__name__} keeps no first moment under "
                f"{', '.join(MOMENTA)}: pullback_momentum must be 'none'; nothing was moved"
            )
        for group in self.param_groups:
            if self.pullback_momentum == "pullback" and group["la_count"] == 0:
                self._begin_moments(group)
            if float(group.get("lr", 1.0)) != 0:
                group["la_count"] = (group["la_count"] + 1) % self.k
                if group["la_count"] == 0:
                    self._synchronise(group)
        return loss

    def _begin(self, group: dict[str, Any]) -> None:
        """Slow weights of parameters that have none yet."""
        for p in group["params"]:
            if p.requires_grad and self._get(p, "la_slow") is None:
                self._put(p, "la_slow", p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True))

    def _begin_moments(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            for name, m in self._moments(p).items():
                if self._get(p, f"la_{name}") is None:
                    self._put(p, f"la_{name}", torch.zeros_like(m))

    def _moments(self, p: torch.Tensor) -> dict[str, torch.Tensor]:
        """The base's first moments of p."""
        state = self.state[p] if p in self.state else {}
        return {k: state[k] for k in MOMENTA if isinstance(state.get(k), torch.Tensor)}

    def _synchronise(self, group: dict[str, Any]) -> None:
        slow = {p: self._get(p, "la_slow") for p in group["params"]}
        params = [p for p, kept in slow.items() if kept is not None]
        if self.pullback_momentum != "none":
            for p in params:
                self._pull_back(p)
        columns = {"x": [local(p) for p in params], "slow": [local(kept) for kept in slow.values() if kept is not None]}
        if params:
            passes.once(_pulled, columns, [{"alpha": self.alpha}] * len(params))

    def _any_moments(self) -> bool:
        return any(self._moments(p) for p in self._params())

    def _is_without_moments(self) -> bool:
        """Whether the base has stepped, is to be pulled back now, and has kept no first moment of any parameter."""
        stepped = any(p.grad is not None for p in self._params())
        due = any(group["la_count"] + 1 == self.k and float(group.get("lr", 1.0)) != 0 for group in self.param_groups)
        return stepped and due and not self._any_moments()

    def _pull_back(self, p: torch.Tensor) -> None:
        """Reset or pull back the base's first moment of p, if it has one."""
        for name, m in self._moments(p).items():
            if self.pullback_momentum == "reset":
                m.zero_()
                continue
            kept = self._get(p, f"la_{name}")
            if kept is None:  # its first gradient came within this window
                kept = torch.zeros_like(m)
                self._put(p, f"la_{name}", kept)
            passes.once(_pulled, {"x": [local(m)], "slow": [local(kept)]}, [{"alpha": self.alpha}])


def _pulled(x: Block, slow: Block, c: SimpleNamespace) -> None:
    slow.lerp_(x, c.alpha)
    x.copy_(slow)
