"""Cross-entropy: the mean negative log-likelihood of the true class under the softmax of the logits, in nats."""

import datasets
import evaluate
import numpy as np
from scipy.special import logsumexp


class CrossEntropy(evaluate.Metric):
    """`compute(predictions=[N, C] logits, references=[N])` gives `{"cross_entropy": nats a sample}`, summed in
    float64.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The mean negative log-likelihood of the true class under the softmax of the logits, in nats.",
            citation="",
            inputs_description="predictions: N rows of C logits; references: N class indices.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        logits, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not np.isfinite(logits).all():
            return {"cross_entropy": float("nan")}
        return {"cross_entropy": float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(truth)), truth]))}


METRIC = CrossEntropy
