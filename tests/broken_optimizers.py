"""One deliberately broken optimizer for each check of the conformance suite, and two of the kind one meets.

`Honest` is SGD with momentum, done properly. Each class below breaks one thing of it; `BROKEN` says which check must
turn red, and that one alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import hf_optim

Tensor = torch.Tensor


class Honest(torch.optim.Optimizer):
    """m = momentum m + g; x = x - lr m, with the momentum in float32 at least."""

    family = "plain"
    needs: frozenset[str] = frozenset()
    state_bytes = 4

    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.begin(group)
            for p in group["params"]:
                self.visit(p, group, loss)
        return loss

    def begin(self, group: dict[str, Any]) -> None:
        """Before a group's parameters."""

    def visit(self, p: Tensor, group: dict[str, Any], loss: Tensor | None) -> None:
        """One parameter."""
        if p.grad is None:
            return
        state = self.state[p]
        if "m" not in state:
            state["m"] = self.first(p)
        state["m"].mul_(group["momentum"]).add_(self.gradient(p).to(state["m"].dtype))
        p.add_((state["m"] * -self.rate(p, group, loss)).to(p.dtype)).mul_(1 - group["lr"] * group["weight_decay"])

    def first(self, p: Tensor) -> Tensor:
        return torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))

    def gradient(self, p: Tensor) -> Tensor:
        assert p.grad is not None
        return p.grad

    def rate(self, p: Tensor, group: dict[str, Any], loss: Tensor | None) -> float:
        return group["lr"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):  # torch casts to the parameter's precision
            if i in state_dict["state"]:
                self.state[p]["m"] = state_dict["state"][i]["m"].clone()


class Climbs(Honest):
    def rate(self, p, group, loss):
        return -group["lr"]


class AnotherRule(Honest):
    def gradient(self, p):
        return 0.9 * p.grad


class ForgetsTheLoss(Honest):
    """Takes the loss for 0 when nobody gives a closure."""

    def rate(self, p, group, loss):
        return group["lr"] * (1 if loss is None else 0.5)


class ExoticNumber(Honest):
    """A NumPy array in the groups: torch.load(weights_only=True) refuses it, Accelerate's list of types has it."""

    def begin(self, group):
        group["seen"] = np.array([int(group["seen"][0]) + 1 if "seen" in group else 1], dtype=np.uint32)


class BelievesTheLoad(Honest):
    """Takes a loaded state for a complete one; accelerator.prepare loads an empty one before the first step."""

    loaded = False

    def visit(self, p, group, loss):
        if self.loaded and p.grad is not None and "m" not in self.state[p]:
            raise KeyError("m")
        super().visit(p, group, loss)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.loaded = not state_dict["state"]  # as accelerator.prepare does, before the first step


class ShallowCopy(Honest):
    """A deep copy without the momentum."""

    def __deepcopy__(self, memo):
        return type(self)(copy.deepcopy(self.param_groups, memo))


class Unpicklable(Honest):
    """A pickle without the momentum; copies are proper."""

    def __getstate__(self):
        return {**super().__getstate__(), "state": {}}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.state = torch.optim.SGD(self.param_groups[0]["params"]).state

    def __deepcopy__(self, memo):
        twin = type(self)(copy.deepcopy(self.param_groups, memo))
        for p, state in self.state.items():
            twin.state[copy.deepcopy(p, memo)] = copy.deepcopy(state, memo)
        return twin


class OtherForeach(Honest):
    """The foreach form lost the momentum's last factor."""

    def __init__(
        self, params: Any, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0, foreach: bool = False
    ) -> None:
        super().__init__(params, lr, momentum, weight_decay)
        self.foreach = foreach

    def rate(self, p, group, loss):
        return group["lr"] * (group["momentum"] if getattr(self, "foreach", False) else 1.0)


class CompilesAgain(hf_optim.Optimizer):
    """A static value of the graph that changes with the step count, as late as the check looks."""

    slots = {"m": 0.0}

    def __init__(self, params: Any, lr: float = 0.05, *, compile: bool = False) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return {"lr": h.lr, "late": t > 10}

    @staticmethod
    def update(x, g, m, c):
        m.mul_(0.9).add_(g)
        if c.late:
            x.sub_(m * c.lr)
        else:
            x.add_(m, alpha=-c.lr)


class CountsBackwards(Honest):
    """Divides by the number of backward passes, which accumulation has more of."""

    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, momentum, weight_decay)
        self.counts: dict[int, int] = {}
        for group in self.param_groups:
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(self._count)

    def zero_grad(self, set_to_none: bool = True) -> None:
        getattr(self, "counts", {}).clear()
        super().zero_grad(set_to_none)

    def _count(self, p: Tensor) -> None:
        self.counts[id(p)] = self.counts.get(id(p), 0) + 1

    def rate(self, p, group, loss):
        return group["lr"] / max(1, getattr(self, "counts", {}).get(id(p), 1))


class FirstGroupsRate(Honest):
    def rate(self, p, group, loss):
        return self.param_groups[0]["lr"]


class NoLateGroups(Honest):
    """Knows the groups it began with."""

    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, momentum, weight_decay)
        self.known = len(self.param_groups)

    def visit(self, p, group, loss):
        known = getattr(self, "known", None)
        if any(group is g for g in self.param_groups[:known]):
            super().visit(p, group, loss)


class DecaysTheUnused(Honest):
    def visit(self, p, group, loss):
        if p.grad is None:
            p.mul_(0.99)
        super().visit(p, group, loss)


class LowState(Honest):
    def first(self, p):
        return torch.zeros_like(p)


class ClaimsToUnscale(Honest):
    """GradScaler leaves infinite gradients to such an optimizer."""

    _step_supports_amp_scaling = True


class WritesTheRate(Honest):
    """A decay of its own in the scheduler's place."""

    def begin(self, group):
        group["lr"] *= 0.99


class StuckWarmUp(Honest):
    """Keeps the smallest rate it has seen."""

    def rate(self, p, group, loss):
        state = self.state[p]
        state["rate"] = min(state.get("rate", math.inf), group["lr"])
        return state["rate"]


class RankOfItsOwn(Honest):
    """Replicas drift apart; a sharded model is left alone."""

    def rate(self, p, group, loss):
        return group["lr"] * (1.0 if hasattr(p, "to_local") or not dist.is_initialized() else 1 + 0.1 * dist.get_rank())


class LocalNorm(Honest):
    """The norm of this process's part of a sharded gradient."""

    def gradient(self, p):
        part = p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad
        return p.grad / (1 + part.norm())


class Normalises(Honest):
    """0 / 0 where the gradient is zero."""

    def gradient(self, p):
        return p.grad / p.grad.norm()


class DividesByTheLoss(Honest):
    """0 / 0 where the loss is zero."""

    needs = frozenset({"loss"})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None, *, loss: Any = None) -> Any:
        if closure is not None:
            return super().step(closure)
        loss = getattr(self, "fed", None) if loss is None else loss
        self.fed = None
        if loss is None:
            raise RuntimeError("the loss is needed")
        return super().step(lambda: loss)

    def feed(self, loss: Any = None, evaluate: Any = None) -> None:
        self.fed = loss

    def rate(self, p, group, loss):
        return group["lr"] * float(loss / loss)


class HidesNan(Honest):
    """The weights stay finite, the momentum is NaN for good."""

    def visit(self, p, group, loss):
        before = p.clone()
        super().visit(p, group, loss)
        p.copy_(torch.where(p.isfinite(), p, before))


class HoldsMore(Honest):
    """A second momentum that nobody declared."""

    def visit(self, p, group, loss):
        super().visit(p, group, loss)
        if p.grad is not None:
            self.state[p]["shadow"] = self.first(p)

    def load_state_dict(self, state_dict):
        declared = {i: {k: v for k, v in state.items() if k != "shadow"} for i, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": declared})


class WaitsForTheDevice(Honest):
    def gradient(self, p):
        if (p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad).numel():
            bool((p.grad.to_local() if hasattr(p.grad, "to_local") else p.grad).max() > 1e9)
        return p.grad


#: check -> the optimizer that breaks it
BROKEN: dict[str, type[torch.optim.Optimizer]] = {
    "convex": Climbs,
    "reference": AnotherRule,
    "closure": ForgetsTheLoss,
    "resume": ExoticNumber,
    "accelerate": BelievesTheLoad,
    "deepcopy": ShallowCopy,
    "pickle": Unpicklable,
    "execution": OtherForeach,
    "compile": CompilesAgain,
    "accumulation": CountsBackwards,
    "groups": FirstGroupsRate,
    "late_group": NoLateGroups,
    "missing": DecaysTheUnused,
    "bf16": LowState,
    "scaler": ClaimsToUnscale,
    "schedulers": WritesTheRate,
    "hf_schedulers": StuckWarmUp,
    "ddp": RankOfItsOwn,
    "fsdp": LocalNorm,
    "zero_grad": Normalises,
    "zero_loss": DividesByTheLoss,
    "nonfinite": HidesNan,
    "state_bytes": HoldsMore,
    "host_sync": WaitsForTheDevice,
}


# --- the kind one meets ----------------------------------------------------------------------------------------------


class ForgetfulLookahead(torch.optim.Optimizer):
    """A third party's wrapper: its checkpoint holds the slow weights and forgets the state of what it wraps."""

    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer, self.k, self.alpha, self.count = optimizer, k, alpha, 0
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:
        loss = self.optimizer.step(closure) if closure is not None else self.optimizer.step()
        self.count += 1
        if self.count % self.k == 0:
            with torch.no_grad():
                for p, slow in zip((p for g in self.param_groups for p in g["params"]), self.slow, strict=True):
                    p.copy_(slow.lerp_(p, self.alpha))
        return loss

    def state_dict(self) -> dict[str, Any]:
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        return {"state": {}, "param_groups": groups, "slow": self.slow, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.slow, self.count = [s.clone() for s in state_dict["slow"]], state_dict["count"]
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)


class DropsItsMomentum(torch.optim.Optimizer):
    """A third party's rule: the momentum is an attribute, which no checkpoint holds."""

    def __init__(self, params: Any, lr: float = 0.05) -> None:
        super().__init__(params, {"lr": lr})
        self.momentum: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    m = self.momentum.setdefault(p, torch.zeros_like(p))
                    p.sub_(group["lr"] * m.mul_(0.9).add_(p.grad))
        return loss
