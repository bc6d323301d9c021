"""Checkpoints of sharded runs are a stranger's too: torch's own reader of them runs what they name."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import zipfile
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

#: a tuple that holds another one twice, which holds another one twice, and so on: to look it up takes years
ENDLESS = b"(t" + b"".join(b"p%d\ng%d\n\x86" % (i, i) for i in range(60))
NAMES = "torch.distributed.checkpoint.metadata"
LOOKED_UP = {
    "key": b"\x80\x02}" + ENDLESS + b"K\x01s.",
    "place": f"\x80\x02}}c{NAMES}\nMetadataIndex\n)\x81}}(Vfqn\nVx\nVoffset\n".encode("latin1") + ENDLESS
    + b"ubK\x01s.",
    "layout": b"\x80\x02ctorch.serialization\n_get_layout\n" + ENDLESS + b"\x85R.",
    "format": f"\x80\x02c{NAMES}\n_MEM_FORMAT_ENCODING\n".encode("latin1") + ENDLESS + b"\x85R.",
    "ordered": b"\x80\x02ccollections\nOrderedDict\n]" + ENDLESS + b"K\x01\x86a\x85R.",
    "set": b"\x80\x04\x8f(" + ENDLESS + b"\x90.",
}  # fmt: skip


@pytest.mark.parametrize("attack", ("size", *LOOKED_UP))
def test_a_sharded_checkpoint_asks_for_nothing_without_end(folder: Path, attack: str) -> None:
    """In a process of its own: what looks up without end cannot be interrupted."""

    def of_any_size(told: Any) -> Any:
        for tensor in told.state_dict_metadata.values():
            tensor.size = ()
            for _ in range(60):
                tensor.size = tensor.size, tensor.size
        return told

    if attack == "size":
        retold(folder, of_any_size)
    else:
        (folder / ".metadata").write_bytes(LOOKED_UP[attack])
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        try:
            with shards.plain():
                read(folder)
        except (pickle.UnpicklingError, RuntimeError) as error:
            os._exit(len(str(error)) < 500)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 1 << 8


@pytest.mark.parametrize("attack", ("packed", "bytes", "key", "kind"))
def test_a_value_of_a_sharded_checkpoint_is_looked_through(folder: Path, attack: str) -> None:
    """Each is a file of torch.save: what torch would unpack, fill, look up or make of it is refused before."""
    told = pickle.loads((folder / ".metadata").read_bytes())
    (place,) = [place for place in told.storage_data if place.fqn.endswith("lr")]
    info = told.storage_data[place]
    values = {
        "bytes": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x0f\x85R.",
        "key": b"\x80\x02}(t" + b"".join(b"p%d\ng%d\n\x86" % (i, i) for i in range(60)) + b"K\x01s.",
        "kind": b"\x80\x02cnumpy\ndtype\nVV8\n\x85R.",
        "packed": pickle.dumps(0.5, 2),
    }
    packed = zipfile.ZIP_DEFLATED if attack == "packed" else zipfile.ZIP_STORED
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w", packed) as archive:
        for name, content in {"data.pkl": values[attack], "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"archive/{name}", content)
    own = folder / "theirs.distcp"
    own.write_bytes(stored.getvalue())
    info.relative_path, info.offset, info.length = own.name, 0, own.stat().st_size
    (folder / ".metadata").write_bytes(pickle.dumps(told))
    with pytest.raises(pickle.UnpicklingError, match="is packed|does not hold|keys are neither|plain numbers"):
        with shards.plain():
            read(folder)


def test_what_torch_would_unpack_is_refused(folder: Path) -> None:
    def change(told: Any) -> Any:
        for info in told.storage_data.values():
            info.transform_descriptors = ["stream.zstd/1"]
        return told

    retold(folder, change)
    with pytest.raises(pickle.UnpicklingError, match="packed"), shards.plain():
        read(folder)


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
    trainer.model = torch.nn.Linear(1, 1)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, lambda _: 1.0)
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


@pytest.mark.parametrize("code", [pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER])
def test_no_step_of_a_pickle_makes_room_for_what_is_not_there(code: bytes) -> None:
    """Thirteen bytes took as much memory as they named, in the look before torch's own."""
    text = b"\x80\x05" + code + (1 << 62).to_bytes(8, "little") + b"a."
    with pytest.raises(pickle.UnpicklingError, match="torch does not write"):
        shards.read_metadata(io.BytesIO(text))
