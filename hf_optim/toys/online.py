"""What a convex problem is that comes one function f_t at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch


class Online(ABC):
    """A convex problem: f is the mean over its samples, f_t the mean over those drawn at step t.

    title: what it is.
    dimension: of x.
    slope: what no gradient of any f_t exceeds on the domain; 0: only the run tells.
    least: min f.
    start: x_1, float64 [dimension].
    """

    title: str
    dimension: int
    slope: float = 0.0
    least: float
    epoch: int

    @property
    def start(self) -> torch.Tensor:
        """The origin."""
        return torch.zeros(self.dimension, dtype=torch.float64)

    @abstractmethod
    def draw(self, steps: int, seed: int) -> np.ndarray:
        """The samples of each step, int64 [steps, ...]; the same for every optimizer."""

    @abstractmethod
    def loss(self, x: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
        """f_t(x) for the samples of one step."""

    @abstractmethod
    def values(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f and the norm of its gradient at each of `points` [n, dimension]."""

    @abstractmethod
    def hindsight(self, drawn: np.ndarray, radius: float) -> float:
        """min over |x| <= radius of the sum of f_t over the steps of `drawn`."""
