"""AdamW."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.torch_rule import TorchRule, start
from hf_optim.optimizers.adam import Adam, moments


class AdamW(TorchRule):
    """AdamW (Loshchilov and Hutter 2019), as torch.optim.AdamW has it: Adam with decoupled weight decay.

        1   x = x (1 - lr weight_decay)
        2   m = beta1 m + (1 - beta1) g                 -g with maximize
        3   v = beta2 v + (1 - beta2) g^2
        4   r = max(r, v)                               with amsgrad; else r = v
        5   x = x - lr (m / (1 - beta1^t)) / (sqrt(r / (1 - beta2^t)) + eps)

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.01, decoupled.
        amsgrad: line 4's running maximum; one choice for all groups.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: torch.optim.AdamW, whose slots (exp_avg, exp_avg_sq, max_exp_avg_sq) and checkpoints these are; Algorithm 2
    of the paper with the decay scaled by the rate, as everybody has it, and not by the schedule's factor alone.
    """

    paper = "Loshchilov and Hutter 2019"
    cited = (
        "Loshchilov, Ilya and Hutter, Frank",
        "Decoupled Weight Decay Regularization",
        "International Conference on Learning Representations",
        2019,
    )
    slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}
    optional_slots = {"max_exp_avg_sq": ("amsgrad", True)}
    int8_slots = {"exp_avg": "signed", "exp_avg_sq": "unsigned"}
    state_bytes = 8
    structural = ("amsgrad",)
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}
    special_cases = {"adam": {"weight_decay": 0.0}}
    torch_fixed = {"decoupled_weight_decay": True}
    torch_later = ("maximize", "decoupled_weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return start(h, decoupled=True) | moments(h, t)

    update = staticmethod(Adam.update)  # type: ignore[assignment]
