"""The task `finetune`: the answer alone is trained on and judged, LoRA moves adapters alone, the base is made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import load
from hf_optim.experiment.training import train
from hf_optim.tasks.data import answers, blocks, cache
from hf_optim.tasks.models import base


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def spec(model: str = "full", **more: Any) -> RunSpec:
    more = {"overrides": {"steps": 4, "batch_size": 4}, **more}
    return RunSpec("finetune", model, "smoke", {"name": "adamw", "lr": 3e-3}, **more)


def test_only_the_answer_is_trained_on() -> None:
    tokenizer = blocks.words(["Question: red or blue? Answer: blue. red."], 20)
    rows, dropped = answers.encode(tokenizer, [("red or blue?", "blue."), ("red " * 40, "red.")], 12)
    assert dropped == 1 and len(rows) == 1
    batch = answers.Answers(rows, 12, 0).__getitems__([0])
    trained = batch["labels"][0] != blocks.IGNORED
    assert tokenizer.decode(batch["input_ids"][0][trained]) == "blue. <eos>" and batch["answer_bytes"].tolist() == [5]
    assert "Question: red or blue? Answer:" in tokenizer.decode(batch["input_ids"][0][: rows[0].asked])
    assert batch["attention_mask"].sum() == len(rows[0].ids)


def test_the_tokenizers_own_chat_template_is_used_and_must_continue_the_question() -> None:
    tokenizer = blocks.words(["<q> red <a> blue"], 20)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<q> {{ m['content'] }}{% else %} {{ m['content'] }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %} <a>{% endif %}"
    )
    with pytest.raises(UserError, match="does not continue a question"):
        answers.encode(tokenizer, [("red", "blue")], 12)
    tokenizer.chat_template = tokenizer.chat_template.replace("{% else %} ", "{% else %} <a> ")
    (row,), _ = answers.encode(tokenizer, [("red", "blue")], 12)
    assert tokenizer.convert_ids_to_tokens(row.ids) == ["<q>", "red", "<a>", "blue"] and row.asked == 3


def test_held_out_words_do_not_stand_in_train() -> None:
    pairs = answers.letters(Path(answers.__file__).parent / "wiki_paragraphs")
    questions = {split: {question for question, _ in part} for split, part in pairs.items()}
    assert not questions["train"] & (questions["validation"] | questions["test"])
    assert not questions["validation"] & questions["test"] and len(pairs["test"]) > 500
    assert ("How many letters has 'language'?", "8") in {pair for part in pairs.values() for pair in part}


def test_accuracy_is_that_of_whole_answers_by_greedy_decoding() -> None:
    task = load("finetune")
    labels = torch.tensor([[-100, -100, 1, 2], [-100, 3, 1, -100]])
    scores = torch.full((2, 4, 5), -4.0)
    for row, place, token in ((0, 1, 1), (0, 2, 2), (1, 0, 3), (1, 1, 4)):  # the last one is wrong
        scores[row, place, token] = 4.0
    figures = task.measure(task.reduce(scores, (labels, torch.tensor([2, 3]))).numpy(), None)  # type: ignore[arg-type]
    nats = -torch.log_softmax(scores[0, 1], 0)
    expected = (3 * nats[1] + nats[0]).item() / 4
    assert figures["accuracy"] == 0.5 and figures["token_accuracy"] == 0.75
    assert figures["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("peft")
    return {name: train(spec(name), tmp_path_factory.mktemp(name), progress=False) for name in ("full", "lora")}


def test_both_models_train_and_judge_on_answers(tuned: dict[str, Any]) -> None:
    for record in tuned.values():
        assert record["status"] == "ok", record["error"]
        assert {"test_loss", "test_accuracy", "test_bits_per_byte"} <= set(record["metrics"])
        assert "commonest answer" in record["data"]["note"]
    assert tuned["lora"]["metrics"]["test_loss"] != tuned["full"]["metrics"]["test_loss"]


def test_what_was_seen_is_written_from_records_of_one_comparison(
    tuned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "scripts")
    import build_finetune_docs as script

    text = script.section([*tuned.values()])
    for name, record in tuned.items():
        trained = sum(group["parameters"] for group in record["groups"])
        assert f"| `{name}` | adamw, rate 0.003 | {trained:,} | {record['metrics']['test_loss']:.3f} |" in text
    other = {**tuned["lora"], "spec": {**tuned["lora"]["spec"], "seed": 1}}
    with pytest.raises(SystemExit, match="differ in data, steps, seed or size"):
        script.section([tuned["full"], other])
    kept = script.PAGE.read_text(encoding="utf-8").partition(script.BEGIN)[2]
    assert kept.count("| `full` | ") == 3 and kept.count("| `lora` | ") == 4  # as its docstring runs it


def test_lora_trains_adapters_alone(tuned: dict[str, Any]) -> None:
    task = load("finetune")
    preset = task.preset("lora", "smoke")
    model = task.model("lora", preset, task.data(preset, None))
    moving = [name for name, p in model.named_parameters() if p.requires_grad]
    assert moving and all("lora_" in name for name in moving)
    assert sum(group["parameters"] for group in tuned["lora"]["groups"]) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_the_model_to_tune_is_made_once_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import hf_optim.experiment.training as training

    home = base.checkpoint("smoke", 2500, 384, 48, 4)
    assert (home / "model.safetensors").is_file() and (home / "tokenizer.json").is_file()
    assert not (home / "optimizer.pt").exists()

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train", never)
    assert base.checkpoint("smoke", 2500, 384, 48, 4) == home

    def fails(*_: Any, **__: Any) -> Any:
        return {"status": "failed", "error": "NaN"}

    monkeypatch.setattr(training, "train", fails)
    with pytest.raises(UserError, match="could not be trained: NaN"):
        base.checkpoint("smoke", 2500, 384, 48, 5)

    def raced(spec: RunSpec, folder: Path, **_: Any) -> Any:
        """Somebody else is done while this one trains."""
        checkpoint = folder / "checkpoint-6"
        checkpoint.mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}", encoding="utf-8")
        key = [p for p in cache.folder().glob("making-*") if p in checkpoint.parents]
        assert len(key) == 1
        return {"status": "ok"}

    monkeypatch.setattr(training, "train", raced)
    first = base.checkpoint("smoke", 2500, 384, 48, 6)
    assert (first / "config.json").is_file() and not list(cache.folder().glob("making-*"))


def test_pairs_of_ones_own(tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(60)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [rows[0], {"question": "q", "answer": "a"}])))
    splits, note = answers.read(tmp_path)
    assert (
        splits["test"]
        and all(question == "q" for question, _ in splits["test"])
        or rows[0]["question"] not in {question for question, _ in splits["train"]}
    )
    assert not {q for q, _ in splits["train"]} & {q for q, _ in splits["validation"] + splits["test"]}
    assert "validation taken out of train" in note
    (tmp_path / "train.jsonl").write_text(json.dumps({"question": "q"}), encoding="utf-8")
    with pytest.raises(UserError, match="no column 'answer'; it has 'question': rename"):
        answers.read(tmp_path)


def test_plain_texts_are_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a text")
    for path, says in ((tmp_path / "train.txt", "is none of"), (tmp_path, "no train split in .*: expected train")):
        with pytest.raises(UserError, match=says) as raised:
            answers.read(path)
        assert ".csv, " in str(raised.value) and str(raised.value).count(".txt") == (path != tmp_path)


def test_a_ladder_of_fine_tuning_is_a_plan() -> None:
    from hf_optim.study.plan import plan, source

    text = """
name: f
baseline: adamw
seeds: 2
ladder: {task: finetune, model: lora, size: smoke, parameters: [2500, 5000], tokens: [1]}
optimizers: [{name: adamw, lr: 0.003}, {name: lion, lr: 0.001}]
"""
    planned = plan.expand(source.parse(text, "s.yaml"))
    assert [t["options"]["parameters"] for t in planned.tasks] == [2500, 5000]
    task = load("finetune")
    preset = task.preset("full", "smoke")
    model = task.model("full", preset, task.data(preset, None))
    assert sum(p.numel() for p in model.parameters()) == task.rung("full", preset).parameters


@pytest.mark.parametrize("there", ["validation", "test"])
def test_what_is_not_taken_out_of_train_stays_there(there: str, tmp_path: Path) -> None:
    """With one of the two splits given, the tenth that would have been it was in none."""
    rows = [{"question": f"What is {i}?", "answer": str(i % 7)} for i in range(300)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / f"{there}.jsonl").write_text(json.dumps({"question": "Who?", "answer": "me"}))
    parts, _ = answers.read(tmp_path)
    missing = "test" if there == "validation" else "validation"
    assert len(parts["train"]) + len(parts[missing]) == 300 and len(parts[there]) == 1
