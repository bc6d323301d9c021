"""Twins of the papers' own optimizers: SMARAN, AGR (AdamW, Adan, SGD), AMVT, and Adan, which AGR is put into."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Array, Arrays, Problem, Steps, corrected, count, norm, twin, zeros

AGR = {"agr_moments": "first", "agr_scope": "matrix", "agr_steps": None, "agr": True}


@twin("smaran", lr=0.1, gamma=0.9, weight_decay=0.01, eps=1e-8, norm_scope="global")
def smaran(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), 0.0
    for t in count(1):
        loss, g = f(x, t)
        v = h[0].gamma * v + loss**2
        big_v = loss / (np.sqrt(v) + h[0].eps)
        for i, p in enumerate(x):
            n = norm(g) if h[i].norm_scope == "global" else norm([g[i]])
            m[i] = h[i].gamma * m[i] + g[i] / (n + h[i].eps)
            x[i] = p - h[i].lr * big_v * (m[i] + h[i].weight_decay * p)
        yield {"lr": [k.lr * big_v for k in h], "V": big_v, "m": m}


def psi(g: Array) -> Array:
    """AGR, Eq. (1) and (2), of one tensor; a gradient of zeros stays as it is."""
    total = np.abs(g).sum()
    return g if total == 0 else g - np.abs(g) / total * g


def agr(h: SimpleNamespace, g: Array, t: int) -> Array:
    on = h.agr and (h.agr_scope == "all" or g.ndim >= 2) and (h.agr_steps is None or t <= h.agr_steps)
    return psi(g) if on else g


@twin("adamw_agr", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, **AGR)
def adamw_agr(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            shaped = agr(k, g[i], t)
            m[i] = b1 * m[i] + (1 - b1) * shaped
            v[i] = b2 * v[i] + (1 - b2) * (shaped if k.agr_moments == "all" else g[i]) ** 2
            x[i] = x[i] * (1 - k.lr * k.weight_decay)
            x[i] = x[i] - k.lr * corrected(m[i], b1, t) / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
        yield {"m": m}


ADAN = {
    "lr": 1e-3,
    "betas": (0.98, 0.92, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "no_prox": False,
    "max_grad_norm": None,
    "restart_every": None,
}


@twin("adan", **ADAN, **AGR | {"agr": False})
@twin("adan_agr", **ADAN, **AGR)
def adan(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    for step in count(1):
        every = h[0].restart_every
        t = step if every is None else (step - 1) % every + 1
        raw = f(x, step)[1]
        if h[0].max_grad_norm is not None:
            clip = min(1.0, h[0].max_grad_norm / (norm(raw) + h[0].eps))
            raw = [clip * a for a in raw]
        shaped = [agr(k, a, step) for k, a in zip(h, raw, strict=True)]
        if t == 1:  # the first step, or a restart
            m, v, n, raw_old, shaped_old = zeros(x), zeros(x), zeros(x), raw, shaped
        for i, k in enumerate(h):
            b1, b2, b3 = k.betas
            d_raw, d_shaped = raw[i] - raw_old[i], shaped[i] - shaped_old[i]
            m[i] = b1 * m[i] + (1 - b1) * shaped[i]
            v[i] = b2 * v[i] + (1 - b2) * (d_raw if k.agr_moments == "m" else d_shaped)
            second = shaped[i] + b2 * d_shaped if k.agr_moments == "all" else raw[i] + b2 * d_raw
            n[i] = b3 * n[i] + (1 - b3) * second**2
            u = corrected(m[i], b1, t) + b2 * corrected(v[i], b2, t)
            u = k.lr * u / (np.sqrt(corrected(n[i], b3, t)) + k.eps)
            decay = k.lr * k.weight_decay
            x[i] = x[i] * (1 - decay) - u if k.no_prox else (x[i] - u) / (1 + decay)
        raw_old, shaped_old = raw, shaped
        yield {"m": m}


@twin("sgd_agr", lr=0.1, momentum=0.0, weight_decay=0.0, **AGR)
def sgd_agr(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m = zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            m[i] = k.momentum * m[i] + agr(k, g[i], t) + k.weight_decay * x[i]
            x[i] = x[i] - k.lr * m[i]
        yield {"m": m}


@twin(
    "amvt",
    lr=1e-3,
    betas=(0.9, 0.999, 0.99),
    eps=1e-8,
    weight_decay=0.0,
    clip=None,
    momentum="corrected",
    eps_mode="inside",
    decay="paper",
)
def amvt(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, s = zeros(x), zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        if h[0].clip is not None and norm(g) > h[0].clip:
            g = [a * (h[0].clip / norm(g)) for a in g]
        for i, k in enumerate(h):
            b1, b2, b3 = k.betas
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            s[i] = b3 * s[i] + (1 - b3) * (g[i] - m[i]) ** 2
            vhat, shat = corrected(v[i], b2, t), corrected(s[i], b3, t)
            if k.eps_mode == "inside":
                alpha = k.lr * (1 + shat / (vhat + k.eps)) ** -0.5 / np.sqrt(vhat + k.eps)
            else:
                alpha = k.lr / (np.sqrt(vhat + shat) + k.eps)
            u = alpha * (corrected(m[i], b1, t) if k.momentum == "corrected" else m[i])
            x[i] = x[i] - u - x[i] * k.weight_decay * (k.lr if k.decay == "adamw" else 1.0)
        yield {"m": m}
