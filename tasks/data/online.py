"""Convex problems that come one function f_t at a time, with the best fixed point in hindsight computed exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar

from hf_optim.tasks.data.convex import Objective, pooled
from hf_optim.tasks.data.images import Images, read
from hf_optim.toys.online import Online

DIGITS = Path(__file__).parent / "digits"


class Digits(Online):
    """Even against odd digits on 25 features: logistic regression without penalty, not separable, so that f has a
    minimum. `batch` samples a step, drawn with replacement.
    """

    def __init__(self, batch: int = 32) -> None:
        images = read(DIGITS).train
        assert isinstance(images, Images)  # small images are decoded at once
        features = pooled(images, 4, 4)
        features = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
        self.labels = images.labels.numpy() % 2
        self.objective = Objective(features.numpy(), self.labels, 2)
        self.title = f"logistic regression on digits, even against odd: {len(self.labels)} samples, {batch} a step"
        self.dimension = self.objective.design.shape[1]
        self.batch, self.epoch = batch, -(-len(self.labels) // batch)
        self.best = self.objective.minimum()
        self.least = self.best.value
        #: rows with the sign of their class: the margin of a sample is its row times x
        self._rows = torch.from_numpy(self.objective.design * (2 * self.labels[:, None] - 1))

    def draw(self, steps: int, seed: int) -> np.ndarray:
        """[steps, batch]."""
        return np.random.default_rng(seed).integers(len(self.labels), size=(steps, self.batch))

    def loss(self, x: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        """The mean logistic loss of the batch, in nats."""
        return torch.nn.functional.softplus(-(self._rows[torch.from_numpy(drawn)] @ x)).mean()

    def values(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Online.values`."""
        rows = self._rows.numpy()
        losses, norms = [], []
        for start in range(0, len(points), 512):
            margins = points[start : start + 512] @ rows.T
            losses.append(np.logaddexp(0, -margins).mean(axis=1))
            pull = -1 / (1 + np.exp(np.minimum(margins, 700)))
            norms.append(np.linalg.norm(pull @ rows / len(rows), axis=1))
        return np.concatenate(losses), np.concatenate(norms)

    def hindsight(self, drawn: np.ndarray, radius: float) -> float:
        """See `Online.hindsight`. On the ball's border it is the minimum with that ridge whose solution lies there."""
        counts = np.bincount(drawn.ravel(), minlength=len(self.labels))
        seen = counts > 0
        objective = Objective(self.objective.design[seen, :-1], self.labels[seen], 2, counts[seen])
        best = objective.minimise()
        if np.linalg.norm(best) > radius:
            border = {"x": best}

            def excess(exponent: float) -> float:
                border["x"] = objective.minimise(border["x"], ridge=10**exponent)
                return float(np.linalg.norm(border["x"])) - radius

            brentq(excess, -10, 3, xtol=1e-7)
            best = border["x"] * min(1.0, radius / np.linalg.norm(border["x"]))
        return len(drawn) * objective.value(best)


class TwoPulls(Online):
    """A counterexample to Theorem 3 of the SMARAN paper, in one dimension.

    f_t is 3 + 0.001 h(x + 1) with probability 0.6 and 3 + 0.1 h(x - 1) otherwise, h(z) = sqrt(0.01 + z^2): convex,
    smooth, positive, with gradients below 0.1. The weak function comes more often. Its normalised gradient counts as
    much as the strong one's, so the iterates go to -1, while the best fixed point is near +1.
    """

    title = "two pulls: 3 + 0.001 h(x + 1) in 6 of 10 steps, 3 + 0.1 h(x - 1) in the others, h(z) = sqrt(0.01 + z^2)"
    dimension = 1
    slope = 0.1
    epoch = 10
    centres = np.array([-1.0, 1.0])
    heights = np.array([0.001, 0.1])
    share = np.array([0.6, 0.4])
    base, width = 3.0, 0.01

    def __init__(self) -> None:
        self.least = self._least(self.share, 10.0)

    def _least(self, weights: np.ndarray, radius: float) -> float:
        def total(x: float) -> float:
            return float(weights @ (self.base + self.heights * np.sqrt(self.width + (x - self.centres) ** 2)))

        inside = minimize_scalar(total, bounds=(-radius, radius), method="bounded", options={"xatol": 1e-10})
        return min(float(inside.fun), total(-radius), total(radius))

    def draw(self, steps: int, seed: int) -> np.ndarray:
        """[steps]: which of the two."""
        return (np.random.default_rng(seed).random(steps) > self.share[0]).astype(np.int64)

    def loss(self, x: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        """f_t."""
        which = int(drawn)
        away = x[0] - self.centres[which]
        return self.base + self.heights[which] * (self.width + away * away).sqrt()

    def values(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Online.values`."""
        away = points - self.centres
        root = np.sqrt(self.width + away**2)
        slope = (self.share * self.heights * away / root).sum(axis=1)
        return (self.share * (self.base + self.heights * root)).sum(axis=1), np.abs(slope)

    def hindsight(self, drawn: np.ndarray, radius: float) -> float:
        """See `Online.hindsight`."""
        return self._least(np.bincount(drawn, minlength=2).astype(np.float64), radius)
