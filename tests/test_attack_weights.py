"""Weights and tokenizers of strangers: files that other names lead to, and texts that grow as they are read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attack_parts import interrupted_run

from hf_optim.engine import kernels
from hf_optim.errors import DamagedCheckpoint, UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import resuming


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interrupted_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def theirs(tmp_path: Path, interrupted: Path) -> Path:
    return shutil.copytree(interrupted / "checkpoint-2", tmp_path / "theirs")


def index_of(folder: Path, shard: str) -> None:
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"weight": shard}}))


@pytest.mark.parametrize("shard", ["weights.pt", "weights.bin", "pytorch_model-1.ckpt"])
def test_shards_of_any_name_are_looked_through_before_torch_reads_them(theirs: Path, shard: str) -> None:
    (theirs / "model.safetensors").unlink()
    torch.save({("a", "b"): torch.zeros(1)}, theirs / shard)
    index_of(theirs, shard)
    with pytest.raises(UserError, match=f"{shard}: it holds a mapping whose keys"):
        checkpoints.check_checkpoint(theirs)
    with pytest.raises(DamagedCheckpoint, match=f"{shard}: it holds a mapping whose keys"):
        resuming.check(theirs)


def test_shards_lie_beside_their_index(theirs: Path) -> None:
    index_of(theirs, "../elsewhere.bin")
    for check in (checkpoints.check_checkpoint, resuming.check):
        with pytest.raises(UserError, match="names a file that is not beside it"):
            check(theirs)


def test_no_configuration_says_which_file_the_weights_are(theirs: Path) -> None:
    """An index in a folder below would lead to a file anywhere."""
    config = json.loads((theirs / "config.json").read_text())
    config["transformers_weights"] = "below/model.safetensors.index.json"
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="files of others .transformers_weights"):
        checkpoints.check_checkpoint(theirs)


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BETWEEN = {"type": "Replace", "pattern": {"Regex": ""}, "content": "a"}


@pytest.mark.parametrize(
    "steps",
    [
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 12}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL] * 12}},
        {"normalizer": {"type": "Sequence", "normalizers": [BETWEEN] * 12}},
        {
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 6},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL] * 6},
        },
    ],
    ids=["bytes", "bytes before words", "between letters", "both"],
)
def test_a_text_that_doubles_at_each_step_is_refused(theirs: Path, steps: dict[str, Any]) -> None:
    (theirs / "tokenizer.json").write_text(json.dumps(steps))
    with pytest.raises(UserError, match="makes a text longer than 1000 times"):
        checkpoints.check_tokenizer(theirs)


def test_the_steps_of_tokenizers_there_are_are_taken(theirs: Path) -> None:
    """As GPT-2's and ALBERT's."""
    for told in (
        {"pre_tokenizer": LEVEL, "normalizer": {"type": "Sequence", "normalizers": []}},
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
                    {"type": "Prepend", "prepend": "▁"},
                ],
            },
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"},
        },
    ):
        (theirs / "tokenizer.json").write_text(json.dumps(told))
        checkpoints.check_tokenizer(theirs)


def test_what_killed_compilers_leave_is_taken_away(tmp_path: Path) -> None:
    old, young, whole = (tmp_path / f"{stem}.so" for stem in ("a" * 40, "b" * 40, f"{'c' * 32}-{'d' * 16}"))
    for file in (old, young, whole):
        file.touch()
    for file in (old, whole):
        os.utime(file, (0, 0))
    kernels._sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, whole]
