"""Tasks on two processes: the same training and the same figures as on one."""

from __future__ import annotations

import json

import pytest
import ranks
from paired_tasks import RUNS, STEPS, spec
from untimed import untimed

from hf_optim.experiment.evaluation import evaluate
from hf_optim.experiment.task import load
from hf_optim.experiment.training import train

#: How near the two trainings come: as near as rounding. ALBERT draws its masks in the forward pass from each process's
#: random state, so that two processes see other masks than one; bf16 has 8 bits.
NEAR = {"albert": 5e-2, "bf16": 2e-3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs: NAME by two processes, NAME-alone by this one."""
    folder = tmp_path_factory.mktemp("paired")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # tokenizers are not left at home
        ranks.run("tests/paired_tasks.py", folder, world=2)
        yield folder


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_and_measure_as_one(name, runs) -> None:
    two = json.loads((runs / name / "record.json").read_text(encoding="utf-8"))
    assert two["status"] == "ok" and two["environment"]["processes"] == 2
    primary = load(RUNS[name]["task"]).primary
    assert primary.name in two["metrics"]

    # The same weights, measured by this one process.
    best = f"best_validation_{primary.stem}"  # a checkpoint knows only its own moment
    figures = {key: value for key, value in two["metrics"].items() if key != best}
    measured = evaluate(spec(name), runs / name / f"checkpoint-{STEPS}").metrics
    measured.pop(best)
    assert measured == pytest.approx(figures, rel=1e-6, abs=1e-7)

    # The same steps, made by this one process.
    single = train(spec(name), runs / f"{name}-alone", progress=False)
    assert single["status"] == "ok", single["error"]
    assert (single["id"], single["environment"]["processes"]) == (two["id"], 1)
    assert single["time"]["flops_per_step"] == two["time"]["flops_per_step"]
    near = NEAR.get(name, 1e-4)
    rows = [untimed(runs / folder) for folder in (f"{name}-alone", name)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for alone, shared in zip(*rows, strict=True):
        for key in {"train_loss", "validation_loss", "flops"} & set(alone):
            assert shared[key] == pytest.approx(alone[key], rel=near), (key, alone["step"])
    losses = [key for key in figures if key.endswith("_loss")]
    assert len(losses) >= 3
    for key in losses:
        assert figures[key] == pytest.approx(single["metrics"][key], rel=near), key


def test_the_text_tasks_are_among_them() -> None:
    assert {"albert", "lm", "translation"} <= {run["task"] for run in RUNS.values()}
