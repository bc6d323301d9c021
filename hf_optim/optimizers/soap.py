"""SOAP: Adam in the eigenbasis of Shampoo."""

from __future__ import annotations

from typing import Any

import torch

from hf_optim.bases.matrix import MatrixOptimizer
from hf_optim.core.moments import adam, decoupled


class SOAP(MatrixOptimizer):
    """SOAP: Adam in the basis in which Shampoo's preconditioners are diagonal (Vyas et al. 2024, Algorithms 3 and 4).

        1   first step: lines 7 and 8 with eigenvectors, and nothing else; k = t - 1 steps move something
        2   G' = QL^T G QR                                          a side longer than max_dim: Q is the identity
        3   M = beta1 M + (1 - beta1) G
        4   V = beta2 V + (1 - beta2) G'^2
        5   N = (QL^T M QR / (1 - beta1^k)) / (sqrt(V / (1 - beta2^k)) + eps)
        6   x = x (1 - lr weight_decay) - lr QL N QR^T
        7   L = beta2 L + (1 - beta2) G G^T;  R = beta2 R + (1 - beta2) G^T G
        8   every `frequency` steps: QL, QR = the Q of QR(L QL), QR(R QR)

    Tensors of fewer than two dimensions go by "adam": Adam with the same numbers. Convolutions are matrices
    (out, rest). Beside M and V a matrix of r rows and c columns keeps L, R, QL and QR, 2 r^2 + 2 c^2 numbers.

    Args:
        params: tensors or groups; a group's `route` ("soap" or "adam") overrides the dimensions.
        lr: 3e-3.
        betas: (0.95, 0.95); the second is that of L and R, too.
        eps: 1e-8.
        weight_decay: 0.01, decoupled.
        frequency: 10, steps between changes of the basis.
        max_dim: 10000, longer sides are not rotated (and cost no state): vocabularies.
        compile, state_dtype: as in hf_optim.Optimizer; products of matrices are not compiled, and "bf16" is
            refused.

    Source: SOAP, Algorithms 3 and 4. M is kept in the parameters' own basis, so that it turns with every new one.
    Eigenvectors of line 1 are sorted, largest first; the published code sorts again, and V with them, at every change,
    which the algorithm does not. Decay and correction by k are the code's. The first gradient's rank is at most its
    shorter side: which basis of the rest line 1 finds is the linear algebra library's choice. Shards are gathered.
    """

    family = "matrix"
    paper = "SOAP: Improving and Stabilizing Shampoo using Adam"
    cited = (
        "Vyas, Nikhil and others",
        "SOAP: Improving and Stabilizing Shampoo using Adam",
        "International Conference on Learning Representations",
        2025,
    )
    routed = ("soap", "adam")
    slots = {"m": 0.0, "v": 0.0}
    structural = ("max_dim",)
    bounds = {"frequency": (1, float("inf"), True, False), "max_dim": (0, float("inf"), True, False)}
    search_space = {"lr": ("log", 1e-4, 3e-2), "weight_decay": ("log", 1e-4, 0.1)}

    def __init__(
        self,
        params: Any,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        frequency: int = 10,
        max_dim: int = 10000,
        *,
        compile: bool | None = None,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__(params, locals())

    @staticmethod
    def sides(shape, h):
        rows, columns = shape[0], shape[1:].numel()
        left = {"L": (rows, rows), "QL": (rows, rows)} if rows <= h.max_dim else {}
        right = {"R": (columns, columns), "QR": (columns, columns)} if columns <= h.max_dim else {}
        return {**left, **right}

    @staticmethod
    def matrices(g, s, h, t):
        beta1, beta2 = h.betas
        k, flat = t - 1, g.flatten(2)
        direction = torch.zeros_like(flat)
        if k > 0:
            m, v = s.m.lerp_(g, 1 - beta1).flatten(2), s.v.flatten(2)
            turned = rotated(flat, s)
            v = v * beta2 + turned * turned * (1 - beta2)
            s.v = v.view(g.shape)
            direction = rotated(m, s) / (1 - beta1**k) / (v / (1 - beta2**k)).sqrt_().add_(h.eps)
            direction = rotated(direction, s, back=True)
        for side, basis, product in (("L", "QL", flat @ flat.mT), ("R", "QR", flat.mT @ flat)):
            if hasattr(s, side):
                mean = getattr(s, side).lerp_(product, 1 - beta2)
                if k == 0:
                    setattr(s, basis, eigenvectors(mean))
                elif k % h.frequency == 0:
                    setattr(s, basis, torch.linalg.qr(mean @ getattr(s, basis))[0])
        return direction.view(g.shape)

    @staticmethod
    def scalars(h, t, s):
        matrix = h.route == "soap"
        numbers = adam(h.lr, h.betas, h.eps, t) | decoupled(h)
        return {**numbers, "first": matrix and t == 1, "matrix": matrix, "step": h.lr if matrix else numbers["step"]}

    @staticmethod
    def update(x, g, m, v, c):
        if c.first:
            return
        if c.decay:
            x.mul_(c.shrink)
        if c.matrix:  # g is line 6's QL N QR^T
            x.add_(g, alpha=-c.step)
        else:
            m.lerp_(g, c.w1)
            v.mul_(c.beta2).addcmul_(g, g, value=c.w2)
            x.addcdiv_(m, v.sqrt().mul_(c.unbias).add_(c.eps), value=-c.step)


def eigenvectors(a: torch.Tensor) -> torch.Tensor:
    """Of a batch of symmetric matrices, the largest eigenvalue's first; NaN where a matrix is not finite.

    A gradient that is not finite spoils its own matrix, as with every rule: eigh would raise for the whole batch."""
    finite = a.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    vectors = torch.linalg.eigh(torch.where(finite, a, 0.0))[1].flip(-1)
    return torch.where(finite, vectors, torch.nan)


def rotated(a: torch.Tensor, s: Any, back: bool = False) -> torch.Tensor:
    """A batch (n, rows, columns) in the bases of s, or back from them; sides without one stay."""
    if hasattr(s, "QL"):
        a = (s.QL if back else s.QL.mT) @ a
    if hasattr(s, "QR"):
        a = a @ (s.QR.mT if back else s.QR)
    return a
