"""BLEU: n-gram overlap of translations with their references, as sacrebleu computes it."""

import datasets
import evaluate
from sacrebleu.metrics import BLEU


class Bleu(evaluate.Metric):
    """`compute(predictions=[N texts], references=[N texts])` gives `{"bleu": corpus score in [0, 100]}`.

    Texts are detokenised; sacrebleu's own tokenisation (13a), case and smoothing (exp) are its defaults, so that the
    figure is comparable with other sacrebleu figures.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Corpus BLEU of detokenised texts, as sacrebleu computes it, from 0 to 100.",
            citation="",
            inputs_description="predictions, references: N texts each.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        # force: a text that looks tokenised is a bad translation here, not a mistake to warn of.
        return {"bleu": float(BLEU(force=True).corpus_score(list(predictions), [list(references)]).score)}


METRIC = Bleu
