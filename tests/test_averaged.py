"""Schedule-Free: what the parameters hold while training, evaluating and in what is saved, whoever does it."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import problems
import pytest
import torch
from hub_parts import Tiny, make, rows, weights
from safetensors.torch import load_file
from twins import run

import hf_optim
from hf_optim.errors import UserError
from hf_optim.experiment.evaluation import evaluate_checkpoint
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.training import train

NAMES = ["schedule_free_adamw", "schedule_free_sgd"]
STEPS = 9


class Walk:
    """One of ours on the network of the twins' tests."""

    def __init__(self, name: str, **hyper) -> None:
        self.problem = problems.tanh()
        self.params = self.problem.parameters()
        self.opt = hf_optim.create(name, self.params, lr=0.05, **hyper)

    def go(self, first: int, last: int) -> Walk:
        for t in range(first, last + 1):
            self.opt.zero_grad()
            self.problem.torch(self.params, t).backward()
            self.opt.step()
        return self

    def values(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.params]


def reload(state: dict) -> dict:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("hyper", [{}, {"warmup_steps": 4, "r": 1.0, "weight_decay": 0.1}])
@pytest.mark.parametrize("name", NAMES)
def test_eval_shows_the_average_that_a_plain_loop_keeps(name, hyper):
    walk = Walk(name, **hyper)
    expected = run(name, walk.problem.start, walk.problem.numpy, STEPS, lr=0.05, **hyper)
    for t, (y, extra) in enumerate(expected, 1):
        walk.go(t, t)
        walk.opt.eval()
        for point, wanted in zip(walk.values(), extra["average"], strict=True):
            np.testing.assert_allclose(point.numpy(), wanted, rtol=0, atol=1e-11)
        walk.opt.train()
        for point, wanted in zip(walk.values(), y, strict=True):
            np.testing.assert_allclose(point.numpy(), wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_leaves_no_trace(name):
    plain, looked = Walk(name).go(1, STEPS), Walk(name)
    for t in range(1, STEPS + 1):
        looked.go(t, t)
        before = looked.values()
        for _ in range(2):
            looked.opt.eval()
        assert t == 1 or not equal(before, looked.values())
        for _ in range(2):
            looked.opt.train()
        assert equal(before, looked.values())
    assert equal(plain.values(), looked.values())
    assert all(set(s) <= {"step", "z", "v"} for s in looked.opt.state.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_step_at_the_average_is_refused(name):
    walk = Walk(name).go(1, 2)
    walk.opt.eval()
    before = walk.values()
    with pytest.raises(UserError, match=r"call optimizer.train\(\)"):
        walk.opt.step()
    assert equal(before, walk.values())


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_say_what_the_parameters_hold_and_resume_to_the_bit(name, average):
    whole, half = Walk(name).go(1, STEPS), Walk(name).go(1, 4)
    if average:
        half.opt.eval()
    state, held = reload(half.opt.state_dict()), half.values()
    assert [group["holds_average"] for group in state["param_groups"]] == [average]
    other = Walk(name)
    for p, value in zip(other.params, held, strict=True):
        p.data.copy_(value)
    other.opt.load_state_dict(state)
    for again in (other, copy.deepcopy(half)):
        assert equal(again.values(), held)
        again.opt.train()
        assert equal(again.go(5, STEPS).values(), whole.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_stops_the_average_too(name):
    walk = Walk(name).go(1, 4)
    walk.opt.param_groups[0]["lr"] = 0.0
    before = walk.values()
    assert equal(before, walk.go(5, 6).values())


def test_bfloat16_parameters_are_averaged_in_float32():
    p = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    opt = hf_optim.create("schedule_free_sgd", [p], lr=1e-3, state_dtype="bf16")
    for _ in range(50):
        p.grad = torch.ones_like(p)
        opt.step()
    assert opt.state[p]["z"].dtype is torch.float32
    torch.testing.assert_close(opt.state[p]["z"], torch.full((64,), 0.95))


def test_wrappers_pass_the_modes_on():
    p = torch.nn.Parameter(torch.ones(3))
    base = hf_optim.create("schedule_free_sgd", [p], lr=0.1)
    wrapped = hf_optim.create("lookahead", None, base=hf_optim.create("tlr", None, base=base, interval=2), k=2)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        wrapped.step()
    before = p.detach().clone()
    wrapped.eval()
    assert base.param_groups[0]["holds_average"] and not torch.equal(before, p)
    wrapped.train()
    assert torch.equal(before, p)
    hf_optim.create("lookahead", [p], base="sgd").eval()  # nothing to tell


# --- in a Trainer ----------------------------------------------------------------------------------------------------

FOREIGN = "schedulefree:AdamWScheduleFree"


def trained(folder: Path, name: str, resume: str | None = None, **arguments):
    arguments = {"save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 3, **arguments}
    trainer = make(folder, Tiny, **arguments)
    attachment = hf_optim.attach(trainer, name, lr=0.02)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, attachment


def average_in(folder: Path) -> torch.Tensor:
    """x from the optimizer's file alone: the average that a Schedule-Free step keeps of z and y."""
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    beta = state["param_groups"][0]["betas"][0]
    return torch.cat(
        [(s["y"] + (1 - 1 / beta) * (s["z"] - s["y"])).flatten() for _, s in sorted(state["state"].items())]
    )


def in_order(attachment, tensors) -> torch.Tensor:
    """Tensors by name, in the optimizer's order."""
    names = {p: n for n, p in attachment.trainer.model.named_parameters()}
    return torch.cat([tensors[names[p]].flatten() for g in attachment.optimizer.param_groups for p in g["params"]])


def held(attachment) -> torch.Tensor:
    """What the parameters hold."""
    return in_order(attachment, {n: p.detach() for n, p in attachment.trainer.model.named_parameters()})


def saved(folder: Path, attachment) -> torch.Tensor:
    """What a checkpoint's model holds."""
    return in_order(attachment, load_file(folder / "model.safetensors"))


def test_what_trainer_evaluates_and_saves_is_the_average(tmp_path):
    trainer, attachment = trained(tmp_path, "schedule_free_adamw")
    for step in (4, 8, 11):
        torch.testing.assert_close(saved(tmp_path / f"checkpoint-{step}", attachment),
                                   average_in(tmp_path / f"checkpoint-{step}"))  # fmt: skip
        assert json.loads((tmp_path / f"checkpoint-{step}" / "hf_optim.json").read_text())["weights"] == "average"
    assert attachment.optimizer.param_groups[0]["holds_average"]
    model = copy.deepcopy(trainer.model)
    model.load_state_dict(load_file(tmp_path / "checkpoint-11" / "model.safetensors"))
    batch = {k: torch.stack([row[k] for row in trainer.eval_dataset]) for k in ("x", "labels")}
    last = rows(trainer, "eval_loss")[-1]
    assert (last["step"], last["eval_loss"]) == (11, pytest.approx(float(model.eval()(**batch)["loss"]), rel=1e-6))
    trainer.save_model(str(tmp_path / "end"))
    assert torch.equal(saved(tmp_path / "end", attachment), saved(tmp_path / "checkpoint-11", attachment))
    attachment.optimizer.train()
    assert not torch.equal(saved(tmp_path / "end", attachment), held(attachment))


def test_evaluations_in_trainer_change_nothing_and_resumed_runs_are_the_same(tmp_path):
    whole, first = trained(tmp_path / "a", "schedule_free_adamw")
    never, second = trained(tmp_path / "b", "schedule_free_adamw", eval_strategy="no", save_strategy="no")
    resumed, third = trained(tmp_path / "a", "schedule_free_adamw", resume=str(tmp_path / "a" / "checkpoint-4"))
    assert torch.equal(weights(whole), weights(never)) and torch.equal(weights(whole), weights(resumed))
    for attachment in (first, second, third):
        attachment.optimizer.train()
    assert torch.equal(weights(whole), weights(never)) and torch.equal(weights(whole), weights(resumed))


def test_the_best_model_is_not_averaged_twice(tmp_path):
    same = {"load_best_model_at_end": True, "save_steps": 2, "eval_steps": 2, "metric_for_best_model": "loss"}
    trainer, attachment = trained(tmp_path, "schedule_free_adamw", **same)
    best = Path(trainer.state.best_model_checkpoint)
    assert torch.equal(saved(best, attachment), held(attachment))


def test_a_foreign_schedule_free_is_switched_too(tmp_path):
    schedulefree = pytest.importorskip("schedulefree")
    _, ours = trained(tmp_path / "ours", "schedule_free_adamw", eval_strategy="no")
    _, theirs = trained(tmp_path / "theirs", FOREIGN, eval_strategy="no")
    assert isinstance(theirs.optimizer, schedulefree.AdamWScheduleFree)
    for step in ("checkpoint-4", "checkpoint-11"):
        a, b = (saved(tmp_path / who / step, t) for who, t in (("ours", ours), ("theirs", theirs)))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    about = json.loads((tmp_path / "theirs" / "checkpoint-4" / "hf_optim.json").read_text())
    assert about["weights"] == "average"


def test_a_session_evaluates_and_saves_the_average(tmp_path):
    from accelerate import Accelerator
    from accelerate.state import GradientState

    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model, optimizer = torch.nn.Linear(4, 2), None
    optimizer = hf_optim.create("schedule_free_sgd", model, lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    session = hf_optim.Session(accelerator, optimizer)
    x = torch.randn(6, 4)

    def steps(n: int) -> torch.Tensor:
        for _ in range(n):
            session.loss(lambda: (model(x) - 1).square().mean())
            session.step()
        return weights(model)

    y = steps(3)
    with session.evaluation():
        average = weights(model)
    assert not torch.equal(average, y) and torch.equal(weights(model), y)
    accelerator.save_state(str(tmp_path))
    stored = load_file(tmp_path / "model.safetensors")
    assert torch.equal(torch.cat([stored[n].flatten() for n, _ in model.named_parameters()]).double(), average)
    end = steps(2)
    accelerator.load_state(str(tmp_path))
    assert torch.equal(weights(model), average)
    assert torch.equal(steps(2), end)
    session.close()


def test_a_runs_record_judges_the_average(tmp_path):
    """The figures of the saved model are those of the record; at y they are others."""
    spec = RunSpec.from_dict({"task": "vision", "model": "mlp", "size": "smoke",
                              "optimizer": {"name": "schedule_free_adamw", "lr": 0.01}})  # fmt: skip
    record = train(spec, tmp_path, progress=False, checkpoint_every=8)
    again = evaluate_checkpoint("vision", "mlp", "smoke", tmp_path / "checkpoint-16")
    for key in ("validation_loss", "test_loss", "test_accuracy", "parameter_norm"):
        assert record["metrics"][key] == again[key]
    size = record["memory"]["parameters"]
    assert 8 * size <= record["memory"]["optimizer_state_bytes"] < 9 * size  # z and v, not what evaluating keeps
