"""Images as a few standardised numbers, and the minimum of logistic regression on them to high precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax
from torch.utils.data import Dataset

from hf_optim.errors import UserError
from hf_optim.tasks.data.images import Images

#: the gradient's norm at what is called the minimum
PRECISION = 1e-7
#: more weights than this are left to L-BFGS alone
NEWTON = 2000


class Features(Dataset[dict[str, torch.Tensor]]):
    """Samples of a convex problem.

    Args:
        features: float64 [N, d].
        labels: int64 [N].
        floor: float64 [N], the loss of each sample at the minimum of the train split.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, floor: torch.Tensor) -> None:
        self.features, self.labels, self.floor = features, labels, floor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """A whole batch."""
        chosen = torch.as_tensor(indices)
        return {"features": self.features[chosen], "labels": self.labels[chosen], "floor": self.floor[chosen]}

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def pooled(images: Images, crop: int, pool: int) -> torch.Tensor:
    """Means of pool x pool pixels inside a border of `crop` pixels, float64 [N, d] in [0, 1].

    Raises:
        UserError: nothing is left of the images.
    """
    height, width = images.pixels.shape[2:]
    if min(height, width) - 2 * crop < pool:
        raise UserError(
            f"options: images of {width}x{height} without a border of {crop} pixels have no field of {pool}x{pool}: "
            "set --model.crop and --model.pool lower"
        )
    inside = images.pixels[:, :, crop : height - crop, crop : width - crop].double() / 255
    return torch.nn.functional.avg_pool2d(inside, pool).flatten(1)


@dataclass(frozen=True)
class Minimum:
    """Where the mean loss is least: weights float64 [outputs, d + 1], the bias last; its value; the gradient's norm."""

    weights: np.ndarray
    value: float
    gradient: float


class Objective:
    """f(w) = mean loss of logistic (two classes, one output) or softmax regression without penalty, in float64.

    Args:
        features: [N, d]; a column of ones is added for the bias.
        labels: [N], 0 to classes - 1.
        classes: 2 or more.
        counts: how often each sample counts, [N]; every one once by default.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int, counts: np.ndarray | None = None):
        self.design = np.hstack([features, np.ones((len(features), 1))])
        self.outputs = 1 if classes == 2 else classes
        self.labels = labels
        self.target = labels[:, None] if classes == 2 else np.eye(classes)[labels]
        weight = np.ones(len(labels)) if counts is None else np.asarray(counts, dtype=np.float64)
        self.share = weight / weight.sum()
        self.shape = (self.outputs, self.design.shape[1])

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """[N, outputs]."""
        return self.design @ weights.reshape(self.shape).T

    def losses(self, weights: np.ndarray) -> np.ndarray:
        """The loss of each sample, [N]."""
        scores = self.logits(weights)
        if self.outputs == 1:
            return np.logaddexp(0, (1 - 2 * self.labels) * scores[:, 0])
        return logsumexp(scores, axis=1) - scores[np.arange(len(scores)), self.labels]

    def value(self, weights: np.ndarray) -> float:
        """f."""
        return float(self.share @ self.losses(weights))

    def _likely(self, weights: np.ndarray) -> np.ndarray:
        scores = self.logits(weights)
        return expit(scores) if self.outputs == 1 else softmax(scores, axis=1)

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """Of f, flat."""
        return (((self._likely(weights) - self.target) * self.share[:, None]).T @ self.design).ravel()

    def hessian(self, weights: np.ndarray) -> np.ndarray:
        """Of f, [w, w]. With a logit for each class it is singular: adding one number to all logits changes nothing."""
        likely, width = self._likely(weights), self.design.shape[1]
        matrix = np.empty((self.outputs, width, self.outputs, width))
        for i in range(self.outputs):
            for j in range(i, self.outputs):
                spread = self.share * likely[:, i] * ((i == j) - likely[:, j])
                block = (self.design * spread[:, None]).T @ self.design
                matrix[i, :, j, :], matrix[j, :, i, :] = block, block.T
        return matrix.reshape(self.outputs * width, -1)

    def minimise(self, start: np.ndarray | None = None, ridge: float = 0.0) -> np.ndarray:
        """The minimiser of f + ridge/2 |w|^2, flat: L-BFGS, then Newton steps down to rounding."""
        begin = np.zeros(int(np.prod(self.shape))) if start is None else start

        def slope(w: np.ndarray) -> np.ndarray:
            return self.gradient(w) + ridge * w

        options = {"maxiter": 5000, "maxfun": 10000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-9}
        result = minimize(lambda w: self.value(w) + ridge / 2 * w @ w, begin, jac=slope, method="L-BFGS-B",
                         options=options).x  # fmt: skip
        for _ in range(8):
            gradient = slope(result)
            if np.linalg.norm(gradient) < 1e-14 or len(result) > NEWTON:
                break
            matrix = self.hessian(result) + ridge * np.eye(len(result))
            step = np.linalg.lstsq(matrix, -gradient, rcond=1e-13)[0]
            if np.linalg.norm(slope(result + step)) >= np.linalg.norm(gradient):
                break
            result = result + step
        return result

    def minimum(self) -> Minimum:
        """The minimum without a penalty.

        Raises:
            UserError: there is none, because a plane separates the classes and ever larger weights are ever better.
        """
        w = self.minimise()
        gradient = float(np.linalg.norm(self.gradient(w)))
        scores = self.logits(w)
        right = (scores[:, 0] > 0) == (self.labels > 0) if self.outputs == 1 else scores.argmax(1) == self.labels
        if right[self.share > 0].all() or gradient > PRECISION:
            raise UserError(
                "data: linear planes separate the classes, so that the loss has no minimum: bring more samples or "
                "fewer features (--model.pool, --model.crop)"
            )
        return Minimum(w.reshape(self.shape), self.value(w), gradient)
