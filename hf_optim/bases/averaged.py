"""Schedule-Free rules: gradients at y, answers at x, and a mode that says which of them the parameters hold.

    y = (1 - beta) z + beta x          what the parameters hold while training
    z = z - lr d(y)                    the rule's own step d, from the gradient at y
    x = (1 - c) x + c z                c = w / (sum of all w), w = t^r lr_max^weight_lr_power

x is not stored: it is y + (1 - 1/beta)(z - y). `eval()` lets the parameters hold x and keeps y beside the state, so
that `train()` puts y back to the bit; a checkpoint written in between holds both and says so (`holds_average`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.reduce import local
from hf_optim.errors import UserError

#: of one step; the sum of more of them than there are steps is a number, and rates beyond it count alike
LARGEST_WEIGHT = 1e280


def _weight(step: int, rate: float, h: SimpleNamespace) -> float:
    try:
        return min(float(float(step) ** h.r * rate**h.weight_lr_power), LARGEST_WEIGHT)
    except OverflowError:
        return LARGEST_WEIGHT


class Averaged(Optimizer):
    """Base of the Schedule-Free rules. Hooks see, in `h`, `average` (c above) and `warm_lr` (lr with its warm-up)."""

    counted: ClassVar[dict[str, tuple[float, float]]] = {
        "averaged_steps": (0, 2**53),
        "lr_max": (0.0, float("inf")),
        "weight_sum": (0.0, float("inf")),
        "average": (0.0, 1.0),
        "holds_average": (False, True),
    }
    #: where beta is: a hyper-parameter, or the first entry of it
    interpolation: ClassVar[str] = "betas"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch."""
        super().add_param_group(param_group)
        self.param_groups[-1].update({name: first for name, (first, _) in self.counted.items()})

    def _hyper(self, group: dict[str, Any]) -> SimpleNamespace:
        h = super()._hyper(group)
        h.average = group["average"]
        steps = group["averaged_steps"]
        h.warm_lr = h.lr * min(1.0, steps / h.warmup_steps) if h.warmup_steps else h.lr
        return h

    def _first_value(self, name: str, p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        if name == "z":  # rounded to bf16 it would jump by more than a step
            return p.detach().to(self._compute_dtype(p), copy=True)
        return super()._first_value(name, p, group)

    def _beta(self, group: dict[str, Any]) -> float:
        beta = group[self.interpolation]
        return float(beta[0] if isinstance(beta, (tuple, list)) else beta)

    # --- a step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Any = None,
        evaluate: Callable[[], Any] | None = None,
    ) -> Any:
        """One update; see `Optimizer.step`.

        Raises:
            UserError: the parameters hold the average.
        """
        if any(group["holds_average"] for group in self.param_groups):
            raise UserError(
                f"{self.rule}: the parameters hold the average x, whose gradient is not asked for: call "
                "optimizer.train() before the forward pass, as model.train()"
            )
        return super().step(closure, loss=loss, evaluate=evaluate)

    @contextmanager
    def _moving(self) -> Iterator[None]:
        self._weigh()
        yield

    def before_replay(self) -> None:
        """Count a step and hand its numbers to the CUDA graph that captured `step()`."""
        self._weigh()
        super().before_replay()

    def _weigh(self) -> None:
        """This step's weights of z in the averages of all groups that have gradients. At a rate of zero z counts
        nothing, so that nothing moves."""
        for group in self.param_groups:
            if all(p.grad is None for p in group["params"]):
                continue
            group["averaged_steps"] += 1
            h = self._hyper(group)
            group["average"] = 0.0
            if h.warm_lr > 0:
                group["lr_max"] = max(group["lr_max"], h.warm_lr)
                group["weight_sum"] += (weight := _weight(group["averaged_steps"], group["lr_max"], h))
                if group["weight_sum"] > 0:  # the power of a tiny rate is 0
                    group["average"] = weight / group["weight_sum"]

    @staticmethod
    def rate(h: SimpleNamespace, memory: dict[str, float]) -> float:
        return h.warm_lr  # type: ignore[no-any-return]

    # --- what the parameters hold ------------------------------------------------------------------------------------

    @torch.no_grad()
    def eval(self) -> None:
        """Let the parameters hold x, the average: for evaluation and for what is saved. Twice is once."""
        for group in self.param_groups:
            if group["holds_average"]:
                continue
            for p in group["params"]:
                state = self.state[p] if p in self.state else {}
                if "z" in state:
                    state["y"] = p.detach().clone()
                    self._mix(p, state["z"], 1 - 1 / self._beta(group))
            group["holds_average"] = True

    @torch.no_grad()
    def train(self) -> None:
        """Let the parameters hold y, where gradients are taken. Twice is once."""
        for group in self.param_groups:
            if not group["holds_average"]:
                continue
            for p in group["params"]:
                state = self.state[p] if p in self.state else {}
                y = state.pop("y", None)
                if y is not None:
                    local(p).copy_(local(y))
                elif "z" in state:  # a sharded checkpoint leaves y out
                    self._mix(p, state["z"], 1 - self._beta(group))
            group["holds_average"] = False

    def _mix(self, p: torch.Tensor, z: torch.Tensor, weight: float) -> None:
        dtype = torch.promote_types(self._compute_dtype(p), z.dtype)
        local(p).copy_(local(p).to(dtype).lerp(local(z).to(dtype), weight))
