"""NAdamW: AdamW with Nesterov's momentum."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.moments import decoupled


class NAdamW(Optimizer):
    """NAdamW: Adam with Nesterov's momentum (Dozat 2016) and decoupled weight decay.

        1   mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)
        2   x = x (1 - lr weight_decay)
        3   m = beta1 m + (1 - beta1) g
        4   v = beta2 v + (1 - beta2) g^2
        5   mhat = mu_(t+1) m / (1 - prod_(i <= t+1) mu_i) + (1 - mu_t) g / (1 - prod_(i <= t) mu_i)
        6   x = x - lr mhat / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        params: tensors or groups.
        lr: 2e-3.
        betas: (0.9, 0.999).
        eps: 1e-8.
        weight_decay: 0.01, decoupled.
        momentum_decay: 4e-3; 0 for a constant mu = beta1 / 2.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: Incorporating Nesterov Momentum into Adam, Algorithm 2 with the schedule of its Section 3, as
    torch.optim.NAdam(decoupled_weight_decay=True) has it; the baseline of the AlgoPerf benchmark. The product is that
    of a run at these hyper-parameters from its beginning, also when they are changed on the way.
    """

    paper = "Incorporating Nesterov Momentum into Adam"
    cited = (
        "Dozat, Timothy",
        "Incorporating Nesterov Momentum into Adam",
        "International Conference on Learning Representations, Workshop",
        2016,
    )
    slots = {"m": 0.0, "v": 0.0}
    int8_slots = {"m": "signed", "v": "unsigned"}
    bounds = {"momentum_decay": (0.0, float("inf"), True, False)}
    search_space = {"lr": ("log", 1e-5, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum_decay: float = 4e-3,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        now, after = momentum(beta1, h.momentum_decay, t), momentum(beta1, h.momentum_decay, t + 1)
        so_far = product(beta1, h.momentum_decay, t)
        return {
            "w1": 1 - beta1,
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "unbias": (1 - beta2**t) ** -0.5,
            "step_m": h.lr * after / (1 - so_far * after),
            "step_g": h.lr * (1 - now) / (1 - so_far),
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, raw, m, v, c):
        if c.decay:
            x.mul_(c.shrink)
        m.lerp_(g, c.w1)
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        root = v.sqrt().mul_(c.unbias).add_(c.eps)
        x.addcdiv_(g, root, value=-c.step_g).addcdiv_(m, root, value=-c.step_m)


def momentum(beta1: float, decay: float, t: int) -> float:
    """mu_t, line 1."""
    return beta1 * (1 - 0.5 * 0.96 ** (t * decay))


#: (beta1, momentum_decay) -> the last product asked for: (t, prod_(i <= t) mu_i)
_PRODUCTS: dict[tuple[float, float], tuple[int, float]] = {}


def product(beta1: float, decay: float, t: int) -> float:
    """mu_1 ... mu_t, always multiplied in this order, so that a resumed run has the same bits."""
    at, value = _PRODUCTS.get((beta1, decay), (0, 1.0))
    if at > t:
        at, value = 0, 1.0
    for i in range(at + 1, t + 1):
        if value < 1e-30:  # nothing to 1: a run that starts late need not multiply on
            break
        value *= momentum(beta1, decay, i)
    _PRODUCTS[beta1, decay] = t, value
    return value
