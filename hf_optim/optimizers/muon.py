"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from typing import Any

import torch

from hf_optim.bases.matrix import MatrixOptimizer
from hf_optim.core.moments import adam, decoupled


class Muon(MatrixOptimizer):
    """Muon: hidden matrices move along their momentum's orthogonal factor, the rest by AdamW (Jordan et al. 2024).

        1   m = mu m + (1 - mu) g
        2   u = mu m + (1 - mu) g, with nesterov; else m
        3   X = u / (||u|| + 1e-7), transposed if it is taller than wide
        4   five times: A = X X^T;  X = 3.4445 X + (-4.7750 A + 2.0315 A^2) X
        5   s = sqrt(max(1, rows / columns)), or 0.2 sqrt(max(rows, columns)) with adjust_lr = "match_rms_adamw"
        6   x = x (1 - lr weight_decay) - lr s X

    Made from a model (`create("muon", model)`), weight matrices of hidden layers go by "muon", convolutions as
    (out, rest); embeddings, the output head, vectors and other parameters go by "adamw", with its own rate, betas and
    decay. Made from tensors, dimensions decide. A group may say `route`; `routes()` tells what went where. Schedules
    act on the rates of both.

    Args:
        params: tensors or groups. A group's own lr and weight_decay hold for whatever is in it.
        lr: 0.02; for "match_rms_adamw" AdamW's, such as 3e-4 to 3e-3.
        momentum: 0.95, mu.
        nesterov: True.
        weight_decay: 0.1, decoupled, of the matrices.
        ns_steps: 5, of line 4.
        adjust_lr: "original", or "match_rms_adamw", which makes steps as long as AdamW's (Liu et al. 2025).
        ns_dtype: "auto" for line 4 in bfloat16 on accelerators and in the parameters' precision (at least float32) on a
            CPU; "fp32" for that precision everywhere; "bf16".
        adamw_lr: 3e-4.
        adamw_betas: (0.9, 0.95).
        adamw_eps: 1e-8.
        adamw_weight_decay: 0.1; not for biases and norms of a model.
        compile, state_dtype: as in hf_optim.Optimizer; the product of matrices is not compiled, and "bf16" is
            refused.

    Source: Muon: An optimizer for hidden layers in neural networks (the author's page), and Muon is Scalable for LLM
    Training for the decay and the second kind of s. torch.optim.Muon divides in line 3 by max(||u||, 1e-7) and always
    iterates in bfloat16. Which parameters are hidden matrices is the page's own rule; the head is what a transformers
    model names as its output embeddings, else its last matrix. Shards of a matrix are gathered.
    """

    family = "matrix"
    paper = "Muon: An optimizer for hidden layers in neural networks"
    cited = (
        "Jordan, Keller and others",
        "Muon: An optimizer for hidden layers in neural networks",
        "",
        2024,
    )
    routed = ("muon", "adamw")
    beside = {"lr": "adamw_lr", "weight_decay": "adamw_weight_decay"}
    slots = {"buffer": 0.0, "m": 0.0, "v": 0.0}
    optional_slots = {"buffer": ("route", "muon"), "m": ("route", "adamw"), "v": ("route", "adamw")}
    state_bytes = 8
    choices = {"adjust_lr": ("original", "match_rms_adamw"), "ns_dtype": ("auto", "fp32", "bf16")}
    structural = ("nesterov", "ns_steps")
    bounds = {
        "adamw_betas": (0.0, 1.0, True, False),
        "ns_steps": (1, 100, True, True),
        "adamw_lr": (0.0, float("inf"), True, False),
        "adamw_eps": (0.0, float("inf"), True, False),
        "adamw_weight_decay": (0.0, float("inf"), True, False),
    }
    search_space = {"lr": ("log", 1e-4, 0.2), "adamw_lr": ("log", 1e-5, 1e-2), "weight_decay": ("log", 1e-3, 1.0)}

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.1,
        ns_steps: int = 5,
        adjust_lr: str = "original",
        ns_dtype: str = "auto",
        adamw_lr: float = 3e-4,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.1,
        *,
        compile: bool | None = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @classmethod
    def route(cls, kind: str, p: torch.Tensor) -> str:
        return "muon" if kind == "matrix" else "adamw"

    @staticmethod
    def matrices(g, s, h, t):
        s.buffer.lerp_(g, 1 - h.momentum)
        u = g.lerp(s.buffer, h.momentum) if h.nesterov else s.buffer
        rows, columns = u.shape[1], u[0, 0].numel()
        low = h.ns_dtype == "bf16" or (h.ns_dtype == "auto" and u.device.type != "cpu")
        o = orthogonal(u.flatten(2), h.ns_steps, torch.bfloat16 if low else u.dtype)
        s_ = max(1, rows / columns) ** 0.5 if h.adjust_lr == "original" else 0.2 * max(rows, columns) ** 0.5
        return o.view(u.shape).mul_(s_)

    @staticmethod
    def scalars(h, t, s):
        if h.route == "muon":
            return {"matrix": True, "step": h.lr, **decoupled(h)}
        return {"matrix": False, **adam(h.lr, h.adamw_betas, h.adamw_eps, t), **decoupled(h)}

    @staticmethod
    def update(x, g, c, m=None, v=None):
        if c.decay:
            x.mul_(c.shrink)
        if c.matrix:  # g is line 6's s X
            x.add_(g, alpha=-c.step)
        else:
            m.lerp_(g, c.w1)
            v.mul_(c.beta2).addcmul_(g, g, value=c.w2)
            x.addcdiv_(m, v.sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)


def orthogonal(u: torch.Tensor, steps: int, dtype: torch.dtype) -> torch.Tensor:
    """Lines 3 and 4 for a batch (n, rows, columns), iterated in `dtype`: singular values end near 1."""
    wide = u.shape[1] <= u.shape[2]
    x = u / (torch.linalg.matrix_norm(u, keepdim=True) + 1e-7)
    x = (x if wide else x.mT).to(dtype)
    for _ in range(steps):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return (x if wide else x.mT).to(u.dtype).contiguous()
