"""The metric modules: their values, and that they need neither a network nor a writable cache."""

import sys

import numpy as np
import pytest

from hf_optim import metrics
from hf_optim.errors import UserError

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 0.5], [0.2, 0.1, 0.9]], dtype=np.float32)
TRUTH = [0, 1, 1, 2]


def compute(name: str, predictions, references, **options) -> float:
    (value,) = metrics.load(name).compute(predictions=predictions, references=references, **options).values()
    return value


def test_accuracy_counts_hits() -> None:
    assert compute("accuracy", [0, 1, 2, 2], TRUTH) == 0.75


def test_top_k_by_hand() -> None:
    assert compute("top_k", LOGITS, TRUTH, k=1) == 0.75
    assert compute("top_k", LOGITS, TRUTH, k=2) == 0.75  # the third row's true class ranks last
    assert compute("top_k", LOGITS, TRUTH, k=3) == 1.0


def test_top_k_gives_no_credit_for_ties_and_nan() -> None:
    assert compute("top_k", np.zeros((3, 10), dtype=np.float32), [0, 4, 5], k=5) == pytest.approx(2 / 3)
    assert compute("top_k", np.full((2, 10), np.nan, dtype=np.float32), [0, 1], k=5) == 0.0


def test_cross_entropy_is_the_mean_over_samples() -> None:
    import torch

    expected = torch.nn.functional.cross_entropy(torch.tensor(LOGITS).double(), torch.tensor(TRUTH)).item()
    assert compute("cross_entropy", LOGITS, TRUTH) == pytest.approx(expected, rel=1e-12)
    assert np.isnan(compute("cross_entropy", np.array([[np.inf, 0.0]], dtype=np.float32), [0]))


def test_mean_average_precision_by_hand_and_without_absent_classes() -> None:
    # Classes 0 and 1 occur, class 2 does not. The softmax orders the rows for class 0 as 0, 2, 1 (hits 0, 2) and for
    # class 1 as 1, 0, 2 (hit 1): both perfect. Counting class 2 as 0 would give 2/3.
    logits = np.array([[3.0, 1.0, 0.0], [0.0, 3.0, 0.0], [2.0, 0.0, 0.0]], dtype=np.float32)
    assert compute("mean_average_precision", logits, [0, 1, 0]) == pytest.approx(1.0)
    # For class 0 the hits stand at ranks 1 and 3 of 3: (1/1 + 2/3) / 2; for class 1 the hit is at rank 2: 1/2.
    logits = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert compute("mean_average_precision", logits, [0, 1, 0]) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_modules_are_reusable_and_independent() -> None:
    first, second = metrics.load("accuracy"), metrics.load("accuracy")
    first.add_batch(predictions=[0, 0], references=[0, 1])
    second.add_batch(predictions=[1], references=[1])
    assert first.compute()["accuracy"] == 0.5
    assert second.compute()["accuracy"] == 1.0
    assert first.compute(predictions=[1], references=[0])["accuracy"] == 0.0


def test_unknown_metric_names_the_valid_ones() -> None:
    with pytest.raises(UserError, match=", ".join(metrics.names())):
        metrics.load("f1")


def test_evaluate_loads_and_combines_every_module_by_path(tmp_path, monkeypatch) -> None:
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in ("accuracy", "cross_entropy", "mean_average_precision", "top_k"):  # the others take other things
        loaded = evaluate.load(metrics.path(name), keep_in_memory=True)
        predictions = [0, 1, 1, 2] if name == "accuracy" else LOGITS
        (value,) = loaded.compute(predictions=predictions, references=TRUTH).values()
        assert value == compute(name, predictions, TRUTH)
    both = evaluate.combine([evaluate.load(metrics.path(name)) for name in ("top_k", "cross_entropy")])
    assert set(both.compute(predictions=LOGITS, references=TRUTH)) == {"top_k", "cross_entropy"}


def test_a_metric_can_be_subclassed() -> None:
    accuracy = type(metrics.load("accuracy"))

    class Error(accuracy):  # type: ignore[misc, valid-type]
        def _compute(self, predictions, references):
            return {"error": 1 - super()._compute(predictions, references)["accuracy"]}

    assert Error(keep_in_memory=True).compute(predictions=[0, 1], references=[1, 1]) == {"error": 0.5}


def test_no_cache_is_needed(tmp_path, monkeypatch) -> None:
    import evaluate

    (tmp_path / "a_file").touch()  # no folder can be made below it, whoever runs this
    for key in ("HF_MODULES_CACHE", "HF_METRICS_CACHE"):
        monkeypatch.setattr(evaluate.config, key, str(tmp_path / "a_file" / "cache"))
    assert compute("accuracy", [1], [1]) == 1.0


def test_bleu_by_hand() -> None:
    # "the cat sat on the mat" against "the cat sat on a mat": 5/6 unigrams, 3/5 bigrams, 2/4, 1/3; same length.
    said = metrics.load("bleu").compute(predictions=["the cat sat on the mat"], references=["the cat sat on a mat"])
    assert said["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    short = metrics.load("bleu").compute(predictions=["the cat sat on"], references=["the cat sat on a mat"])
    assert short["bleu"] == pytest.approx(100 * 2.718281828459045 ** (1 - 6 / 4))
    # Over a corpus counts are summed, not scores averaged.
    both = metrics.load("bleu").compute(
        predictions=["the cat sat on the mat", "the cat sat on"], references=["the cat sat on a mat"] * 2
    )
    assert both["bleu"] == pytest.approx(100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25 * 2.718281828459045**-0.2)
    assert metrics.load("bleu").compute(predictions=["", ""], references=["a b", "c"])["bleu"] == 0


def test_chrf_knows_characters() -> None:
    chrf = metrics.load("chrf")
    assert chrf.compute(predictions=["the street"], references=["the street"])["chrf"] == pytest.approx(100)
    near = chrf.compute(predictions=["the streets"], references=["the street"])["chrf"]
    far = chrf.compute(predictions=["a road"], references=["the street"])["chrf"]
    assert 100 > near > 80 > 20 > far
    # One character: precision 1/2, recall 1, recall counting twice: 5 * .5 / (4 * .5 + 1).
    assert chrf.compute(predictions=["ab"], references=["a"])["chrf"] == pytest.approx(100 * 2.5 / 3)


def test_evaluate_loads_the_modules_by_path(tmp_path, monkeypatch) -> None:
    import evaluate

    def forget() -> None:
        """The package of modules belongs to one cache folder; another test has another."""
        for key in [key for key in sys.modules if key.split(".")[0] == "evaluate_modules"]:
            del sys.modules[key]

    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    text = ["to be or not to be"]
    forget()
    try:
        for name in ("bleu", "chrf"):
            loaded = evaluate.load(metrics.path(name), keep_in_memory=True)
            assert loaded.compute(predictions=text, references=text)[name] == pytest.approx(100)
    finally:
        forget()
