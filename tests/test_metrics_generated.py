"""The distances and the score of generated images: their formulas, and that they load by path."""

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics")

from hf_optim import metrics  # noqa: E402
from hf_optim.metrics import frechet, inception_score, kid  # noqa: E402


def sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 5)).astype(np.float32), (1.5 * rng.normal(size=(80, 5)) + 0.5).astype(np.float32)


def test_the_frechet_distance_by_its_formula() -> None:
    from scipy.linalg import sqrtm

    generated, real = sets()
    a, b = np.cov(generated.astype(np.float64).T), np.cov(real.astype(np.float64).T)
    apart = ((generated.astype(np.float64).mean(0) - real.astype(np.float64).mean(0)) ** 2).sum()
    expected = apart + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet.distance(generated, real) == pytest.approx(expected, rel=1e-8)
    assert frechet.distance(real, real) == pytest.approx(0, abs=1e-6)


def test_the_kernel_distance_by_its_formula(monkeypatch) -> None:
    generated, real = (values.astype(np.float64) for values in sets())
    real = real[:60]

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (60 * 59) for x in (generated, real)]
    expected = sum(within) - 2 * kernel(generated, real).mean()
    assert kid.distance(generated, real) == pytest.approx(expected, rel=1e-8)
    monkeypatch.setattr(kid, "SUBSET", 40)
    monkeypatch.setattr(kid, "SUBSETS", 20)
    state = torch.get_rng_state()
    several = kid.distance(generated, real)
    assert several == kid.distance(generated, real) != expected  # the same subsets every time
    assert several == pytest.approx(expected, rel=0.5) and torch.equal(torch.get_rng_state(), state)


def test_the_inception_score_of_the_clear_cases() -> None:
    sure = np.tile(100 * np.eye(4), (50, 1))
    mean, deviation = inception_score.score(sure)
    assert 3.5 < mean <= 4 and 0 <= deviation < 0.5
    assert inception_score.score(np.zeros((40, 4))) == pytest.approx((1, 0))  # knows nothing
    assert inception_score.score(np.tile([100.0, 0, 0, 0], (40, 1))) == pytest.approx((1, 0))  # one class only


def test_figures_are_not_gathered_a_second_time(monkeypatch) -> None:
    # torchmetrics gathers by itself when there are several processes, and would count everything once for each.
    import torchmetrics

    generated, real = sets()
    alone = frechet.distance(generated, real), kid.distance(generated, real), inception_score.score(generated)
    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr(torchmetrics.Metric, "_sync_dist", lambda *_, **__: pytest.fail("gathered"))
    assert (frechet.distance(generated, real), kid.distance(generated, real), inception_score.score(generated)) == alone


def test_the_metric_modules_load_by_path_and_take_sets_of_two_sizes(tmp_path, monkeypatch) -> None:
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    generated, real = sets()
    for name, expected in (("frechet", frechet.distance(generated, real)), ("kid", kid.distance(generated, real))):
        loaded = evaluate.load(metrics.path(name), keep_in_memory=True)
        assert loaded.compute(predictions=[generated], references=[real])[name] == pytest.approx(expected, rel=1e-9)
        loaded.add(prediction=generated[:20], reference=real[:50])
        loaded.add(prediction=generated[20:], reference=real[50:])
        assert loaded.compute()[name] == pytest.approx(expected, rel=1e-9)
    score = evaluate.load(metrics.path("inception_score"), keep_in_memory=True).compute(predictions=generated)
    assert (score["inception_score"], score["inception_score_std"]) == pytest.approx(inception_score.score(generated))
