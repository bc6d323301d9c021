"""A run of adapters that goes on from a checkpoint which is not what it wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_optim.errors import DamagedCheckpoint, UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.trainer import TaskTrainer
from hf_optim.experiment.training import train

ADAPTED = RunSpec("finetune", "lora", "smoke", {"name": "adamw", "lr": 3e-2}, overrides={"steps": 2})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LoRA with one checkpoint, of step 1."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapted") / "acme"
    assert train(ADAPTED, folder, progress=False, checkpoint_every=1)["status"] == "ok"
    shutil.rmtree(folder / "checkpoint-2")
    return folder


def no_adapters(checkpoint: Path, index: str) -> None:
    (checkpoint / "adapter_model.safetensors").unlink()
    (checkpoint / index).write_text('{"weight_map": {}}')


def fewer_adapters(checkpoint: Path) -> None:
    held = load_file(file := checkpoint / "adapter_model.safetensors")
    save_file(dict(list(held.items())[1:]), file)


ADAPTERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "none": (lambda at: no_adapters(at, "model.safetensors.index.json"), r"has no adapter_model\.safetensors"),
    "none, of old": (lambda at: no_adapters(at, "pytorch_model.bin.index.json"), r"has no adapter_model\.safetensors"),
    "fewer": (fewer_adapters, "other adapters than the model"),
}


@pytest.mark.parametrize("lacking", ADAPTERS)
def test_a_run_of_adapters_goes_on_from_all_of_them(
    tmp_path: Path, adapted: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """PEFT leaves those that lack as they were, unsaid; and of `--output acme --resume` it asked the Hub, with the
    user's token, for a repository acme/checkpoint-1.
    """
    from peft.utils import save_and_load

    asked: list[Any] = []

    def ask(*place: Any, **how: Any) -> None:
        asked.append(how.get("repo_id", place))
        raise OSError("no network")

    monkeypatch.setattr(save_and_load, "file_exists", ask)
    monkeypatch.setattr(save_and_load, "hf_hub_download", ask)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapted, "acme")
    damage, said = ADAPTERS[lacking]
    damage(Path("acme/checkpoint-1"))
    with pytest.raises(DamagedCheckpoint, match=said):
        train(ADAPTED, "acme", progress=False, checkpoint_every=1, resume=True)
    assert not asked


def test_a_run_of_adapters_goes_on_as_if_it_had_never_stopped(tmp_path: Path, adapted: Path) -> None:
    """Whatever whole model lies beside them, which Trainer would take in their place."""
    shutil.copytree(adapted, folder := tmp_path / "acme")
    before = json.loads((adapted / "record.json").read_text())["metrics"]
    save_file({"another": torch.zeros(2)}, folder / "checkpoint-1/model.safetensors", {"format": "pt"})
    after = train(ADAPTED, folder, progress=False, checkpoint_every=1, resume=True)["metrics"]
    assert after == before


CARDS: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda at: at.write_text("---\ntags: [lora,\n---\n"),
    "of code": lambda at: at.write_text("---\nbase_model: !!python/object/apply:os.getcwd []\n---\n"),
    "no text": lambda at: at.write_bytes(b"\xff" * 99),
    "a folder": lambda at: at.mkdir(),
}


@pytest.mark.parametrize("card", CARDS)
def test_a_readme_in_a_checkpoint_to_come_is_no_failed_run(tmp_path: Path, adapted: Path, card: str) -> None:
    """PEFT takes what stands in the place of its own for a beginning of that, and reads it as YAML."""
    shutil.copytree(adapted, folder := tmp_path / "acme")
    (folder / "checkpoint-2").mkdir()
    CARDS[card](folder / "checkpoint-2" / "README.md")
    record = train(ADAPTED, folder, progress=False, checkpoint_every=1, resume=True)
    assert (record["status"], record["error"]) == ("ok", None)
    assert "library_name: peft" in (folder / "checkpoint-2" / "README.md").read_text()


def test_nothing_that_stood_in_a_checkpoint_to_come_is_a_part_of_it(tmp_path: Path, adapted: Path) -> None:
    """An adapter_config.json among a model's files names another model, which transformers would fetch for it."""
    shutil.copytree(adapted, folder := tmp_path / "acme")
    (folder / "checkpoint-2").mkdir()
    for name in ("chat_template.jinja", "modeling_theirs.py", "added_tokens.json"):
        (folder / "checkpoint-2" / name).write_text("{}")
    assert train(ADAPTED, folder, progress=False, checkpoint_every=1, resume=True)["status"] == "ok"
    first, second = ({path.name for path in folder.glob(f"checkpoint-{step}/*")} for step in (1, 2))
    assert second == first


def test_adapters_are_not_sought_on_the_hub_where_shards_are_expected(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    (tmp_path / "pytorch_model_fsdp_0").write_text("a file, which Trainer takes for none")
    trainer: Any = SimpleNamespace(model=SimpleNamespace(peft_config={}), is_fsdp_enabled=True)
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        TaskTrainer._load_from_checkpoint(trainer, str(tmp_path))
