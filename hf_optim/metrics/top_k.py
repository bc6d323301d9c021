"""Top-k accuracy: the share of samples whose true class is among the k highest scores."""

import datasets
import evaluate
import numpy as np


class TopK(evaluate.Metric):
    """`compute(predictions=[N, C] scores, references=[N], k=5)` gives `{"top_k": share in [0, 1]}`.

    Among equal scores the lower class index ranks first. A row with a score that is not finite counts as wrong. With
    k >= C every finite row is right.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The share of samples whose true class is among the k highest scores.",
            citation="",
            inputs_description="predictions: N rows of C scores; references: N class indices; k: default 5.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int], k: int = 5) -> dict[str, float]:
        scores, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        own = scores[np.arange(len(truth)), truth][:, None]
        earlier = np.arange(scores.shape[1])[None, :] < truth[:, None]
        rank = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
        return {"top_k": float(np.mean((rank < k) & np.isfinite(scores).all(axis=1)))}


METRIC = TopK
