"""Kernel distance of two sets of feature vectors: KID, when the features are an Inception's."""

import warnings

import datasets
import evaluate
import numpy as np
import torch
from torchmetrics.image.kid import KernelInceptionDistance

SUBSET = 1000
SUBSETS = 100


def distance(predictions: np.ndarray, references: np.ndarray) -> float:
    """The squared MMD of features [N, D] and [M, D] under the cubic kernel, unbiased, so possibly just below 0.

    The mean of 100 subsets of 1,000, the same ones every time, by torchmetrics; of fewer samples than that one subset
    of min(N, M).
    """
    subset = min(len(predictions), len(references))
    subsets = SUBSETS if subset > SUBSET else 1
    with warnings.catch_warnings(action="ignore"):  # that it keeps what it is given in memory
        metric = KernelInceptionDistance(
            torch.nn.Identity(), subsets=subsets, subset_size=min(subset, SUBSET), sync_on_compute=False
        )
    metric.update(torch.as_tensor(references, dtype=torch.float64), real=True)
    metric.update(torch.as_tensor(predictions, dtype=torch.float64), real=False)
    with torch.random.fork_rng(devices=[]):  # it draws its subsets from torch's random state
        torch.manual_seed(0)
        return float(metric.compute()[0])


class KID(evaluate.Metric):
    """`compute(predictions=[[N, D]], references=[[M, D]])` gives `{"kid": distance}`.

    A row is a set, so that the two may differ in size; the sets of several rows (batches) are joined.
    """

    def _info(self) -> evaluate.MetricInfo:
        sets = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Squared maximum mean discrepancy of two sets of feature vectors under the cubic kernel.",
            citation="",
            inputs_description="predictions, references: rows of sets of feature vectors.",
            features=datasets.Features({"predictions": sets, "references": sets}),
        )

    def _compute(self, predictions: list[list[list[float]]], references: list[list[list[float]]]) -> dict[str, float]:
        generated, real = (np.concatenate([np.asarray(part) for part in parts]) for parts in (predictions, references))
        return {"kid": distance(generated, real)}


METRIC = KID
