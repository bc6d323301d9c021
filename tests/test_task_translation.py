"""Translation: aligned text in every form, the Transformer and its loss, exact figures, BLEU and chrF."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed
from translation_parts import ENGLISH, GERMAN, cache, message, plain  # noqa: F401 - cache: a fixture

import hf_optim
from hf_optim import metrics
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import Moment, load
from hf_optim.experiment.training import train
from hf_optim.tasks.data.sentences import spread

TASK = load("translation")
SMOKE = TASK.preset("transformer", "smoke")


@pytest.fixture(scope="module")
def data():
    return TASK.data(SMOKE, None)


def fresh(data, seed: int = 0, **options):
    set_seed(seed)
    return TASK.model("transformer", TASK.with_options("transformer", SMOKE, options), data)


# --- the data of a run ------------------------------------------------------------------------------------------------


def test_embedded_pairs_of_the_smoke_size(data) -> None:
    assert data.name == "de_en_help" and "256 pairs of a split only" in data.note
    assert "pairs of more than" in data.note and 200 < len(data.train) <= 256
    assert max(len(row[key]) for row in data.train for key in row) <= SMOKE.model.value["longest"]
    source, target = data.facts["source"], data.facts["target"]
    row = data.validation[3]
    assert row["input_ids"][-1] == source.eos_token_id and row["labels"][-1] == target.eos_token_id
    assert source.decode(row["input_ids"], skip_special_tokens=True) == data.validation.pairs.source[3]
    assert target.decode(row["labels"], skip_special_tokens=True) == data.validation.pairs.target[3]
    assert source.fingerprint != target.fingerprint and [len(source), len(target)] == [600, 600]


def test_batches_are_padded_with_what_the_loss_ignores(data) -> None:
    rows = [data.train[i] for i in range(4)]
    batch = TASK.collate(data)(rows)
    longest = max(len(row["labels"]) for row in rows)
    assert batch["labels"].shape == (4, longest) and batch["attention_mask"].sum() == sum(
        len(row["input_ids"]) for row in rows
    )
    assert batch["labels"].ne(-100).sum() == sum(len(row["labels"]) for row in rows)


def test_the_first_train_pairs_are_a_fair_sample(tmp_path) -> None:
    own = TASK.data(SMOKE, str(plain(tmp_path / "own")))
    order = [int(text.split()[2]) for text in own.train.pairs.source]
    assert order != sorted(order) and len(set(order)) == 32
    assert order == [int(text.split()[2]) for text in TASK.data(SMOKE, str(tmp_path / "own")).train.pairs.source]
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 4) == [0, 1, 2]


def test_columns_turn_the_direction(data) -> None:
    turned = TASK.with_options("transformer", SMOKE, {"source_column": "en", "target_column": "de"})
    other = TASK.data(turned, None)
    assert other.facts["tokenizers"] != data.facts["tokenizers"]
    assert set(other.test.pairs.source) & set(data.test.pairs.target)
    assert "--model.source_column" in message(
        TASK.data, TASK.with_options("transformer", SMOKE, {"source_column": "fr"}), None
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"width": 33}, "must divide by twice the 4 heads"),
        ({"layers": 0}, "layers must be a whole number"),
        ({"dropout": 1}, "dropout must be from 0"),
        ({"initialisation": "zero"}, "initialisation must be normal or glorot"),
        ({"longest": 2}, "every pair of the train split has more than 2 tokens"),
        ({"vocabulary": 3}, "too small"),
    ],
)
def test_values_out_of_range(options, expected) -> None:
    assert expected in message(TASK.data, TASK.with_options("transformer", SMOKE, options), None)


# --- the model --------------------------------------------------------------------------------------------------------


def test_weights_depend_on_torchs_random_state_only(data) -> None:
    first, same, other = fresh(data), fresh(data), fresh(data, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.lm_head.weight is not first.model.decoder.embed_tokens.weight
    for model in (first, fresh(data, initialisation="glorot")):
        positions = model.model.encoder.embed_positions.weight
        assert positions[0, 0] == 0 and positions[0, -1] == 1 and not positions.requires_grad


def test_initialisations_reach_every_matrix(data) -> None:
    for name in ("normal", "glorot"):
        model = fresh(data, initialisation=name)
        matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2 and parameter.requires_grad]
        assert len(matrices) == 3 + 6 + 10
        for matrix in matrices:
            glorot = (2 / sum(matrix.shape)) ** 0.5
            assert matrix.std().item() == pytest.approx(0.02 if name == "normal" else glorot, rel=0.1)


def test_the_loss_counts_tokens(data) -> None:
    model = fresh(data).eval()
    batch = TASK.collate(data)([data.train[i] for i in range(6)])
    out = model(**batch)
    chances = torch.log_softmax(out.logits, dim=-1)
    kept = batch["labels"].ne(-100)
    expected = -chances[kept].gather(1, batch["labels"][kept][:, None]).sum()
    assert out.loss.item() == pytest.approx(expected.item() / int(kept.sum()), rel=1e-5)
    assert model(**batch, num_items_in_batch=10).loss.item() == pytest.approx(expected.item() / 10, rel=1e-5)
    smooth = fresh(data, label_smoothing=0.1)
    assert smooth.eval()(**batch).loss == out.loss
    spread_out = 0.9 * out.loss - 0.1 * chances[kept].mean()
    assert smooth.train()(**batch).loss.item() == pytest.approx(spread_out.item(), rel=1e-5)


def test_a_token_sees_the_source_and_earlier_tokens_only(data) -> None:
    model = fresh(data).eval()
    batch = TASK.collate(data)([data.train[0]])
    logits = model(**batch).logits
    moved = {**batch, "labels": batch["labels"].clone()}
    moved["labels"][0, 4] = 7
    after = model(**moved).logits
    assert torch.equal(logits[:, :5], after[:, :5]) and not torch.allclose(logits[:, 5:], after[:, 5:])
    other = {**batch, "input_ids": batch["input_ids"].flip(1)}
    assert not torch.allclose(logits[:, 0], model(**other).logits[:, 0])


def test_figures_are_exact_over_ragged_batches(data) -> None:
    model = fresh(data).eval()
    parts, losses = [], []
    with torch.no_grad():
        for first, last in ((0, 5), (5, 6), (6, 17)):
            batch = TASK.collate(data)([data.test[i] for i in range(first, last)])
            out = model(**batch)
            parts.append(TASK.reduce(out.logits, batch["labels"]))
            losses.append(out.loss.item() * int(batch["labels"].ne(-100).sum()))
        whole = TASK.collate(data)([data.test[i] for i in range(17)])
        logits = model(**whole).logits
    measured = TASK.measure(torch.cat(parts).numpy(), whole["labels"].numpy())
    tokens = whole["labels"].ne(-100)
    assert torch.cat(parts).shape == (17, 3)
    assert measured["loss"] == pytest.approx(sum(losses) / int(tokens.sum()), rel=1e-6)
    assert measured["perplexity"] == pytest.approx(torch.tensor(measured["loss"]).exp().item(), rel=1e-5)
    right = (logits.argmax(-1).eq(whole["labels"]) & tokens).sum()
    assert measured["token_accuracy"] == pytest.approx(int(right) / int(tokens.sum()))


def test_greedy_search_takes_the_likeliest_token(data) -> None:
    model = fresh(data).eval()
    split, batch = data.test, [1, 4, 9]
    features = data.facts["source"].pad({"input_ids": [split[i]["input_ids"] for i in batch]}, return_tensors="pt")
    generated = model.generate(**features)
    for row, index in zip(generated, batch, strict=True):
        ids = [data.facts["target"].bos_token_id]
        for _ in range(SMOKE.model.value["longest"]):
            alone = torch.tensor([split[index]["input_ids"]])
            with torch.no_grad():
                ids.append(int(model(alone, decoder_input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == data.facts["target"].eos_token_id:
                break
        assert row.tolist()[: len(ids)] == ids
    assert fresh(data, beams=3).generation_config.num_beams == 3


@pytest.mark.parametrize("sentences", [16, 150])
def test_translations_are_the_same_for_any_number_of_processes(data, sentences, tmp_path, monkeypatch) -> None:
    model = fresh(data).eval()
    told = TASK.data(TASK.with_options("transformer", SMOKE, {"sentences": sentences}), None)
    alone = TASK.sample(model, told, Moment("test", 7, False, tmp_path, 0, 1))
    shares: list[list] = []

    class Gathering(Exception):
        """Where a process of several waits for the others."""

    def gather(mine):
        shares.append(mine)
        raise Gathering

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    for rank in (0, 1, 2):
        with pytest.raises(Gathering):
            TASK.sample(model, told, Moment("test", 7, False, None, rank, 3))
    assert all(shares)  # nobody waits alone for a sharded model's weights
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: sum(shares, []))
    assert TASK.sample(model, told, Moment("test", 7, False, None, 1, 3)) == alone
    blocks = (tmp_path / "samples" / "test-000007.txt").read_text(encoding="utf-8").split("\n\n")
    assert len(blocks) == min(20, sentences) and blocks[0].startswith(f"source:     {told.test.pairs.source[0]}\nref")


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    spec = RunSpec(task="translation", size="smoke", optimizer=SMOKE.optimizer.value)
    return folder, train(spec, folder, progress=False, checkpoint_every=1000)


def test_a_run_learns_and_records(run) -> None:
    folder, record = run
    assert record["status"] == "ok", record["error"]
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    told = [row for row in rows if "validation_loss" in row]
    assert told[-1]["validation_loss"] < 0.9 * told[0]["validation_loss"]
    assert [("validation_bleu" in row) for row in told] == [False, True, True]
    figures = record["metrics"]
    for split in ("validation", "test"):
        assert 0 <= figures[f"{split}_bleu"] <= 100 and 0 < figures[f"{split}_chrf"] <= 100
        assert figures[f"{split}_loss"] > 0 and 0 <= figures[f"{split}_token_accuracy"] <= 1
    assert "train_bleu" not in figures and figures["loss_gap"] == figures["test_loss"] - figures["train_loss"]
    steps = record["time"]["steps"]
    assert record["samples"] == [f"samples/test-{steps:06d}.txt", f"samples/validation-{steps // 2:06d}.txt",
                                 f"samples/validation-{steps:06d}.txt"]  # fmt: skip
    assert "hypothesis: " in (folder / record["samples"][0]).read_text(encoding="utf-8")


def test_its_checkpoint_gives_its_numbers(run) -> None:
    folder, record = run
    checkpoint = folder / f"checkpoint-{record['time']['steps']}"
    again = evaluate_checkpoint("translation", None, "smoke", checkpoint)
    best = "best_validation_bleu"  # a checkpoint knows only its own moment
    assert {k: v for k, v in again.items() if k != best} == {k: v for k, v in record["metrics"].items() if k != best}
    said = message(evaluate_checkpoint, "translation", None, "smoke", checkpoint, None, {"vocabulary": 500})
    assert "its tokenizers" in said and "--model.vocabulary" in said


def test_accumulation_changes_neither_loss_nor_gradient(tmp_path) -> None:
    rows = []
    for accumulation in (1, 4):
        spec = RunSpec(task="translation", size="smoke", optimizer={"name": "sgd", "lr": 0.1},
                       overrides={"gradient_accumulation_steps": accumulation, "steps": 2},
                       options={"sentences": 1})  # fmt: skip
        assert train(spec, tmp_path, progress=False)["status"] == "ok"
        lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
        rows.append([row for row in lines if "train_loss" in row])
    for single, four in zip(*rows, strict=True):
        assert four["train_loss"] == pytest.approx(single["train_loss"], rel=1e-5)
        assert four["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)


def test_ones_own_files_train(tmp_path) -> None:
    spec = RunSpec(task="translation", size="smoke", optimizer={"name": "smaran"}, data=str(plain(tmp_path / "own")),
                   overrides={"batch_size": 8, "steps": 4})  # fmt: skip
    record = train(spec, tmp_path / "run", progress=False)
    assert record["status"] == "ok" and record["data"]["name"] == "own"
    assert "taken out of train" in record["data"]["note"]


def test_the_paper_size_steps(tmp_path) -> None:
    paper = TASK.preset("transformer", "paper")
    data = TASK.data(paper, str(plain(tmp_path / "own")))
    set_seed(0)
    model = TASK.model("transformer", paper, data)
    assert [len(part.layers) for part in (model.model.encoder, model.model.decoder)] == [3, 3]
    assert model.config.d_model == 512 and model.config.encoder_attention_heads == 8
    values = dict(paper.optimizer.value)
    optimizer = hf_optim.create(values.pop("name"), model, **values, steps_per_epoch=10)
    assert optimizer.param_groups[0]["betas"] in ((0.9, 0.98), [0.9, 0.98])
    batch = TASK.collate(data)([data.train[i] for i in range(2)])
    model.eval()
    before = model(**batch).loss
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert model(**batch).loss < before


def test_attach_goes_with_seq2seq_trainer(data, tmp_path) -> None:
    target = data.facts["target"]

    def judge(predicted):
        texts = [target.batch_decode(ids.clip(min=0), skip_special_tokens=True)
                 for ids in (predicted.predictions, predicted.label_ids)]  # fmt: skip
        return metrics.load("bleu").compute(predictions=texts[0], references=texts[1])

    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=8, predict_with_generate=True,
        gradient_accumulation_steps=2, use_cpu=True, report_to=[], logging_steps=1, generation_max_length=12,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model=fresh(data), args=args, train_dataset=data.train, data_collator=TASK.collate(data),
        eval_dataset=torch.utils.data.Subset(data.validation, range(12)), compute_metrics=judge,
    )  # fmt: skip
    hf_optim.attach(trainer, "smaran")
    trainer.train()
    told = trainer.evaluate()
    assert 0 <= told["eval_bleu"] <= 100 and told["eval_loss"] < 6.4
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 6 and steps[-1]["loss"] < steps[0]["loss"]
    assert all(0 < row["effective_lr"] < 0.1 for row in steps)  # the true loss was fed
