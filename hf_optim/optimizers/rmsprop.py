"""RMSprop."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.torch_rule import TorchRule, gradients, start


class RMSprop(TorchRule):
    """RMSprop (Tieleman and Hinton 2012), as torch.optim.RMSprop has it.

        1   g = g + weight_decay x                      -g with maximize
        2   v = alpha v + (1 - alpha) g^2
        3   a = alpha a + (1 - alpha) g                 with centered; s = v - a^2, else s = v
        4   b = momentum b + g / (sqrt(s) + eps)
        5   x = x - lr b

    Args:
        params: tensors or groups.
        lr: 0.01.
        alpha: 0.99, the decay of v and a.
        eps: 1e-8, outside of the root.
        weight_decay: 0.0, an L2 term.
        momentum: 0.0; where it is 0, no b is kept.
        centered: divide by the variance instead of the second moment (Graves 2013); one choice for all groups.
        maximize: climb instead.
        compile, grad_transform, state_dtype: as in hf_optim.Optimizer.

    Source: torch.optim.RMSprop, whose slots (square_avg, grad_avg, momentum_buffer) and checkpoints these are. Nothing
    is corrected for the zero that v starts from.
    """

    paper = "Tieleman and Hinton 2012"
    cited = (
        "Tieleman, Tijmen and Hinton, Geoffrey",
        "Lecture 6.5: RMSprop, Divide the gradient by a running average of its recent magnitude",
        "Neural Networks for Machine Learning, lecture notes",
        2012,
    )
    slots = {"square_avg": 0.0, "grad_avg": 0.0, "momentum_buffer": 0.0}
    optional_slots = {"grad_avg": ("centered", True), "momentum_buffer": ("momentum", True)}
    state_bytes = 4
    structural = ("centered",)
    bounds = {"alpha": (0.0, 1.0, True, True)}
    search_space = {"lr": ("log", 1e-5, 1e-1)}
    torch_keys = ("foreach", "capturable", "differentiable")
    torch_later = ("momentum", "centered", "maximize")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        maximize: bool = False,
        *,
        compile: bool | None = None,
        grad_transform: Any = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def scalars(h, t, s):
        return start(h) | {
            "lr": h.lr,
            "alpha": float(h.alpha),
            "w": 1.0 - h.alpha,
            "eps": h.eps,
            "averages": h.momentum != 0,
            "momentum": float(h.momentum),
        }

    @staticmethod
    def update(x, g, raw, square_avg, c, grad_avg=None, momentum_buffer=None):
        g, raw = gradients(x, g, raw, c)
        square_avg.mul_(c.alpha).addcmul_(raw, raw, value=c.w)
        if grad_avg is None:
            root = square_avg.sqrt()
        else:
            grad_avg.lerp_(raw, c.w)
            root = square_avg.addcmul(grad_avg, grad_avg, value=-1.0).sqrt_()
        root.add_(c.eps)
        if c.averages:
            momentum_buffer.mul_(c.momentum).addcdiv_(g, root)
            x.add_(momentum_buffer, alpha=-c.lr)
        else:
            x.addcdiv_(g, root, value=-c.lr)
