"""NAdam."""

from __future__ import annotations

from ctypes import c_float
from typing import Any

from hf_optim.bases.torch_rule import TorchRule, gradients, start


class NAdam(TorchRule):
    """NAdam: Adam with Nesterov's momentum (Dozat 2016), as torch.optim.NAdam has it.

        1   g = g + weight_decay x                      -g with maximize
        2   mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2),  P = P mu_t
        3   m = beta1 m + (1 - beta1) g
        4   v = beta2 v + (1 - beta2) g^2
        5   u = (1 - mu_t) / (1 - P) g + mu_{t+1} / (1 - P mu_{t+1}) m
        6   x = x - lr u / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: tensors or groups.
        lr: 2e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.0, an L2 term.
        momentum_decay: 4e-3; 0 keeps mu at beta1 / 2.
        decoupled_weight_decay: x = x (1 - lr weight_decay) first, instead of line 1; one choice for all groups.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: torch.optim.NAdam, whose slots (exp_avg, exp_avg_sq, mu_product) and checkpoints these are. P is a float32
    there, and so it is here: a number in float64 would part from torch's in the eighth digit.
    """

    paper = "Dozat 2016"
    cited = (
        "Dozat, Timothy",
        "Incorporating Nesterov Momentum into Adam",
        "International Conference on Learning Representations, Workshop",
        2016,
    )
    slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    int8_slots = {"exp_avg": "signed", "exp_avg_sq": "unsigned"}
    scalar_slots = {"mu_product": 1.0}
    structural = ("decoupled_weight_decay",)
    bounds = {"momentum_decay": (0.0, float("inf"), True, False)}
    search_space = {"lr": ("log", 1e-5, 1e-1)}
    torch_keys = ("foreach", "capturable", "differentiable")
    torch_later = ("maximize", "decoupled_weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
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
        beta1, beta2 = h.betas
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (k * h.momentum_decay)) for k in (t, t + 1))
        product = c_float(h.mu_product * c_float(mu).value).value
        return start(h, h.decoupled_weight_decay) | {
            "mu_product": product,
            "w1": 1 - beta1,
            "beta2": float(beta2),
            "w2": 1 - beta2,
            "eps": h.eps,
            "unbias": 1 - beta2**t,
            "step_g": h.lr * (1 - mu) / (1 - product),
            "step_m": h.lr * mu_next / (1 - product * mu_next),
        }

    @staticmethod
    def update(x, g, raw, exp_avg, exp_avg_sq, c):
        g, raw = gradients(x, g, raw, c)
        if c.decay:
            x.mul_(c.shrink)
        exp_avg.lerp_(g, c.w1)
        exp_avg_sq.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        den = exp_avg_sq.div(c.unbias).sqrt_().add_(c.eps)
        x.addcdiv_(g, den, value=-c.step_g)
        x.addcdiv_(exp_avg, den, value=-c.step_m)
