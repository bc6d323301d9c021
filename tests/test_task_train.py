"""One run: what it records, that runs are paired, fail in order, and go on bit-identically."""

import json
import math
import shutil

import numpy as np
import pytest
from untimed import without_seconds

from hf_optim.errors import UserError
from hf_optim.experiment import task as tasks
from hf_optim.experiment.budget import budget
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train
from hf_optim.tasks.data.images import Images


def spec(optimizer="adamw", **values) -> RunSpec:
    return RunSpec.from_dict({"task": "vision", "model": "mlp", "size": "smoke", "optimizer": optimizer, **values})


def history(folder) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    rows = (json.loads(line, parse_constant=refuse) for line in (folder / "history.jsonl").read_text().splitlines())
    return [without_seconds(row) for row in rows]


@pytest.fixture(scope="module")
def smaran_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smaran")
    return folder, train(spec("smaran"), folder, progress=False)


def test_the_record_holds_what_reports_read(smaran_run) -> None:
    folder, record = smaran_run
    assert json.loads((folder / "record.json").read_text()) == record
    assert sorted(path.name for path in folder.iterdir()) == ["history.jsonl", "record.json"]
    assert (record["id"], record["status"], record["error"]) == (spec("smaran").id, "ok", None)
    assert RunSpec.from_dict(record["spec"]) == spec("smaran")
    metrics = record["metrics"]
    for split in ("test", "train", "validation"):
        for key in ("accuracy", "top5", "loss", "map"):
            assert 0 <= metrics[f"{split}_{key}"] and math.isfinite(metrics[f"{split}_{key}"])
    assert metrics["loss_gap"] == metrics["test_loss"] - metrics["train_loss"]
    assert metrics["accuracy_gap"] == metrics["train_accuracy"] - metrics["test_accuracy"]
    assert record["primary"] == {"name": "test_accuracy", "greater_is_better": True}
    assert record["time"]["steps"] == 16
    assert 0 < record["time"]["optimizer_ms_median"] < record["time"]["step_ms_median"]
    assert record["memory"]["parameters"] == 784 * 64 + 64 + 64 * 10 + 10
    assert record["memory"]["peak_rss_bytes"] > 2**20
    assert {"python", "torch", "transformers", "platform", "cpu_count", "hf_optim"} <= set(record["environment"])
    assert record["data"]["name"] == "digits" and "subset" in record["data"]["note"]


def test_the_model_learns(smaran_run) -> None:
    assert smaran_run[1]["metrics"]["test_accuracy"] > 0.5


def test_the_history_has_training_and_evaluation_rows(smaran_run) -> None:
    folder, record = smaran_run
    rows = history(folder)
    trained = [row for row in rows if "train_loss" in row]
    evaluated = [row for row in rows if "validation_loss" in row]
    assert [row["step"] for row in trained] == list(range(1, 17))
    assert [row["step"] for row in evaluated] == [0, 8, 16]
    for row in trained:
        assert {"epoch", "lr", "effective_lr", "grad_norm", "hf_optim_V"} <= set(row)
        assert row["effective_lr"] < row["lr"] == 0.1  # SMARAN divides by the gradient's norm and memory
    assert evaluated[-1]["validation_loss"] == record["metrics"]["validation_loss"]
    assert record["metrics"]["best_validation_accuracy"] == max(row["validation_accuracy"] for row in evaluated)


def test_evaluations_see_every_sample_and_average_exactly(smaran_run) -> None:
    # 500 validation digits are no multiple of a batch: leaving the tail out, or averaging batch averages, shows here.
    folder, _ = smaran_run
    record = train(spec("smaran", size="small", overrides={"steps": 2}), folder.parent / "tail", progress=False)
    assert (record["metrics"]["validation_accuracy"] * 500) % 1 == pytest.approx(0, abs=1e-6)
    assert (record["metrics"]["test_accuracy"] * 1000) % 1 == pytest.approx(0, abs=1e-6)
    assert (record["metrics"]["train_accuracy"] * 3500) % 1 == pytest.approx(0, abs=1e-6)


def seen(monkeypatch, tmp_path, *args, **values) -> tuple[list[list[int]], dict, list[dict]]:
    """The indices of every training batch of a run, its record and its history."""
    batches: list[list[int]] = []
    original = Images.__getitems__

    def recording(self, indices):
        if len(self) == 512 and len(indices) == 64:
            batches.append([int(index) for index in indices])
        return original(self, indices)

    monkeypatch.setattr(Images, "__getitems__", recording)
    record = train(spec(*args, **values), tmp_path / "paired", progress=False)
    monkeypatch.undo()
    assert record["status"] == "ok", record["error"]
    return batches, record, history(tmp_path / "paired")


def test_runs_of_one_seed_are_paired(monkeypatch, tmp_path) -> None:
    adamw, _, first = seen(monkeypatch, tmp_path, "adamw")
    smaran, _, second = seen(monkeypatch, tmp_path, {"name": "tlr", "base": {"name": "sgd", "lr": 0.1}})
    other, _, third = seen(monkeypatch, tmp_path, "adamw", seed=1)
    assert len(adamw) == 16 and adamw == smaran  # the same batches, in the same order
    assert sorted(sum(adamw[:8], [])) == list(range(512)) and adamw[:8] != adamw[8:]  # anew every epoch
    assert first[0] == second[0]  # the same initial weights, evaluated
    assert first[1]["train_loss"] == second[1]["train_loss"] and first[1]["grad_norm"] == second[1]["grad_norm"]
    assert first[2]["train_loss"] != second[2]["train_loss"]
    assert other != adamw and third[0]["validation_loss"] != first[0]["validation_loss"]
    # Another batch size begins with the same weights.
    _, _, fourth = seen(monkeypatch, tmp_path, "adamw", overrides={"batch_size": 32, "steps": 2})
    assert fourth[0] == first[0] and fourth[1]["train_loss"] != first[1]["train_loss"]


def test_accumulation_changes_neither_loss_nor_gradient(tmp_path) -> None:
    rows = []
    for accumulation in (1, 4):
        overrides = {"gradient_accumulation_steps": accumulation, "steps": 3}
        assert train(spec("sgd", overrides=overrides), tmp_path, progress=False)["status"] == "ok"
        rows.append([row for row in history(tmp_path) if "train_loss" in row])
    for single, four in zip(*rows, strict=True):
        assert four["train_loss"] == pytest.approx(single["train_loss"], rel=1e-5)
        assert four["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_models_opt_out_of_loss_scaling(model) -> None:
    task = tasks.load("vision")
    preset = task.preset(model, "smoke")
    assert task.model(model, preset, task.data(preset, None)).accepts_loss_kwargs is False


def test_a_schedule_moves_the_rate_and_clipping_reports_the_norm(tmp_path) -> None:
    values = {"schedule": {"name": "multistep", "at": [0.5]}, "overrides": {"steps": 4, "max_grad_norm": 0.01}}
    record = train(spec({"name": "sgd", "lr": 0.5}, **values), tmp_path, progress=False)
    rows = [row for row in history(tmp_path) if "train_loss" in row]
    assert record["status"] == "ok"
    assert [row["effective_lr"] for row in rows] == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert all(row["grad_norm"] > 0.1 for row in rows)  # before clipping
    assert abs(rows[0]["train_loss"] - rows[3]["train_loss"]) < 0.3


def test_a_schedule_that_the_run_ends_before_is_told_as_it_begins(tmp_path, capsys) -> None:
    values = {"schedule": {"name": "multistep", "at": [600]}, "overrides": {"steps": 2}}
    train(spec({"name": "sgd", "lr": 0.5}, **values), tmp_path)
    assert "warning: the run ends after 2 steps, before its schedule's at 600" in capsys.readouterr().err


def test_divergence_is_a_record_with_its_reason(tmp_path) -> None:
    record = train(spec({"name": "sgd", "lr": 1e30}), tmp_path, progress=False)
    assert record["status"] == "failed" and record["metrics"] == {}
    assert "the train loss is not finite" in record["error"] and "at step" in record["error"]
    assert json.loads((tmp_path / "record.json").read_text()) == record
    assert 0 < record["time"]["steps"] < 8 and history(tmp_path)  # at once, not at the next evaluation


def test_a_crash_is_a_record_and_an_interruption_is_none(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "run"

    def broken(self, indices):
        raise kind("the disk\nis gone")

    monkeypatch.setattr(Images, "__getitems__", broken)
    kind: type[BaseException] = RuntimeError
    record = train(spec(), folder, progress=False)
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: the disk is gone")
    kind = KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(spec(), folder, progress=False)
    assert not (folder / "record.json").exists()  # the older record is gone too: the run is to be made again


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": {"name": "smaran", "gamma": 7}}, "gamma"),
        ({"optimizer": "smarn"}, "smaran"),
        ({"data": "/nowhere"}, "no such file"),
        ({"overrides": {"batch_size": 1024}}, "fewer than one batch"),
        ({"overrides": {"batch_size": 10, "gradient_accumulation_steps": 3}}, "must divide"),
    ],
)
def test_what_is_wrong_from_the_start_leaves_nothing(tmp_path, values, message) -> None:
    with pytest.raises(UserError, match=message):
        train(RunSpec.from_dict({**spec().to_dict(), **values}), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_batch_is_the_whole_steps() -> None:
    preset = tasks.load("vision").preset("mlp", "small")
    numbers = budget(spec(overrides={"gradient_accumulation_steps": 2, "epochs": 3}), preset, 3500, 2)
    assert (numbers.per_device, numbers.steps_per_epoch, numbers.steps, numbers.eval_every) == (16, 54, 162, 54)
    paper = budget(spec(), tasks.load("vision").preset("mlp", "paper"), 55000, 1)
    assert (paper.steps_per_epoch, paper.steps) == (430, 8600)  # the ragged last batch counts


@pytest.mark.parametrize(
    "optimizer", ["smaran", "adan_agr", {"name": "tlr", "base": {"name": "adamw", "lr": 1e-5}}], ids=str
)
def test_a_killed_run_goes_on_bit_identically(tmp_path, optimizer) -> None:
    # Two steps a logged row, and checkpoints at odd steps: the window of a row must not be lost in one.
    chosen = spec(optimizer, schedule={"name": "cosine", "warmup": 0.1}, overrides={"steps": 122})
    whole = train(chosen, tmp_path, progress=False, checkpoint_every=41)
    rows = history(tmp_path)
    assert whole["status"] == "ok" and (tmp_path / "checkpoint-122").is_dir()
    # As if killed while it wrote its second checkpoint: no record, the last one cut short.
    (tmp_path / "record.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-122")
    (tmp_path / "checkpoint-82" / "trainer_state.json").unlink()
    again = train(chosen, tmp_path, progress=False, checkpoint_every=41, resume=True)
    assert again["metrics"] == whole["metrics"] and history(tmp_path) == rows
    with pytest.raises(UserError, match="another run"):
        train(spec(seed=5), tmp_path, progress=False, resume=True)
    started_over = train(chosen, tmp_path, progress=False)
    assert started_over["metrics"] == whole["metrics"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.jsonl", "record.json"]


def test_a_model_that_is_saved_under_other_names_goes_on(tmp_path) -> None:
    chosen = spec({"name": "sgd", "lr": 1.0}, model="vit_b16", overrides={"steps": 2, "eval_every": 1})
    whole = train(chosen, tmp_path, progress=False, checkpoint_every=1)
    assert whole["status"] == "ok", whole["error"]
    (tmp_path / "record.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert train(chosen, tmp_path, progress=False, checkpoint_every=1, resume=True)["metrics"] == whole["metrics"]


def test_a_checkpoint_gives_the_numbers_of_its_record(tmp_path) -> None:
    chosen = spec(model="resnet", overrides={"steps": 3})
    record = train(chosen, tmp_path, progress=False, checkpoint_every=50)
    metrics = evaluate_checkpoint("vision", "resnet", "smoke", tmp_path / "checkpoint-3")
    best = "best_validation_accuracy"  # a checkpoint knows only its own moment
    assert {key: value for key, value in metrics.items() if key != best} == {
        key: value for key, value in record["metrics"].items() if key != best
    }
    with pytest.raises(UserError, match="model 'mlp' is MLP"):
        evaluate_checkpoint("vision", "mlp", "smoke", tmp_path / "checkpoint-3")
    with pytest.raises(UserError, match="no config.json"):
        evaluate_checkpoint("vision", "resnet", "smoke", tmp_path)


def test_ones_own_files_train(tmp_path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in range(3):
        folder = tmp_path / "data" / f"kind{label}"
        folder.mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            pixels[:, :, label] += 120
            Image.fromarray(pixels).save(folder / f"{i}.png")
    own = spec(data=str(tmp_path / "data"), overrides={"batch_size": 8, "epochs": 12})
    record = train(own, tmp_path / "run", progress=False)
    assert record["metrics"]["test_accuracy"] == 1.0 and record["data"]["name"] == "data"


def test_more_processes_than_gpus_is_one_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes on this machine would share 1 GPU: start 1, or hide"):
        train(spec(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="checkpoint_every"):  # goes on to what comes after
        train(spec(), tmp_path / "run", checkpoint_every=0)
