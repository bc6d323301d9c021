"""All that a run goes on from is looked through before anything is removed or written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_parts import SPEC, Code, interrupted_run
from transformers import PretrainedConfig

from hf_optim.errors import DamagedCheckpoint
from hf_optim.experiment import resuming
from hf_optim.experiment.training import train


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted_run(tmp_path_factory.mktemp("run"))


def told(name: str, **more: Any) -> Callable[[Path], Any]:
    """One of a checkpoint's JSON files says more."""

    def apply(checkpoint: Path) -> None:
        file = checkpoint / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **more}))

    return apply


def cut_short(checkpoint: Path) -> None:
    os.truncate(file := checkpoint / "model.safetensors", file.stat().st_size - 4)


def sharded(folder: str) -> Callable[[Path], Any]:
    def apply(checkpoint: Path) -> None:
        (checkpoint / folder).mkdir()
        (checkpoint / folder / ".metadata").write_bytes(pickle.dumps(Code()))

    return apply


OTHERS = {"auto_map": {"AutoConfig": "a/b--c.D"}}
BEYOND = "its config.json counts beyond what its files hold"
LOOKED_THROUGH: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a state": (lambda checkpoint: torch.save(Code(), checkpoint / "optimizer.pt"), "asks for .*system"),
    "code of others": (told("config.json", **OTHERS), "its config.json asks for code or files of others .auto_map"),
    "code of others in a list": (told("config.json", parts=[[OTHERS]]), "asks for code or files of others .auto_map"),
    "labels": (told("config.json", num_labels=2_000_000), BEYOND),
    "labels of parts": (told("config.json", parts=[{"num_labels": 600_000}, {"num_classes": 600_000}]), BEYOND),
    "sizes": (told("config.json", hidden_size=2_000_000_000), BEYOND),
    "no type of numbers": (told("config.json", dtype="theirs"), "config.json cannot be read: .*'theirs'"),
    "generation": (lambda checkpoint: (checkpoint / "generation_config.json").write_text("["), "generation_config"),
    "adapters beside a model": (lambda checkpoint: (checkpoint / "adapter_config.json").touch(), "holds an adapter"),
    "a state of others": (told("trainer_state.json", foo=1), "unexpected keyword argument 'foo'"),
    "weights": (cut_short, "model.safetensors cannot be read"),
    "shards of weights": (
        sharded("pytorch_model_fsdp_0"),
        "pytorch_model_fsdp_0/.metadata cannot .* asks for .*system",
    ),
    "shards of a state": (sharded("optimizer_0"), "optimizer_0/.metadata cannot be read: .* asks for .*system"),
}


@pytest.mark.parametrize("name", LOOKED_THROUGH)
def test_a_checkpoint_is_looked_through_before_anything_is_written(
    tmp_path: Path, interrupted: Path, name: str
) -> None:
    """Of its config.json alone transformers made two thousand million names for as many labels."""
    damage, why = LOOKED_THROUGH[name]
    folder = tmp_path / SPEC.id
    shutil.copytree(interrupted, folder)
    damage(folder / "checkpoint-2")
    (folder / "spec.json").unlink()
    (folder / "history.jsonl").write_text("mine")
    with pytest.raises(DamagedCheckpoint, match=why):
        train(SPEC, folder, progress=False, checkpoint_every=2, resume=True)
    assert (folder / "history.jsonl").read_text() == "mine" and not (folder / "spec.json").exists()


def test_a_run_goes_on_with_what_its_own_model_counts(interrupted: Path, tmp_path: Path) -> None:
    """A task's own configuration may hold any number, as a seed; it is no stranger's."""
    checkpoint = shutil.copytree(interrupted / "checkpoint-2", tmp_path / "checkpoint-2")
    told("config.json", drawn_by=[2**40])(checkpoint)
    model = torch.nn.Module()
    model.config = PretrainedConfig(drawn_by=(2**40,))  # type: ignore[assignment]
    resuming.check(checkpoint, model)
    with pytest.raises(DamagedCheckpoint, match=BEYOND):
        resuming.check(checkpoint, torch.nn.Module())
