"""`hf-optim evaluate`: checkpoints of several tasks in one table, with the numbers of their records."""

import csv
import dataclasses
import json
import shutil
import subprocess

import pytest
import torch
import transformers

from hf_optim.commands import evaluate
from hf_optim.errors import UserError
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train

RUNS = {
    "vision": RunSpec("vision", "mlp", "smoke", {"name": "adamw"}, overrides={"steps": 3, "precision": "bf16"}),
    "bootstrap": RunSpec("logistic", "softmax", "smoke", {"name": "adamw"}, overrides={"steps": 3, "split_seed": 4}),
    "adapters": RunSpec("finetune", "lora", "smoke", {"name": "adamw"}, overrides={"steps": 3}),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    records = {name: train(s, folder / name, progress=False, checkpoint_every=3) for name, s in RUNS.items()}
    assert all(record["status"] == "ok" for record in records.values())
    return folder, records


def test_runs_of_several_tasks_give_the_numbers_of_their_records(runs, tmp_path, capsys):
    folder, records = runs
    file = tmp_path / "all.csv"
    places = [str(folder / "vision"), str(folder / "bootstrap" / "checkpoint-3"), str(folder / "adapters")]
    assert evaluate.main([*places, "--export", str(file), "--columns", "*"]) == 0
    capsys.readouterr()
    rows = list(csv.DictReader(file.open()))
    assert [(row["task"], row["precision"]) for row in rows] == [
        ("vision", "bf16"),
        ("logistic", "fp32"),
        ("finetune", "fp32"),
    ]
    for row, record in zip(rows, records.values(), strict=True):
        assert row["data"] == record["data"]["name"] and int(row["test_samples"]) == record["data"]["test_samples"]
        for key, value in record["metrics"].items():
            if not key.startswith("best_"):
                assert float(row[key]) == pytest.approx(value, rel=1e-11), key  # a CSV has twelve digits
    assert evaluate.main(places) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4 and "test_excess" in shown[0] and "train_loss" not in shown[0]


def test_the_numbers_are_equal_to_the_bit_and_another_precision_gives_others(runs):
    from hf_optim.experiment.evaluation import evaluate as measure

    folder, records = runs
    for name, spec in RUNS.items():
        metrics = measure(spec, folder / name / "checkpoint-3").metrics
        expected = {k: v for k, v in records[name]["metrics"].items() if not k.startswith("best_")}
        assert {k: v for k, v in metrics.items() if not k.startswith("best_")} == expected
    plain = dataclasses.replace(RUNS["vision"], overrides={"precision": "fp32"})
    other = measure(plain, folder / "vision" / "checkpoint-3").metrics
    assert other["test_loss"] != records["vision"]["metrics"]["test_loss"]
    assert other["test_loss"] == pytest.approx(records["vision"]["metrics"]["test_loss"], rel=0.01)


def test_a_checkpoint_of_somebody_else(tmp_path, capsys):
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        num_labels=9,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    argv = [str(tmp_path / "theirs"), "--task", "vision", "--model", "vit_b16", "--size", "smoke"]
    assert evaluate.main([*argv, "--columns", "test_accuracy,test_loss", "--export", str(tmp_path / "x.csv")]) == 0
    from hf_optim.experiment.task import load

    task = load("vision")
    test = task.data(task.preset("vit_b16", "smoke"), None).test
    batch = test.__getitems__(range(len(test)))
    with torch.no_grad():
        right = model(batch["pixel_values"]).logits.argmax(-1) == batch["labels"]
    (row,) = csv.DictReader((tmp_path / "x.csv").open())
    assert float(row["test_accuracy"]) == pytest.approx(float(right.double().mean()))
    with pytest.raises(UserError, match="ViTForImageClassification, but model 'mlp'"):
        evaluate.main([*argv[:3], "--model", "mlp", "--size", "smoke"])
    with pytest.raises(UserError, match="--task, --model, --size"):
        evaluate.main(argv[:1])


def test_mistakes_are_one_line_and_code_of_others_is_not_run(runs, tmp_path):
    folder, _ = runs
    with pytest.raises(UserError, match="holds no checkpoint: give one, or train with --checkpoint-every"):
        evaluate.main([str(tmp_path)])
    with pytest.raises(UserError, match="give its --task, too"):
        evaluate.main([str(folder / "vision"), "--model", "mlp"])
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')\n")
    (tmp_path / "checkpoint-3").symlink_to(folder / "vision" / "checkpoint-3")
    spec = {**RUNS["vision"].to_dict(), "task": f"{tmp_path / 'mine.py'}:TASK"}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="only a spec.json says that it is to be run"):
        evaluate.main([str(tmp_path / "checkpoint-3")])


def test_of_several_one_that_cannot_be_evaluated_is_a_line_and_the_rest_is_a_table(runs, tmp_path, capsys):
    folder, _ = runs
    damaged, file = tmp_path / "damaged", tmp_path / "all.csv"
    shutil.copytree(folder / "bootstrap", damaged)
    (damaged / "spec.json").write_text('{"task": "\\u001b[31mlogistic"}')
    places = [str(damaged), str(folder / "bootstrap")]
    assert evaluate.main([*places, "--export", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {damaged}: ") and said.count("\n") == 1 and "\x1b" not in said
    assert [row["checkpoint"] for row in csv.DictReader(file.open())] == [str(folder / "bootstrap" / "checkpoint-3")]
    assert evaluate.main([str(damaged), str(damaged)]) == 2 and capsys.readouterr().out == ""


def test_a_last_checkpoint_that_is_damaged_is_passed_over_in_words(runs, tmp_path, capsys):
    """The one before it was evaluated in its place, unsaid, or there was none."""
    folder, _ = runs
    shutil.copytree(folder / "bootstrap", run := tmp_path / "run")
    shutil.copytree(run / "checkpoint-3", run / "checkpoint-11")
    assert evaluate.main([str(run)]) == 0
    out, err = capsys.readouterr()
    assert "checkpoint-3" in out
    assert err == f"{run}: checkpoint-3 is taken, and not checkpoint-11: cut short or damaged\n"
    (run / "checkpoint-3" / "trainer_state.json").write_text("null")
    with pytest.raises(UserError, match=r"no checkpoint that is whole \(checkpoint-3, checkpoint-11: cut short or"):
        evaluate.main([str(run)])


def test_folders_without_end_below_a_checkpoint_are_one_line(runs, tmp_path):
    """A thousand of them were a RecursionError of `os.walk`, which before Python 3.12 calls itself for each."""
    folder, _ = runs
    shutil.copytree(folder / "bootstrap", tmp_path / "run")
    subprocess.run(["mkdir", "-p", tmp_path / "run" / "checkpoint-3" / "/".join("d" * 1000)], check=True)
    try:
        with pytest.raises(UserError, match="checkpoint-3 holds folders more than 40 deep"):
            evaluate.main([str(tmp_path / "run")])
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "run"], check=True)  # pytest's own clean-up calls itself, too
