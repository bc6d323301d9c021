"""What runs cost, said before them; synthetic data of every task; runs that share a GPU; several processes."""

import dataclasses
from pathlib import Path

import pytest
import torch

from hf_optim.commands import study
from hf_optim.commands import train as command
from hf_optim.errors import UserError
from hf_optim.experiment import cards, flops, footprint, forecast
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import check_run, load, names
from hf_optim.study.launch import jobs, launcher

ROOT = Path(__file__).parent.parent
BASE = RunSpec("vision", "mlp", "smoke", {"name": "adamw"})


def test_a_named_card_is_its_stated_operations_times_the_share_that_is_said():
    estimate = forecast.forecast(dataclasses.replace(BASE, size="paper"), cards.find("a100"))
    samples, batch, epochs = 60_000 - 5_000, 128, 20
    steps = epochs * -(-samples // batch)
    each = 2 * (784 * 1000 + 1000 * 10) + 2 * (784 * 1000 + 2 * 1000 * 10)
    assert (estimate.steps, estimate.flops) == (steps, each * batch * steps)
    assert estimate.seconds == steps * cards.LEAST_STEP  # an MLP does not fill it
    weights = 4 * (784 * 1000 + 1000 + 10_000 + 10)
    assert 4 * weights < estimate.memory < 5 * weights + batch * 4 * 2 * (784 + 1000)
    wide = RunSpec("vision", "resnet50@tlr-imagenet", "paper", {"name": "sgd"})
    card = cards.find("H100")
    assert card.operations("bf16") == pytest.approx(cards.UTILISATION * 989e12)
    assert wide.id and cards.find("A100-80GB").gigabytes == 80
    with pytest.raises(UserError, match="T4 does not compute in bf16; it has fp32, fp16"):
        cards.find("t4").operations("bf16")


def test_runs_that_differ_in_their_steps_are_counted_once(monkeypatch):
    counted = []
    monkeypatch.setattr(flops, "pass_cost", lambda *of, plain=flops.pass_cost: counted.append(of) or plain(*of))
    runs = {"a": {"steps": 10}, "b": {"steps": 30, "batch_size": 8}}
    specs = [(label, dataclasses.replace(BASE, overrides=o).to_dict(), 1) for label, o in runs.items()]
    other = dataclasses.replace(BASE, optimizer={"name": "adamw", "lr": 0.5, "weight_decay": 0.1}).to_dict()
    told = forecast.lines([*specs, ("c", other, 1)], cards.find("a100"))
    assert len(counted) == 1 and "10 steps" in told[1] and "30 steps" in told[2] and "16 steps" in told[3]
    other = dataclasses.replace(BASE, optimizer={"name": "sgdm"}).to_dict()
    forecast.lines([*specs, ("d", other, 1)], cards.find("a100"))
    assert len(counted) == 3  # an optimizer keeps memory of its own


def test_what_is_left_when_patience_ends_is_told_by_its_operations(monkeypatch):
    """At the rate of the largest step that was measured; every model is measured once."""
    clock, measured = [0.0], []

    def measure(model, task, data, samples, precision):
        measured.append(samples)
        clock[0] += 0.6 * forecast.PATIENCE
        return 2.0 if samples == 64 else 7.0

    monkeypatch.setattr(forecast, "_measured", measure)
    monkeypatch.setattr(forecast.time, "monotonic", lambda: clock[0])
    batches = {"a": 64, "again": 64, "b": 8, "late": 32}
    specs = [
        (label, dataclasses.replace(BASE, overrides={"steps": 10, "batch_size": batch}).to_dict(), 1)
        for label, batch in batches.items()
    ]
    told = forecast.lines(specs, None)[1:]
    assert measured == [64, 8]
    assert [line.split(", ")[-1] for line in told[:3]] == ["20 s", "20 s", "70 s"]
    assert "10 s, by its operations alone" in told[3]  # half of the largest one's operations
    assert not any("operations alone" in line for line in told[:3])


def test_runs_that_take_a_thread_each_are_measured_so(monkeypatch):
    """Two threads of which another process takes one are hundreds of times slower than one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads, taken = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: taken.append(n))
    monkeypatch.setattr(forecast, "_measured", lambda *given: taken.append("measured") or 1.0)
    spec = dataclasses.replace(BASE, overrides={"steps": 30}).to_dict()
    told = forecast.lines([("a", spec, 4)], None, jobs=3)
    assert taken == [1, "measured", threads]
    assert ", one thread each), by a few steps of each:" in told[0]
    assert told[-1].startswith("  in all 2 min of steps, about 40 s with 3 at a time; starting")
    taken.clear()
    told = forecast.lines([("a", spec, 4)], None)
    assert taken == ["measured"] and "thread" not in told[0]
    assert told[-1].startswith("  in all 2 min of steps, one after the other; starting")
    assert "one after the other" in forecast.lines([("a", spec, 4)], cards.find("a100"), jobs=3)[-1]


def test_a_few_samples_stand_for_a_batch_that_would_take_long(monkeypatch):
    task = load("vision")
    preset = task.preset("mlp", "smoke")
    data = task.synthetic("mlp", preset)
    model, seen = task.model("mlp", preset, data), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(len(given["labels"])), with_kwargs=True)
    monkeypatch.setattr(forecast, "ENOUGH", 1e9)
    forecast._measured(model, task, data, 64, "fp32")
    assert seen == [2] * 4 + [64] * 4
    seen.clear()
    monkeypatch.setattr(forecast, "ENOUGH", 1e-9)
    ticks = iter([5.0, 5.25])
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(ticks))
    assert forecast._measured(model, task, data, 64, "fp32") == 0.25 * 32 and seen == [2]
    seen.clear()
    monkeypatch.setattr(forecast, "ENOUGH", 2.0)
    ticks = iter([t for at in range(4) for t in (at, at + 0.25)] + [t for at in range(4) for t in (at, at + 0.75)])
    assert forecast._measured(model, task, data, 64, "fp32") == 0.75 * 8 and seen == [2] * 4 + [8] * 3


def test_dry_runs_say_it_and_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["--task", "vision", "--size", "smoke"]
    assert command.main([*argv, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("costs here (") and "by a few steps of each" in shown and "FLOPs" in shown
    for wrong in ("abc", "-1"):  # what the run checks
        assert command.main([*argv, "--dry-run", "--optimizer.lr", wrong]) == 2
    assert command.main([*argv, "--dry-run", "--card", "A1000"]) == 2
    assert "'A1000' is not known (did you mean A100 or A10?); known: T4, V100" in capsys.readouterr().err
    assert command.main([*argv, "--card", "A100"]) == 2
    (tmp_path / "s.yaml").write_text(
        "name: s\nseeds: 3\ntasks: [{task: vision, size: smoke, label: M}]\noptimizers: [sgd, adamw]\n"
    )
    assert study.main(["s.yaml", "--dry-run", "--card", "A100", "--precision", "bf16"]) == 0
    shown = capsys.readouterr().out
    assert "costs on A100, at 30% of its peak:" in shown and "M: 6 runs, each 16 steps, 2.1e+08 FLOPs" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.yaml"]


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr(footprint, "available", lambda: 1000)
    assert "more than the 1.2 kB there are" in forecast.lines([("M", BASE.to_dict(), 1)], None)[1]
    auto = dataclasses.replace(BASE, overrides={"gradient_accumulation_steps": "auto"})
    assert (
        "of unknown cost (gradient_accumulation_steps: auto: one sample takes"
        in forecast.lines([("M", auto.to_dict(), 1)], None)[1]
    )


def test_a_model_that_the_machine_cannot_hold_is_not_made(monkeypatch):
    """A few lines of YAML took all memory of whoever looked at their cost."""
    made = []
    task, _, _ = check_run(BASE)
    make = task.model
    monkeypatch.setattr(task, "model", lambda *of: made.append(make(*of)) or made[-1])
    monkeypatch.setattr(footprint, "machine", lambda: 300_000)
    for card, weights in ((None, "407.1 kB"), (cards.find("A100"), "")):
        made.clear()
        told = forecast.lines([("M", BASE.to_dict(), 1)], card)[1]
        assert (f"of unknown cost (to look at it takes {weights}, and" in told) == bool(weights), told
        assert all(p.is_meta for model in made for p in model.parameters()) == bool(weights)


@pytest.mark.parametrize(("task", "model"), [("lm", "gpt2"), ("albert", "albert"), ("translation", "transformer")])
def test_no_text_is_made_up_of_more_words_than_a_model_has(task, model, monkeypatch):
    """A dry run wrote down a billion words, which took all memory."""
    monkeypatch.setattr("hf_optim.tasks.data.blocks.MOST_IDS", 400)
    odd = RunSpec(task, model, "smoke", {"name": "adamw"}, options={"vocabulary": 500})
    assert "vocabulary must be at most 400, got 500" in forecast.lines([("T", odd.to_dict(), 1)], None)[1]


@pytest.mark.parametrize(
    ("task", "model", "options", "said"),
    [
        ("lm", "gpt2", {"n_layer": 1001}, "n_layer: more than 1,000 layers"),
        ("albert", "albert", {"num_hidden_layers": 10**9}, "num_hidden_layers: more than 1,000 layers"),
        ("vision", "resnet18", {"depths": [400, 400, 200, 1]}, "depths: more than 1,000 layers"),
        ("lm", "gpt2", {"block": 10**8}, "a sample of 100,000,000 numbers"),
        ("albert", "albert", {"length": 10**8}, "a sample of 100,000,000 numbers"),
        ("vision", "resnet18", {"image_size": 10**5}, "a sample of "),
    ],
)
def test_what_no_machine_could_look_at_is_a_line_of_its_task_alone(task, model, options, said):
    """A dry run made 300,000 layers, or read over a shared one for ever; a long block took all memory, or the lines of
    all the other tasks.
    """
    odd = RunSpec(task, model, "smoke", {"name": "adamw"}, options=options)
    told = forecast.lines([("odd", odd.to_dict(), 1), ("T", BASE.to_dict(), 1)], None)
    assert f"each of unknown cost ({'options: ' if 'layers' in said else ''}{said}" in told[1] and "FLOPs" in told[2]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_one_task_does_not_get_is_its_own_line(error, monkeypatch):
    def ends(spec, *_):
        raise error

    monkeypatch.setattr(forecast, "forecast", ends)
    assert forecast.lines([("T", BASE.to_dict(), 1)], None)[1].endswith("of unknown cost (there is not enough memory)")
    error.args = ("of another kind",)
    if not isinstance(error, MemoryError):
        with pytest.raises(RuntimeError, match="of another kind"):
            forecast.lines([("T", BASE.to_dict(), 1)], None)


@pytest.mark.parametrize("name", names())
def test_synthetic_data_have_the_form_of_the_real_ones(name):
    """The same columns, types and shapes as the embedded data's, and a bf16 step of a model is finite."""
    task = load(name)
    model = task.models[0]
    preset = task.preset(model, "smoke")
    data = task.synthetic(model, preset)
    if data is None:  # its model is read from a folder, with its tokenizer
        assert name == "finetune"
        return
    network = task.model(model, preset, data)
    batch = flops.probe(data.train, task.collate(data))
    with torch.autocast("cpu", torch.bfloat16):
        loss = flops.loss_of(network.train()(**batch))
    loss.backward()
    assert torch.isfinite(loss) and data.facts["train_samples"] == len(data.train)
    if name in ("vision", "logistic"):
        real = task.data(preset, None)
        theirs = flops.probe(real.train, task.collate(real))
        kinds = [{k: (v.dtype, v.shape[1:]) for k, v in tensors.items()} for tensors in (batch, theirs)]
        assert kinds[0] == kinds[1]


def test_runs_share_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert launcher.default_jobs(1, 3) == 6
    environments = launcher.environments(6)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == ["0", "3"] * 3
    assert {environment[footprint.SHARERS] for environment in environments} == {"3"}
    assert {environment[footprint.SHARERS] for environment in launcher.environments(2)} == {"1"}
    shared = launcher.Execution(6, gpus_per_run=1, jobs_per_gpu=3)
    assert jobs.parameters(jobs.Launch("slurm"), shared)["gpus_per_node"] == 2
    with pytest.raises(UserError, match="1 beside --gpus-per-run"):
        study.main(["quickstart", "--jobs-per-gpu", "2", "--gpus-per-run", "2"])
