"""Twins of the rules that read the loss: DecGD, L4, SPS; and of those that evaluate it at trial points: SLS, PoNoS."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Arrays, Problem, Steps, corrected, count, dot, twin, zeros


@twin("decgd", lr=0.01, c=1.0, gamma=0.9, ams=False, x0="x1")
def decgd(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, old = zeros(x), list(x) if h[0].x0 == "x1" else zeros(x)
    for t in count(1):
        loss, g = f(x, t)
        r = [np.sqrt(loss + k.c) for k in h]
        if t == 1:
            v = [np.full_like(a, b) for a, b in zip(x, r, strict=True)]
            low = list(v)
        for i, k in enumerate(h):
            m[i] = k.gamma * m[i] + g[i] / (2 * r[i])
            v[i] = v[i] + m[i] * (x[i] - old[i])
            low[i] = np.minimum(low[i], v[i]) if k.ams else v[i]
            old[i], x[i] = x[i], x[i] - 2 * k.lr * low[i] * m[i]
        yield {}


L4 = {"fraction": 0.15, "minloss_factor": 0.9, "init_factor": 0.75, "forget": 1000.0, "eps": 1e-12}


@twin("l4_mom", **L4, adam_eps=None)
@twin("l4_adam", **L4, adam_eps=1e-4)
def l4(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    m, second, low, o = zeros(x), zeros(x), None, h[0]
    for t in count(1):
        loss, g = f(x, t)
        low = o.init_factor * loss if low is None else min(low, loss)
        m = [0.9 * a + 0.1 * b for a, b in zip(m, g, strict=True)]
        second = [0.999 * a + 0.001 * b**2 for a, b in zip(second, g, strict=True)]
        estimate = [corrected(a, 0.9, t) for a in m]
        v = (
            estimate
            if o.adam_eps is None
            else [a / (np.sqrt(corrected(b, 0.999, t)) + o.adam_eps) for a, b in zip(estimate, second, strict=True)]
        )
        eta = o.fraction * (loss - o.minloss_factor * low) / (dot(estimate, v) + o.eps)
        for i, p in enumerate(x):
            x[i] = p - eta * v[i]
        low = low * (1 + 1 / o.forget)
        yield {"lr": [eta for _ in x]}


@twin(
    "sps",
    c=0.5,
    gamma=2.0,
    init_step_size=1.0,
    steps_per_epoch=500,
    eta_max=None,
    adapt="smooth_iter",
    f_star=0.0,
    eps=1e-8,
)
def sps(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    o, kept = h[0], h[0].init_step_size
    for t in count(1):
        loss, g = f(x, t)
        square, eta = dot(g, g), 0.0
        if square**0.5 >= 1e-8:  # below, nothing moves and the step size of before is kept
            if o.adapt == "smooth_iter":
                kept = eta = min(o.gamma ** (1 / o.steps_per_epoch) * kept, loss / (o.c * square + o.eps))
            elif loss >= o.f_star:
                eta = (loss - o.f_star) / (o.c * square + o.eps)
                eta = eta if o.eta_max is None else min(eta, o.eta_max)
        for i, p in enumerate(x):
            x[i] = p - eta * g[i]
        yield {"lr": [eta for _ in x]}


@twin("sls", init_step_size=1.0, c=0.1, beta_b=0.9, gamma=2.0, reset_option=1, steps_per_epoch=500, eta_max=None)
def sls(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    o, eta = h[0], h[0].init_step_size
    for t in count(1):
        loss, g = f(x, t)
        square = dot(g, g)
        eta = {0: eta, 1: eta * o.gamma ** (1 / o.steps_per_epoch), 2: o.init_step_size}[o.reset_option]
        eta = eta if o.eta_max is None else min(eta, o.eta_max)
        for _ in range(100):
            trial = [p - eta * q for p, q in zip(x, g, strict=True)]
            if f(trial, t)[0] <= loss - o.c * eta * square:
                break
            eta *= o.beta_b
        else:
            trial = [p - 1e-6 * q for p, q in zip(x, g, strict=True)]
        x[:] = trial
        yield {"lr": [eta for _ in x]}


@twin("ponos", c=0.5, c_p=0.1, delta=0.5, zhang_xi=1.0, max_eta=10.0, min_eta=1e-6, f_star=0.0, save_backtracks=True)
def ponos(x: Arrays, f: Problem, h: list[SimpleNamespace]) -> Steps:
    o, q, big_c, kept = h[0], 0.0, 0.0, 0
    for t in count(1):
        loss, g = f(x, t)
        square = dot(g, g)
        eta = (loss - o.f_star) / (o.c_p * square + 1e-8) * o.delta**kept
        eta = min(max(eta, o.min_eta), o.max_eta)
        big_c, q = (o.zhang_xi * q * big_c + loss) / (o.zhang_xi * q + 1), o.zhang_xi * q + 1
        for tries in range(101):  # noqa: B007
            eta = 1e-6 if tries == 100 else eta
            trial = [p - eta * d for p, d in zip(x, g, strict=True)]
            if tries == 100 or f(trial, t)[0] <= max(big_c, loss) - o.c * eta * square:
                break
            eta *= o.delta
        x[:] = trial
        kept = max(kept + tries - 1, 0) if o.save_backtracks else 0
        yield {"lr": [eta for _ in x], "backtracks": kept}
