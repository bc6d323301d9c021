"""Text tasks on two processes: the same training and the same figures as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from untimed import untimed

from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import load, names
from hf_optim.experiment.training import train

ROOT = Path(__file__).parent.parent
TEXT = [name for name in names() if name in ("albert", "lm", "translation")]
STEPS, RATE = 4, 0.1
#: How near the two trainings come: as near as rounding. ALBERT draws its masks in the forward pass from each process's
#: random state, so that two processes see other masks than one.
NEAR = {"albert": 5e-2}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """Tokenizers are made here, and not left in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def torchrun(name: str, folder: Path) -> dict:
    """The record of a run of `name` on two processes, with a checkpoint at its end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("scripts/train.py", "--task", name, "--size", "smoke", "--optimizer", "sgd", "--optimizer.lr", str(RATE)),
        *("--steps", str(STEPS), "--eval-every", str(STEPS), "--checkpoint-every", str(STEPS)),
        *("--output", str(folder)),
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads((folder / "record.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TEXT)
def test_two_processes_train_and_measure_as_one(name, tmp_path) -> None:
    two = torchrun(name, tmp_path / "two")
    assert two["status"] == "ok" and two["environment"]["processes"] == 2
    assert load(name).primary.name in two["metrics"]

    # The same weights, measured by this one process.
    best = f"best_validation_{load(name).primary.stem}"  # a checkpoint knows only its own moment
    figures = {key: value for key, value in two["metrics"].items() if key != best}
    measured = evaluate_checkpoint(name, None, "smoke", tmp_path / "two" / f"checkpoint-{STEPS}")
    measured.pop(best)
    assert measured == pytest.approx(figures, rel=1e-6, abs=1e-7)

    # The same steps, made by this one process.
    overrides = {"steps": STEPS, "eval_every": STEPS}
    spec = RunSpec(task=name, size="smoke", optimizer={"name": "sgd", "lr": RATE}, overrides=overrides)
    single = train(spec, tmp_path / "one", progress=False)
    assert single["status"] == "ok", single["error"]
    near = NEAR.get(name, 1e-4)
    rows = [read(tmp_path / folder) for folder in ("one", "two")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for alone, shared in zip(*rows, strict=True):
        for key in {"train_loss", "validation_loss"} & set(alone):
            assert shared[key] == pytest.approx(alone[key], rel=near), (key, alone["step"])
    losses = [key for key in figures if key.endswith("_loss")]
    assert len(losses) >= 3
    for key in losses:
        assert figures[key] == pytest.approx(single["metrics"][key], rel=near), key


def read(folder: Path) -> list[dict]:
    """The rows of a run's history."""
    return untimed(folder)


def test_there_are_text_tasks() -> None:
    assert "translation" in TEXT
