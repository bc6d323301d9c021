"""ALBERT and BERT: sentences, pairs, masks, exact evaluation, runs and their checkpoints, and broken text."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from untimed import untimed

from hf_optim.errors import UserError
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import load
from hf_optim.experiment.training import train
from hf_optim.tasks.data import pairs, paragraphs, tokenizer
from hf_optim.tasks.data.pairs import Masking, mask_ngrams

TASK = load("albert")
WORDS = ["river", "stone", "green", "bridge", "winter", "letter", "people", "music", "garden", "market", "silver"]


def text(count: int, seed: int = 0) -> list[str]:
    """Paragraphs of four sentences: the later ones begin with a pronoun, so that the order can be told."""
    rng = np.random.default_rng(seed)

    def sentence(first: str) -> str:
        return f"{first} {' '.join(rng.choice(WORDS, 6))}."

    return [" ".join([sentence("The"), sentence("It"), sentence("It"), sentence("Then")]) for _ in range(count)]


@pytest.fixture(scope="module")
def smoke():
    return TASK.data(TASK.preset("albert", "smoke"), None)


@pytest.mark.parametrize(
    ("paragraph", "expected"),
    [
        ("One is here. Two is there! Is three? Yes.", ["One is here.", "Two is there!", "Is three?", "Yes."]),
        ("Mr. Poe met J. R. Lee in the U.S. Army. He left.", ["Mr. Poe met J. R. Lee in the U.S. Army.", "He left."]),
        ('He said "No." Then he left (in 1990.) 20 came.', ['He said "No."', "Then he left (in 1990.)", "20 came."]),
        ("It is 3.5, e.g. here, etc. and so on. À Paris.", ["It is 3.5, e.g. here, etc. and so on.", "À Paris."]),
        ("The end . The next , here .", ["The end .", "The next , here ."]),
        ("no end", ["no end"]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(paragraph, expected) -> None:
    assert paragraphs.sentences(paragraph) == expected


def shown(words, sample) -> list[str]:
    """The two segments of a sample as texts, its masks undone."""
    ids = torch.where(sample["labels"] >= 0, sample["labels"], sample["input_ids"])[sample["attention_mask"].bool()]
    tokens = " ".join(words.convert_ids_to_tokens(ids.tolist()))
    assert tokens.startswith("[CLS] ") and tokens.endswith(" [SEP]")
    return tokens[6:-6].split(" [SEP] ")


def built(texts, length: int):
    words = tokenizer.train("word", texts, 100, pairs.SPECIAL, roles=pairs.ROLES)
    return words, pairs.build(texts, words, length, pairs.masking(words, 0.15, 3), split="train")


def test_pairs_are_openings_and_what_follows_in_both_orders() -> None:
    texts = text(40)
    words, dataset = built(texts, 24)
    assert len(dataset) == 80
    for row in range(80):  # a sentence has 8 tokens, a segment at most 10
        sample = dataset[row]
        _, *rest = split = [sentence.replace(".", " .") for sentence in paragraphs.sentences(texts[row % 40])]
        expected = [split[0], " ".join(" ".join(rest).split()[:10])]
        assert shown(words, sample) == (expected[::-1] if sample["sentence_order_label"] else expected)
    batch = dataset.__getitems__(range(80))
    order = batch["sentence_order_label"]
    assert (order[:40] + order[40:] == 1).all() and order[:40].sum() == 20
    in_order = batch["words"][order == 0]
    assert (in_order == torch.tensor([-1, *range(8), -1, *range(8, 18), -1, *[-1] * 3])).all()
    assert (batch["token_type_ids"].sum(1) == torch.where(order == 0, 11, 9)).all()
    assert (batch["attention_mask"].sum(1) == 21).all()
    again = built(texts, 24)[1]
    assert again.digest() == dataset.digest() != built(texts, 25)[1].digest()


def test_long_sentences_are_cut_and_short_ones_joined() -> None:
    long = "The " + "long " * 30 + "end."
    for paragraph, first, second in (
        (f"Ab is. Cd. {long} More.", "Ab is . Cd .", "The" + " long" * 9),
        (f"{long} Last one is here now.", "The" + " long" * 9, "Last one is here now ."),
    ):
        words, dataset = built([paragraph, "One sentence only here."], 23)
        samples = [dataset[0], dataset[1]] if dataset[0]["sentence_order_label"] == 0 else [dataset[1], dataset[0]]
        assert [shown(words, sample) for sample in samples] == [[first, second], [second, first]]


def test_training_sees_a_pair_once_an_epoch_and_swaps_it_from_epoch_to_epoch() -> None:
    words, dataset = built(text(40), 24)
    swapping = pairs.Swapping(dataset)
    assert len(swapping) == 40
    even = swapping.__getitems__(range(40))
    swapping.epoch = 1
    odd = swapping.__getitems__(range(40))
    assert (even["sentence_order_label"] + odd["sentence_order_label"] == 1).all()
    assert shown(words, swapping[7]) == shown(words, dataset[47]) == shown(words, dataset[7])[::-1]


def test_masks_are_whole_ngrams_of_the_right_share() -> None:
    rows, length = 2000, 60
    words = torch.cat([torch.tensor([-1]), torch.arange(28).repeat_interleave(2), torch.tensor([-1, -1, -1])])
    words = words.expand(rows, length)
    segments = (torch.arange(length) > 28).long().expand(rows, length)  # the border is after word 13
    ids = torch.randint(5, 100, (rows, length), generator=torch.Generator().manual_seed(0))
    how = Masking(share=0.2, longest=3, mask=4, ordinary=5, vocabulary=100)
    masked, labels = mask_ngrams(ids, words, segments, how, torch.Generator().manual_seed(1))
    chosen = labels >= 0
    assert not chosen[:, words[0] < 0].any()
    assert (labels[chosen] == ids[chosen]).all() and (masked[~chosen] == ids[~chosen]).all()
    assert abs(chosen.sum().item() / (56 * rows) - 0.2) < 0.01
    assert chosen.sum(1).min() >= 8 and chosen.sum(1).max() <= 14  # 11.2 wanted, half of an n-gram more or less
    by_word = chosen[:, 1:57].view(rows, 28, 2)
    assert (by_word[..., 0] == by_word[..., 1]).all()  # whole words
    shares = [
        (masked[chosen] == 4).float().mean().item(),
        ((masked[chosen] != 4) & (masked[chosen] != ids[chosen])).float().mean().item(),
    ]
    assert abs(shares[0] - 0.8) < 0.01 and abs(shares[1] - 0.1 * 94 / 95) < 0.01
    assert masked[chosen].min() == 4 and masked.max() < 100
    other, _ = mask_ngrams(ids, words, segments, how, torch.Generator().manual_seed(2))
    assert (other != masked).any(1).float().mean() > 0.99
    # One n-gram a row shows their lengths: 1, 2 and 3 words as 1 to 1/2 to 1/3.
    _, labels = mask_ngrams(ids, words, segments, Masking(1e-6, 3, 4, 5, 100), torch.Generator().manual_seed(3))
    counts = (labels >= 0).sum(1) // 2
    observed = torch.bincount(counts, minlength=4)[1:] / rows
    assert counts.min() >= 1 and counts.max() <= 3
    assert observed.tolist() == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.05)


def test_training_draws_masks_as_dropout_and_evaluation_keeps_them(smoke) -> None:
    for name in TASK.models:
        torch.manual_seed(0)
        model = TASK.model(name, TASK.preset(name, "smoke"), smoke)
        assert model.accepts_loss_kwargs is False
        batch = smoke.train.__getitems__(range(16))
        state = torch.get_rng_state()
        first, second = model.train()(**batch).loss, model(**batch).loss
        torch.set_rng_state(state)
        assert model(**batch).loss == first != second
        fixed = model.eval()(**batch).loss
        assert model(**batch).loss == fixed
        without = model.train()(**{key: value for key, value in batch.items() if key != "words"}).loss
        if name == "albert":  # which has no dropout in its layers: what is left is the masks
            assert without.item() == pytest.approx(fixed.item(), abs=0.1)


def test_smoke_data_are_the_same_every_time_and_balanced(smoke) -> None:
    order = smoke.test.__getitems__(range(len(smoke.test)))["sentence_order_label"]
    assert abs(int(2 * order.sum()) - len(order)) <= 1
    from hf_optim.tasks.albert import _pairs

    _pairs.cache_clear()
    torch.manual_seed(99)
    assert TASK.data(TASK.preset("albert", "smoke"), None).fingerprint == smoke.fingerprint
    assert "pairs" in smoke.note and "not comparable" in smoke.note


def test_figures_are_exact_over_any_batches(smoke) -> None:
    torch.manual_seed(0)
    model = TASK.model("albert", TASK.preset("albert", "smoke"), smoke).eval()

    def figures(size: int) -> dict[str, float]:
        rows = []
        for start in range(0, len(smoke.test), size):
            batch = smoke.test.__getitems__(range(start, min(start + size, len(smoke.test))))
            with torch.no_grad():
                output = model(**batch)
            logits = (output.prediction_logits, output.sop_logits)
            rows.append(TASK.reduce(logits, (batch["labels"], batch["sentence_order_label"])).numpy())
        return TASK.measure(np.concatenate(rows), None)

    whole, ragged = figures(10_000), figures(7)
    assert set(whole) == {"loss", "mlm_loss", "perplexity", "mlm_accuracy", "sop_loss", "sop_accuracy"}
    assert ragged == pytest.approx(whole, rel=1e-5)
    batch = smoke.test.__getitems__(range(len(smoke.test)))
    with torch.no_grad():
        output = model(**batch)
    assert whole["loss"] == pytest.approx(output.loss.item(), rel=1e-5)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["mlm_loss"]))
    hits = (output.sop_logits.argmax(1) == batch["sentence_order_label"]).float().mean().item()
    assert whole["sop_accuracy"] == pytest.approx(hits)
    right = output.prediction_logits.argmax(-1)[batch["labels"] >= 0] == batch["labels"][batch["labels"] >= 0]
    assert whole["mlm_accuracy"] == pytest.approx(right.float().mean().item())


def spec(**values) -> RunSpec:
    return RunSpec.from_dict({"task": "albert", "size": "smoke", "optimizer": {"name": "adamw", "lr": 1e-3}, **values})


def test_a_run_and_its_checkpoint_agree(tmp_path) -> None:
    record = train(spec(overrides={"steps": 3}), tmp_path, progress=False, checkpoint_every=50)
    assert record["status"] == "ok", record["error"]
    assert record["primary"] == {"name": "test_sop_accuracy", "greater_is_better": True}
    metrics = evaluate_checkpoint("albert", None, "smoke", tmp_path / "checkpoint-3")
    best = "best_validation_sop_accuracy"
    assert {**metrics, best: 0} == {**record["metrics"], best: 0}
    assert json.loads((tmp_path / "checkpoint-3" / "config.json").read_text())["masking"]["longest"] == 3
    # Other text, other pairs: the figures would mean something else.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.txt").write_text("\n\n".join(text(60)))
    with pytest.raises(UserError, match="checkpoint: made with tokenizer .* mine gives"):
        evaluate_checkpoint("albert", None, "smoke", tmp_path / "checkpoint-3", str(tmp_path / "mine"))
    with pytest.raises(UserError, match="trained with mask_share 0.15, .* 0.3: give --model.mask_share 0.15"):
        evaluate_checkpoint("albert", None, "smoke", tmp_path / "checkpoint-3", None, {"mask_share": 0.3})
    with pytest.raises(UserError, match="model 'bert' is NgramMaskedBert"):
        evaluate_checkpoint("albert", "bert", "smoke", tmp_path / "checkpoint-3")


@pytest.mark.parametrize("name", TASK.models)
def test_a_resumed_run_draws_the_same_masks(tmp_path, name) -> None:
    chosen = spec(model=name, overrides={"steps": 4, "batch_size": 8})
    whole = train(chosen, tmp_path, progress=False, checkpoint_every=2)
    rows = untimed(tmp_path)
    (tmp_path / "record.json").unlink()
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    again = train(chosen, tmp_path, progress=False, checkpoint_every=2, resume=True)
    assert whole["status"] == "ok" and again["metrics"] == whole["metrics"]
    assert untimed(tmp_path) == rows


def test_a_run_swaps_the_pairs_of_every_other_epoch(tmp_path, monkeypatch) -> None:
    seen: list[int] = []
    original = pairs.Swapping.__getitems__

    def recording(self, indices):
        seen.append(self.epoch)
        return original(self, indices)

    monkeypatch.setattr(pairs.Swapping, "__getitems__", recording)
    record = train(spec(overrides={"epochs": 3, "batch_size": 32}), tmp_path, progress=False)
    assert record["status"] == "ok", record["error"]
    epoch = record["time"]["steps"] // 3
    assert seen == [0] * epoch + [1] * epoch + [2] * epoch


def test_a_line_search_sees_the_same_masks(tmp_path) -> None:
    record = train(spec(optimizer="sls", overrides={"steps": 2}), tmp_path, progress=False)
    assert record["status"] == "ok", record["error"]  # a replay that differs is refused at the first step


def test_accumulation_keeps_the_scale_of_loss_and_gradient(tmp_path) -> None:
    rows = []
    for parts in (1, 4):
        overrides = {"steps": 1, "gradient_accumulation_steps": parts}
        assert train(spec(optimizer="sgd", overrides=overrides), tmp_path, progress=False)["status"] == "ok"
        logged = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
        rows.append(next(row for row in logged if "train_loss" in row))
    # Other masks, hence not the same numbers; unscaled, they would be four times as large.
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=0.1)
    assert rows[1]["grad_norm"] == pytest.approx(rows[0]["grad_norm"], rel=0.5)


def test_ones_own_text_is_learned(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("\n\n".join(text(150)))
    values = {
        "data": str(tmp_path / "mine.txt"),
        "options": {"tokenizer": "word", "length": 24, "hidden_size": 64},
        "overrides": {"steps": 80},
        "optimizer": {"name": "adamw", "lr": 3e-3},
    }
    record = train(spec(**values), tmp_path / "run", progress=False)
    assert record["status"] == "ok", record["error"]
    assert record["metrics"]["test_sop_accuracy"] > 0.6
    assert record["data"]["name"] == "mine.txt" and "the last 15 paragraphs of train" in record["data"]["note"]


def write(folder, name: str, texts: list) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"text": texts}), file)
    elif file.suffix == ".txt":
        file.write_text("\n\n".join(texts))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps({"text": value}) + "\n" for value in texts))
    else:
        file.write_text("text\n" + "".join(f'"{value}"\n' for value in texts))


@pytest.mark.parametrize("suffix", paragraphs.SUFFIXES)
def test_every_kind_of_file_gives_the_same_text(tmp_path, suffix) -> None:
    texts = text(20)
    write(tmp_path / "all", f"train{suffix}", texts[:16])
    write(tmp_path / "all", f"dev{suffix}", texts[16:18])
    write(tmp_path / "all", f"test{suffix}", texts[18:])
    assert paragraphs.read(tmp_path / "all") == (
        {"train": texts[:16], "validation": texts[16:18], "test": texts[18:]},
        "",
    )
    write(tmp_path / "one", f"mine{suffix}", texts)
    splits, note = paragraphs.read(tmp_path / "one" / f"mine{suffix}")
    assert splits == {"train": texts[:16], "validation": texts[16:18], "test": texts[18:]}
    assert note == "test: the last 2 paragraphs of train; validation: the last 2 paragraphs of train"


def broken(tmp_path, **files) -> str:
    for name, content in files.items():
        file = tmp_path / name.replace("_", ".")
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no train split in .*: expected train.parquet, train.csv, train.jsonl, train.txt"),
        ({"train_txt": "\n\n".join(text(5)), "test_txt": "\n \n"}, "the test split is empty: .*test.txt holds no text"),
        ({"train_txt": ""}, "the train split is empty"),
        ({"train_csv": ""}, "train.csv is empty"),
        ({"train_csv": "body\nHello\n"}, "train.csv has no column 'text'; it has 'body': rename yours"),
        ({"train_csv": "text,b\nHello\n"}, "train.csv cannot be read as csv"),
        ({"train_jsonl": '{"text": [1]}\n'}, "row 0: column 'text' must hold texts, not list"),
        ({"train_jsonl": '{"text": \n'}, "train.jsonl cannot be read as jsonl"),
        ({"train_parquet": b"text"}, "train.parquet cannot be read as parquet"),
        ({"train_txt": b"\xff\xfe\x00"}, "train.txt cannot be read as UTF-8 text"),
        ({"train_txt": "One. Two."}, r"too few to take a test split out of them: 1 paragraph"),
        ({"train_txt": "\n\n".join(["only one sentence of words here."] * 20)}, "train split has no paragraph of two"),
        ({"train_txt": "a", "train_csv": "text\na\n"}, "train.csv and train.txt: keep one file for train"),
    ],
)  # fmt: skip
def test_broken_text_says_where_and_what_to_do(tmp_path, files, message) -> None:
    source = broken(tmp_path, **files)
    with pytest.raises(UserError, match=message) as caught:
        train(spec(data=source), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_other_broken_sources(tmp_path) -> None:
    (tmp_path / "text.doc").write_text("a")
    for path, message in (("no", "no such file or folder"), ("text.doc", "is none of .parquet, .csv, .jsonl, .txt")):
        with pytest.raises(UserError, match=message):
            paragraphs.read(tmp_path / path)
    with pytest.raises(UserError, match="Salesforce/wikitext cannot be loaded from the Hub"):  # tests are offline
        TASK.data(TASK.preset("albert", "paper"), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "letters"}, "tokenizer must be bpe"),
        ({"vocabulary": 1.5}, "vocabulary must be an integer of at least 16"),
        ({"length": 8}, "length must be an integer of at least 16"),
        ({"mask_share": 1}, "mask_share must be between 0 and 1"),
        ({"longest_ngram": 0}, "longest_ngram must be an integer of at least 1"),
        ({"hidden_size": 33}, "make no model: hidden_size must be a multiple of num_attention_heads"),
        ({"hidden_size": "wide"}, "model 'albert': .*make no model"),
        ({"initializer_range": "wide"}, "model 'albert': .*make no model"),
        ({"hidden_sizes": 64}, "unknown option 'hidden_sizes'"),
    ],
)
def test_bad_options_are_said_before_anything_is_written(tmp_path, options, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(spec(options=options), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "millions"), [("albert", 11.8), ("bert", 110)])
def test_the_paper_models_take_a_step(tmp_path, monkeypatch, name, millions) -> None:
    from hf_optim.tasks.data import hub

    texts = text(30)
    monkeypatch.setattr(
        hub, "load", lambda *_, **__: {split: {"text": [" = A = \n", "", *texts]} for split in paragraphs.SPLITS}
    )
    preset = TASK.preset(name, "paper")
    data = TASK.data(preset, None)
    assert len(data.train) == 30 and len(data.test) == 60
    assert (preset.epochs.value, preset.batch_size.value, preset.optimizer.value["lr"]) == (25, 16, 1e-4)
    full = type(data)(**{**vars(data), "facts": {**data.facts, "vocabulary": preset.model.value["vocabulary"]}})
    model = TASK.model(name, preset, full)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    torch.manual_seed(0)
    loss = model(**data.train.__getitems__([0, 1])).loss
    loss.backward()
    before = [p.detach().sum().item() for p in model.parameters()]
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = [p.detach().sum().item() for p in model.parameters()]
    assert math.isfinite(loss.item()) and all(map(math.isfinite, after))
    moved = sum(old != other for old, other in zip(before, after, strict=True))
    assert moved > 0.9 * len(before), "a part of the model gets no gradient"
