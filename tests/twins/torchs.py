"""Twins of the rules that torch has, too, the bases that the others are compared with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Arrays, Problem, Steps, corrected, count, twin, zeros

SGD = {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "maximize": False}


def start(x: np.ndarray, g: np.ndarray, k: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """The decayed parameter and the gradient that is averaged."""
    g = -g if k.maximize else g
    if getattr(k, "decoupled_weight_decay", False):
        return x * (1 - k.lr * k.weight_decay), g
    return x, g + k.weight_decay * x


@twin("sgd", **SGD)
@twin("sgdm", **SGD | {"momentum": 0.9})
@twin("nesterov", **SGD | {"momentum": 0.9, "nesterov": True})
def sgd(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m = zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            _, d = start(x[i], g[i], k)
            m[i] = k.momentum * m[i] + (1 if t == 1 else 1 - k.dampening) * d
            x[i] = x[i] - k.lr * (d + k.momentum * m[i] if k.nesterov else m[i])
        yield {"m": m}


@twin("adagrad", lr=0.01, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10, maximize=False)
def adagrad(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    total = [np.full_like(a, k.initial_accumulator_value) for a, k in zip(x, h, strict=True)]
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            _, d = start(x[i], g[i], k)
            total[i] = total[i] + d**2
            x[i] = x[i] - k.lr / (1 + (t - 1) * k.lr_decay) * d / (np.sqrt(total[i]) + k.eps)
        yield {}


RMSPROP = {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False}


@twin("rmsprop", **RMSPROP, maximize=False)
def rmsprop(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    square, mean, m = zeros(x), zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            _, d = start(x[i], g[i], k)
            square[i] = k.alpha * square[i] + (1 - k.alpha) * d**2
            mean[i] = k.alpha * mean[i] + (1 - k.alpha) * d
            spread = square[i] - mean[i] ** 2 if k.centered else square[i]
            m[i] = k.momentum * m[i] + d / (np.sqrt(spread) + k.eps)
            x[i] = x[i] - k.lr * m[i]
        yield {"m": m}


RADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "maximize": False}
RADAM |= {"decoupled_weight_decay": False}
ADAM = RADAM | {"amsgrad": False}


@twin("adam", **ADAM)
@twin("amsgrad", **ADAM | {"amsgrad": True})
@twin("adamw", **ADAM | {"weight_decay": 0.01, "decoupled_weight_decay": True})
def adam(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, top = zeros(x), zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            x[i], d = start(x[i], g[i], k)
            m[i] = b1 * m[i] + (1 - b1) * d
            v[i] = b2 * v[i] + (1 - b2) * d**2
            top[i] = np.maximum(top[i], v[i]) if k.amsgrad else v[i]
            x[i] = x[i] - k.lr * corrected(m[i], b1, t) / (np.sqrt(corrected(top[i], b2, t)) + k.eps)
        yield {"m": m}


@twin("radam", **RADAM)
def radam(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            x[i], d = start(x[i], g[i], k)
            m[i] = b1 * m[i] + (1 - b1) * d
            v[i] = b2 * v[i] + (1 - b2) * d**2
            top = 2 / (1 - b2) - 1
            rho = top - 2 * t * b2**t / (1 - b2**t)
            u = corrected(m[i], b1, t)
            if rho > 5:
                r = np.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho))
                u = u * r * np.sqrt(1 - b2**t) / (np.sqrt(v[i]) + k.eps)
            x[i] = x[i] - k.lr * u
        yield {"m": m}


@twin("nadam", **RADAM | {"lr": 2e-3, "momentum_decay": 4e-3})
def nadam(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), zeros(x)
    product = [np.float32(1)] * len(x)  # torch keeps it in single precision
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            x[i], d = start(x[i], g[i], k)
            mu, after = (b1 * (1 - 0.96 ** (s * k.momentum_decay) / 2) for s in (t, t + 1))
            product[i] = product[i] * np.float32(mu)
            P = float(product[i])
            m[i] = b1 * m[i] + (1 - b1) * d
            v[i] = b2 * v[i] + (1 - b2) * d**2
            u = (1 - mu) / (1 - P) * d + after / (1 - P * after) * m[i]
            x[i] = x[i] - k.lr * u / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
        yield {"m": m}
