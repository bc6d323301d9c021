"""Curvature of the loss by Hessian-vector products: eigenvalues by Lanczos' method, the trace by Hutchinson's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_optim.curvature.solution import Solution
from hf_optim.errors import UserError


@dataclass(frozen=True)
class Trace:
    """The estimate of the trace and its standard error over so many probes."""

    mean: float
    error: float
    probes: int


def product(solution: Solution, vector: Tensor) -> Tensor:
    """H v of the solution's mean loss: [parameters] -> [parameters], in the parameters' own precision."""
    parameters = solution.parameters
    pieces = _split(vector, parameters)
    total = torch.zeros_like(vector)
    for loss, weight in solution.losses():
        gradients = torch.autograd.grad(loss * weight, parameters, create_graph=True, allow_unused=True)
        used = [(g, p, v) for g, p, v in zip(gradients, parameters, pieces, strict=True) if g is not None]
        inner = sum(((g * v).sum() for g, _, v in used), torch.zeros((), device=vector.device, dtype=vector.dtype))
        if not inner.requires_grad:  # of a loss that is linear in all of them
            continue
        products = torch.autograd.grad(inner, parameters, allow_unused=True)
        total += torch.cat(
            [(torch.zeros_like(p) if h is None else h).reshape(-1) for h, p in zip(products, parameters, strict=True)]
        )
    return total


def eigenvalues(solution: Solution, count: int = 1, *, tolerance: float = 1e-3, most: int = 300) -> list[float]:
    """The `count` algebraically largest eigenvalues of the Hessian, largest first.

    Lanczos' method (scipy's eigsh) from a fixed starting vector, to a relative `tolerance`; at most `most` restarts.

    Raises:
        UserError: it did not converge, or the loss is not finite.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    size = sum(p.numel() for p in solution.parameters)
    first = solution.parameters[0]
    if not math.isfinite(solution.loss()):
        raise UserError("the loss is not finite on these samples: there is no curvature to look at")
    if not 1 <= count < size:
        raise UserError(f"eigenvalues: ask for 1 to {size - 1}, got {count}")

    def multiply(values: np.ndarray) -> np.ndarray:
        vector = torch.as_tensor(values.reshape(-1), dtype=first.dtype, device=first.device)
        return product(solution, vector).double().cpu().numpy()

    start = np.random.default_rng(0).standard_normal(size)
    if not multiply(start).any():  # of a loss that is flat here: no Krylov space to look in
        return [0.0] * count
    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)  # type: ignore[call-arg]
    try:
        largest = eigsh(
            operator, k=count, which="LA", tol=tolerance, v0=start, maxiter=most, ncv=min(size, max(2 * count + 1, 20)),
            return_eigenvectors=False,
        )  # fmt: skip
    except ArpackNoConvergence as error:
        raise UserError(f"eigenvalues: no convergence after {most} restarts: raise the tolerance") from error
    return sorted((float(value) for value in largest), reverse=True)


def trace(solution: Solution, probes: int = 30, seed: int = 0) -> Trace:
    """The trace of the Hessian from `probes` vectors of random signs (Hutchinson's estimate)."""
    if probes < 2:
        raise UserError(f"trace: take at least 2 probes, got {probes}")
    first = solution.parameters[0]
    size = sum(p.numel() for p in solution.parameters)
    generator = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(probes):
        signs = (torch.randint(0, 2, (size,), generator=generator) * 2 - 1).to(first)
        estimates.append(float(signs @ product(solution, signs)))
    return Trace(float(np.mean(estimates)), float(np.std(estimates, ddof=1) / math.sqrt(probes)), probes)


def sharpness(solution: Solution) -> float:
    """The largest eigenvalue of the Hessian."""
    return eigenvalues(solution, 1)[0]


def _split(vector: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    pieces = torch.split(vector, [p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
