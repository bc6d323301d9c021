"""Gradient normalisation: the gradient's root mean square becomes 1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hf_optim.core.reduce import count
from hf_optim.core.rule import Transform
from hf_optim.core.vocabulary import sqrt
from hf_optim.errors import UserError
from hf_optim.transforms.outlier_filter import check_threshold, cut, energy, limit


class Normalize(Transform):
    """g / (rms(g) + eps), rms(g) = sqrt(sum g^2 / n): a rescaled loss gives the same gradient.

    The root mean square, not the norm, so that the elements do not shrink as a model grows. Every moment sees the
    normalised gradient.

    Args:
        scope: "global" takes the rms over all transformed tensors and keeps their relative sizes; "tensor" each
            tensor's own.
        eps: 1e-12; a zero gradient stays zero.
        outliers: threshold of `outlier_filter`, applied before the division (it commutes with it); None for no filter.

    Source: our definition. AMVT, Section 3.1, Module 1, names "gradient normalization for scale invariance" without a
    formula.
    """

    name = "normalize"
    measures = ("gg", "nonzero", "count")
    sums = ("rms", "limit")
    ours = {
        "": "gradient normalisation: g / (rms(g) + eps)",
        "outliers": "outlier filter: |g| cut at outliers times the rms of the tensor's non-zero elements",
    }

    def __init__(self, scope: str = "global", eps: float = 1e-12, outliers: float | None = None) -> None:
        if scope not in ("global", "tensor"):
            raise UserError(f"normalize: scope must be 'global' or 'tensor', got {scope!r}")
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
            raise UserError(f"normalize: eps must be a number in (0, 1), got {eps!r}")
        self.scope, self.eps = scope, float(eps)
        self.outliers = None if outliers is None else check_threshold("normalize: outliers", outliers)

    @staticmethod
    def measure(g: Any, c: SimpleNamespace) -> tuple[Any, ...]:
        return *energy(g), count(g)

    def derive(self, own: dict[str, Any], total: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        scaled = total if self.scope == "global" else own
        rms = sqrt(scaled["gg"] / scaled["count"]) + self.eps
        return {"rms": rms, "limit": limit(own["gg"], own["nonzero"], self.outliers or 1.0)}

    def apply(self, g: Any, c: SimpleNamespace) -> Any:  # type: ignore[override]
        return (g if self.outliers is None else cut(g, c.limit)).div(c.rms)


TRANSFORM = Normalize
