"""Twins of the wrappers: TLR (and the authors' form of it), Lookahead, and the K-step hypergradient baseline HDK."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from twins.core import Arrays, Problem, Steps, count, dot, norm, twin, zeros

TLR = {
    "gamma": 0.33,
    "p": 0.20,
    "steps_per_epoch": None,
    "interval": None,
    "cap": 100.0,
    "scope": "global",
    "lookahead": False,
}


def interval(h: SimpleNamespace) -> int:
    return h.interval if h.interval is not None else max(1, int(h.p * h.steps_per_epoch))


def peers(h: list[SimpleNamespace], scope: str) -> list[list[int]]:
    """The tensors that share one rate: all of them, a group's, or each alone."""
    key = {"global": lambda i: 0, "group": lambda i: h[i].group, "tensor": lambda i: i}[scope]
    return [[i for i in range(len(h)) if key(i) == value] for value in sorted({key(i) for i in range(len(h))})]


def newton(a: float, b: float, h: SimpleNamespace) -> float:
    """TLR, Eq. (8) with the paper's two safeguards: unchanged where the curvature is not positive, and the cap."""
    return 1.0 if a - b <= 0 else min(1 + h.gamma * b / (a - b), h.cap)


@twin("tlr", wraps=True, **TLR)
@twin("tlr_sgd", wraps=True, **TLR, base={"name": "sgd"})
@twin("tlr_sgdm", wraps=True, **TLR, base={"name": "sgdm"})
@twin("tlr_adam", wraps=True, **TLR, base={"name": "adam"})
@twin("tlr_adamw", wraps=True, **TLR, base={"name": "adamw"})
def tlr(x: Arrays, f: Problem, h: list[SimpleNamespace], inner: Steps, base: list[SimpleNamespace]) -> Steps:
    w, old = list(x), None
    for t in count(1):
        before = list(x)
        next(inner)
        if t % interval(h[0]) == 0:
            u = [(p - q) / k.lr for p, q, k in zip(before if h[0].lookahead else w, x, base, strict=True)]
            if h[0].lookahead:  # Eq. (3) and (8) themselves, on the same batch
                near, far, direction = f(before, t)[1], f(x, t)[1], u
            else:
                near, far, direction = old, u, old
            for members in peers(h, h[0].scope) if near is not None else []:
                pick = lambda a, at=members: [a[i] for i in at]  # noqa: E731
                factor = newton(dot(pick(direction), pick(near)), dot(pick(direction), pick(far)), h[0])
                for i in members:
                    base[i].lr *= factor
                    x[i] = before[i] - base[i].lr * u[i] if h[0].lookahead else x[i]
            w, old = list(x), u
        yield {"lr": [k.lr for k in base]}


@twin("tlr_legacy", wraps=True, **TLR)
def tlr_legacy(x: Arrays, f: Problem, h: list[SimpleNamespace], inner: Steps, base: list[SimpleNamespace]) -> Steps:
    k = h[0].interval if h[0].interval is not None else int(h[0].p * h[0].steps_per_epoch)
    w, u, since = None, zeros(x), 0
    for _ in count(1):
        next(inner)
        if since == k:  # first at step K + 1, then every K; K = 0 fires once
            since, old = 0, u
            w = list(x) if w is None else w
            u = [(p - q) / b.lr for p, q, b in zip(w, x, base, strict=True)]
            w = list(x)
            for at in peers(h, "group"):
                a = sum(dot([old[i]], [old[i]]) for i in at)
                b = sum(dot([old[i]], [u[i]]) for i in at)
                for i in at:  # no test on the curvature and no cap
                    base[i].lr *= 1 + h[0].gamma * b / (a - b + 1e-10)
        since += 1
        yield {"lr": [b.lr for b in base]}


LOOKAHEAD = {"k": 5, "alpha": 0.5, "pullback_momentum": "none"}


@twin("lookahead", wraps=True, **LOOKAHEAD)
@twin("lookahead_sgd", wraps=True, **LOOKAHEAD, base={"name": "sgd"})
@twin("lookahead_adam", wraps=True, **LOOKAHEAD, base={"name": "adam"})
@twin("lookahead_amvt", wraps=True, **LOOKAHEAD, base={"name": "amvt"})
def lookahead(x: Arrays, f: Problem, h: list[SimpleNamespace], inner: Steps, base: list[SimpleNamespace]) -> Steps:
    slow, slow_m, a = list(x), zeros(x), h[0].alpha
    for t in count(1):
        m = next(inner).get("m", [])
        if t % h[0].k == 0:
            for i, p in enumerate(x):
                slow[i] = x[i] = slow[i] + a * (p - slow[i])
            for i in range(len(m)):
                if h[0].pullback_momentum == "reset":
                    m[i] = np.zeros_like(m[i])
                elif h[0].pullback_momentum == "pullback":
                    slow_m[i] = m[i] = slow_m[i] + a * (m[i] - slow_m[i])
        yield {}


@twin("hdk", wraps=True, eta=None, interval=None, rule="additive", average="mean")
def hdk(x: Arrays, f: Problem, h: list[SimpleNamespace], inner: Steps, base: list[SimpleNamespace]) -> Steps:
    w, old = list(x), None
    for t in count(1):
        next(inner)
        if t % h[0].interval == 0:
            k = h[0].interval if h[0].average == "mean" else 1
            u = [(p - q) / (b.lr * k) for p, q, b in zip(w, x, base, strict=True)]
            if old is not None:
                b, size = dot(old, u), norm(old) * norm(u)
                for i in base:
                    i.lr = i.lr + h[0].eta * b if h[0].rule == "additive" else i.lr * (1 + h[0].eta * b / size)
            w, old = list(x), u
        yield {"lr": [b.lr for b in base]}
