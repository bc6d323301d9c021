"""Accuracy: the share of predicted classes that are the true ones."""

import datasets
import evaluate
import numpy as np


class Accuracy(evaluate.Metric):
    """`compute(predictions=[N class indices], references=[N class indices])` gives `{"accuracy": share in [0, 1]}`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The share of predicted classes that are the true ones.",
            citation="",
            inputs_description="predictions, references: N class indices each.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


METRIC = Accuracy
