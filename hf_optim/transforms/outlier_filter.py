"""Outlier filter: elements far above the tensor's typical magnitude are cut down to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hf_optim.core.reduce import dot
from hf_optim.core.rule import Transform
from hf_optim.core.vocabulary import maximum, sqrt
from hf_optim.errors import UserError


def check_threshold(owner: str, threshold: Any) -> float:
    """The threshold as a float; raises UserError unless it is a number of at least 1."""
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 1 <= threshold < float("inf"):
        raise UserError(f"{owner} must be a number of at least 1 (times the rms), got {threshold!r}")
    return float(threshold)


def energy(g: Any) -> tuple[Any, Any]:
    """Sum of squares and number of non-zero elements of one block."""
    sign = g.sign()
    return dot(g, g), dot(sign, sign)


def limit(gg: Any, nonzero: Any, threshold: float) -> Any:
    """threshold times the rms of the non-zero elements; 0 where there are none."""
    return sqrt(gg / maximum(nonzero, 1.0)) * threshold


def cut(g: Any, most: Any) -> Any:
    """clamp(g, -most, most), a new tensor."""
    return g.minimum(most).maximum(-most)


class OutlierFilter(Transform):
    """clamp(g, -L, L) with L = threshold rms of the tensor's non-zero elements.

    An element beyond L is an outlier: it keeps its sign and gets the magnitude L. Zeros do not count, so that the few
    rows of an embedding that a batch touches, or the active units of a sparse layer, are no outliers. None of n
    non-zero elements exceeds sqrt(n) times their rms: a tensor with n <= threshold^2 stays as it is. Every moment sees
    the filtered gradient.

    Args:
        threshold: 5.0, at least 1.

    Source: our definition. AMVT, Section 3.1, Module 1, names "outlier detection and filtering" without a formula.
    """

    name = "outlier_filter"
    measures = ("gg", "nonzero")
    sums = ("limit",)
    ours = {"": "outlier filter: |g| cut at threshold times the rms of the tensor's non-zero elements"}

    def __init__(self, threshold: float = 5.0) -> None:
        self.threshold = check_threshold("outlier_filter: threshold", threshold)

    @staticmethod
    def measure(g: Any, c: SimpleNamespace) -> tuple[Any, ...]:
        return energy(g)

    def derive(self, own: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {"limit": limit(own["gg"], own["nonzero"], self.threshold)}

    @staticmethod
    def apply(g: Any, c: SimpleNamespace) -> Any:
        return cut(g, c.limit)


TRANSFORM = OutlierFilter
