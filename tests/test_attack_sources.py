"""Folders of data and tokenizers from strangers that would be waited for, fill the memory, or end in a traceback."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import pickle
import struct
import sys
import tomllib
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from attack_parts import command
from PIL import Image

from hf_optim.commands import main as program
from hf_optim.core import importing
from hf_optim.errors import UserError
from hf_optim.hub import companion, renamed
from hf_optim.tasks.data import image_sets, images, tables
from hf_optim.tasks.data.image_sets import picture


@pytest.mark.parametrize("name", ["train.parquet", "train.csv", "train"])
def test_a_pipe_in_the_place_of_a_table_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="no images in"):
        images.read(tmp_path)


def idx(folder: Path, sizes: tuple[int, ...], labels: int) -> None:
    for split in ("train", "t10k"):
        parts = {
            "images-idx3": struct.pack(f">I{len(sizes)}I", 0x800 + len(sizes), *sizes) + bytes(math.prod(sizes)),
            "labels-idx1": struct.pack(">II", 0x801, labels) + bytes(labels),
        }
        for name, content in parts.items():
            (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content, 1))


def cifar(folder: Path) -> None:
    batch = pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": []}, 2)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(batch)


def tiny(folder: Path) -> None:
    (folder / "train").mkdir()
    (folder / "val").mkdir()
    (folder / "val" / "val_annotations.txt").write_text("")


EMPTY: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no digits": (lambda folder: idx(folder, (0, 28, 28), 0), "not the images and labels"),
    "digits of no size": (lambda folder: idx(folder, (3_000_000, 0, 0), 3_000_000), "more than 2,000,000 labels"),
    "digits of a hundred sizes": (lambda folder: idx(folder, (1,) * 100, 1), "1 bytes are not 1 x 1"),
    "digits beyond any": (lambda folder: idx(folder, (2**32 - 1, 2**32 - 1, 0), 0), "0 bytes are not 4294967295 x"),
    "digits of no height": (lambda folder: idx(folder, (5, 0, 28), 5), "not the images and labels"),
    "no batch": (cifar, "the train split is empty"),
    "no folder": (tiny, "the train split is empty"),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_papers_set_without_images_is_one_line(tmp_path: Path, name: str) -> None:
    make, why = EMPTY[name]
    make(tmp_path)
    with pytest.raises(UserError, match=why):
        images.read(tmp_path)


def test_classes_that_only_a_table_names_are_not_without_end(tmp_path: Path) -> None:
    named = {"info": {"features": {"label": {"names": [str(n) for n in range(200_000)]}}}}
    table = pa.table({"image": [b""] * 4, "label": [0, 1] * 2})
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(named)}), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="200000 classes are named"):
        images.read(tmp_path, size=8)


def test_quotes_without_an_end_are_read_once(tmp_path: Path) -> None:
    """From each of them to the end of the line would take hours."""
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"[" * 101 + b'"' + b'\\"' * 500_000)
    with pytest.raises(UserError, match="nested more than 100 levels"):
        tables.read(file)
    file.write_bytes(b'{"text":"' + b"x" * 100 + b'\r{"a":' + b"[" * 60_000 + b'"}\n')
    with pytest.raises(UserError, match="nested more than 100 levels"):
        tables.read(file)


def test_the_commonest_answer_is_counted_once() -> None:
    from hf_optim.tasks.finetune import _commonest

    answers = [*map(str, range(200_000)), "b", "a", "b", "a"]
    assert _commonest(answers, ["b", "a", "b", "0"]) == 0.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "BMP", "GIF", "WEBP", "PPM", "TIFF"])
def test_pictures_of_every_kind_are_read(kind: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2)).save(stream, kind)
    assert picture("here", stream.getvalue()).shape == (2, 3, 3)


def directory(tags: int, block: int) -> bytes:
    """A TIFF of 8x8 pixels with so many entries, which all mean the same `block` of bytes."""
    at = 8 + block
    own = ((256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, at))
    own = (*own, (277, 3, 1, 1), (278, 3, 1, 8), (279, 4, 1, 64))
    entries = [*own, *((tag, 7, block, 8) for tag in range(41500, 41500 + tags))]
    head = b"II*\0" + struct.pack("<L", at + 64) + bytes(block) + bytes(range(64)) + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)


@pytest.mark.parametrize("kind", ["tiff", "jpeg"])
def test_bytes_that_a_thousand_entries_mean_are_not_copied_for_each(kind: str) -> None:
    """A picture of 8x8 pixels and 100 kB took gigabytes as it was opened."""
    there = content = directory(1500, 100_000)
    if kind == "jpeg":
        Image.new("RGB", (8, 8)).save(stream := io.BytesIO(), "JPEG")
        parts = [b"Exif\0\0" + there[at : at + 65000] for at in range(0, len(there), 65000)]
        marked = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
        content = b"\xff\xd8" + marked + stream.getvalue()[20:]  # without its JFIF
    tracemalloc.start()
    try:
        with contextlib.nullcontext() if kind == "jpeg" else pytest.raises(UserError, match="not a readable image"):
            assert picture("here", content).shape == (8, 8, 3)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert picture("here", directory(5, 1000)).shape == (8, 8, 1)


def test_a_large_picture_says_nothing_of_pillows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    Image.new("L", (15, 10)).save(stream, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    image_sets._prepare.cache_clear()
    with warnings.catch_warnings(record=True) as said:
        assert picture("here", stream.getvalue()).shape == (10, 15, 1)
    assert not said


# --- tokenizers ---


def test_translations_are_made_as_the_options_say(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    from hf_optim.experiment.task import load
    from hf_optim.tasks.translation import _translate

    task = load("translation")
    preset = task.preset("transformer", "smoke")
    data = task.data(preset, None)
    model: Any = task.model("transformer", preset, data).eval()
    model.generation_config = GenerationConfig(max_length=10**9, num_beams=10**6, num_return_sequences=50)
    assert len(_translate(model, data, data.test, [0, 1])) == 2  # type: ignore[arg-type]


# --- options, as a spec.json beside a checkpoint names them ---

OPTIONS: list[tuple[str, str, dict[str, Any], str]] = [
    ("lm", "gpt2", {"vocabulary": 10**12}, "more than 1,000,000 entries"),  # which ends the process, without a line
    ("lm", "gpt2", {"tokenizer": []}, "tokenizer must be a text"),
    ("lm", "gpt2", {"n_embd": "x"}, "make no model"),
    ("lm", "gpt2", {"block": 10**30}, "beyond what anything counts to"),
    ("ddpm", "unet", {"channels": 100}, "make no model: num_channels"),
    ("ddpm", "unet", {"multipliers": [10**8, 10**8]}, "make no model: "),
    ("translation", "transformer", {"source_column": "/dev/zero"}, "neither a column nor"),
    ("finetune", "full", {"base_steps": 10**7}, "at most 20,000"),
    ("finetune", "lora", {"rank": 10**5}, "rank must be at most 65,536"),  # gigabytes a layer
]


@pytest.mark.parametrize("task, model, options, why", OPTIONS)
def test_an_option_beyond_anything_is_one_line(task: str, model: str, options: dict[str, Any], why: str) -> None:
    from hf_optim.experiment.task import load

    if model == "lora":
        pytest.importorskip("peft")
    asked = load(task)
    with pytest.raises(UserError, match=why):
        preset = asked.with_options(model, asked.preset(model, "smoke"), options)
        asked.model(model, preset, asked.data(preset, None))


# --- beside a Trainer's checkpoint ---


def test_what_lies_beside_a_checkpoint_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / companion.FILE)
    args = SimpleNamespace(world_size=1, train_batch_size=1, gradient_accumulation_steps=1)
    assert companion.differences(args, {"name": "sgd"}, str(tmp_path)) == []


def test_weights_under_other_names_are_not_sought_where_an_adapter_leads(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    other = {f"old.{name}": value.clone() for name, value in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(other, tmp_path / "model.safetensors", {"format": "pt"})
    elsewhere = tmp_path / "elsewhere"
    model.save_pretrained(elsewhere)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(elsewhere)}))
    with pytest.raises(UserError, match="adapters beside a whole model"):
        renamed.complete(model, tmp_path)
    assert torch.is_tensor(model.lm_head.weight)


# --- memory ---


@pytest.mark.parametrize(
    "why", ["[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", "CUDA out of memory."]
)
def test_memory_that_torch_has_not_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    def fails(_: Any) -> int:
        raise RuntimeError(why)

    monkeypatch.setattr(program, "_run", fails)
    code, out, err = command(capsys, "list")
    assert code == 2 and not out and err.startswith("error: there is not enough memory")
    monkeypatch.setattr(program, "_run", lambda _: (_ for _ in ()).throw(RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError):
        program.main(["list"])


# --- the current folder ---


def test_a_relative_name_among_the_places_of_modules_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable installation of packages without a file of their own adds one."""
    monkeypatch.setattr(sys, "path", ["/usr/lib", "__editable__.some.finder.__path_hook__"])
    importing.ignore_current_folder()
    assert sys.path == ["/usr/lib"]


def test_every_package_has_a_file_of_its_own() -> None:
    """Without, an editable installation searches a folder of the current one for hf_optim itself."""
    root = Path(__file__).parent.parent
    told = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    for name in told["packages"]:
        folder = root / told["package-dir"].get(name, name.replace(".", "/"))
        assert (folder / "__init__.py").is_file(), name


@pytest.mark.parametrize("command_line", [["train", "--config"], ["study"]])
def test_a_dry_run_asks_no_hub_for_a_network(
    tmp_path: Path, command_line: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    factory = pytest.importorskip("timm.models._factory")
    asked: list[str] = []
    monkeypatch.setattr(factory, "load_model_config_from_hf", lambda name, **_: asked.append(name))
    task = "{task: vision, size: smoke, model: densenet121, options: {architecture: 'hf-hub:them/model'}}"
    study = f"name: theirs\ntasks: [{task}]\noptimizers: [adamw]\nseeds: {{these: [1, 2]}}"
    file = tmp_path / "theirs.yaml"
    file.write_text(study if command_line == ["study"] else task)
    program.main([*command_line, str(file), "--dry-run"])
    said = " ".join("".join(capsys.readouterr()).split())
    assert "architecture must be one of timm's own" in said and not asked


def test_a_link_that_leads_to_itself_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python before 3.13 follows it until it fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "mine.py").symlink_to("mine.py")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "a").symlink_to("a")
    (tmp_path / "s.yaml").write_text("name: s\nseeds: 1\noptimizers: [sgd]\ntasks: [{task: vision, data: loop}]\n")
    asked = [["study", "s.yaml", "--dry-run"], ["info", "mine.py:Mine"], ["train", "--task", "mine.py:T"]]
    asked += [["evaluate", "model", "--task", "vision"], ["train", "--task", "lm", "--model.tokenizer", "model"]]
    asked += [["train", "--task", task, "--data", "loop"] for task in ("vision", "translation", "logistic", "lm")]
    for words in asked:
        code, _, error = command(capsys, *words)
        assert code == 2 and error.count("\n") == 1, words
