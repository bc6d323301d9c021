"""The task `lm`: blocks lose neither token nor byte, figures are exact, checkpoints go on, bad input is one line."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from untimed import untimed

from hf_optim.errors import UserError
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import load
from hf_optim.experiment.training import train
from hf_optim.tasks.data import blocks, tokenizer

TEXTS = ["The cat sat on the mat.", "Größe: 3 € – “naïve” 🙂🙂", "  spaced   out ", "the cat", "<unk> cat"]


def spec(model="gpt2", optimizer=None, **values) -> RunSpec:
    optimizer = optimizer or {"name": "adamw", "lr": 3e-3}
    return RunSpec.from_dict({"task": "lm", "model": model, "size": "smoke", "optimizer": optimizer, **values})


def history(folder) -> list[dict]:
    return untimed(folder)


def bpe(texts, vocabulary=300):
    marks = (blocks.END, blocks.UNKNOWN)
    roles = {"eos_token": blocks.END, "unk_token": blocks.UNKNOWN}
    return tokenizer.train("bpe", texts, vocabulary, marks, roles=roles)


@pytest.fixture(scope="module")
def gpt2_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    record = train(spec(), folder, progress=False, checkpoint_every=40)
    assert record["status"] == "ok", record["error"]
    return folder, record


# --- blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [bpe, lambda texts: blocks.words(texts, 6)], ids=["bpe", "words"])
@pytest.mark.parametrize("length", [2, 5, 64])
def test_every_token_is_predicted_once_and_every_byte_counted_once(make, length) -> None:
    tokenizer = make(TEXTS)
    stream = blocks.encode(tokenizer, TEXTS)
    whole = blocks.Blocks(stream, length, whole=True)
    batch = whole.__getitems__(range(len(whole)))
    assert batch["input_ids"].shape == batch["labels"].shape == (len(whole), length)
    assert (batch["labels"][:, 0] == blocks.IGNORED).all()
    targets = batch["labels"][:, 1:].flatten()
    assert targets[targets != blocks.IGNORED].tolist() == stream.ids[1:].tolist()
    assert (batch["input_ids"][:, 1:] == batch["labels"][:, 1:])[batch["labels"][:, 1:] != blocks.IGNORED].all()
    assert int(batch["covered"][:, 0].sum()) == sum(len(text.encode()) for text in TEXTS)
    part = blocks.Blocks(stream, length, whole=False)
    assert len(part) == (len(stream.ids) - 1) // (length - 1)
    if len(part):
        assert (part.__getitems__(range(len(part)))["labels"][:, 1:] != blocks.IGNORED).all()


def test_bytes_go_to_the_token_that_ends_after_them() -> None:
    tokenizer = blocks.words(["aé b"], 10)
    stream = blocks.encode(tokenizer, ["aé  b "])
    assert tokenizer.convert_ids_to_tokens(stream.ids.tolist()) == ["<eos>", "aé", "b", "<eos>"]
    assert stream.covered.tolist() == [0, 3, 3, 1]  # the last blank belongs to the end mark


def test_unknown_words_are_counted_but_a_written_unk_is_not() -> None:
    tokenizer = blocks.words(["a a b"], 3)
    stream = blocks.encode(tokenizer, ["a b <unk> c"])
    assert stream.unknown.tolist() == [False, False, True, False, True, False]


def test_words_keep_the_most_frequent_and_split_at_blanks_alone() -> None:
    tokenizer = blocks.words(["n't n't u.s. N", "u.s. n't"], 4)
    assert tokenizer.get_vocab() == {"<eos>": 0, "<unk>": 1, "n't": 2, "u.s.": 3}


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64])
def test_figures_do_not_depend_on_the_batches(size) -> None:
    task = load("lm")
    torch.manual_seed(0)
    tokenizer = bpe(TEXTS)
    stream = blocks.encode(tokenizer, TEXTS)
    data = blocks.Blocks(stream, 6, whole=True)
    logits = torch.randn(len(data), 6, len(tokenizer))
    rows = []
    for start in range(0, len(data), size):
        chosen = range(start, min(start + size, len(data)))
        batch = data.__getitems__(chosen)
        rows.append(task.reduce(logits[list(chosen)], (batch["labels"], batch["covered"])))
    figures = task.measure(torch.cat(rows).numpy(), None)
    flat = logits[:, :-1].reshape(-1, len(tokenizer))[: len(stream.ids) - 1].double()
    truth = torch.from_numpy(stream.ids[1:])
    nats = torch.nn.functional.cross_entropy(flat, truth, reduction="sum").item()
    assert figures["loss"] == pytest.approx(nats / len(truth), rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["accuracy"] == pytest.approx((flat.argmax(1) == truth).double().mean().item())
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / sum(len(t.encode()) for t in TEXTS), rel=1e-6)


def test_unknown_words_are_spelled_in_bits_per_byte() -> None:
    tokenizer = blocks.words(["a a b"], 3)
    data = blocks.Blocks(blocks.encode(tokenizer, ["a b <unk> cé"]), 3, whole=True)
    assert data.covered.tolist() == [[3, 1, 2], [10, 1, 4], [0, 0, 0]]  # " b" and " cé" are unknown; "<unk>" is written
    rows = load("lm").reduce(torch.zeros(3, 3, 3), (data.__getitems__(range(3))["labels"], data.covered))
    figures = load("lm").measure(rows.numpy(), None)
    loss = math.log(3)
    assert figures["loss"] == pytest.approx(loss) and figures["perplexity"] == pytest.approx(3)
    assert figures["unknown"] == 2 / 5
    assert figures["bits_per_byte"] == pytest.approx((5 * math.log2(3) + 8 * 6) / 13)


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "sums"), [("lm", (1e6, 1000, 9, 9, 0, 0)), ("albert", (1e6, 1000, 9, 1, 1))])
def test_the_perplexity_of_a_loss_without_bounds_is_a_number(task: str, sums: tuple[float, ...]) -> None:
    """Trainer's state held an infinite one, and no run went on from there."""
    assert math.isfinite(load(task).measure(np.array([sums]), np.zeros(0))["perplexity"])


def test_the_record_has_every_figure_of_every_split(gpt2_run) -> None:
    folder, record = gpt2_run
    metrics = record["metrics"]
    for split in ("train", "validation", "test"):
        assert {f"{split}_{key}" for key in ("loss", "perplexity", "accuracy", "bits_per_byte")} <= set(metrics)
        assert metrics[f"{split}_perplexity"] == pytest.approx(math.exp(metrics[f"{split}_loss"]))
    assert record["primary"] == {"name": "test_loss", "greater_is_better": False}
    first = next(row for row in history(folder) if "validation_loss" in row)
    assert first["validation_loss"] == pytest.approx(math.log(384), abs=0.05)  # knows nothing: uniform over the 384
    assert metrics["validation_loss"] < first["validation_loss"] - 0.8
    # The exact loss, not Trainer's average of batch averages, is what is best.
    assert metrics["best_validation_loss"] == min(
        row["validation_loss"] for row in history(folder) if "validation_loss" in row
    )
    assert "frequency" in record["data"]["note"] and "not comparable" in record["data"]["note"]
    [(name, loss)] = record["known_losses"].items()
    assert f"{name}: {loss:.4f} nats" in record["data"]["note"] and loss > 0


def test_the_loss_that_trains_is_the_mean_over_predicted_tokens(tmp_path) -> None:
    # Trainer counts the first token of a block as predicted unless it is ignored: the loss would be 31/32 of this.
    for model in ("gpt2", "llama", "lstm"):
        run = spec(model, {"name": "sgd", "lr": 1e-9}, overrides={"steps": 2, "eval_every": 2})
        assert train(run, tmp_path, progress=False)["status"] == "ok"
        rows = [row for row in history(tmp_path) if "train_loss" in row]
        assert [row["train_loss"] for row in rows] == pytest.approx([math.log(384)] * 2, abs=0.05), model


@pytest.mark.parametrize("model", ["gpt2", "lstm"])
def test_accumulation_changes_neither_loss_nor_gradient(model, tmp_path) -> None:
    rows = []
    for parts in (1, 4):
        overrides = {"gradient_accumulation_steps": parts, "steps": 2, "eval_every": 2}
        run = spec(model, {"name": "sgd", "lr": 0.1}, overrides=overrides)
        assert train(run, tmp_path, progress=False)["status"] == "ok"
        rows.append([row for row in history(tmp_path) if "train_loss" in row])
    for single, four in zip(*rows, strict=True):
        assert four["train_loss"] == pytest.approx(single["train_loss"], rel=1e-5)
        assert four["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)


def test_a_checkpoint_gives_the_numbers_of_its_record(gpt2_run) -> None:
    folder, record = gpt2_run
    figures = evaluate_checkpoint("lm", "gpt2", "smoke", folder / "checkpoint-40")
    same = [key for key in figures if not key.startswith("best_")]
    assert {key: figures[key] for key in same} == {key: record["metrics"][key] for key in same} and len(same) >= 14


def test_a_checkpoint_of_another_tokenizer_is_refused(gpt2_run) -> None:
    with pytest.raises(UserError, match="trained with another tokenizer"):
        evaluate_checkpoint("lm", "gpt2", "smoke", gpt2_run[0] / "checkpoint-40", options={"vocabulary": 300})


def test_fine_tuning_begins_where_the_checkpoint_ended(gpt2_run, tmp_path) -> None:
    folder, record = gpt2_run
    options = {"checkpoint": str(folder / "checkpoint-40")}
    overrides = {"steps": 25, "eval_every": 25}
    run = spec("pretrained", {"name": "adamw", "lr": 1e-3}, options=options, overrides=overrides)
    tuned = train(run, tmp_path, progress=False, checkpoint_every=25)
    assert tuned["status"] == "ok", tuned["error"]
    again = evaluate_checkpoint("lm", "pretrained", "smoke", tmp_path / "checkpoint-25", options=options)
    assert again["test_loss"] == tuned["metrics"]["test_loss"]
    losses = [row["validation_loss"] for row in history(tmp_path) if "validation_loss" in row]
    assert losses[0] == pytest.approx(record["metrics"]["validation_loss"], rel=1e-6)
    assert losses[1] < losses[0]
    assert tuned["memory"]["parameters"] == record["memory"]["parameters"]


def test_the_lstm_ties_its_weights_and_comes_back_from_a_folder(tmp_path) -> None:
    from hf_optim.tasks.models.language import AutoModelForCausalLM
    from hf_optim.tasks.models.lstm import LSTMConfig, LSTMForCausalLM

    torch.manual_seed(0)
    model = LSTMForCausalLM(LSTMConfig(vocab_size=50, embedding_size=8, hidden_size=8, dropout=0.5)).eval()
    assert model.decoder.weight is model.embedding.weight
    assert model.embedding.weight.abs().max().item() <= 0.05 and model.lstm.bias_ih_l0.abs().max().item() == 0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.decoder.weight is again.embedding.weight
    later = ids.clone()
    later[:, 4] = 7  # what comes later changes nothing before
    assert torch.equal(model(later).logits[:, :4], model(ids).logits[:, :4])


@pytest.mark.parametrize("name", ["gpt2", "llama", "lstm"])
def test_paper_models_are_built_and_stepped(name) -> None:
    import hf_optim

    task = load("lm")
    preset = task.preset(name, "paper")
    values = preset.model.value
    marks = SimpleNamespace(eos_token_id=0, bos_token_id=0)
    facts = {"tokenizer": marks, "fingerprint": "x", "vocabulary": values["vocabulary"], "block": values["block"]}
    model = task.model(name, preset, SimpleNamespace(facts=facts)).train()
    assert model.loss_type == "ForCausalLM" and not model.config.use_cache  # unsaid, transformers warns
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / {"gpt2": 29.7e6, "llama": 33.7e6, "lstm": 13.3e6}[name] - 1) < 0.01, count
    opt = hf_optim.create(preset.optimizer.value["name"], model)
    ids = torch.randint(0, values["vocabulary"], (2, 16))
    losses = []
    for _ in range(2):
        loss = model(ids, labels=ids).loss
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(math.log(values["vocabulary"]), abs=1.0) and losses[1] < losses[0]
    for size in task.sizes.values():
        for value in size.presets[name].sources().values():
            assert value.source in ("paper", "code", "ours")


# --- bad input -------------------------------------------------------------------------------------------------------


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, encoding="utf-8")
    return str(folder)


def test_lines_of_text_files_are_texts_and_missing_splits_are_cut_off(tmp_path) -> None:
    lines = "\n".join(f"a sentence number {i}" for i in range(60))
    data = load("lm").data(load("lm").preset("gpt2", "smoke"), write(tmp_path / "own", train_txt=lines))
    assert data.name == "own" and "the last 6 paragraphs of train" in data.note
    assert data.facts["bytes"]["test"] == sum(len(f"a sentence number {i}") for i in range(54, 60))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"train_txt": "a b c\n" * 90, "test_txt": "\n \n"}, "the test split is empty"),
        ({"test_txt": "a b c"}, "no train split"),
        (
            {"train_txt": "a b\nc d\ne f\ng h\ni j\n"},
            "fewer than one block of 32: bring more text, or set --model.block",
        ),
        ({"train_csv": "words\na b c\n"}, "has no column 'text'; it has 'words'"),
        ({"train_jsonl": '{"text": 3}\n'}, "column 'text' must hold texts"),
        ({"train_jsonl": "{"}, "cannot be read as jsonl"),
        ({}, "no train split in"),
    ],
)
def test_bad_data_are_one_line(files, says, tmp_path) -> None:
    with pytest.raises(UserError) as raised:
        train(spec(data=write(tmp_path / "own", **files)), tmp_path / "run", progress=False)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("gpt2", {"n_embd": 30, "n_head": 4}, "make no model"),
        ("gpt2", {"block": 1}, "block must be an integer of at least 2"),
        ("gpt2", {"vocabulary": 100}, "vocabulary must be at least 258"),
        ("gpt2", {"tokenizer": "letters"}, "tokenizer must be bpe, words or a folder"),
        ("gpt2", {"checkpoint": "x"}, "unknown option 'checkpoint'"),
        ("lstm", {"hidden_size": 8}, "tied weights need embedding_size 32 to equal hidden_size 8"),
        ("pretrained", {}, "needs --model.checkpoint DIR"),
        ("pretrained", {"checkpoint": "/no/such/folder"}, "holds no model"),
    ],
)
def test_bad_options_are_one_line(model, options, says, tmp_path) -> None:
    with pytest.raises(UserError) as raised:
        train(spec(model, options=options), tmp_path / "run", progress=False)
    assert says in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_bad_checkpoints_are_one_line(gpt2_run, tmp_path) -> None:
    import shutil

    whole = gpt2_run[0] / "checkpoint-40"

    def refused(folder, says, **options) -> None:
        run = spec("pretrained", options={"checkpoint": str(folder), **options})
        with pytest.raises(UserError) as raised:
            train(run, tmp_path / "run", progress=False)
        assert says in str(raised.value) and "\n" not in str(raised.value)

    refused(whole, "takes 32 tokens, a sample has 48: set --model.block", block=48)
    bare, other, empty = (tmp_path / name for name in ("bare", "other", "empty"))
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    refused(bare, "holds no tokenizer")
    shutil.copytree(whole, other)
    bpe(TEXTS * 3, 290).save_pretrained(other)
    refused(other, "is not the one that its model was trained with")
    bpe([" ".join(map(str, range(5000)))], 600).save_pretrained(other)
    refused(other, "knows 384 tokens, but the tokenizer has 600")
    shutil.copytree(whole, empty, ignore=shutil.ignore_patterns("*.safetensors"))
    refused(empty, "holds no model that can be read")


def test_the_penn_treebank_says_what_to_bring(tmp_path) -> None:
    with pytest.raises(UserError, match="one sentence a line"):
        train(spec("lstm", size="paper"), tmp_path / "run", progress=False)
