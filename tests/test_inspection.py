"""Curvature against the explicit Hessian and against another library; landscapes; the command."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_optim.commands import main as cli
from hf_optim.curvature import hessian, landscape
from hf_optim.curvature.solution import Solution, gather, norms
from hf_optim.errors import UserError
from hf_optim.experiment.checkpoint import read_solution
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train


class Small(nn.Module):
    """A little network with a loss, in float64, and a parameter that takes no part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
        self.idle = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.ones(3, dtype=torch.float64), requires_grad=False)

    def forward(self, x, labels):
        logits = self.body(x) * self.frozen
        return type("Output", (), {"loss": nn.functional.cross_entropy(logits, labels)})()


@pytest.fixture
def solution() -> Solution:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(22, 4, generator=generator, dtype=torch.float64)
    rows = [{"x": x[i], "labels": torch.tensor(i % 3)} for i in range(22)]
    return gather(Small(), rows, torch.utils.data.default_collate, 20, batch=8)  # batches of 8, 8 and 4


def whole(solution: Solution) -> dict[str, torch.Tensor]:
    return {key: torch.cat([batch[key] for batch, _ in solution.batches]) for key in ("x", "labels")}


def _flat(pieces, parameters) -> torch.Tensor:
    """One vector; zeros for a parameter that takes no part."""
    pairs = zip(pieces, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if piece is None else piece).reshape(-1) for piece, p in pairs])


def explicit(solution: Solution) -> torch.Tensor:
    """The Hessian of the mean loss over all samples, row by row."""
    parameters = solution.parameters
    loss = solution.model(**whole(solution)).loss
    first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    flat = _flat(first, parameters)
    rows = []
    for value in flat:
        if value.requires_grad:
            row = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            rows.append(_flat(row, parameters))
        else:
            rows.append(torch.zeros(len(flat), dtype=torch.float64))
    return torch.stack(rows)


def test_the_loss_is_the_mean_over_samples(solution) -> None:
    assert solution.samples == 20 and [n for _, n in solution.batches] == [8, 8, 4]
    assert solution.loss() == pytest.approx(solution.model(**whole(solution)).loss.item(), rel=1e-12)


def test_curvature_is_that_of_the_explicit_hessian(solution) -> None:
    matrix = explicit(solution)
    true = torch.linalg.eigvalsh(matrix).flip(0)
    vector = torch.randn(len(matrix), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(hessian.product(solution, vector), matrix @ vector, rtol=1e-9, atol=1e-12)
    assert hessian.eigenvalues(solution, 3, tolerance=1e-8) == pytest.approx(true[:3].tolist(), rel=1e-6)
    assert hessian.sharpness(solution) == pytest.approx(float(true[0]), rel=1e-3)
    estimate = hessian.trace(solution, probes=200)
    assert abs(estimate.mean - float(matrix.trace())) < 4 * estimate.error
    assert 0 < estimate.error < abs(float(matrix.trace()))


@pytest.mark.parametrize("power", [1, 3], ids=["linear", "flat"])
def test_no_curvature_is_a_curvature_of_zero(power: int) -> None:
    """Lanczos' method ends in an error of its own there: its first vector is zero."""

    class Power(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((4,), 0.0))

        def forward(self) -> SimpleNamespace:
            return SimpleNamespace(loss=self.weight.pow(power).sum())

    flat = Solution(Power(), [({}, 1)])
    assert hessian.eigenvalues(flat, 2) == [0.0, 0.0] and hessian.trace(flat, 2).mean == 0


def test_the_norm_of_small_weights_is_not_zero() -> None:
    assert norms([torch.full((4,), 1e-38), torch.zeros(2)]) == pytest.approx(
        {"parameter_norm": 2e-38, "largest_parameter": 1e-38}, rel=1e-6
    )


def test_eigenvalues_agree_with_curvlinops(solution) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    from scipy.sparse.linalg import eigsh

    model = solution.model.body
    data = [(batch["x"], batch["labels"]) for batch, _ in solution.batches]
    parameters = list(model.parameters())
    operator = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, data)
    theirs = eigsh(operator.to_scipy(), k=1, which="LA", return_eigenvectors=False, tol=1e-8)[0]
    assert hessian.eigenvalues(solution, 1, tolerance=1e-8)[0] == pytest.approx(float(theirs), rel=1e-5)


def test_attention_has_a_second_derivative() -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    torch.manual_seed(0)
    rows = [{"input_ids": torch.arange(6) + i, "labels": torch.arange(6) + i} for i in range(3)]
    solution = gather(BertForMaskedLM(config), rows, torch.utils.data.default_collate, None)
    assert hessian.sharpness(solution) > 0


class Averaged(nn.Module):
    """What DDPM does: an average that needs no gradient is what evaluation sees."""

    def __init__(self) -> None:
        super().__init__()
        self.trained, self.average = nn.Linear(4, 3), nn.Linear(4, 3).requires_grad_(False)

    def forward(self, x, labels):
        logits = (self.trained if self.training else self.average)(x)
        return type("Output", (), {"loss": nn.functional.cross_entropy(logits, labels)})()


def test_an_average_that_is_evaluated_is_what_is_looked_at() -> None:
    torch.manual_seed(0)
    rows = [{"x": torch.randn(4), "labels": torch.tensor(i % 3)} for i in range(6)]
    model = Averaged()
    solution = gather(model, rows, torch.utils.data.default_collate, None)
    assert solution.averaged and [id(p) for p in solution.parameters] == [id(p) for p in model.average.parameters()]
    assert hessian.sharpness(solution) > 0
    nothing = Averaged()
    nothing.forward = lambda x, labels: type("Output", (), {"loss": x.sum()})()
    with pytest.raises(UserError, match="depends on no parameter"):
        gather(nothing, rows, torch.utils.data.default_collate, None)


def test_directions_are_normalised_filter_by_filter() -> None:
    weight, bias = torch.randn(3, 4, 2), torch.randn(3)
    direction, still = landscape.filter_normalised([weight, bias], seed=3)
    torch.testing.assert_close(direction.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    assert not still.any()
    assert torch.equal(direction, landscape.filter_normalised([weight], seed=3)[0])
    assert not torch.equal(direction, landscape.filter_normalised([weight], seed=4)[0])


def test_a_surface_holds_the_solution_in_its_middle_and_leaves_it_alone(solution) -> None:
    before = [p.detach().clone() for p in solution.parameters]
    surface = landscape.surface(solution, points=5, distance=0.5)
    assert surface.first == surface.second == (-0.5, -0.25, 0.0, 0.25, 0.5)
    assert surface.loss[2][2] == pytest.approx(solution.loss(), rel=1e-12)
    assert all(torch.equal(p, b) for p, b in zip(solution.parameters, before, strict=True))
    line = landscape.surface(solution, points=5, distance=0.5, dimensions=1)
    assert [row[0] for row in line.loss] == pytest.approx([row[2] for row in surface.loss], rel=1e-12)
    with pytest.raises(UserError, match="odd"):
        landscape.surface(solution, points=4)


def test_interpolation_ends_at_both_solutions(solution) -> None:
    other = gather(Small(), [{"x": batch["x"][0], "labels": batch["labels"][0]} for batch, _ in solution.batches],
                   torch.utils.data.default_collate, None)  # fmt: skip
    with torch.no_grad():
        for p in other.parameters:
            p += 0.3
        other.model.body[2].running_mean += 1.0
    path = dict(landscape.between(solution, other, points=9, beyond=0.5))
    there = Solution(other.model, solution.batches)
    assert path[0.0] == pytest.approx(solution.loss(), rel=1e-12)
    assert path[1.0] == pytest.approx(there.loss(), rel=1e-12)  # with its running averages
    with pytest.raises(UserError, match="not of the same model"):
        landscape.between(solution, Solution(nn.Linear(2, 2), []))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("adamw", "sgd"):
        spec = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": name}, options={"hidden_size": 8},
                       overrides={"steps": 4, "sharpness": 64})  # fmt: skip
        train(spec, folder / name, progress=False, checkpoint_every=4)
    return folder


def test_the_command_looks_at_a_runs_checkpoint(runs, capsys) -> None:
    first, second = (str(runs / name / "checkpoint-4") for name in ("adamw", "sgd"))
    assert cli.main(["inspect", first, second, "--samples", "64", "--points", "3", "--trace", "3"]) == 0
    assert "largest eigenvalues" in capsys.readouterr().out
    folder = runs / "adamw" / "checkpoint-4" / "inspection"
    assert sorted(p.name for p in folder.iterdir()) == [
        "inspection.json", "interpolation.csv", "interpolation.png", "landscape.csv", "landscape.png",
    ]  # fmt: skip
    figures = json.loads((folder / "inspection.json").read_text())
    record = json.loads((runs / "adamw" / "record.json").read_text())
    assert figures["eigenvalues"][0] == pytest.approx(record["metrics"]["sharpness"], rel=1e-4)
    assert figures["parameter_norm"] == pytest.approx(record["metrics"]["parameter_norm"], rel=1e-6)
    rows = list(csv.DictReader((folder / "landscape.csv").open()))
    middle = next(float(row["loss"]) for row in rows if float(row["first"]) == float(row["second"]) == 0)
    assert middle == pytest.approx(figures["loss"], rel=1e-6) and len(rows) == 9


TASKS = ("vision", "lm", "albert", "translation", "finetune", "ddpm", "logistic")


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_in_float64_is_not_rounded(task: str, tmp_path) -> None:
    """Models took no batch of float32 then, and those of language and ddpm computed their loss in float32."""
    spec = RunSpec(task=task, size="smoke", optimizer={"name": "adamw"}, overrides={"steps": 1})
    train(spec, tmp_path, progress=False, checkpoint_every=1)
    single, double = (
        read_solution(tmp_path / "checkpoint-1", spec, "validation", 4, double=double) for double in (False, True)
    )
    (loss, _), *_ = double.losses()
    assert loss.dtype is torch.float64 and loss.float().item() != loss.item()
    assert loss.item() == pytest.approx(single.loss(), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["CHECKPOINT", "--points", "4"], "odd number"),
        (["CHECKPOINT", "--samples", "0"], "--samples must be"),
        (["CHECKPOINT", "--task", "vision", "--model", "resnet", "--size", "smoke"], "but model 'resnet' is"),
        (["CHECKPOINT", "--eigenvalues", "9999999"], "ask for 1 to"),
    ],
)
def test_what_is_wrong_is_one_line(runs, arguments, message, capsys) -> None:
    arguments = [str(runs / "adamw" / "checkpoint-4") if a == "CHECKPOINT" else a for a in arguments]
    assert cli.main(["inspect", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1


def test_a_flat_loss_is_refused_when_it_is_not_finite(solution) -> None:
    with torch.no_grad():
        solution.model.body[3].weight.fill_(np.inf)
    with pytest.raises(UserError, match="not finite"):
        hessian.sharpness(solution)
