"""Files of torch.save from strangers: `weights_only` runs nothing of theirs, and makes whatever they ask for.

Each of these would fill the memory, end the process, or never end, in torch's own reader.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attack_parts import SPEC, interrupted_run
from transformers.trainer_pt_utils import safe_globals

import hf_optim
from hf_optim.errors import BadCheckpoint, DamagedCheckpoint, UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import resuming, saved_files
from hf_optim.experiment.training import train


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted_run(tmp_path_factory.mktemp("run"))


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def archive(file: Path, value: Any) -> None:
    """A file of torch.save with any values in it, or pickle's own code of them."""
    code = b"\x80\x02" + value + b"." if isinstance(value, bytes) else pickle.dumps(value, 2)
    with zipfile.ZipFile(file, "w") as stored:
        for name, content in {"data.pkl": code, "version": b"3\n"}.items():
            stored.writestr(f"archive/{name}", content)


def doubled(levels: int) -> Any:
    """One text, in itself as it were 2**levels times."""
    value: Any = "x"
    for _ in range(levels):
        value = [value, value]
    return value


#: a tuple of itself, sixty times over, as pickle writes it: nobody could hash it
TUPLE = b"X\x01\x00\x00\x00xq\x00" + b"".join(b"h%b\x86q%b" % (bytes([n]), bytes([n + 1])) for n in range(60))
KEYS = {
    "keys": b"}" + TUPLE + b"K\x01s",
    "many keys": b"}(" + TUPLE + b"K\x01u",
    "a set": b"cbuiltins\nset\n](" + TUPLE + b"e\x85R",
    "a counter": b"ccollections\nCounter\n}(" + TUPLE + b"K\x01u\x85R",
    "ordered": b"ccollections\nOrderedDict\n]]" + TUPLE + b"aK\x01aa\x85R",
}


def keyed(file: Path, kind: str = "keys") -> None:
    archive(file, KEYS[kind])


def packed(file: Path) -> None:
    torch.save({"w": torch.zeros(1_000_000)}, file)
    with zipfile.ZipFile(file) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as stored:
        for name, content in parts.items():
            stored.writestr(name, content)


def cut(file: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-100])


def two_tables(file: Path) -> None:
    """Which of two archives it is depends on who reads it."""
    inner, outer = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(10)}, inner)
    archive_of = zipfile.ZipFile(outer, "w")
    archive_of.writestr("archive/data.pkl", pickle.dumps({}, 2))
    archive_of.close()
    file.write_bytes(inner.getvalue() + outer.getvalue())


def old_form(file: Path, values: Any, *more: Any) -> None:
    file.write_bytes(b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}, values, *more)))


def forged(file: Path) -> None:
    """An array whose numbers are said to be Python's objects."""
    kind = Call(np.dtype, "u4", False, True, state=(3, "<", None, None, None, -1, -1, 63))
    array = Call(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), kind, False, b"A" * 4))
    archive(file, {"numpy": array})


def spread(file: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(10**9)}, file)


def beyond(file: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, file)
    with zipfile.ZipFile(file) as stored:
        parts = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(file, "w") as stored:
        for name, content in parts.items():
            stored.writestr(name, content[:8] if name.endswith("data/0") else content)


def with_parts(file: Path, **parts: bytes) -> None:
    torch.save({"w": torch.zeros(2)}, file)
    with zipfile.ZipFile(file) as stored:
        whole = {name.partition("/")[2]: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(file, "w") as stored:
        for name, content in {**whole, **parts}.items():
            stored.writestr(f"archive/{name}", content)


def renamed(file: Path) -> None:
    """What torch, which minds no case, reads in the place of what was looked through."""
    with_parts(file, **{"DATA.PKL": b"\x80\x02" + KEYS["keys"] + b"."})


def changed(file: Path, *arguments: Any) -> None:
    """A tensor with something else in the place of a method, or with a hook."""
    rebuild = torch._utils._rebuild_parameter_with_state  # type: ignore[attr-defined]
    torch.save({"w": Call(rebuild, torch.zeros(1), True, *arguments)}, file)


def many_of_all(file: Path) -> None:
    """Each tensor has as many numbers as the whole file has, which are there once."""
    values = [
        b"(X\x07\x00\x00\x00storagectorch\nByteStorage\nX\x02\x00\x00\x00%02dX\x03\x00\x00\x00cpuM\x00\x04NtQ" % n
        for n in range(9)
    ]
    file.write_bytes(
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        + b"\x80\x02](" + b"".join(values) + b"e." + pickle.dumps([], 2) + bytes(2000)
    )  # fmt: skip


def names_for_ever(file: Path) -> None:
    old_form(file, {"w": 1})
    file.write_bytes(file.read_bytes() + b"\x80\x02}" + TUPLE + b"K\x01s.")


SUSPECT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (cut, "damaged or cut short"),
    "no file of torch's": (lambda file: file.write_text("hello"), "no file of torch.save, or cut short"),
    "empty": (lambda file: file.write_bytes(b""), "no file of torch.save, or cut short"),
    "packed": (packed, "packed"),
    "a buffer": (lambda file: archive(file, {"a": Call(bytearray, 10**12)}), "bytes that it does not hold"),
    "forged": (forged, "changes what an array's numbers are"),
    "objects": (lambda file: archive(file, Call(np.dtype, "O8", False, True)), "not of plain numbers"),
    "spread": (spread, "few numbers that are very many"),
    "beyond": (beyond, "more numbers than are there"),
    "other case": (renamed, "parts of the same name"),
    "a method": (lambda file: changed(file, None, {"is_floating_point": 1}), "changes a tensor"),
    "a slot": (lambda file: changed(file, None, ({}, {"data": 1})), "changes a tensor"),
    "a hook": (lambda file: changed(file, {0: bytearray}, None), "changes a tensor"),
    "a program": (lambda file: with_parts(file, **{"constants.pkl": b"N."}), "is a program"),
    "no version": (lambda file: with_parts(file, version=b"9" * 40), "its version is none"),
    "no order": (lambda file: with_parts(file, byteorder=b"middle"), "its byteorder is none"),
    "many of all": (many_of_all, "more numbers than are there"),
    "names for ever": (names_for_ever, "keys are neither"),
    "two tables": (two_tables, "table of contents lies elsewhere"),
    "code": (lambda file: archive(file, Call(print, "ran")), "it asks for builtins.print"),
    "old code": (lambda file: old_form(file, Call(print, "ran")), "it asks for builtins.print"),
    **{kind: (functools.partial(keyed, kind=kind), "keys are neither") for kind in KEYS},
}


@pytest.mark.parametrize("name", SUSPECT)
def test_a_file_that_torch_would_choke_on_is_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, why = SUSPECT[name]
    make(tmp_path / "optimizer.pt")
    with pytest.raises(saved_files.Suspect, match=why) as error:
        saved_files.check(tmp_path / "optimizer.pt")
    assert str(error.value).startswith("optimizer.pt") and not capsys.readouterr().out


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_taken(tmp_path: Path, zipped: bool) -> None:
    parameter = torch.nn.Parameter(torch.randn(3, 4))
    parameter.no_decay = True  # type: ignore[attr-defined]
    values = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.randn(4, 3).T, "k": torch.zeros(2, dtype=torch.int8)}},
        "half": torch.zeros(3, dtype=torch.bfloat16), "bool": torch.tensor([True]), "tied": [parameter, parameter],
        "numpy": np.random.get_state(), "python": __import__("random").getstate(), "cpu": torch.get_rng_state(),
        "row": torch.arange(8).expand(1, -1), "dtype": torch.float16, "device": torch.device("cpu"),
        "size": torch.Size([2, 3]), "none": None, "set": {1, 2}, "complex": 1j, "empty": torch.zeros(0, 3),
        "model": torch.nn.Linear(2, 2).state_dict(), "part": torch.arange(100)[10:20:2],
    }  # fmt: skip
    torch.save(values, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    saved_files.check(tmp_path / "x.pt")


def test_a_stand_in_of_two_gigabytes_is_read_where_its_table_says(tmp_path: Path) -> None:
    """Beyond four, the table's place stands in another record."""
    torch.save({"w": torch.zeros(10)}, tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    size, start = struct.unpack("<12xLL2x", content[-22:])
    count = struct.unpack("<10xH10x", content[-22:])[0]
    record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(content) - 22, 1)
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    body = content[: start + size]
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(body), 1)
    (tmp_path / "large.pt").write_bytes(body + record + locator + end)
    assert torch.load(tmp_path / "large.pt")["w"].shape == (10,)
    saved_files.check(tmp_path / "large.pt")


# --- what a run goes on from ---


def told(**values: Any) -> Callable[[Path], Any]:
    def apply(checkpoint: Path) -> None:
        file = checkpoint / "trainer_state.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return apply


def scheduled(**values: Any) -> Callable[[Path], Any]:
    def apply(checkpoint: Path) -> None:
        torch.save({**torch.load(checkpoint / "scheduler.pt"), **values}, checkpoint / "scheduler.pt")

    return apply


def further_adapters(checkpoint: Path, beside: bool = False, file: str = "adapter_config.json") -> None:
    if not beside:
        (checkpoint / "config.json").unlink()
    (checkpoint / "evil").mkdir()
    (checkpoint / "evil" / file).write_text('{"peft_type": "LORA"}')


def truncated(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def numbered(value: float) -> Callable[[Path], Any]:
    def apply(checkpoint: Path) -> None:
        saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        saved["state"][0]["exp_avg"].view(-1)[3] = value
        torch.save(saved, checkpoint / "optimizer.pt")

    return apply


def drawn(**values: Any) -> Callable[[Path], Any]:
    """Other random states. NumPy takes a place in its numbers for one in memory."""

    def apply(checkpoint: Path) -> None:
        with safe_globals():
            saved = torch.load(checkpoint / "rng_state.pth", weights_only=True)
        torch.save({**saved, **values}, checkpoint / "rng_state.pth")

    return apply


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half an optimizer": (truncated, "optimizer.pt is damaged or cut short"),
    "rows of the log": (told(log_history=[{"step": 2, "eval_accuracy": "x"}]), "eval_accuracy in log_history"),
    "passes without end": (told(log_history=[{"step": 2, "forward_passes": 1e300}]), "is nothing that a run has spent"),
    "time that was won": (told(log_history=[{"step": 2, "seconds": -9.0}]), "is nothing that a run has spent"),
    "a row of later": (told(log_history=[{"step": 3, "loss": 1.0}]), "a row of log_history is of no step"),
    "a log without end": (told(log_history=[{"step": 2, "x": 1}] * 500_001), "a log of more than 500,000 rows"),
    "names without end": (told(log_history=[{"step": 2, f"x{n}": 1} for n in range(4001)]), "or 4,000 names"),
    "never logs": (told(logging_steps=0), "logging_steps is no number of steps"),
    "saves in words": (told(save_steps="x"), "save_steps is no number of steps"),
    "costs in words": (told(total_flos="x"), "total_flos"),
    "an epoch in words": (told(epoch=[]), "epoch"),
    "a step for a method": (scheduled(step=5), "names what is no state of a schedule"),
    "epochs in words": (scheduled(last_epoch="x"), "last_epoch is no count of steps"),
    "rates in words": (scheduled(base_lrs=["x"]), "base_lrs holds other than rates"),
    "NaN in a state": (
        numbered(float("nan")),
        "optimizer.pt: 1 of .* numbers of exp_avg of parameter hidden.weight are NaN",
    ),
    "infinity in a state": (
        numbered(float("inf")),
        "numbers of exp_avg of parameter hidden.weight are NaN or infinite",
    ),
    "no schedule": (lambda checkpoint: torch.save([], checkpoint / "scheduler.pt"), "holds no state of a schedule"),
    "adapters within": (further_adapters, "further adapters"),
    "adapters without settings": (lambda c: further_adapters(c, file="adapter_model.safetensors"), "further adapters"),
    "adapters beside a model's settings": (lambda c: further_adapters(c, beside=True), "further adapters"),
    "numbers from any place": (
        drawn(numpy=(*np.random.get_state()[:2], 2 * 10**9, 0, 0.0)),  # type: ignore[index]
        "rng_state.pth holds no states of random numbers",
    ),
    "a random state in words": (drawn(python="x"), "rng_state.pth holds no states of random numbers"),
    "a short random state": (drawn(cpu=torch.zeros(8, dtype=torch.uint8)), "rng_state.pth holds no states"),
    "what torch's own reader takes for none": (
        lambda checkpoint: with_parts(checkpoint / "scheduler.pt", **{"data.pkl": b"\x80\x02}N0."}),
        "scheduler.pt cannot be read",
    ),
    "a random state for ever": (lambda c: keyed(c / "rng_state.pth"), "rng_state.pth: it"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_a_run_cannot_go_on_from_is_said_before_it_begins(tmp_path: Path, interrupted: Path, name: str) -> None:
    """In a later step it would be the run's own failure, and its record."""
    damage, why = DAMAGED[name]
    folder = tmp_path / SPEC.id
    shutil.copytree(interrupted, folder)
    damage(folder / "checkpoint-2")
    with pytest.raises(DamagedCheckpoint, match=why) as error:
        train(SPEC, folder, progress=False, checkpoint_every=2, resume=True)
    assert "take it away and start again" in str(error.value) and not (folder / "record.json").exists()


def test_a_whole_checkpoint_is_gone_on_from(tmp_path: Path, interrupted: Path) -> None:
    resuming.check(interrupted / "checkpoint-2")
    shutil.copytree(interrupted, tmp_path / SPEC.id)
    assert train(SPEC, tmp_path / SPEC.id, progress=False, checkpoint_every=2, resume=True)["status"] == "ok"


@pytest.mark.parametrize("where", ["lr", "initial_lr", "foreign", "state"])
def test_a_state_dict_within_itself_ends(where: str) -> None:
    optimizer = hf_optim.create("adamw", torch.nn.Linear(2, 2), lr=0.1)
    saved = optimizer.state_dict()
    if where == "state":
        saved["state"] = {0: {"extra": doubled(60)}}
    else:
        saved["param_groups"][0][where] = doubled(60)
    with pytest.raises(BadCheckpoint, match="holds more than"):
        optimizer.load_state_dict(saved)


# --- weights ---


def test_weights_that_are_no_plain_tensors_are_refused(tmp_path: Path, interrupted: Path) -> None:
    shutil.copytree(interrupted / "checkpoint-2", tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    keyed(tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin: it holds a mapping whose keys"):
        checkpoints.check_checkpoint(tmp_path / "theirs")


def test_a_file_of_holes_makes_no_room_for_a_model(tmp_path: Path, interrupted: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(interrupted / "checkpoint-2", theirs)
    with (theirs / "junk.bin").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="mostly holes"):
        checkpoints.check_checkpoint(theirs)
    (theirs / "junk.bin").unlink()
    (theirs / "junk.bin").write_bytes(bytes(30_000_000))  # nothing that a model is read from
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "inputs": 20_000_000}))
    with pytest.raises(UserError, match="counts beyond what its files hold"):
        checkpoints.from_folder(type("Any", (), {}), theirs)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_links_to_a_file_make_no_room_for_a_model(tmp_path: Path, interrupted: Path, link: Any) -> None:
    checkpoint = shutil.copytree(interrupted / "checkpoint-2", tmp_path / "checkpoint-2")
    (checkpoint / "padding").write_bytes(bytes(1 << 20))
    for number in range(20):
        link(checkpoint / "padding", checkpoint / f"model-{number}.safetensors")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "hidden_size": 15_000_000}))
    with pytest.raises(UserError, match="counts beyond what its files hold"):
        checkpoints.from_folder(type("Any", (), {}), checkpoint)


def test_many_files_of_holes_are_as_one(tmp_path: Path, interrupted: Path) -> None:
    checkpoint = shutil.copytree(interrupted / "checkpoint-2", tmp_path / "checkpoint-2")
    for number in range(4):
        with (checkpoint / f"model-{number}.safetensors").open("wb") as file:
            file.truncate(1 << 29)
    with pytest.raises(UserError, match="mostly holes"):
        checkpoints.check_checkpoint(checkpoint)
