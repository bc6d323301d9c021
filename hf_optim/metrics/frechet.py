"""Frechet distance of two sets of feature vectors, seen as Gaussians: FID, when the features are an Inception's."""

import datasets
import evaluate
import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance


def distance(predictions: np.ndarray, references: np.ndarray) -> float:
    """The distance of features [N, D] and [M, D], in float64 by torchmetrics; needs N, M > 1.

    It is biased upwards for few samples: compare figures of equal N and M only, and below N = D prefer KID.
    """
    size = predictions.shape[1]
    # These are features already: nothing is left to extract. The "image" tells torchmetrics their number. Every process
    # is given them all: gathering them anew would count them once for each.
    metric = FrechetInceptionDistance(
        torch.nn.Identity(),
        normalize=True,
        input_img_size=(size,),  # type: ignore[arg-type]
        sync_on_compute=False,
    )
    metric.update(torch.as_tensor(references, dtype=torch.float64), real=True)
    metric.update(torch.as_tensor(predictions, dtype=torch.float64), real=False)
    return float(metric.compute())


class Frechet(evaluate.Metric):
    """`compute(predictions=[[N, D]], references=[[M, D]])` gives `{"frechet": distance}`.

    A row is a set, so that the two may differ in size; the sets of several rows (batches) are joined.
    """

    def _info(self) -> evaluate.MetricInfo:
        sets = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description="Frechet distance of two sets of feature vectors, seen as Gaussians.",
            citation="",
            inputs_description="predictions, references: rows of sets of feature vectors.",
            features=datasets.Features({"predictions": sets, "references": sets}),
        )

    def _compute(self, predictions: list[list[list[float]]], references: list[list[list[float]]]) -> dict[str, float]:
        generated, real = (np.concatenate([np.asarray(part) for part in parts]) for parts in (predictions, references))
        return {"frechet": distance(generated, real)}


METRIC = Frechet
