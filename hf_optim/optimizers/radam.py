"""RAdam."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.torch_rule import TorchRule, gradients, start


class RAdam(TorchRule):
    """RAdam: Adam that waits until its variance can be trusted (Liu et al. 2020), as torch.optim.RAdam has it.

        1   g = g + weight_decay x                      -g with maximize
        2   m = beta1 m + (1 - beta1) g
        3   v = beta2 v + (1 - beta2) g^2
        4   rho = rho_max - 2 t beta2^t / (1 - beta2^t),  rho_max = 2 / (1 - beta2) - 1
        5   u = m / (1 - beta1^t)
        6   where rho > 5:  u = u r sqrt(1 - beta2^t) / (sqrt(v) + eps),
                            r^2 = (rho - 4)(rho - 2) rho_max / ((rho_max - 4)(rho_max - 2) rho)
        7   x = x - lr u

    Args:
        params: tensors or groups.
        lr: 1e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.0, an L2 term.
        decoupled_weight_decay: x = x (1 - lr weight_decay) first, instead of line 1; one choice for all groups.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: torch.optim.RAdam, whose slots (exp_avg, exp_avg_sq) and checkpoints these are. The paper's Algorithm 2 asks
    for rho > 4, its published code for rho >= 5.
    """

    paper = "Liu et al. 2020"
    cited = (
        "Liu, Liyuan and Jiang, Haoming and He, Pengcheng and Chen, Weizhu and Liu, Xiaodong "
        "and Gao, Jianfeng and Han, Jiawei",
        "On the Variance of the Adaptive Learning Rate and Beyond",
        "International Conference on Learning Representations",
        2020,
    )
    slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
    int8_slots = {"exp_avg": "signed", "exp_avg_sq": "unsigned"}
    structural = ("decoupled_weight_decay",)
    search_space = {"lr": ("log", 1e-5, 1e-1)}
    torch_keys = ("foreach", "capturable", "differentiable")
    torch_later = ("maximize", "decoupled_weight_decay")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
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
        longest = 2 / (1 - beta2) - 1
        rho = longest - 2 * t * beta2**t / (1 - beta2**t)
        step = h.lr / (1 - beta1**t)
        if rho > 5:
            r = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
            step *= (r * (1 - beta2**t)) ** 0.5
        return start(h, h.decoupled_weight_decay) | {
            "w1": 1 - beta1,
            "beta2": float(beta2),
            "w2": 1 - beta2,
            "eps": h.eps,
            "rectified": rho > 5,
            "step": step,
        }

    @staticmethod
    def update(x, g, raw, exp_avg, exp_avg_sq, c):
        g, raw = gradients(x, g, raw, c)
        if c.decay:
            x.mul_(c.shrink)
        exp_avg.lerp_(g, c.w1)
        exp_avg_sq.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        if c.rectified:
            x.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(c.eps), value=-c.step)
        else:
            x.add_(exp_avg, alpha=-c.step)
