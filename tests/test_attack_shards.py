"""Checkpoints of sharded runs are a stranger's too: torch's own reader of them runs what they name."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as distributed
from transformers import Trainer

from hf_optim.experiment import shards
from hf_optim.experiment.trainer import TaskTrainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def state(value: float) -> dict[str, Any]:
    """An optimizer's, as FSDP2's runs keep it: shards of tensors, and what is none."""
    moments = {"w": {"m": torch.full((3,), value), "k": torch.full((2, 2), value, dtype=torch.bfloat16)}}
    group = {"lr": value, "betas": (value, 0.5), "names": ["w"], "foreach": None, "route": "adam", "nesterov": True}
    return {"optimizer": {"state": moments, "param_groups": [group]}}


def read(folder: Path) -> dict[str, Any]:
    """As accelerate reads it."""
    here = state(0.0)
    distributed.load(
        here, storage_reader=distributed.FileSystemReader(folder), planner=distributed.DefaultLoadPlanner()
    )
    return here


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    distributed.save(state(2.0), storage_writer=distributed.FileSystemWriter(tmp_path / "optimizer_0"))
    return tmp_path / "optimizer_0"


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def retold(folder: Path, change: Callable[[Any], Any]) -> None:
    told = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(change(told)))


def in_metadata(folder: Path, mark: Path) -> None:
    retold(folder, lambda told: Code(mark))


def in_a_value(folder: Path, mark: Path) -> None:
    shutil.rmtree(folder)
    values = state(2.0)
    values["optimizer"]["param_groups"][0]["lr"] = Code(mark)
    distributed.save(values, storage_writer=distributed.FileSystemWriter(folder))


def elsewhere(folder: Path, mark: Path) -> None:
    shutil.move(folder / "__0_0.distcp", folder.parent / "secret")

    def change(told: Any) -> Any:
        for info in told.storage_data.values():
            info.relative_path = "../secret"
        return told

    retold(folder, change)


def in_a_class(folder: Path, mark: Path) -> None:
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (folder / ".metadata").write_bytes(name + b"N}(Vload_planner\nVx\nu\x86b.")


ATTACKS = {"metadata": in_metadata, "value": in_a_value, "elsewhere": elsewhere, "class": in_a_class}


def test_a_sharded_checkpoint_is_read_as_it_was_written(folder: Path) -> None:
    with shards.plain():
        assert str(read(folder)) == str(state(2.0))
    assert str(read(folder)) == str(state(2.0)), "torch's own reader is torch's again"
    distributed.save(state(3.0), storage_writer=distributed.FileSystemWriter(folder.parent / "next"))


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_sharded_checkpoint_runs_nothing_and_reads_nothing_elsewhere(folder: Path, attack: str) -> None:
    mark = folder.parent / "ran"
    ATTACKS[attack](folder, mark)
    with pytest.raises(pickle.UnpicklingError), shards.plain():
        read(folder)
    assert not mark.exists()


@pytest.mark.parametrize("attack", ("metadata", "value"))
@pytest.mark.parametrize("method", ("_load_from_checkpoint", "_load_optimizer_and_scheduler"))
def test_a_run_goes_on_from_plain_shards(
    folder: Path, attack: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever Trainer has accelerate read."""
    mark = folder.parent / "ran"
    ATTACKS[attack](folder, mark)
    monkeypatch.setattr(Trainer, method, lambda trainer, checkpoint, *_: read(folder))
    trainer = object.__new__(TaskTrainer)
    with pytest.raises(pickle.UnpicklingError):
        getattr(trainer, method)(str(folder.parent))
    assert not mark.exists()


def test_the_switch_of_torch_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    before = dict(os.environ)
    with pytest.raises(KeyError), shards.plain():
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
        raise KeyError
    assert dict(os.environ) == before


def test_a_sharded_checkpoint_that_is_damaged_is_an_error_like_others(folder: Path) -> None:
    (folder / ".metadata").write_bytes(b"hello")
    with pytest.raises((pickle.UnpicklingError, RuntimeError)), shards.plain():
        read(folder)
