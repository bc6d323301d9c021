"""The script in docs/trainer.md runs, and one added line switches it to SMARAN."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from transformers import BertConfig

import hf_optim

pytest.importorskip("datasets")
language = pytest.importorskip("hub_language")

PAGE = (Path(__file__).parent.parent / "docs" / "trainer.md").read_text(encoding="utf-8")


def _block(title: str) -> str:
    match = re.search(rf"<!-- {re.escape(title)} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None, title
    return match[1]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    tokenizer = language.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    ).save_pretrained(tmp_path / "config")  # fmt: skip
    for name, n in (("train", 60), ("validation", 20)):
        (tmp_path / f"{name}.txt").write_text("\n".join(language.sentences(n)))
    return tmp_path


def _run(folder: Path, script: str, monkeypatch, name: str) -> list[dict]:
    path = folder / f"{name}.py"
    path.write_text(script)
    arguments = {
        "config_name": folder / "config", "tokenizer_name": folder / "tokenizer", "train_file": folder / "train.txt",
        "validation_file": folder / "validation.txt", "max_seq_length": 16, "output_dir": folder / name,
        "max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True,
        "do_train": True, "do_eval": True, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(path), *(str(x) for k, v in arguments.items() for x in (f"--{k}", v))])
    runpy.run_path(str(path), run_name="__main__")
    state = json.loads((folder / name / "trainer_state.json").read_text())
    assert json.loads((folder / name / "eval_results.json").read_text())["perplexity"] > 1
    return [row for row in state["log_history"] if "loss" in row]


def test_one_line_switches_a_script_to_smaran(files, monkeypatch):
    stock, line, anchor = _block("run_mlm.py"), _block("the line"), "    if training_args.do_train:\n"
    assert "hf_optim" not in stock and stock.count(anchor) == 1 and line.count("\n") == 1
    before = _run(files, stock, monkeypatch, "stock")
    after = _run(files, stock.replace(anchor, line + anchor), monkeypatch, "smaran")
    assert all("effective_lr" not in row for row in before) and len(before) == len(after) == 4
    assert before[0]["loss"] == after[0]["loss"]  # the same model and the same first batch
    for row in after:
        assert row["hf_optim_V"] > 0 and row["hf_optim_loss"] == pytest.approx(row["loss"], rel=1e-3)
    assert after[0]["learning_rate"] == 0.1  # SMARAN's own, not 5e-5


def test_what_the_page_names_exists():
    from hf_optim.hub import schedules

    for name in re.findall(r"hf_optim\.(hub\.)?([A-Za-z]\w*)\(", PAGE):
        assert hasattr(hf_optim.hub if name[0] else hf_optim, name[1])
    for name in schedules.SCHEDULES:
        assert f"`{name}`" in PAGE
