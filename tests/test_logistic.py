"""Logistic regression: its minimum, the task, and the papers' bounds checked on it."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from hf_optim.commands import convergence
from hf_optim.errors import UserError
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train
from hf_optim.tasks.data.convex import Objective
from hf_optim.tasks.data.online import Digits, TwoPulls
from hf_optim.toys import regret


def spec(model="logistic", optimizer=None, **values) -> RunSpec:
    optimizer = optimizer or {"name": "adam", "lr": 1e-2}
    return RunSpec.from_dict({"task": "logistic", "model": model, "size": "smoke", "optimizer": optimizer, **values})


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(batch=32)


# --- the minimum -----------------------------------------------------------------------------------------------------


def overlapping(classes: int, samples: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=samples)
    return rng.normal(size=(samples, 3)) + labels[:, None] * 0.5, labels


@pytest.mark.parametrize("classes", [2, 4])
def test_derivatives_are_those_of_the_value(classes) -> None:
    features, labels = overlapping(classes)
    counts = np.random.default_rng(1).integers(3, size=len(labels))
    problem = Objective(features, labels, classes, counts)
    at, along = np.random.default_rng(2).normal(size=(2, math.prod(problem.shape)))
    h = 1e-5
    slope = (problem.value(at + h * along) - problem.value(at - h * along)) / (2 * h)
    assert problem.gradient(at) @ along == pytest.approx(slope, abs=1e-8)
    curve = (problem.gradient(at + h * along) - problem.gradient(at - h * along)) / (2 * h)
    assert problem.hessian(at) @ along == pytest.approx(curve, abs=1e-8)
    logits = torch.from_numpy(problem.logits(at))
    from hf_optim.tasks.models.linear import losses

    assert losses(logits, torch.from_numpy(labels)).numpy() == pytest.approx(problem.losses(at), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_the_minimum_is_one(classes) -> None:
    problem = Objective(*overlapping(classes), classes)
    best = problem.minimum()
    assert best.gradient < 1e-12
    rng = np.random.default_rng(3)
    for scale in (1e-4, 1e-2, 1.0):
        near = best.weights.ravel() + scale * rng.normal(size=best.weights.size)
        assert problem.value(near) >= best.value - 1e-15


def test_classes_that_a_plane_separates_have_no_minimum() -> None:
    features = np.linspace(-1, 1, 40)[:, None]
    with pytest.raises(UserError, match="the loss has no minimum"):
        Objective(features, (features[:, 0] > 0).astype(int), 2).minimum()


# --- the task --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logistic")
    record = train(spec(), folder, progress=False, checkpoint_every=140)
    assert record["status"] == "ok", record["error"]
    return folder, record


def test_the_excess_is_what_is_left_to_the_minimum(run, digits) -> None:
    metrics = run[1]["metrics"]
    assert metrics["train_excess"] == pytest.approx(metrics["train_loss"] - digits.least, abs=1e-12)
    assert 0 < metrics["train_excess"] < 0.05 and metrics["test_accuracy"] > 0.8
    assert run[1]["memory"]["parameters"] == 26


def test_the_start_is_the_same_for_every_seed_and_known(tmp_path, run) -> None:
    other = train(spec(seed=1, overrides={"steps": 1}), tmp_path, progress=False)
    assert other["status"] == "ok"
    for folder in (tmp_path, run[0]):
        first = json.loads((folder / "history.jsonl").read_text().splitlines()[0])
        assert first["validation_loss"] == pytest.approx(math.log(2), abs=1e-12)


def test_a_deterministic_method_reaches_the_minimum(tmp_path) -> None:
    # The whole train split in every step: gradient descent on a smooth convex function.
    overrides = {"batch_size": 3500, "steps": 300, "eval_every": 300}
    record = train(spec(optimizer={"name": "sgd", "lr": 1.0}, overrides=overrides), tmp_path, progress=False)
    assert record["status"] == "ok", record["error"]
    assert 0 <= record["metrics"]["train_excess"] < 1e-5


def test_a_checkpoint_gives_the_numbers_of_its_record(run) -> None:
    figures = evaluate_checkpoint("logistic", "logistic", "smoke", run[0] / "checkpoint-140")
    same = [key for key in figures if not key.startswith("best_")]
    assert {key: figures[key] for key in same} == {key: run[1]["metrics"][key] for key in same}


def test_softmax_tells_ten_digits_apart(tmp_path) -> None:
    record = train(spec("softmax"), tmp_path, progress=False)
    assert record["status"] == "ok", record["error"]
    assert record["metrics"]["test_accuracy"] > 0.7 and record["metrics"]["train_excess"] > 0


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("softmax", {"labels": "parity"}, "take --model logistic"),
        ("logistic", {"labels": "all"}, "take --model softmax"),
        ("logistic", {"labels": "odd"}, "labels must be parity or all"),
        ("logistic", {"pool": 0}, "pool must be an integer of at least 1"),
        ("logistic", {"crop": 13}, "have no field of 4x4"),
    ],
)
def test_bad_options_are_one_line(model, options, says, tmp_path) -> None:
    with pytest.raises(UserError) as raised:
        train(spec(model, options=options), tmp_path / "run", progress=False)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


# --- online problems -------------------------------------------------------------------------------------------------


def test_the_best_point_in_hindsight_is_the_best_of_the_ball(digits) -> None:
    drawn = digits.draw(64, seed=5)
    rng = np.random.default_rng(0)
    for radius in (0.5, 2.0, 50.0):
        best = digits.hindsight(drawn, radius)
        for _ in range(20):
            point = rng.normal(size=digits.dimension)
            x = torch.from_numpy(point * radius * rng.random() / np.linalg.norm(point))
            total = sum(float(digits.loss(x, batch)) for batch in drawn)
            assert best <= total
        assert best <= digits.hindsight(drawn, radius / 2) + 1e-9  # a larger ball holds the smaller one
    inside = digits.best.weights.ravel()
    assert digits.hindsight(drawn, 50.0) <= sum(float(digits.loss(torch.from_numpy(inside), b)) for b in drawn)


@pytest.mark.parametrize("problem", [Digits(), TwoPulls()], ids=["digits", "two-pulls"])
def test_values_are_means_of_what_is_drawn(problem) -> None:
    x = torch.full((problem.dimension,), 0.3, dtype=torch.float64, requires_grad=True)
    if isinstance(problem, Digits):
        mean = problem.loss(x, np.arange(len(problem.labels)))
    else:
        mean = sum(share * problem.loss(x, np.int64(i)) for i, share in enumerate(problem.share))
    mean.backward()
    values, norms = problem.values(x.detach().numpy()[None])
    assert values[0] == pytest.approx(mean.item(), abs=1e-12)
    assert norms[0] == pytest.approx(float(torch.linalg.vector_norm(x.grad)), abs=1e-12)
    assert values[0] > problem.least


def test_the_printed_bound_by_hand() -> None:
    # G D^2 sqrt(T) / (eta V) + G lambda D^2 + G eta (G + lambda D)^2 (2 sqrt(T) - 1), with D = 4
    bound = regret.theorem3(9, radius=2.0, slope=3.0, rate=0.5, decay=0.25, least_speed=0.1)
    assert bound == pytest.approx(3 * 16 * 3 / 0.05 + 3 * 0.25 * 16 + 3 * 0.5 * (3 + 1) ** 2 * 5)
    assert regret.theorem3(9, 2.0, 3.0, 0.5, 0.25, 0.0) == math.inf


def test_smaran_keeps_its_theorems_on_the_digits(digits) -> None:
    followed = regret.follow(digits, {"name": "smaran", "lr": 0.1}, 256, seed=0)
    assert followed.column("T") == [2**k for k in range(9)] and not followed.note
    assert followed.momentum is not None and followed.speeds is not None
    assert 0.9 < followed.momentum < 1
    assert 0 <= followed.speeds[0] < followed.speeds[1] < 1
    assert all(row["slack"] > 1 for row in followed.rows)
    excess = followed.column("excess_mean")
    assert all(value > 0 for value in excess) and excess[-1] < excess[0] / 4
    # f is convex: at the mean of the points it is at most the mean of f
    assert all(row["excess_of_mean"] <= row["excess_mean"] + 1e-12 for row in followed.rows)
    assert regret.exponent([followed], "excess_mean")[0] < -0.4


def test_the_regret_of_theorem_3_outgrows_its_bound() -> None:
    # All assumptions hold: f_t convex and smooth, |f_t'| < 0.1, iterates in a ball, lambda in (0, 1), eta_t as it says.
    followed = regret.follow(TwoPulls(), {"name": "smaran", "lr": regret.ETA}, 4096, seed=0)
    last = followed.rows[-1]
    assert last["radius"] < 1.7 and last["V"] > 0.25 and last["G"] == 0.1
    assert last["regret"] > 1.5 * last["bound"]
    assert followed.rows[9]["regret"] < followed.rows[9]["bound"]  # not yet at T = 512
    assert min(row["regret"] / row["T"] for row in followed.rows[-3:]) > 0.05  # it does not fall: the regret is linear
    said = convergence.findings([followed])
    assert any("Theorem 3" in text and "FAILS, exceeded from T = 2048" in text for text in said)


def test_every_optimizer_sees_the_same_functions(digits) -> None:
    first, second = (regret.follow(digits, {"name": name, "lr": 1e-9}, 16, seed=3) for name in ("sgd", "adam"))
    assert first.column("regret") == pytest.approx(second.column("regret"), rel=1e-6)
    assert first.momentum is None and all(math.isnan(value) for value in first.column("bound"))


def test_an_optimizer_that_diverges_is_a_note(digits) -> None:
    followed = regret.follow(digits, {"name": "sgd", "lr": 1e308}, 64, seed=0)
    assert "diverged at step" in followed.note and len(followed.rows) < 7


def test_exponents_and_their_interval() -> None:
    runs = []
    for power in (-0.4, -0.5, -0.6):
        series = regret.Run("x", None, 0)
        series.rows = [{"T": 2**k, "excess_mean": 3 * 2.0 ** (k * power), "regret": 2.0**k} for k in range(13)]
        runs.append(series)
    mean, half = regret.exponent(runs, "excess_mean")
    assert mean == pytest.approx(-0.5) and half == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-3)
    assert regret.exponent(runs[:1], "regret", divide=True)[0] == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(regret.exponent(runs[:1], "excess_mean")[1])


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_and_plots(tmp_path, capsys) -> None:
    arguments = ["--optimizer", "smaran", "{name: sgd, momentum: 0.5}", "--steps", "32", "--seeds", "2", "--lr", "0.1"]
    assert convergence.main([*arguments, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "Theorem 1, |m_t| < 1/(1 - gamma): holds" in shown and "Theorem 3, R(T) <= bound: holds" in shown
    assert "sgd momentum=0.5, eta = 0.1" in shown
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "convergence.csv", "convergence.png", "convergence.svg",
    ]  # fmt: skip
    with (tmp_path / "out/convergence.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 6 and {row["seed"] for row in rows} == {"0", "1"}
    assert all(float(row["excess_mean"]) > 0 for row in rows)
    assert (tmp_path / "out/convergence.png").read_bytes().startswith(b"\x89PNG")


def test_rates_are_chosen_on_another_seed(digits) -> None:
    chosen = regret.tuned(digits, {"name": "sgd"}, 32, seed=9)
    assert chosen["lr"] in convergence.RATES and chosen["lr"] > 0.01


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--optimizer", "nosuch"], "nosuch"),
        (["--steps", "4"], "--steps must be at least 8"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--lr", "-1"], "--lr must be positive"),
        (["--problem", "cubic"], "invalid choice"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says) -> None:
    with pytest.raises(UserError) as raised:
        convergence.main(arguments)
    assert says in str(raised.value) and "\n" not in str(raised.value)
