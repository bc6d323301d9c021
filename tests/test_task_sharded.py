"""Tasks whose models FSDP2 shards over two processes: the training, the figures and the checkpoints of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
import torch
from sharded_tasks import RUNS, STEPS, spec
from untimed import untimed

from hf_optim.errors import UserError
from hf_optim.experiment import precision, sharding
from hf_optim.experiment.evaluation import evaluate
from hf_optim.experiment.training import train

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="the FSDP2 of torch 2.6 runs on no CPU"
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs: NAME and NAME-resumed by two processes, NAME-alone by this one."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # tokenizers are not left at home
        for name in RUNS:
            train(spec(name), folder / f"{name}-alone", progress=False)
        ranks.run("tests/sharded_tasks.py", folder, world=2)
        yield folder


def record(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_sharded_weights_train_and_measure_as_whole_ones(name, runs):
    alone, sharded = record(runs / f"{name}-alone"), record(runs / name)
    assert (alone["status"], sharded["status"]) == ("ok", "ok"), sharded["error"]
    assert sharded["execution"]["sharded"] and not alone["execution"]["sharded"]
    assert sharded["metrics"] == pytest.approx(alone["metrics"], rel=1e-4, abs=1e-6)
    assert sharded["memory"]["parameters"] == alone["memory"]["parameters"]
    rows = [untimed(runs / folder) for folder in (f"{name}-alone", name)]
    for whole_row, sharded_row in zip(*rows, strict=True):
        assert sharded_row == pytest.approx(whole_row, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_a_sharded_run_resumes_bit_for_bit_and_its_checkpoint_is_a_model(name, runs):
    whole, resumed = record(runs / name), record(runs / f"{name}-resumed")
    if name == "vision":  # torch's loader takes no slot that a new optimizer lacks: the iterate is computed back
        assert resumed["metrics"] == pytest.approx(whole["metrics"], rel=1e-6)
    else:
        assert resumed["metrics"] == whole["metrics"] and untimed(runs / name) == untimed(runs / f"{name}-resumed")
    measured = evaluate(spec(name), runs / name / f"checkpoint-{STEPS}").metrics
    best = {key for key in measured if key.startswith("best_")}  # a checkpoint knows only its own moment
    expected = {key: value for key, value in whole["metrics"].items() if key not in best}
    assert {k: v for k, v in measured.items() if k not in best} == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_fsdp1_is_refused():
    class Flat:
        class state:
            class fsdp_plugin:
                fsdp_version = 1

    with pytest.raises(UserError, match="fsdp_version: 2"):
        sharding.adapt(Flat())


def test_what_a_launcher_asks_for_must_be_what_the_run_is(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(UserError, match="--precision bf16"):
        train(spec("vision"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    precision.check_launcher("bf16", False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(UserError, match="--compile-model"):
        precision.check_launcher("fp32", False)
    precision.check_launcher("fp32", True)
