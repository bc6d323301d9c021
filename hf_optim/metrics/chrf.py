"""chrF: F-score of character n-grams of translations against their references, as sacrebleu computes it."""

import datasets
import evaluate
from sacrebleu.metrics import CHRF


class ChrF(evaluate.Metric):
    """`compute(predictions=[N texts], references=[N texts])` gives `{"chrf": corpus score in [0, 100]}`.

    chrF2: character n-grams up to 6, no word n-grams, recall counts twice; sacrebleu's defaults.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus chrF2 of detokenised texts, as sacrebleu computes it, from 0 to 100.",
            citation="",
            inputs_description="predictions, references: N texts each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"chrf": float(CHRF().corpus_score(list(predictions), [list(references)]).score)}


METRIC = ChrF
