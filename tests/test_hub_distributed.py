"""Two processes that share a step's samples do what one process does with all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
from hub_worker import CASES

WORKER = Path(__file__).with_name("hub_worker.py")


def _launch(folder: Path, world: int) -> list[dict]:
    folder.mkdir()
    ranks.run(WORKER, folder, world, world=world if world > 1 else None)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    return _launch(folder / "one", 1)[0], _launch(folder / "two", 2)


@pytest.mark.parametrize("case", [*CASES, "session", "weighted loss"])
def test_two_processes_equal_one(runs, case):
    single, (first, second) = runs
    assert first[case]["weights"] == second[case]["weights"]  # replicas never drift apart
    for key in single[case]:
        assert first[case][key] == pytest.approx(single[case][key], rel=1e-3, abs=1e-5), key
    assert len(single[case]["rates"]) == (3 if case in ("session", "weighted loss") else 8)


def test_local_gradients_and_a_mean_loss_do_not_go_together(runs):
    """In one process LocalSGD does nothing; in two, what reads the loss is refused on each."""
    single, (first, second) = runs
    assert single["local"]["refused"] == [0.0, 0.0, 0.0]
    assert first["local"] == second["local"] == {"refused": [1.0, 1.0, 0.0]}


def test_every_rank_is_fed_the_same_loss(runs):
    _, (first, second) = runs
    for case in ("smaran", "repaired", "search", "closure"):
        assert first[case]["fed"] == second[case]["fed"] and len(first[case]["fed"]) == 8
    assert set(first["search"]["replay"]) == {0.0}
