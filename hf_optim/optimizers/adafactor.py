"""Adafactor: a second moment of rows and columns."""

from __future__ import annotations

from typing import Any

from hf_optim.bases.matrix import MatrixOptimizer
from hf_optim.core.elementwise import at_least, count
from hf_optim.core.moments import decoupled
from hf_optim.core.reduce import dot
from hf_optim.core.vocabulary import maximum, sqrt


class Adafactor(MatrixOptimizer):
    """Adafactor: Adam's second moment from the means of rows and columns, no first moment (Shazeer and Stern 2018).

        1   rho = min(lr, 1 / sqrt(t));  alpha = max(eps2, rms(x)) rho
        2   w = t^beta2_decay                                       1 - beta2 of this step
        3   R = (1 - w) R + w mean_columns(g^2);  C = (1 - w) C + w mean_rows(g^2)
        4   V = R C / max(mean(R), eps1)                            vectors: V = (1 - w) V + w g^2
        5   u = g / sqrt(max(V, eps1^2))
        6   x = x (1 - lr weight_decay) - alpha u / max(1, rms(u) / d)

    Of tensors of more than two dimensions the last two are rows and columns.

    Args:
        params: tensors or groups; a group's `route` ("factored" or "vector") overrides the dimensions.
        lr: 1e-2, the largest rate relative to the size of the weights.
        beta2_decay: -0.8.
        eps1: 1.1920928955078125e-07, the precision of float32.
        eps2: 1e-3, the least size that weights are given.
        d: 1.0, the largest rms of an update.
        weight_decay: 0.0, decoupled.
        compile, state_dtype: as in hf_optim.Optimizer; "bf16" is refused.

    Source: Adafactor, Algorithms 4 and 5 as torch.optim.Adafactor reads them: eps1 bounds V from below instead of being
    added to g^2, and lr bounds rho. torch's eps1 is the precision of the parameters' own dtype. The statistics of line
    3 are not bias corrected: w is 1 in the first step.
    """

    family = "matrix"
    paper = "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost"
    cited = (
        "Shazeer, Noam and Stern, Mitchell",
        "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
        "International Conference on Machine Learning",
        2018,
    )
    routed = ("factored", "vector")
    slots = {"v": 0.0}
    optional_slots = {"v": ("route", "vector")}
    shared = ("eps2", "d")
    bounds = {
        "beta2_decay": (-float("inf"), 0.0, False, True),
        "eps1": (0.0, float("inf"), True, False),
        "eps2": (0.0, float("inf"), True, False),
        "d": (0.0, float("inf"), False, False),
    }
    search_space = {"lr": ("log", 1e-4, 0.3), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps1: float = 1.1920928955078125e-07,
        eps2: float = 1e-3,
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        compile: bool | None = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def sides(shape, h):
        return {"R": (*shape[:-1], 1), "C": (*shape[:-2], 1, shape[-1])}

    @staticmethod
    def matrices(g, s, h, t):  # lines 3 to 5
        w, square = t**h.beta2_decay, g * g
        s.R.lerp_(square.mean(-1, keepdim=True), w)
        s.C.lerp_(square.mean(-2, keepdim=True), w)
        v = s.R * s.C / s.R.mean(-2, keepdim=True).clamp(min=h.eps1)
        return g.div_(v.clamp_(min=h.eps1**2).sqrt_())

    @staticmethod
    def measures(h):
        return ("xx", "uu", "size")

    @staticmethod
    def scope(h):
        return "tensor"

    @staticmethod
    def prepare(h, t, memory):
        return {"factored": h.route == "factored", "w": float(t) ** h.beta2_decay, "floor": h.eps1**2}

    @staticmethod
    def direction(g, v, c):  # line 5 for vectors; for matrices g is u already
        return g if c.factored else g / at_least(v, c.floor).sqrt_()

    @staticmethod
    def measure(x, g, c, v=None):
        if not c.factored:
            v.lerp_(g * g, c.w)
        u = Adafactor.direction(g, v, c)
        return dot(x, x), dot(u, u), count(x)

    @staticmethod
    def derive(h, sums):
        size, update = (sqrt(sums[k] / maximum(sums["size"], 1)) for k in ("xx", "uu"))
        return {"scale": maximum(size, h.eps2) / maximum(update / h.d, 1.0)}

    @staticmethod
    def scalars(h, t, s):
        return {
            "rho": min(h.lr, t**-0.5),
            **decoupled(h),
        }

    @staticmethod
    def update(x, g, c, v=None):
        if c.decay:
            x.mul_(c.shrink)
        x.add_(Adafactor.direction(g, v, c) * c.scale, alpha=-c.rho)
