"""Twins of the rules that look at whole matrices: Muon, SOAP and Adafactor, written from the papers' formulas."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Array, Arrays, Problem, Steps, corrected, count, norm, twin, zeros


def orthogonal(u: Array, steps: int) -> Array:
    """Newton-Schulz: the singular values of u / ||u|| are driven towards 1."""
    x, wide = u / (norm([u]) + 1e-7), u.shape[0] <= u.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.T


@twin(
    "muon",
    lr=0.02,
    momentum=0.95,
    nesterov=True,
    weight_decay=0.1,
    ns_steps=5,
    adjust_lr="original",
    ns_dtype="auto",
    adamw_lr=3e-4,
    adamw_betas=(0.9, 0.95),
    adamw_eps=1e-8,
    adamw_weight_decay=0.1,
)
def muon(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            if x[i].ndim > 1:
                m[i] = k.momentum * m[i] + (1 - k.momentum) * g[i]
                u = (k.momentum * m[i] + (1 - k.momentum) * g[i] if k.nesterov else m[i]).reshape(len(g[i]), -1)
                rows, cols = u.shape
                s = max(1, rows / cols) ** 0.5 if k.adjust_lr == "original" else 0.2 * max(rows, cols) ** 0.5
                u = orthogonal(u, k.ns_steps).reshape(x[i].shape)
                x[i] = x[i] * (1 - k.lr * k.weight_decay) - k.lr * s * u
            else:
                b1, b2 = k.adamw_betas
                m[i] = b1 * m[i] + (1 - b1) * g[i]
                v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
                u = corrected(m[i], b1, t) / (np.sqrt(corrected(v[i], b2, t)) + k.adamw_eps)
                x[i] = x[i] * (1 - k.adamw_lr * k.adamw_weight_decay) - k.adamw_lr * u
        yield {}


def basis(p: Array, q: Array | None) -> Array:
    """Eigenvectors, largest first; or one step of the power iteration from q."""
    return np.linalg.eigh(p)[1][:, ::-1] if q is None else np.linalg.qr(p @ q)[0]


@twin("soap", lr=3e-3, betas=(0.95, 0.95), eps=1e-8, weight_decay=0.01, frequency=10, max_dim=10000)
def soap(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, means, q = zeros(x), zeros(x), [[0.0, 0.0] for _ in x], [[None, None] for _ in x]
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            (b1, b2), flat = k.betas, g[i].reshape(len(g[i]), -1)
            whole, n = x[i].ndim > 1, t - 1 if x[i].ndim > 1 else t
            left, right = (np.eye(d) if a is None else a for d, a in zip(flat.shape, q[i], strict=True))
            turned = (left.T @ flat @ right).reshape(x[i].shape) if whole else g[i]
            if n > 0:
                m[i] = b1 * m[i] + (1 - b1) * g[i]
                v[i] = b2 * v[i] + (1 - b2) * turned**2
                first = (left.T @ m[i].reshape(flat.shape) @ right).reshape(x[i].shape) if whole else m[i]
                u = corrected(first, b1, n) / (np.sqrt(corrected(v[i], b2, n)) + k.eps)
                u = (left @ u.reshape(flat.shape) @ right.T).reshape(x[i].shape) if whole else u
                x[i] = x[i] * (1 - k.lr * k.weight_decay) - k.lr * u
            for side, product in enumerate((flat @ flat.T, flat.T @ flat) if whole else ()):
                means[i][side] = b2 * means[i][side] + (1 - b2) * product
                if len(product) <= k.max_dim and n % k.frequency == 0:
                    q[i][side] = basis(means[i][side], q[i][side])
        yield {}


@twin("adafactor", lr=1e-2, beta2_decay=-0.8, eps1=1.1920928955078125e-07, eps2=1e-3, d=1.0, weight_decay=0.0)
def adafactor(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    rows, columns, v = [0.0] * len(x), [0.0] * len(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            eps1, beta2 = k.eps1, 1 - t**k.beta2_decay
            size = max(k.eps2, np.sqrt((x[i] ** 2).mean()))
            if x[i].ndim > 1:
                rows[i] = beta2 * rows[i] + (1 - beta2) * (g[i] ** 2).mean(-1, keepdims=True)
                columns[i] = beta2 * columns[i] + (1 - beta2) * (g[i] ** 2).mean(-2, keepdims=True)
                vhat = rows[i] * columns[i] / np.maximum(rows[i].mean(-2, keepdims=True), eps1)
            else:
                vhat = v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            u = g[i] / np.sqrt(np.maximum(vhat, eps1**2))
            u = u / max(1.0, np.sqrt((u**2).mean()) / k.d)
            x[i] = x[i] * (1 - k.lr * k.weight_decay) - size * min(k.lr, t**-0.5) * u
        yield {}
