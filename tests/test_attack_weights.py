"""Weights and tokenizers of strangers: files that other names lead to, and texts that grow as they are read."""

from __future__ import annotations

import copy
import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from attack_parts import SPEC, interrupted_run
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from transformers import (
    CONFIG_MAPPING,
    AlbertForPreTraining,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
)

from hf_optim.commands.main import main
from hf_optim.engine import kernels
from hf_optim.errors import DamagedCheckpoint, UserError
from hf_optim.experiment import checkpoint as checkpoints
from hf_optim.experiment import resuming
from hf_optim.experiment.configuration import configuration
from hf_optim.experiment.evaluation import evaluate
from hf_optim.experiment.task import load
from hf_optim.hub.renamed import complete, read_whole
from hf_optim.tasks.models.language import fits, pretrained


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


def test_what_torch_reads_is_looked_through_though_it_is_called_safe(theirs: Path) -> None:
    """Trainer goes by the index: with one of torch's it unpickles a file of any name."""
    (theirs / "model.safetensors").unlink()
    torch.save({("a", "b"): torch.zeros(1)}, theirs / "model-1.safetensors")
    index_of(theirs, "model-1.safetensors")
    for check, refusal in ((checkpoints.check_checkpoint, UserError), (resuming.check, DamagedCheckpoint)):
        with pytest.raises(refusal, match="model-1.safetensors: it holds a mapping whose keys"):
            check(theirs)


def test_shards_lie_beside_their_index(theirs: Path) -> None:
    index_of(theirs, "../elsewhere.bin")
    for check in (checkpoints.check_checkpoint, resuming.check):
        with pytest.raises(UserError, match="names a file that is not beside it"):
            check(theirs)


def test_what_trainer_leaves_out_is_taken_from_no_file_elsewhere(tmp_path: Path) -> None:
    """In a program of one's own, too: `attach` reads what Trainer has not found in a checkpoint."""
    gpt2(tmp_path / "mine")
    gpt2(tmp_path / "theirs")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    told = {"metadata": {}, "weight_map": {"transformer.wte.weight": "../mine/model.safetensors"}}
    (tmp_path / "theirs" / "model.safetensors.index.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="names a file that is not beside it"):
        complete(model, tmp_path / "theirs")


def test_no_configuration_says_which_file_the_weights_are(theirs: Path) -> None:
    """An index in a folder below would lead to a file anywhere."""
    config = json.loads((theirs / "config.json").read_text())
    config["transformers_weights"] = "below/model.safetensors.index.json"
    (theirs / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="files of others .transformers_weights"):
        checkpoints.check_checkpoint(theirs)


def test_a_configuration_hands_over_to_no_other_that_nobody_has_looked_at(theirs: Path) -> None:
    """transformers takes `config.4.0.0.json` instead, where `config.json` says that there is one."""
    config = json.loads((theirs / "config.json").read_text())
    asking = {**config, "transformers_weights": "below/model.safetensors.index.json"}
    (theirs / "config.4.0.0.json").write_text(json.dumps(asking))
    (theirs / "config.json").write_text(json.dumps({**config, "configuration_files": ["config.4.0.0.json"]}))
    with pytest.raises(UserError, match="files of others .configuration_files"):
        checkpoints.check_checkpoint(theirs)


@pytest.mark.parametrize("named", ["_attn_implementation", "quantization_config", "transformers_weights", "auto_map"])
def test_a_configuration_gives_what_is_refused_no_other_name(theirs: Path, named: str) -> None:
    """transformers took such a name for an attention kernel of the Hub's, or for weights elsewhere."""
    config = json.loads((theirs / "config.json").read_text())
    for place in (config, config.setdefault("text_config", {})):
        place |= {"attribute_map": {"harmless": named}, "harmless": "evil/kernels"}
        (theirs / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="files of others .attribute_map"):
            checkpoints.check_checkpoint(theirs)
        del place["attribute_map"]


def test_a_part_of_a_model_is_not_taken_for_it(theirs: Path) -> None:
    """transformers would take it before the whole one beside it, and torch's error for it is no Exception."""
    (theirs / "shard-00001-model-00001-of-00002.safetensors").touch()
    for check in (checkpoints.check_checkpoint, resuming.check):
        with pytest.raises(UserError, match="holds a process's part of a model .shard-00001-model-00001-of-00002"):
            check(theirs)


def test_what_killed_compilers_leave_is_taken_away(tmp_path: Path) -> None:
    old, young, whole = (tmp_path / f"{stem}.so" for stem in ("a" * 40, "b" * 40, f"{'c' * 32}-{'d' * 16}"))
    for file in (old, young, whole):
        file.touch()
    for file in (old, whole):
        os.utime(file, (0, 0))
    kernels._sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == [young, whole]


def test_texts_that_no_model_of_its_kind_has_do_not_reach_transformers(tmp_path: Path) -> None:
    """It makes an attribute of any key, and finds code by some; numbers are older releases' ways to say things."""
    small = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=8)
    GPT2LMHeadModel(small).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    more = {"told": "evil/kernels", "within": {"deep": ["evil"]}, "_hidden": "evil"}
    ours = {"tokenizer_fingerprint": "a1", "rope_theta": 5.0, "_removed": True}
    (tmp_path / "config.json").write_text(json.dumps({**config, **more, **ours}))
    own = configuration(AutoModelForCausalLM, tmp_path)
    assert not [key for key in more if hasattr(own, key)] and {key: getattr(own, key) for key in ours} == ours
    assert [key for key in config if getattr(own, key) != config[key] and key not in ("dtype", "model_type")] == []
    model = checkpoints.from_folder(AutoModelForCausalLM, tmp_path)
    assert not hasattr(model.config, "told") and model.config.rope_theta == 5.0
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "evil"}))
    with pytest.raises(UserError, match="'evil' in its config.json is no model_type that is known"):
        checkpoints.from_folder(AutoModelForCausalLM, tmp_path)


def gpt2(folder: Path, **told: Any) -> None:
    """A small GPT-2 in a folder, whose config.json says more."""
    shape = GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **told}))


def test_a_model_has_labels_within_bounds_in_every_part(tmp_path: Path) -> None:
    """Of each layer's own configuration transformers made as many names for labels, and half a minute went by."""
    gpt2(tmp_path, per_layer_config={"0": {"num_labels": 9_000_000}})
    with pytest.raises(UserError, match=r"its config.json counts beyond what its files hold"):
        checkpoints.from_folder(AutoModelForCausalLM, tmp_path)
    gpt2(tmp_path, num_labels=1000)
    assert checkpoints.from_folder(AutoModelForCausalLM, tmp_path).config.num_labels == 1000


def test_layers_that_are_multiplied_out_are_counted(tmp_path: Path) -> None:
    """Ten kilobytes said a thousand names a million times, and took eight gigabytes before there was a layer."""
    shape: dict[str, Any] = {"vocab_size": 16, "hidden_size": 8, "num_heads": 2, "max_position_embeddings": 8}
    kinds = [[["global", "local"], 2], [["global"], -1]]
    GPTNeoForCausalLM(GPTNeoConfig(**shape, num_layers=4, attention_types=kinds)).save_pretrained(tmp_path)
    assert len(checkpoints.from_folder(AutoModelForCausalLM, tmp_path).config.attention_layers) == 4
    config = json.loads((tmp_path / "config.json").read_text())
    config["attention_types"] = [[["global"] * 1000, 1_000_000]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"its config.json counts beyond what its files hold"):
        checkpoints.from_folder(AutoModelForCausalLM, tmp_path)


def test_a_configuration_takes_the_place_of_no_method(tmp_path: Path) -> None:
    """A number of its name made `config.save_pretrained` one: the run failed at its first checkpoint."""
    gpt2(tmp_path, save_pretrained=1, get_text_config=[], keys_to_ignore_at_inference=7, return_dict=False)
    model = checkpoints.from_folder(AutoModelForCausalLM, tmp_path)
    assert model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 16)  # read by name
    model.save_pretrained(tmp_path / "again")
    assert not hasattr(model.config, "keys_to_ignore_at_inference")


@pytest.mark.parametrize(
    ("file", "told"),
    [("generation_config.json", {"save_pretrained": "x"}), ("config.json", {"distributed_config": {"tp_size": 2}})],
)
def test_a_model_that_could_not_be_kept_is_refused_before_it_is_trained(
    tmp_path: Path, file: str, told: dict[str, Any]
) -> None:
    gpt2(tmp_path)
    facts = {"vocabulary": 16, "block": 8, "fingerprint": ""}
    pretrained(str(tmp_path), facts)
    before = json.loads((tmp_path / file).read_text()) | {"_from_model_config": False}
    (tmp_path / file).write_text(json.dumps(before | told))
    with pytest.raises(UserError, match="what its JSON files say of the model cannot be written"):
        pretrained(str(tmp_path), facts)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama", "qwen2", "mistral", "phi3", "opt", "gemma3", "llama4"])
def test_what_a_kind_of_model_declares_is_read_whole(tmp_path: Path, kind: str) -> None:
    saved = CONFIG_MAPPING[kind]()
    (tmp_path / "config.json").write_text(saved.to_json_string(use_diff=False))
    read = configuration(AutoModelForCausalLM, tmp_path)
    assert type(read) is type(saved) and read.to_dict() == saved.to_dict()


@pytest.mark.parametrize(
    ("kind", "causal", "ahead"),
    [("gpt2", {}, {"is_causal": False}), ("bert", {"is_decoder": True}, {}), ("roberta", {"is_decoder": True}, {})],
)
def test_a_model_that_sees_what_it_is_to_predict_is_refused(
    tmp_path: Path, kind: str, causal: dict[str, Any], ahead: dict[str, Any]
) -> None:
    """Its loss would be that of copying, and nothing said so: of BERT's weights, or by a word in a config.json."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CONFIG_MAPPING[kind](
        **small, vocab_size=16, max_position_embeddings=16, bos_token_id=0, eos_token_id=0, pad_token_id=0, **causal
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    facts = {"vocabulary": 16, "block": 8}
    fits(checkpoints.from_folder(AutoModelForCausalLM, tmp_path), facts)
    told = json.loads((tmp_path / "config.json").read_text())
    told = {key: value for key, value in told.items() if key not in causal} | ahead
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="sees the tokens that it is to predict"):
        fits(checkpoints.from_folder(AutoModelForCausalLM, tmp_path), facts)


@pytest.mark.parametrize("hidden", ["behind a great number", "until it is trained"])
def test_no_weights_hide_that_a_model_sees_what_it_is_to_predict(tmp_path: Path, hidden: str) -> None:
    """A bias of an unused token made all differences small, and so might attention that comes to nothing at first."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CONFIG_MAPPING["bert"](**small, vocab_size=17, max_position_embeddings=16)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        if hidden == "until it is trained":
            model.bert.encoder.layer[0].attention.output.dense.weight.zero_()
        else:
            model.cls.predictions.bias[16] = -1e9
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="sees the tokens that it is to predict"):
        fits(checkpoints.from_folder(AutoModelForCausalLM, tmp_path), {"vocabulary": 16, "block": 8})


def test_a_run_is_evaluated_as_it_was_trained_whatever_its_config_says(theirs: Path, interrupted: Path) -> None:
    """It was rounded to bfloat16, and the table said fp32; half of its layers were left out, and no table said so."""
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    rows = [evaluate(SPEC, folder).metrics for folder in (theirs, interrupted / "checkpoint-2")]
    assert rows[0] == rows[1]
    two = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=1, vocab_size=16, n_positions=8))
    two.save_pretrained(theirs.parent / "two")
    config = json.loads((theirs.parent / "two" / "config.json").read_text())
    (theirs.parent / "two" / "config.json").write_text(json.dumps({**config, "n_layer": 1}))
    with pytest.raises(UserError, match="holds 11 tensors .transformer.h.1..* of layers that GPT2LMHeadModel has not"):
        checkpoints.from_folder(AutoModelForCausalLM, theirs.parent / "two")


def test_a_model_that_cannot_be_judged_is_one_line(
    theirs: Path, interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**config, "image_shape": 3}))
    shutil.copy(interrupted / "spec.json", theirs.parent)
    named = [str(theirs), "--samples", "8", "--landscape", "0", "--output", str(theirs.parent / "seen")]
    told = []
    for command in (["evaluate", str(theirs)], ["inspect", *named]):
        code, error = main(command), capsys.readouterr().err
        told += [error] if code == 2 else []
        assert error.count("\n") == (code == 2)
    assert told and all("its model cannot be judged: " in error for error in told)


def test_layers_that_share_their_weights_are_run_some_times_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALBERT's config.json counts layers of one layer's weights, which no file has to hold: a batch took days."""
    small = {"hidden_size": 8, "intermediate_size": 8, "embedding_size": 8, "num_attention_heads": 1}
    config = CONFIG_MAPPING["albert"](**small, vocab_size=16, max_position_embeddings=16, num_hidden_layers=64)
    AlbertForPreTraining(config).save_pretrained(tmp_path)
    model = checkpoints.from_folder(AlbertForPreTraining, tmp_path)
    ids = torch.zeros(1, 4, dtype=torch.long)
    copied = copy.deepcopy(model)
    for _ in range(1000 // 64 + 1):  # each pass of a copy is counted by itself
        copied(input_ids=ids)
    model = checkpoints.from_folder(AlbertForPreTraining, tmp_path)
    model(input_ids=ids)
    assert not torch.nn.modules.module._global_forward_pre_hooks and not model._forward_pre_hooks
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, "num_hidden_layers": 2000}))
    with pytest.raises(UserError, match="has a layer run more than 1000 times in one pass"):
        checkpoints.from_folder(AlbertForPreTraining, tmp_path)(input_ids=ids)
    assert not torch.nn.modules.module._global_forward_pre_hooks
    monkeypatch.setattr(checkpoints, "MOST_TURNS", 0)  # of a language model it is seen before anything is trained
    gpt2(tmp_path / "gpt2")
    with pytest.raises(UserError, match="in one pass"):
        fits(checkpoints.from_folder(GPT2LMHeadModel, tmp_path / "gpt2"), {"vocabulary": 16, "block": 8})


def test_a_checkpoint_is_named_by_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stranger's file names is looked for among texts: a number was a folder of the current one, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "5").mkdir()
    task = load("finetune")
    with pytest.raises(UserError, match="checkpoint.* a text"):
        task.data(task.with_options("full", task.preset("full", "smoke"), {"checkpoint": 5}), None)


def test_reading_a_model_asks_no_hub_whatever_seeks_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each library has its own ways there: PEFT's, of adapters, was one that no look at the files had foreseen."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    class Asks:
        @classmethod
        def from_pretrained(cls, folder: Path, **_: Any) -> Any:
            return huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{hub.server_port}").model_info("a/b")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        with pytest.raises(OfflineModeIsEnabled):
            read_whole(Asks, tmp_path)
        assert asked == [] and constants.HF_HUB_OFFLINE is False
        with pytest.raises(HfHubHTTPError):  # this Hub is there
            Asks.from_pretrained(tmp_path)
        assert len(asked) == 1
        hub.shutdown()


def test_what_says_how_to_generate_is_not_large_in_memory(tmp_path: Path) -> None:
    """transformers took minutes and gigabytes for a hundred megabytes of empty lists."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text(f'{{"a": [{"[]," * 4_000_000}[]]}}')
    with pytest.raises(UserError, match="generation_config.json cannot be read: .*values"):
        checkpoints.check_checkpoint(tmp_path)
