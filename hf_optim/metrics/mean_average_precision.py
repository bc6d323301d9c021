"""Mean average precision of a classifier: one-vs-rest average precision on the softmax, averaged over the classes."""

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from sklearn.metrics import average_precision_score


class MeanAveragePrecision(evaluate.Metric):
    """`compute(predictions=[N, C] logits, references=[N])` gives `{"mean_average_precision": value in [0, 1]}`.

    The average is over the classes that occur in the references: an absent class has no precision, and counting it as
    0 would lower the score silently. NaN if a logit is not finite.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Macro average, over the classes present, of the one-vs-rest average precision on the softmax.",
            citation="",
            inputs_description="predictions: N rows of C logits; references: N class indices.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        logits, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if not np.isfinite(logits).all():
            return {"mean_average_precision": float("nan")}
        present = np.unique(truth)
        hits = (truth[:, None] == present[None, :]).astype(int)
        score = average_precision_score(hits, softmax(logits, axis=1)[:, present], average="macro")
        return {"mean_average_precision": float(score)}


METRIC = MeanAveragePrecision
