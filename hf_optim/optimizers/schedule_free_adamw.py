"""Schedule-Free AdamW: an average takes the schedule's place."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.averaged import Averaged


class ScheduleFreeAdamW(Averaged):
    """Schedule-Free AdamW: gradients at y, answers at x (Defazio et al. 2024, Algorithm 1 with AdamW).

        1   y = (1 - beta1) z + beta1 x                             what the parameters hold while training
        2   lr_t = lr min(1, t / warmup_steps)
        3   v = beta2 v + (1 - beta2) g^2                           g at y
        4   z = z - lr_t (g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay y)
        5   w = t^r (largest lr so far)^weight_lr_power;  c = w / (sum of all w)
        6   x = (1 - c) x + c z                                     what they hold after `eval()`

    There is no schedule to choose and no end to know: leave the rate constant. `optimizer.eval()` before evaluating and
    saving, `optimizer.train()` before training on; `attach`, `Session` and the studies do so by themselves.

    Args:
        params: tensors or groups.
        lr: 2.5e-3; 1 to 10 times AdamW's.
        betas: (0.9, 0.999), the first above 0: of the interpolation in line 1, and of v.
        eps: 1e-8.
        weight_decay: 0.0, decoupled, at y.
        warmup_steps: 0.
        r: 0.0, later steps weigh t^r.
        weight_lr_power: 2.0.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer. z is never stored in bf16.

    Source: The Road Less Scheduled, Algorithm 1 with Section 4, and its published code. The listing has the bias
    correction of v in lr_t, and so in the weights of line 5; here, as in the code, it is in the denominator. Batch norm
    statistics belong to y: run a few training batches through the model after `eval()` if it has such layers.
    """

    paper = "The Road Less Scheduled"
    cited = (
        "Defazio, Aaron and Yang, Xingyu and Mehta, Harsh and Mishchenko, Konstantin "
        "and Khaled, Ahmed and Cutkosky, Ashok",
        "The Road Less Scheduled",
        "Advances in Neural Information Processing Systems",
        2024,
    )
    slots = {"z": "param", "v": 0.0}
    int8_slots = {"v": "unsigned"}
    bounds = {
        "betas": (0.0, 1.0, False, False),
        "warmup_steps": (0, float("inf"), True, False),
        "r": (0.0, 10.0, True, True),
        "weight_lr_power": (0.0, 10.0, True, True),
    }
    search_space = {"lr": ("log", 1e-4, 1e-1), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        beta1, beta2 = h.betas
        return {
            "beta2": beta2,
            "w2": 1 - beta2,
            "eps": h.eps,
            "unbias": (1 - beta2**t) ** -0.5,
            "decay": h.weight_decay != 0,
            "weight_decay": h.weight_decay,
            "average": h.average,
            "step": h.warm_lr,
            "step_y": h.warm_lr * (1 - beta1 * (1 - h.average)),
        }

    @staticmethod
    def update(x, g, raw, z, v, c):  # x is y here
        v.mul_(c.beta2).addcmul_(raw, raw, value=c.w2)
        d = g / v.sqrt().mul_(c.unbias).add_(c.eps)
        if c.decay:
            d.add_(x, alpha=c.weight_decay)
        x.lerp_(z, c.average).add_(d, alpha=-c.step_y)  # lines 6 and 1, without x
        z.add_(d, alpha=-c.step)
