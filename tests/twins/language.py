"""Twins of the element-by-element rules that language models are trained with, written from the papers' formulas."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Arrays, Problem, Steps, corrected, count, norm, twin, zeros


def averaged(x: Arrays, f: Problem, h: list[SimpleNamespace], beta: list[float], adam: bool) -> Steps:
    """Schedule-Free: the gradient is taken at y, which is what the tensors hold; `average` is x, the answer."""
    z, mean, v, total, top = list(x), list(x), zeros(x), [0.0] * len(x), [0.0] * len(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            rate = k.lr * min(1.0, t / k.warmup_steps) if k.warmup_steps else k.lr
            d = g[i]
            if adam:
                v[i] = k.betas[1] * v[i] + (1 - k.betas[1]) * g[i] ** 2
                d = g[i] / (np.sqrt(corrected(v[i], k.betas[1], t)) + k.eps)
            z[i] = z[i] - rate * (d + k.weight_decay * x[i])
            top[i] = max(top[i], rate)
            weight = t**k.r * top[i] ** k.weight_lr_power
            total[i] += weight
            mean[i] = mean[i] + weight / total[i] * (z[i] - mean[i])
            x[i] = (1 - beta[i]) * z[i] + beta[i] * mean[i]
        yield {
            "average": list(mean),
            "lr": [k.lr * (min(1.0, t / k.warmup_steps) if k.warmup_steps else 1.0) for k in h],
        }


@twin(
    "schedule_free_adamw",
    lr=2.5e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    warmup_steps=0,
    r=0.0,
    weight_lr_power=2.0,
)
def schedule_free_adamw(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    return averaged(x, f, h, [k.betas[0] for k in h], True)


@twin("schedule_free_sgd", lr=1.0, momentum=0.9, weight_decay=0.0, warmup_steps=0, r=0.0, weight_lr_power=2.0)
def schedule_free_sgd(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    return averaged(x, f, h, [k.momentum for k in h], False)


def slow_decay(k: SimpleNamespace, t: int) -> float:
    """AdEMAMix's beta3 on its way from beta1: the half-life log(.5)/log(beta) grows linearly over T steps."""
    first, last = np.log(0.5) / np.log(k.betas[0]), np.log(0.5) / np.log(k.betas[2])
    part = 1.0 if k.T is None else min(1.0, t / k.T)
    return float(0.5 ** (1 / ((1 - part) * first + part * last)))


@twin("ademamix", lr=1e-3, betas=(0.9, 0.999, 0.9999), alpha=5.0, T=None, eps=1e-8, weight_decay=0.0)
def ademamix(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    fast, slow, v = zeros(x), zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            alpha = k.alpha if k.T is None else min(1.0, t / k.T) * k.alpha
            b1, b2, b3 = k.betas[0], k.betas[1], slow_decay(k, t)
            fast[i] = b1 * fast[i] + (1 - b1) * g[i]
            slow[i] = b3 * slow[i] + (1 - b3) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            u = (corrected(fast[i], b1, t) + alpha * slow[i]) / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
            x[i] = x[i] - k.lr * (u + k.weight_decay * x[i])
        yield {}


@twin("mars", lr=3e-3, betas=(0.95, 0.99), gamma=0.025, eps=1e-8, weight_decay=0.0, betas_1d=(0.9, 0.95))
def mars(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, before = zeros(x), zeros(x), None
    for t in count(1):
        g = f(x, t)[1]
        before = g if before is None else before
        for i, k in enumerate(h):
            b1, b2 = k.betas if x[i].ndim > 1 else k.betas_1d
            c = g[i]
            if x[i].ndim > 1:
                c = g[i] + k.gamma * b1 / (1 - b1) * (g[i] - before[i])
                c = c / norm([c]) if norm([c]) > 1 else c
            m[i] = b1 * m[i] + (1 - b1) * c
            v[i] = b2 * v[i] + (1 - b2) * c**2
            u = corrected(m[i], b1, t) / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
            x[i] = x[i] - k.lr * (u + k.weight_decay * x[i])
        before = g
        yield {}


@twin("adopt", lr=1e-3, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0.0)
def adopt(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    v = [g**2 for g in f(x, 1)[1]]
    m = zeros(x)
    yield {}
    for t in count(1):
        g = f(x, t + 1)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            step = np.clip(g[i] / np.maximum(np.sqrt(v[i]), k.eps), -(t**0.25), t**0.25)
            m[i] = b1 * m[i] + (1 - b1) * step
            x[i] = x[i] - k.lr * (m[i] + k.weight_decay * x[i])
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
        yield {}


@twin("nadamw", lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, momentum_decay=4e-3)
def nadamw(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, product = zeros(x), zeros(x), [1.0] * len(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            now, after = (b1 * (1 - 0.5 * 0.96 ** (s * k.momentum_decay)) for s in (t, t + 1))
            product[i] *= now
            x[i] = x[i] * (1 - k.lr * k.weight_decay)
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            mhat = after * m[i] / (1 - product[i] * after) + (1 - now) * g[i] / (1 - product[i])
            x[i] = x[i] - k.lr * mhat / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
        yield {}


def cautious(u: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Where the update has the gradient's sign, and as much longer as few are left."""
    mask = (u * g > 0).astype(float)
    return u * mask / max(mask.mean(), 1e-3)


@twin("cautious_adamw", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
def cautious_adamw(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            u = corrected(m[i], b1, t) / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
            x[i] = x[i] * (1 - k.lr * k.weight_decay) - k.lr * cautious(u, g[i])
        yield {}


@twin("cautious_lion", lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
def cautious_lion(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m = zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            u = np.sign(b1 * m[i] + (1 - b1) * g[i])
            x[i] = x[i] * (1 - k.lr * k.weight_decay) - k.lr * cautious(u, g[i])
            m[i] = b2 * m[i] + (1 - b2) * g[i]
        yield {}


@twin("signum", lr=1e-4, beta=0.9, weight_decay=0.0)
def signum(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m = zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            m[i] = k.beta * m[i] + (1 - k.beta) * g[i]
            x[i] = x[i] * (1 - k.lr * k.weight_decay) - k.lr * np.sign(m[i])
        yield {}
