"""Precision, compiled models, readers, accumulation that fits, and what a run says of its speed and cost."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_optim.commands import overrides
from hf_optim.commands.train import parse
from hf_optim.errors import UserError
from hf_optim.experiment import flops, footprint, precision
from hf_optim.experiment.flops import cost, pass_cost
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import load
from hf_optim.experiment.training import train
from hf_optim.study.plan.plan import expand
from hf_optim.study.plan.source import parse as read_yaml

BASE = RunSpec(task="vision", model="mlp", size="smoke", optimizer={"name": "adamw"}, overrides={"steps": 3})


def spec(**changes) -> RunSpec:
    return dataclasses.replace(BASE, overrides={**BASE.overrides, **changes})


def history(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_what_changes_numbers_is_part_of_a_run_and_what_does_not_is_not():
    assert spec(workers=4).id == BASE.id and spec(workers=4).to_dict() != BASE.to_dict()
    others = [spec(precision="bf16"), spec(compile_model=True), spec(gradient_accumulation_steps="auto")]
    assert len({BASE.id, *(spec.id for spec in others)}) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "int8"}, "precision must be fp32, tf32, bf16 or fp16, got 'int8'"),
        ({"compile_model": 1}, "compile_model must be true or false"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"gradient_accumulation_steps": "some"}, "gradient_accumulation_steps must be a number"),
    ],
)
def test_wrong_values_are_one_line(given, message):
    with pytest.raises(UserError, match=message):
        spec(**given)


@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_what_the_machine_cannot_compute_in_is_refused_before_anything_is_written(name, tmp_path):
    with pytest.raises(UserError, match=f"precision: {name} needs .*GPU.*: take"):
        train(spec(precision=name), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_run_in_bf16_computes_in_it_and_trains_float32_weights(tmp_path, monkeypatch):
    seen = set()
    inner = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *a: (y := inner(*a), seen.add(y.dtype))[0])
    record = train(spec(precision="bf16"), tmp_path, progress=False, checkpoint_every=3)
    assert seen == {torch.bfloat16, torch.float32}  # the latter where the pass is counted
    assert record["execution"]["precision"] == "bf16"
    assert (record["time"]["forward_passes"], record["time"]["backward_passes"]) == (3, 3)
    from safetensors.torch import load_file

    assert {w.dtype for w in load_file(tmp_path / "checkpoint-3" / "model.safetensors").values()} == {torch.float32}


def test_products_are_set_for_the_run_and_put_back():
    place = torch.backends.cuda.matmul
    name, exact, rounded = precision._settings()[0][1:]
    before = getattr(place, name)
    for chosen, value in (("tf32", rounded), ("fp32", exact), ("bf16", exact)):
        with pytest.raises(KeyError), precision.products(chosen):
            assert getattr(place, name) == value
            raise KeyError
        assert getattr(place, name) == before


def test_the_history_says_the_operations_and_the_record_the_machine(tmp_path):
    record = train(BASE, tmp_path, progress=False)
    batch, wide, hidden, classes = 64, 784, 64, 10
    forward = 2 * (wide * hidden + hidden * classes)
    backward = 2 * (wide * hidden + 2 * hidden * classes)  # no gradient of the images
    assert record["time"]["flops_per_step"] == batch * (forward + backward)
    rows = history(tmp_path)
    assert [row["flops"] for row in rows if row["step"]] == [
        row["step"] * batch * (forward + backward) for row in rows if row["step"]
    ]
    seconds = 3 * batch / record["time"]["samples_per_second"]
    assert seconds == pytest.approx(record["time"]["train_seconds"], abs=6e-4)  # which has three decimals
    assert record["time"]["tokens_per_second"] is None and record["memory"]["peak_card_bytes"] is None
    assert record["environment"]["cpu"] and record["environment"]["card"] is None


def test_a_line_search_pays_for_its_forward_passes(tmp_path):
    train(dataclasses.replace(BASE, optimizer={"name": "sls"}), tmp_path, progress=False)
    last = history(tmp_path)[-1]
    forward, backward = 2 * (784 * 64 + 640), 2 * (784 * 64 + 1280)
    assert last["forward_passes"] > last["backward_passes"] == 3
    assert last["flops"] == 64 * (last["forward_passes"] * forward + 3 * backward)


def test_attention_and_recurrent_products_are_counted():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    class Sum(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            out = self.inner(x)
            return {"loss": (out[0] if isinstance(out, tuple) else out).sum()}

    x = {"x": torch.randn(2, 5, 8)}
    lstm = Sum(torch.nn.LSTM(8, 4, batch_first=True))
    state = torch.get_rng_state()
    assert pass_cost(Sum(layer), x).forward == 2 * 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16) + 2 * 2 * 5 * 5 * 8
    assert pass_cost(lstm, x).forward == 2 * 5 * 4 * 4 * (8 + 4)
    assert torch.equal(torch.get_rng_state(), state) and torch.backends.mkldnn.enabled
    assert (
        cost(torch.nn.Linear(8, 2), [x] * 2, lambda rows: rows[0]) is None
    )  # does not take the batch: not known, and no failure


class Looks(torch.nn.Module):
    """A pass that depends on its numbers."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def forward(self, x):
        return {"loss": self.layer(x[x[:, 0] > x.mean()]).sum()}


@pytest.mark.parametrize("computed_in", ["fp32", "bf16"])
def test_a_pass_that_is_imagined_counts_what_the_real_one_does(computed_in, monkeypatch):
    task = load("lm")
    preset = task.with_options("llama", task.preset("llama", "smoke"), {"tie_word_embeddings": True})
    data = task.synthetic("llama", preset)
    model = task.model("llama", preset, data).eval()
    batch = flops.probe(data.train, task.collate(data))
    looks, x = Looks(), {"x": torch.randn(6, 8)}

    def counted():
        cases = (model, batch), (looks, x)
        costs = [pass_cost(*case) for case in cases]
        kept = [footprint.estimate(case[0], 2, case[1], computed_in) for case in cases]
        return costs, [k.fixed for k in kept], [k.sample for k in kept]

    real, state = counted(), torch.get_rng_state()
    monkeypatch.setattr(flops, "LARGE", 0)
    passes = []
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, given: passes.append(type(given[0]).__name__))
    costs, fixed, sample = counted()
    assert (costs, fixed) == real[:2] and passes == ["FakeTensor"] * 2
    assert sample == pytest.approx(real[2], rel=0.05)  # layers that share a mask are imagined to have one each
    assert torch.equal(torch.get_rng_state(), state) and not model.training
    assert all(type(p) is torch.nn.Parameter and p.grad is None for p in model.parameters())


def test_accumulation_is_as_little_as_fits(tmp_path, monkeypatch):
    needs = footprint.Footprint(fixed=1000, sample=10)
    assert [needs.parts(64, available) for available in (1640, 1639, 1320, 1010)] == [1, 2, 2, 64]
    with pytest.raises(UserError, match="one sample takes about 1.0 kB, and there are 1.0 kB"):
        needs.parts(64, 1000)
    whole = train(BASE, tmp_path / "whole", progress=False)
    measure = footprint.measure

    def measured(*args):
        seen = measure(*args)
        weights = 4 * (784 * 64 + 64 + 640 + 10)
        assert seen.fixed in (4 * weights, 5 * weights)  # with gradients and Adam's averages, and room for amsgrad's
        assert 4 * (784 + 64) <= seen.sample <= 2 * 4 * (784 + 64)  # the images and the hidden layer
        monkeypatch.setattr(footprint, "available", lambda: seen.of(33))
        return seen

    monkeypatch.setattr(footprint, "measure", measured)
    parts = train(spec(gradient_accumulation_steps="auto"), tmp_path / "parts", progress=False)
    assert parts["execution"]["gradient_accumulation_steps"] == 2
    assert parts["execution"]["samples_at_a_time"] == 32
    assert parts["time"]["flops_per_step"] == whole["time"]["flops_per_step"]
    assert parts["metrics"]["test_loss"] == pytest.approx(whole["metrics"]["test_loss"], rel=1e-5)


def test_readers_change_no_number(tmp_path):
    spec = dataclasses.replace(
        BASE, model="resnet", options={"augment": {"crop": 3, "flip": True}}, overrides={"epochs": 2}
    )
    alone = train(spec, tmp_path / "alone", progress=False)
    read = train(dataclasses.replace(spec, overrides={"epochs": 2, "workers": 1}), tmp_path / "read", progress=False)
    assert read["metrics"] == alone["metrics"] and read["execution"]["workers"] == 1 and read["id"] == alone["id"]


def test_the_options_reach_every_run_of_a_study():
    words = ["--precision", "bf16", "--compile-model", "--workers", "2", "--gradient-accumulation-steps", "auto"]
    asked = {"precision": "bf16", "compile_model": True, "workers": 2, "gradient_accumulation_steps": "auto"}
    from hf_optim.commands.study import _parser

    assert overrides.given(_parser().parse_args(["quickstart", *words])) == asked
    spec, _ = parse(["--task", "vision", *words])
    assert spec.overrides == asked
    source = read_yaml(
        "{name: a, seeds: 2, tasks: [{task: vision, size: smoke, overrides: {precision: fp16, epochs: 1}}],"
        " optimizers: [sgd]}",
        "a.yaml",
    )
    assert {json.dumps(run.spec["overrides"], sort_keys=True) for run in expand(source, overrides=asked).runs} == {
        json.dumps({**asked, "epochs": 1}, sort_keys=True)
    }


def test_a_compiled_model_counts_its_passes_as_a_plain_one(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda model, **how: (compiled.append(how["backend"]), model)[1])
    record = train(spec(compile_model=True), tmp_path, progress=False)
    assert compiled == ["inductor"] and record["execution"]["compile_model"]
    assert (record["time"]["forward_passes"], record["time"]["backward_passes"]) == (3, 3)


def test_a_study_whose_runs_read_ahead_ends(tmp_path: Path) -> None:
    """Its worker waited in sys.stdin, whose lock the process that was to read data ahead waited for without end."""
    (tmp_path / "s.yaml").write_text(
        "name: s\nseeds: 1\noptimizers: [sgd]\n"
        "tasks: [{task: logistic, size: smoke, overrides: {steps: 4, workers: 1}}]\n"
    )
    words = [sys.executable, "-P", "-m", "hf_optim", "study", "s.yaml", "--jobs", "1"]
    assert subprocess.run(words, cwd=tmp_path, timeout=300, check=False, capture_output=True).returncode == 0
