"""Adam."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.torch_rule import TorchRule, gradients, start

PRESETS = {
    "amsgrad": {
        "arguments": {"amsgrad": True},
        "state_bytes": 12,
        "paper": "Reddi et al. 2018",
        "cited": (
            "Reddi, Sashank J. and Kale, Satyen and Kumar, Sanjiv",
            "On the Convergence of Adam and Beyond",
            "International Conference on Learning Representations",
            2018,
        ),
        "search_space": {"lr": ("log", 1e-5, 1e-1)},
    },
}


class Adam(TorchRule):
    """Adam (Kingma and Ba 2015), as torch.optim.Adam has it.

        1   g = g + weight_decay x                      -g with maximize
        2   m = beta1 m + (1 - beta1) g
        3   v = beta2 v + (1 - beta2) g^2
        4   r = max(r, v)                               with amsgrad; else r = v
        5   x = x - lr (m / (1 - beta1^t)) / (sqrt(r / (1 - beta2^t)) + eps)

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.0, an L2 term.
        amsgrad: line 4's running maximum (Reddi et al. 2018); one choice for all groups.
        decoupled_weight_decay: x = x (1 - lr weight_decay) first, instead of line 1: AdamW; one choice for all groups.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: torch.optim.Adam, whose slots (exp_avg, exp_avg_sq, max_exp_avg_sq) and checkpoints these are; Algorithm 1
    of the paper, with eps outside of the corrected root. The maximum is of the uncorrected v, as in torch.
    """

    paper = "Kingma and Ba 2015"
    cited = (
        "Kingma, Diederik P. and Ba, Jimmy",
        "Adam: A Method for Stochastic Optimization",
        "International Conference on Learning Representations",
        2015,
    )
    slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}
    optional_slots = {"max_exp_avg_sq": ("amsgrad", True)}
    int8_slots = {"exp_avg": "signed", "exp_avg_sq": "unsigned"}
    state_bytes = 8
    structural = ("amsgrad", "decoupled_weight_decay")
    search_space = {"lr": ("log", 1e-5, 1e-1)}
    torch_later = ("maximize", "decoupled_weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return start(h, h.decoupled_weight_decay) | moments(h, t)

    @staticmethod
    def update(x, g, raw, exp_avg, exp_avg_sq, c, max_exp_avg_sq=None):
        g, raw = gradients(x, g, raw, c)
        if c.decay:
            x.mul_(c.shrink)
        exp_avg.lerp_(g, c.w1)
        exp_avg_sq.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        r = exp_avg_sq
        if max_exp_avg_sq is not None:
            r = max_exp_avg_sq.copy_(max_exp_avg_sq.maximum(exp_avg_sq))
        x.addcdiv_(exp_avg, r.sqrt().div_(c.root).add_(c.eps), value=-c.step)


def moments(h: Any, t: int) -> dict[str, float]:
    """The scalars of lines 2 to 5."""
    beta1, beta2 = h.betas
    return {
        "w1": 1 - beta1,
        "beta2": float(beta2),
        "w2": 1 - beta2,
        "eps": h.eps,
        "step": h.lr / (1 - beta1**t),
        "root": (1 - beta2**t) ** 0.5,
    }
