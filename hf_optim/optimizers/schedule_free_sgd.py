"""Schedule-Free SGD: an average takes the schedule's place."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.averaged import Averaged


class ScheduleFreeSGD(Averaged):
    """Schedule-Free SGD: gradients at y, answers at x (Defazio et al. 2024, Algorithm 1).

        1   y = (1 - momentum) z + momentum x                       what the parameters hold while training
        2   lr_t = lr min(1, t / warmup_steps)
        3   z = z - lr_t (g + weight_decay y)                       g at y
        4   w = t^r (largest lr so far)^weight_lr_power;  c = w / (sum of all w)
        5   x = (1 - c) x + c z                                     what they hold after `eval()`

    There is no schedule to choose and no end to know: leave the rate constant. `optimizer.eval()` before evaluating and
    saving, `optimizer.train()` before training on; `attach`, `Session` and the studies do so by themselves.

    Args:
        params: tensors or groups.
        lr: 1.0; 10 to 50 times that of SGD with momentum.
        momentum: 0.9, above 0: the interpolation in line 1.
        weight_decay: 0.0, at y.
        warmup_steps: 0.
        r: 0.0, later steps weigh t^r.
        weight_lr_power: 2.0.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer. z is never stored in bf16.

    Source: The Road Less Scheduled, Algorithm 1, and its published code. Batch norm statistics belong to y: run a few
    training batches through the model after `eval()` if it has such layers.
    """

    paper = "The Road Less Scheduled"
    cited = (
        "Defazio, Aaron and Yang, Xingyu and Mehta, Harsh and Mishchenko, Konstantin "
        "and Khaled, Ahmed and Cutkosky, Ashok",
        "The Road Less Scheduled",
        "Advances in Neural Information Processing Systems",
        2024,
    )
    slots = {"z": "param"}
    interpolation = "momentum"
    bounds = {
        "momentum": (0.0, 1.0, False, False),
        "warmup_steps": (0, float("inf"), True, False),
        "r": (0.0, 10.0, True, True),
        "weight_lr_power": (0.0, 10.0, True, True),
    }
    search_space = {"lr": ("log", 1e-2, 10.0), "weight_decay": ("log", 1e-5, 1e-2)}

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
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
        return {
            "decay": h.weight_decay != 0,
            "weight_decay": h.weight_decay,
            "average": h.average,
            "step": h.warm_lr,
            "step_y": h.warm_lr * (1 - h.momentum * (1 - h.average)),
        }

    @staticmethod
    def update(x, g, z, c):  # x is y here
        d = g.add(x, alpha=c.weight_decay) if c.decay else g
        x.lerp_(z, c.average).add_(d, alpha=-c.step_y)  # lines 5 and 1, without x
        z.add_(d, alpha=-c.step)
