"""The command line of one run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_optim.commands import train as task_cli
from hf_optim.errors import UserError
from hf_optim.experiment import training

SCRIPTS = Path(__file__).parent.parent / "scripts"
VISION = ["--task", "vision"]


def parse(*argv: str):
    return task_cli.parse([*VISION, *argv])


def test_nested_values_are_yaml() -> None:
    spec, _ = parse(
        "--optimizer", "tlr", "--optimizer.base", "adamw", "--optimizer.base.lr", "1e-3",
        "--optimizer.base.betas=[0.9, 1e-1]", "--optimizer.gamma", ".5",
        "--schedule", "cosine", "--schedule.warmup", "5",
    )  # fmt: skip
    assert spec.optimizer == {"name": "tlr", "base": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.1]}, "gamma": 0.5}
    assert type(spec.optimizer["base"]["lr"]) is float
    assert spec.schedule == {"name": "cosine", "warmup": 5} and type(spec.schedule["warmup"]) is int
    assert (spec.size, spec.seed, spec.model) == ("small", 0, None)


def test_a_models_values_are_given_with_a_dot(tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("task: vision\nmodel: mlp\noptions: {hidden_size: 32}\n")
    assert task_cli.parse(["--config", str(config)])[0].options == {"hidden_size": 32}
    assert task_cli.parse(["--config", str(config), "--model.hidden_size", "48"])[0].options == {"hidden_size": 48}
    assert parse("--model", "mlp")[0].options == {}
    record = training.train(parse("--size", "smoke", "--steps", "1", "--model.hidden_size", "8")[0], tmp_path / "run")
    assert record["memory"]["parameters"] == 784 * 8 + 8 + 8 * 10 + 10


def test_options_override_the_preset_and_the_config(tmp_path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "task: vision\nmodel: resnet\nseed: 3\noutput: there\n"
        "optimizer: {name: tlr, gamma: 0.3, base: {name: adamw, lr: 1e-3, weight_decay: 0.1}}\n"
        "overrides: {epochs: 3, batch_size: 32}\n"
    )
    spec, run = task_cli.parse(
        ["--config", str(config), "--optimizer.base.lr", "2e-3", "--steps", "7", "--model", "mlp"]
    )
    assert spec.optimizer == {"name": "tlr", "gamma": 0.3, "base": {"name": "adamw", "lr": 2e-3, "weight_decay": 0.1}}
    assert spec.overrides == {"steps": 7, "batch_size": 32}  # steps replace the file's epochs
    assert (spec.model, spec.seed, run["output"]) == ("mlp", 3, "there")
    # Another optimizer does not inherit the file's values.
    spec, _ = task_cli.parse(["--config", str(config), "--optimizer", "adamw"])
    assert spec.optimizer == {"name": "adamw"}
    spec, _ = task_cli.parse(["--config", str(config), "--optimizer.base", "sgd"])
    assert spec.optimizer == {"name": "tlr", "gamma": 0.3, "base": {"name": "sgd"}}


def test_the_preset_brings_an_optimizer() -> None:
    assert parse("--size", "paper")[0].optimizer == {"name": "sgd", "lr": 0.1}
    assert parse("--optimizer.lr", "0.01")[0].optimizer == {"name": "adamw", "lr": 0.01}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimzer", "adamw"], "unrecognized arguments: --optimzer"),
        (["--optimizer", "smarn"], "smaran"),
        (["--optimizer", "smaran", "--optimizer.gama", "1"], "gamma"),
        (["--optimizer.lr"], "--optimizer.lr needs a value"),
        (["--optimizer.lr", "--seed"], "--optimizer.lr needs a value"),
        (["--optimizer..lr", "1"], "between or after the dots"),
        (["--optimizer.betas", "[0.9"], "not a YAML value"),
        (["--schedule.warmup", "3"], "needs a --schedule NAME"),
        (["--seed", "x"], "invalid int value"),
        (["--steps", "3", "--epochs", "1"], "give one of them"),
        (["--model", "vit"], "choose from mlp, resnet"),
        (["--data", "/nowhere"], "no such file or folder: /nowhere"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
        (["--model.hiden_size", "8"], "unknown option 'hiden_size'"),
        (["--report-to", "tensorbord"], "'tensorbord' is no tracker (did you mean tensorboard?); known: "),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(argv, message, capsys, tmp_path) -> None:
    folder = tmp_path / "run"
    assert task_cli.main([*VISION, "--size", "smoke", "--output", str(folder), *argv]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("error: ") and printed.count("\n") == 1
    assert not folder.exists()


def test_a_tracker_gets_the_figures(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = [*VISION, "--size", "smoke", "--steps", "2", "--quiet", "--output", str(tmp_path / "run")]
    assert task_cli.main([*argv, "--report-to", "tensorboard"]) == 0
    (events,) = (tmp_path / "run").rglob("events.out.tfevents*")
    seen = EventAccumulator(str(events.parent))
    seen.Reload()
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    shown = seen.Scalars("eval/measured_loss")[-1]
    assert shown.step == 2 and shown.value == pytest.approx(record["metrics"]["validation_loss"], rel=1e-6)


def test_a_bad_config_is_named_with_its_line(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    for text, message in (
        ("task: vision\nseeds: 3\n", "line 2: unknown key 'seeds' .did you mean seed.*valid keys: task, model"),
        ("task: vision\nseed: [3\n", "line 3: not valid YAML"),
        ("- task\n", "must hold a mapping"),
        ("seed: 1\ntask: vision\nseed: 2\n", "line 3: the key 'seed' is given twice"),
        ("task: vision\noverrides: 3\n", "overrides: expected a mapping"),
        ("task: [vision]\n", "task: expected"),
        ("task: vision\nsize: [small]\n", "no size ['small']"),
        ("task: vision\noutput: 3\n", "output: expected str, got 3"),
        ("size: small\n", "--task is missing"),
        ("task: vision\noutput: runs/mine\noverwrite: true\n", "line 3: overwrite takes away what others have made"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message.replace("[", r"\[")):
            task_cli.parse(["--config", str(file)])
    file.write_text("task: vision\noverwrite: false\n")  # asks for nothing
    assert task_cli.parse(["--config", str(file)])[0].task == "vision"


def test_a_run_from_the_command_line(tmp_path, capsys) -> None:
    folder = tmp_path / "run"
    argv = [*VISION, "--size", "smoke", "--optimizer", "adan_agr", "--steps", "3", "--output", str(folder)]
    assert task_cli.main(argv) == 0
    shown = capsys.readouterr()
    record = json.loads((folder / "record.json").read_text())
    assert f"test_accuracy {record['metrics']['test_accuracy']:.4f}" in shown.out
    assert "step 3/3" in shown.err and record["spec"]["overrides"] == {"steps": 3}
    assert task_cli.main(argv) == 2 and "holds a finished run" in capsys.readouterr().err
    assert task_cli.main([*argv, "--overwrite", "--quiet", "--optimizer", "sgd", "--optimizer.lr", "1e30"]) == 1
    shown = capsys.readouterr()
    assert "failed: " in shown.out and shown.err == ""


@pytest.mark.parametrize("more", [(), ("--resume",)])
@pytest.mark.parametrize("name", ["samples/mine.txt", "checkpoint-500/model.safetensors", "spec.json", "history.jsonl"])
def test_what_no_run_of_ours_left_is_not_removed(tmp_path, capsys, name, more) -> None:
    """`--output .` took away what was called as a part of a run: a Trainer's own checkpoints, a folder `samples`. With
    --resume it begins anew where nothing can be gone on with, and did so still.
    """
    argv = [*VISION, "--size", "smoke", "--steps", "2", "--quiet", "--output", str(tmp_path), *more]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("[1]")
    assert task_cli.main(argv) == 2
    assert f"holds {name.split('/')[0]}, which would be removed" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "[1]" and not (tmp_path / "record.json").exists()
    assert task_cli.main([*argv, "--overwrite"]) == 0


def test_what_lies_after_the_checkpoint_that_it_goes_on_from_is_not_written_over(tmp_path, capsys) -> None:
    argv = [*VISION, "--size", "smoke", "--steps", "4", "--checkpoint-every", "2", "--quiet", "--output", str(tmp_path)]
    assert task_cli.main(argv) == 0
    for name in ("record.json", "spec.json", "history.jsonl", "checkpoint-4/scheduler.pt"):
        (tmp_path / name).unlink()
    (tmp_path / "checkpoint-4" / "mine.txt").write_text("mine")
    assert task_cli.main([*argv, "--resume"]) == 2
    assert "holds checkpoint-4, which would be removed" in capsys.readouterr().err
    (tmp_path / "checkpoint-4").rename(tmp_path / "checkpoint-best")
    assert task_cli.main([*argv, "--resume"]) == 0 and (tmp_path / "checkpoint-best" / "mine.txt").exists()


def test_an_interrupted_run_is_begun_anew_in_its_own_folder(tmp_path, monkeypatch) -> None:
    """What was sampled before it was killed is no stranger's: the folder is called by the run's id."""
    monkeypatch.chdir(tmp_path)
    argv = [*VISION, "--size", "smoke", "--steps", "2", "--quiet"]
    spec, _ = task_cli.parse(argv)
    left = tmp_path / "runs" / spec.id / "samples" / "step-1" / "0.png"
    left.parent.mkdir(parents=True)
    left.write_text("half")
    assert task_cli.main(argv) == 0 and not left.exists()


def test_checkpoints_of_a_run_that_is_not_finished_are_not_removed_unasked(tmp_path, capsys) -> None:
    """The command once more without --resume, or with --resume and another setting, took hours of training away."""
    argv = [*VISION, "--size", "smoke", "--steps", "4", "--checkpoint-every", "2", "--quiet", "--output", str(tmp_path)]
    assert task_cli.main(argv) == 0
    (tmp_path / "record.json").unlink()
    (tmp_path / "checkpoint-4" / "scheduler.pt").unlink()
    (tmp_path / "checkpoint-2" / "scheduler.pt").unlink()  # none that can be gone on with
    for more, why in (
        ([], "of this run, which is not finished: --resume goes on"),
        (["--seed", "7"], "of another run"),
        (["--resume", "--seed", "7"], "of another run"),
    ):
        assert task_cli.main([*argv, *more]) == 2 and why in capsys.readouterr().err
        assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    assert task_cli.main([*argv, "--resume"]) == 2 and "cannot go on from and would remove" in capsys.readouterr().err
    assert task_cli.main([*argv, "--resume", "--overwrite"]) == 0  # begun anew


def test_help_and_errors_load_no_framework() -> None:
    code = (
        "import sys; sys.argv[0] = 'train.py'; from hf_optim.commands import train as task_cli\n"
        "assert task_cli.main(['--task', 'vision', '--optimizer', 'smarn']) == 2\n"
        "try: task_cli.main(['--help'])\nexcept SystemExit as leave: assert leave.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "--optimizer.base.lr 1e-3" in done.stdout and "--checkpoint-every" in done.stdout
