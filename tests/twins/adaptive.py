"""Twins of the adaptive baselines that read the gradient alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Arrays, Problem, Steps, corrected, count, dot, norm, twin, zeros


def rectification(b2: float, t: int) -> float | None:
    """RAdam's factor sqrt(((rho-4)(rho-2)rho_inf)/((rho_inf-4)(rho_inf-2)rho)); None below the threshold of 5."""
    top = 2 / (1 - b2) - 1
    rho = top - 2 * t * b2**t / (1 - b2**t)
    return np.sqrt((rho - 4) * (rho - 2) * top / ((top - 4) * (top - 2) * rho)) if rho >= 5 else None


@twin(
    "acprop",
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    weight_decouple=True,
    rectify=True,
    momentum_update=False,
)
def acprop(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, s = zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            d = g[i] if k.weight_decouple else g[i] + k.weight_decay * x[i]
            x[i] = x[i] * (1 - k.lr * k.weight_decay) if k.weight_decouple else x[i]
            m[i] = b1 * m[i] + (1 - b1) * d
            mhat, r = corrected(m[i], b1, t), rectification(b2, t)
            u = mhat if k.momentum_update else d
            if t > 1:  # the variance of the step before: asynchronous
                s[i] = s[i] + k.eps
            if t == 1 or (k.rectify and r is None):
                u = mhat
            elif k.rectify:
                u = u * r * np.sqrt(1 - b2**t) / (np.sqrt(s[i]) + k.eps)
            else:
                u = u / (np.sqrt(corrected(s[i], b2, t - 1)) + k.eps)
            x[i] = x[i] - k.lr * u
            s[i] = b2 * s[i] + (1 - b2) * (d - m[i]) ** 2
        yield {"m": m}


@twin(
    "adabelief",
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-16,
    weight_decay=0.0,
    weight_decouple=True,
    fixed_decay=False,
    rectify=True,
    amsgrad=False,
)
def adabelief(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, s, top = zeros(x), zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            d = g[i] if k.weight_decouple else g[i] + k.weight_decay * x[i]
            decay = k.weight_decay * (1 if k.fixed_decay else k.lr)
            x[i] = x[i] * (1 - decay) if k.weight_decouple else x[i]
            m[i] = b1 * m[i] + (1 - b1) * d
            s[i] = b2 * s[i] + (1 - b2) * (d - m[i]) ** 2 + k.eps
            top[i] = np.maximum(top[i], s[i]) if k.amsgrad else s[i]
            u, r = corrected(m[i], b1, t), rectification(b2, t)
            if k.rectify and r is not None:
                u = u * r * np.sqrt(1 - b2**t) / (np.sqrt(top[i]) + k.eps)
            elif not k.rectify:
                u = u / (np.sqrt(corrected(top[i], b2, t)) + k.eps)
            x[i] = x[i] - k.lr * u
        yield {"m": m}


@twin("adabound", lr=1e-3, betas=(0.9, 0.999), final_lr=0.1, gamma=1e-3, eps=1e-8, weight_decay=0.0, amsbound=False)
def adabound(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, top, base = zeros(x), zeros(x), zeros(x), [k.lr for k in h]
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            d = g[i] + k.weight_decay * x[i]
            m[i] = b1 * m[i] + (1 - b1) * d
            v[i] = b2 * v[i] + (1 - b2) * d**2
            top[i] = np.maximum(top[i], v[i]) if k.amsbound else v[i]
            final = k.final_lr * k.lr / base[i]
            eta = k.lr * np.sqrt(1 - b2**t) / (1 - b1**t) / (np.sqrt(top[i]) + k.eps)
            eta = np.clip(eta, final * (1 - 1 / (k.gamma * t + 1)), final * (1 + 1 / (k.gamma * t)))
            x[i] = x[i] - eta * m[i]
        yield {"m": m}


@twin("yogi", lr=1e-2, betas=(0.9, 0.999), eps=1e-3, initial_accumulator=1e-6, weight_decay=0.0)
def yogi(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m = [np.full_like(a, k.initial_accumulator) for a, k in zip(x, h, strict=True)]
    v = [a.copy() for a in m]
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            d = g[i] + k.weight_decay * x[i]
            m[i] = b1 * m[i] + (1 - b1) * d
            v[i] = v[i] - (1 - b2) * np.sign(v[i] - d**2) * d**2
            x[i] = x[i] - k.lr * corrected(m[i], b1, t) / (np.sqrt(corrected(v[i], b2, t)) + k.eps)
        yield {"m": m}


@twin("padam", lr=0.1, betas=(0.9, 0.999), eps=1e-8, partial=0.25, amsgrad=True, weight_decay=0.0)
def padam(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, top = zeros(x), zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            d = g[i] + k.weight_decay * x[i]
            m[i] = b1 * m[i] + (1 - b1) * d
            v[i] = b2 * v[i] + (1 - b2) * d**2
            top[i] = np.maximum(top[i], v[i]) if k.amsgrad else v[i]
            step = k.lr * np.sqrt(1 - b2**t) / (1 - b1**t)
            x[i] = x[i] - step * m[i] / (np.sqrt(top[i]) + k.eps) ** (2 * k.partial)
        yield {"m": m}


@twin("lamb", lr=1e-3, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, bias_correction=True)
def lamb(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v = zeros(x), zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            mhat = corrected(m[i], b1, t) if k.bias_correction else m[i]
            vhat = corrected(v[i], b2, t) if k.bias_correction else v[i]
            r = mhat / (np.sqrt(vhat) + k.eps) + k.weight_decay * x[i]
            size, length = norm([x[i]]), norm([r])
            x[i] = x[i] - k.lr * (size / length if size > 0 and length > 0 else 1.0) * r
        yield {"m": m}


@twin("lion", lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)
def lion(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m = zeros(x)
    for t in count(1):
        g = f(x, t)[1]
        for i, k in enumerate(h):
            b1, b2 = k.betas
            x[i] = x[i] * (1 - k.lr * k.weight_decay) - k.lr * np.sign(b1 * m[i] + (1 - b1) * g[i])
            m[i] = b2 * m[i] + (1 - b2) * g[i]
        yield {"m": m}


@twin(
    "prodigy",
    lr=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    weight_decay=0.0,
    decouple=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1.0,
    growth_rate=float("inf"),
    slice_p=1,
)
def prodigy(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    o, (b1, b2) = h[0], h[0].betas
    b3 = b2**0.5 if o.beta3 is None else o.beta3
    cut = lambda a: a.reshape(-1)[:: o.slice_p]  # noqa: E731
    m, v, s, x0, top, d, numerator = zeros(x), zeros(x), [0 * cut(a) for a in x], list(map(cut, x)), o.d0, o.d0, 0.0
    for t in count(1):
        g = f(x, t)[1]
        g = [a if k.decouple else a + k.weight_decay * b for a, b, k in zip(g, x, h, strict=True)]
        rate = d * max(k.lr for k in h) * ((1 - b2**t) ** 0.5 / (1 - b1**t) if o.use_bias_correction else 1)
        live = [i for i, k in enumerate(h) if k.lr > 0]
        numerator = b3 * numerator + d / o.d0 * rate * sum(dot([cut(g[i])], [x0[i] - cut(x[i])]) for i in live)
        for i in live:
            m[i] = b1 * m[i] + (1 - b1) * d * g[i]
            v[i] = b2 * v[i] + (1 - b2) * d**2 * g[i] ** 2
            s[i] = b3 * s[i] + d / o.d0 * (d if o.safeguard_warmup else rate) * cut(g[i])
        estimate = o.d_coef * numerator / sum(np.abs(s[i]).sum() for i in live)
        d = max(d, estimate) if d == o.d0 else d
        top = max(top, estimate)
        d = min(top, d * o.growth_rate)
        for i in live:
            decay = rate * h[i].weight_decay if h[i].decouple else 0.0
            x[i] = x[i] * (1 - decay) - rate * m[i] / (np.sqrt(v[i]) + d * o.eps)
        yield {"lr": [d * k.lr for k in h], "d": d, "m": m}


def hyper_rate(h: list[SimpleNamespace], g: Arrays, u: Arrays | None) -> None:
    """Move the rates by the hypergradient <g, u of the step before>, or by its cosine, taken over all tensors."""
    for k in h if u is not None else []:
        size = norm(g) * norm(u)
        k.lr = (
            k.lr + k.hypergrad_lr * dot(g, u)
            if k.rule == "additive"
            else k.lr * (1 + k.hypergrad_lr * dot(g, u) / size)
        )


@twin("hd_sgd", lr=0.1, hypergrad_lr=1e-6, rule="additive", momentum=0.0, nesterov=False, weight_decay=0.0)
def hd_sgd(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, u = zeros(x), None
    for t in count(1):
        g = [a + k.weight_decay * b for a, b, k in zip(f(x, t)[1], x, h, strict=True)]
        hyper_rate(h, g, u)
        m = [k.momentum * a + b for a, b, k in zip(m, g, h, strict=True)]
        u = [b + k.momentum * a if k.nesterov else a for a, b, k in zip(m, g, h, strict=True)]
        for i, k in enumerate(h):
            x[i] = x[i] - k.lr * u[i]
        yield {"lr": [k.lr for k in h]}


@twin("hd_adam", lr=1e-3, hypergrad_lr=1e-8, rule="additive", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
def hd_adam(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, v, u = zeros(x), zeros(x), None
    for t in count(1):
        g = [a + k.weight_decay * b for a, b, k in zip(f(x, t)[1], x, h, strict=True)]
        hyper_rate(h, g, u)
        u = zeros(x)
        for i, k in enumerate(h):
            b1, b2 = k.betas
            m[i] = b1 * m[i] + (1 - b1) * g[i]
            v[i] = b2 * v[i] + (1 - b2) * g[i] ** 2
            u[i] = np.sqrt(1 - b2**t) / (1 - b1**t) * m[i] / (np.sqrt(v[i]) + k.eps)
            x[i] = x[i] - k.lr * u[i]
        yield {"lr": [k.lr for k in h]}
