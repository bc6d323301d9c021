"""Inception score: how sure a classifier is of each image, and how evenly it sees its classes in all of them."""

import warnings

import datasets
import evaluate
import numpy as np
import torch
from torchmetrics.image.inception import InceptionScore as Score

SPLITS = 10


def score(logits: np.ndarray) -> tuple[float, float]:
    """Mean and (unbiased) standard deviation over ten equal parts of logits [N, K], N >= 10, by torchmetrics.

    The parts are the same ones every time. 1 is the worst, K the best that there is.
    """
    with warnings.catch_warnings(action="ignore"):  # that it keeps what it is given in memory
        metric = Score(torch.nn.Identity(), splits=SPLITS, sync_on_compute=False)
    metric.update(torch.as_tensor(logits, dtype=torch.float64))
    with torch.random.fork_rng(devices=[]):  # it shuffles by torch's random state
        torch.manual_seed(0)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


class InceptionScore(evaluate.Metric):
    """`compute(predictions=[N, K] logits)` gives `{"inception_score": mean, "inception_score_std": deviation}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="exp of the mean divergence of each image's class probabilities from their average.",
            citation="",
            inputs_description="predictions: N rows of K logits.",
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("float32"))}),
        )

    def _compute(self, predictions: list[list[float]]) -> dict[str, float]:
        mean, deviation = score(np.asarray(predictions))
        return {"inception_score": mean, "inception_score_std": deviation}


METRIC = InceptionScore
