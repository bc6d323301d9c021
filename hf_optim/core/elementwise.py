"""Three elementwise expressions that several rules share, in the vocabulary of `hf_optim.core.vocabulary`."""

from __future__ import annotations

from typing import Any

from hf_optim.core.reduce import l1


def at_least(v: Any, low: float) -> Any:
    """max(v, low), element by element."""
    return v.clone().zero_().add_(low).maximum(v)


def agreeing(u: Any, g: Any) -> Any:
    """1 where u and g have the same sign, 0 elsewhere. (A product u g would underflow.)"""
    return u.sign().mul_(g.sign()).clamp_(0.0, 1.0)


def count(v: Any) -> Any:
    """How many elements v has, as a sum."""
    return l1(v.clone().zero_().add_(1.0))
