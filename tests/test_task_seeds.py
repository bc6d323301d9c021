"""Seeds of weights, batches and train split apart, and runs that are stopped early: real runs of the smallest size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train


def run(folder: Path, seed: int = 0, pruning: list[list[float]] | None = None, **overrides: int) -> dict[str, Any]:
    overrides = {"steps": 6, "eval_every": 2, **overrides}
    optimizer = {"name": "sgd", "lr": 0.1}
    spec = RunSpec("vision", "mlp", "smoke", optimizer, seed, overrides=overrides, pruning=pruning or [])
    return train(spec, folder, progress=False)


def losses(record: dict[str, Any], folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / record["history"]).read_text().splitlines()]
    return [row["validation_loss"] for row in rows if "validation_loss" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], list[float]]]:
    runs = {}
    for name, options in {
        "plain": {}, "same": {"init_seed": 0, "order_seed": 0}, "init": {"init_seed": 1}, "order": {"order_seed": 1},
        "both": {"init_seed": 1, "order_seed": 1}, "other": {"seed": 1}, "split": {"split_seed": 0},
        "split again": {"split_seed": 0}, "another split": {"split_seed": 1},
    }.items():  # fmt: skip
        folder = tmp_path_factory.mktemp("run")
        record = run(folder, **options)  # type: ignore[arg-type]
        runs[name] = record, losses(record, folder)
    return runs


def test_each_seed_moves_what_it_is_of(trained: dict[str, tuple[dict[str, Any], list[float]]]) -> None:
    curve = {name: points for name, (_, points) in trained.items()}
    assert curve["same"] == curve["plain"]
    # The first loss is that of the untrained model: only the weights' seed moves it.
    assert curve["init"][0] != curve["plain"][0] and curve["order"][0] == curve["plain"][0]
    assert curve["order"][-1] != curve["plain"][-1] and curve["init"][-1] != curve["plain"][-1]
    # The MLP draws nothing else, so the two together are the seed.
    assert curve["both"] == curve["other"]


def test_a_split_seed_resamples_the_train_split_alone(trained: dict[str, tuple[dict[str, Any], list[float]]]) -> None:
    curve = {name: points for name, (_, points) in trained.items()}
    assert curve["split"] == curve["split again"] and curve["split"][0] == curve["plain"][0]
    assert curve["split"][-1] != curve["plain"][-1] and curve["another split"][-1] != curve["split"][-1]
    assert "bootstrap sample of the train split, seed 1" in trained["another split"][0]["data"]["note"]
    assert trained["split"][0]["data"]["fingerprint"] == trained["plain"][0]["data"]["fingerprint"]


def test_a_run_is_stopped_at_the_first_limit_that_its_best_value_misses(tmp_path: Path) -> None:
    stopped = run(tmp_path / "a", pruning=[[2, 0.0], [4, 1.0]])
    assert stopped["status"] == "failed" and stopped["pruned"] is True and stopped["time"]["steps"] == 4
    assert "stopped at step 4: the best validation accuracy so far" in stopped["error"] and not stopped["metrics"]
    kept = run(tmp_path / "b", pruning=[[2, 0.0], [4, 0.0]])
    assert kept["status"] == "ok" and kept["pruned"] is False and kept["time"]["steps"] == 6


def test_specs_without_the_new_values_keep_their_name_and_bad_ones_are_refused() -> None:
    plain = RunSpec("vision", optimizer={"name": "sgd"})
    assert "pruning" not in plain.to_dict() and "options" not in plain.to_dict()
    pruned = RunSpec("vision", optimizer={"name": "sgd"}, pruning=[[2, 0.5]])
    assert pruned.id != plain.id and RunSpec.from_dict(json.loads(json.dumps(pruned.to_dict()))).id == pruned.id
    for overrides, message in (
        ({"init_seed": -1}, "init_seed must be 0 or more"),
        ({"order_seed": 2**32}, "order_seed must be below"),
        ({"split_seed": 0.5}, "split_seed must be a number"),
    ):
        with pytest.raises(UserError, match=message):
            RunSpec("vision", optimizer={"name": "sgd"}, overrides=overrides)
    for bad in (3, [3], [[1, 2, 3]], [["1", 2]]):
        with pytest.raises(UserError, match="pruning: expected a list of"):
            RunSpec("vision", optimizer={"name": "sgd"}, pruning=bad)  # type: ignore[arg-type]
