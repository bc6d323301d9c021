"""What the papers prove, computed: each check fills a table that the rules of `exhibits` read.

A check can break a theorem with one case. It cannot prove one: "holds" says that no case of its table broke it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Table = list[dict[str, Any]]


def agr_theorem41() -> Table:
    """Theorem 4.1 of AGR: |Psi(g)|_2 <= |g|_2, and |d Psi(grad L)/dw|_2 <= |Hessian of L|_2.

    The derivative is the Jacobian of Psi times the Hessian. Columns: case, n, norm, norm_bound (the first inequality),
    slope, slope_bound (the second; operator norms). Drawn gradients have heavy and light tails, drawn Hessians are
    positive definite, as the proof supposes; the named case is a large entry beside small ones on a unit Hessian.
    """
    import torch

    draw = torch.Generator().manual_seed(0)
    cases: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    for n in (2, 5, 10, 40):
        for power in (1, 3):
            g = torch.randn(n, generator=draw, dtype=torch.float64) ** power
            root = torch.randn(n, n, generator=draw, dtype=torch.float64)
            cases.append((f"normal to the power {power}, n = {n}", g, root @ root.T / n))
    dominant = torch.tensor([1.0, *[0.001] * 9], dtype=torch.float64)
    cases.append(("g = (1, nine times .001), unit Hessian", dominant, torch.eye(10, dtype=torch.float64)))
    table = []
    for name, g, hessian in cases:
        jacobian = torch.autograd.functional.jacobian(_psi, g)
        table.append({
            "case": name, "n": len(g),
            "norm": float(_psi(g).norm()), "norm_bound": float(g.norm()),
            "slope": float(torch.linalg.matrix_norm(jacobian @ hessian, 2)),
            "slope_bound": float(torch.linalg.matrix_norm(hessian, 2)),
        })  # fmt: skip
    return table


def _psi(g: Any) -> Any:
    """Equations 1 and 2, written out: differentiable, and independent of the transform that trains."""
    return g - g.abs() / g.abs().sum() * g


def agr_theorem42() -> Table:
    """Theorem 4.2 of AGR, on a step of SGD with AGR: the rate that an element sees, -(change)/gradient, as a share of
    the rate. Columns: case, share, limit (1 - alpha of Equation 2), limit_error, and `rise`: how much the share rises
    with |g| from one element to the next larger one (never, if larger gradients are slowed more).
    """
    import torch

    import hf_optim

    table = []
    draw = torch.Generator().manual_seed(1)
    for n, power in ((4, 1), (16, 3), (64, 1)):
        g = torch.randn(n, 2, generator=draw, dtype=torch.float64) ** power
        x = torch.zeros_like(g, requires_grad=True)
        x.grad = g.clone()
        hf_optim.SGDAGR([x], lr=0.5).step()
        shares = -x.detach() / (0.5 * g)
        limits = 1 - g.abs() / g.abs().sum()
        order = g.abs().flatten().argsort()
        steps = shares.flatten()[order].diff()
        table.append({
            "case": f"normal to the power {power}, {n} x 2", "share": float(shares.max()), "limit": 1.0,
            "limit_error": float((shares - limits).abs().max()), "rise": float(steps.max()),
        })  # fmt: skip
    return table


def smaran_theorem4(steps: int = 1024, seeds: int = 3) -> Table:
    """Theorem 4 of SMARAN on f(x) = 1 + sum x_i^2 / (1 + x_i^2), which is not convex, with noisy gradients.

    Columns: seed, T, least (min over t <= T of |grad f|^2), bound (Eq. 14 with C_1 = ... = C_4 = 1; L = 2, c the least
    V), and tail: what the bound's term 4 C_2 n eta (sqrt T - 1) alone leaves of it. That term over sqrt T tends to a
    constant, so the bound does not fall to zero.
    """
    import torch

    import hf_optim

    eta, n, smoothness = 0.1, 10, 2.0
    table = []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        x = (3 * torch.randn(n, generator=draw, dtype=torch.float64)).requires_grad_(True)
        optimizer: Any = hf_optim.SMARAN([x], lr=eta, weight_decay=0.0)
        least, slope, speed = math.inf, 0.0, math.inf
        for t in range(1, steps + 1):
            optimizer.param_groups[0]["lr"] = eta / math.sqrt(t)
            loss, gradient = _not_convex(x, draw)
            least, slope = min(least, float(gradient @ gradient)), max(slope, float(x.grad.norm()))  # type: ignore[union-attr]
            optimizer.step(loss=loss)
            speed = min(speed, float(optimizer.param_groups[0]["V"]))
            if t & (t - 1) == 0:
                root, log = math.sqrt(t), 1 + math.log(t)
                front = smoothness**2 / (speed * eta * root)
                tail = front * 4 * n * eta * (root - 1)
                bound = front * (eta**2 * slope**2 * log + 4 * n**2 * eta**2 * log + 1) + tail
                table.append({"seed": seed, "T": t, "least": least, "bound": bound, "tail": tail})
    return table


def amvt_property2(steps: int = 4096, seeds: int = 4) -> Table:
    """Property 2 of AMVT on the same function with the same noise, the rate falling as 1/sqrt(t).

    Columns: optimizer, seed, T and least (min over t <= T of |grad f|^2).
    """
    import torch

    import hf_optim

    alpha, n = 0.3, 10
    table = []
    for seed in range(seeds):
        draw = torch.Generator().manual_seed(seed)
        x = (3 * torch.randn(n, generator=draw, dtype=torch.float64)).requires_grad_(True)
        optimizer = hf_optim.AMVT([x], lr=alpha)
        least = math.inf
        for t in range(1, steps + 1):
            optimizer.param_groups[0]["lr"] = alpha / math.sqrt(t)
            _, gradient = _not_convex(x, draw)
            least = min(least, float(gradient @ gradient))
            optimizer.step()
            if t & (t - 1) == 0:
                table.append({"optimizer": "amvt", "seed": seed, "T": t, "least": least})
    return table


def _not_convex(x: Any, draw: Any) -> tuple[float, Any]:
    """f(x) = 1 + sum x_i^2 / (1 + x_i^2) and its gradient; `x.grad` is that gradient with noise of deviation .1."""
    import torch

    square = x.detach() ** 2
    gradient = 2 * x.detach() / (1 + square) ** 2
    x.grad = gradient + 0.1 * torch.randn(len(x), generator=draw, dtype=torch.float64)
    return float(1 + (square / (1 + square)).sum()), gradient


def smaran_constant_loss() -> Table:
    """Appendix A.2 of SMARAN: for a constant loss V tends to sqrt(1 - gamma), whatever the loss.

    Columns: case, error (of V after 2,000 steps) and tolerance.
    """
    import torch

    import hf_optim

    table = []
    for gamma in (0.5, 0.9, 0.99):
        for loss in (1e-3, 1.0, 1e3):
            x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
            optimizer: Any = hf_optim.SMARAN([x], lr=0.1, gamma=gamma)
            for _ in range(2000):
                x.grad = torch.ones_like(x)
                optimizer.step(loss=loss)
            error = abs(float(optimizer.param_groups[0]["V"]) - math.sqrt(1 - gamma))
            table.append({"case": f"gamma {gamma:g}, loss {loss:g}", "error": error, "tolerance": 1e-4})
    return table


CHECKS: dict[str, Callable[[], Table]] = {
    "agr-theorem41": agr_theorem41,
    "agr-theorem42": agr_theorem42,
    "smaran-theorem4": smaran_theorem4,
    "smaran-constant-loss": smaran_constant_loss,
    "amvt-property2": amvt_property2,
}


def write(names: list[str], folder: Path) -> list[Path]:
    """NAME.csv of each check below `folder`; gives their paths."""
    from hf_optim.core.safe_text import csv_lines
    from hf_optim.experiment.files import write_atomically

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name in names:
        table = CHECKS[name]()
        files.append(folder / f"{name}.csv")
        write_atomically(folder, files[-1].name, csv_lines([list(table[0]), *(list(row.values()) for row in table)]))
    return files
