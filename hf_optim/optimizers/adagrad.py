"""Adagrad."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.torch_rule import TorchRule, gradients, start


class Adagrad(TorchRule):
    """Adagrad (Duchi et al. 2011), as torch.optim.Adagrad has it.

        1   g = g + weight_decay x                      -g with maximize
        2   sum = sum + g^2
        3   x = x - lr / (1 + (t - 1) lr_decay) g / (sqrt(sum) + eps)

    Args:
        params: tensors or groups.
        lr: 0.01.
        lr_decay: 0.0.
        weight_decay: 0.0, an L2 term.
        initial_accumulator_value: 0.0, the first value of `sum`.
        eps: 1e-10.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: torch.optim.Adagrad, whose slots and checkpoints these are. `state_dtype="bf16"` suits it badly: `sum` only
    grows, and what is added to it ends up far below its last place.
    """

    paper = "Duchi et al. 2011"
    cited = (
        "Duchi, John and Hazan, Elad and Singer, Yoram",
        "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization",
        "Journal of Machine Learning Research",
        2011,
    )
    slots = {"sum": "initial_accumulator_value"}
    bounds = {
        "lr_decay": (0.0, float("inf"), True, False),
        "initial_accumulator_value": (0.0, float("inf"), True, False),
    }
    search_space = {"lr": ("log", 1e-4, 1.0)}
    torch_keys = ("foreach", "differentiable", "fused")
    torch_later = ("initial_accumulator_value", "eps", "maximize")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        maximize: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return start(h) | {"step": h.lr / (1 + (t - 1) * h.lr_decay), "eps": h.eps}

    @staticmethod
    def update(x, g, raw, sum, c):
        g, raw = gradients(x, g, raw, c)
        sum.addcmul_(raw, raw)
        x.addcdiv_(g, sum.sqrt().add_(c.eps), value=-c.step)
