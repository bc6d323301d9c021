"""Two small problems with known gradients, in NumPy float64 and, for the optimizers themselves, in torch.

``lsq`` and ``beale`` are those of ``reference/problems.json``; ``tanh`` is ours: a two-layer tanh network with
tensors of every kind that a rule may treat differently (2-d, 1-d, a (1, 1) matrix and a single number).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
REFERENCE = Path(__file__).parent / "reference"


def _arrays() -> dict[str, np.ndarray]:
    arrays = json.loads((REFERENCE / "problems.json").read_text())["arrays"]
    return {name: np.array(value, dtype=int if name == "batches" else np.float64) for name, value in arrays.items()}


@dataclass(frozen=True)
class Problem:
    """A start and two views of one loss: ``numpy`` gives (loss, gradients), ``torch`` a 0-d tensor to differentiate."""

    name: str
    start: tuple[np.ndarray, ...]
    data: Any

    def numpy(self, x: Arrays, t: int) -> tuple[float, Arrays]:
        """The loss and its gradients, derived by hand, at ``x`` on the batch of step ``t`` = 1, 2, ..."""
        return {"lsq": _lsq, "beale": _beale, "tanh": _tanh}[self.name](self.data, x, t)

    def torch(self, params: list[Any], t: int) -> Any:
        """The same loss of torch tensors."""
        return {"lsq": _lsq_torch, "beale": _beale_torch, "tanh": _tanh_torch}[self.name](self.data, params, t)

    def parameters(self, dtype: Any = None) -> list[Any]:
        """Fresh leaf tensors at the start (float64 unless told)."""
        import torch

        return [torch.tensor(a, dtype=dtype or torch.float64, requires_grad=True) for a in self.start]


def _batch(data: dict[str, np.ndarray], t: int) -> tuple[np.ndarray, np.ndarray]:
    rows = data["batches"][(t - 1) % len(data["batches"])]
    return data["X"][rows], data["Y"][rows]


def _lsq(data: dict[str, np.ndarray], x: Arrays, t: int) -> tuple[float, Arrays]:
    inputs, wanted = _batch(data, t)
    error = inputs @ x[0].T + x[1] - wanted
    slope = 2 * error / error.size
    return float((error**2).mean()), [slope.T @ inputs, slope.sum(0)]


def _lsq_torch(data: dict[str, np.ndarray], params: list[Any], t: int) -> Any:
    import torch

    inputs, wanted = (torch.tensor(a, dtype=params[0].dtype) for a in _batch(data, t))
    return ((inputs @ params[0].T + params[1] - wanted) ** 2).mean()


def _beale(data: None, x: Arrays, t: int) -> tuple[float, Arrays]:
    a, b = x[0]
    terms = [c - a + a * b**n for n, c in ((1, 1.5), (2, 2.25), (3, 2.625))]
    da = sum(2 * e * (b**n - 1) for n, e in enumerate(terms, 1))
    db = sum(2 * e * a * n * b ** (n - 1) for n, e in enumerate(terms, 1))
    return float(sum(e**2 for e in terms)), [np.array([da, db])]


def _beale_torch(data: None, params: list[Any], t: int) -> Any:
    a, b = params[0]
    return sum((c - a + a * b**n) ** 2 for n, c in ((1, 1.5), (2, 2.25), (3, 2.625)))


def _tanh(data: dict[str, np.ndarray], x: Arrays, t: int) -> tuple[float, Arrays]:
    """x: W (6, 3), b (6), V (5, 6), a (1, 1) gain and a single offset; loss = mean squared error + 0.1."""
    weight, bias, out, gain, offset = x
    inputs, wanted = _batch(data, t)
    hidden = np.tanh(inputs @ weight.T + bias)
    raw = hidden @ out.T
    error = gain * raw + offset - wanted
    slope = 2 * error / error.size
    back = (gain * slope) @ out * (1 - hidden**2)
    return float((error**2).mean()) + 0.1, [
        back.T @ inputs,
        back.sum(0),
        (gain * slope).T @ hidden,
        (slope * raw).sum().reshape(1, 1),
        slope.sum().reshape(1),
    ]


def _tanh_torch(data: dict[str, np.ndarray], params: list[Any], t: int) -> Any:
    import torch

    weight, bias, out, gain, offset = params
    inputs, wanted = (torch.tensor(a, dtype=weight.dtype) for a in _batch(data, t))
    hidden = torch.tanh(inputs @ weight.T + bias)
    return ((gain * (hidden @ out.T) + offset - wanted) ** 2).mean() + 0.1


def lsq() -> Problem:
    data = _arrays()
    return Problem("lsq", (data["W0"], data["b0"]), data)


def beale() -> Problem:
    return Problem("beale", (_arrays()["beale0"],), None)


def tanh() -> Problem:
    draw = np.random.default_rng(7)
    start = (
        draw.normal(size=(6, 3)) * 0.6,
        draw.normal(size=6) * 0.3,
        draw.normal(size=(5, 6)) * 0.5,
        np.array([[1.2]]),
        np.array([0.3]),
    )
    return Problem("tanh", start, _arrays())
