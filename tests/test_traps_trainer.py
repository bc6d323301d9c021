"""Traps in a Trainer: batch sizes that are found, exceptions, policy losses, skipped steps."""

from __future__ import annotations

import inspect

import pytest
import torch
from hub_parts import Honest, Tiny, data, make, rows, weights
from transformers import Trainer, TrainerCallback

import hf_optim
from hf_optim.hub.feed import unwrapped


def _patched(trainer):
    """Our methods that stand on the instances instead of their classes'."""
    return {
        name: value
        for owner in (trainer, trainer.accelerator, trainer.optimizer)
        for name, value in vars(owner).items()
        if name not in ("log", "_load_optimizer_and_scheduler", "_inner_training_loop")  # for the attachment's life
        and inspect.isroutine(value)
        and (value.__module__ or "").startswith("hf_optim")
    }


@pytest.mark.parametrize("name", ["smaran", "sls", "torch.optim:LBFGS"])
def test_nothing_stays_patched_after_an_exception(tmp_path, name):
    class Breaks(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            raise RuntimeError("the disk is full")

    trainer = make(tmp_path, Honest, n=16, gradient_accumulation_steps=2, callbacks=[Breaks()])
    hf_optim.attach(trainer, name)
    with pytest.raises(RuntimeError, match="disk"):
        trainer.train()
    assert not _patched(trainer)


def test_a_failed_attempts_interval_is_forgotten(tmp_path):
    """auto_find_batch_size: the epoch of the batch that did not fit had fewer steps."""

    class Large(Tiny):
        def forward(self, x, labels=None):
            if self.training and len(x) > 4:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
            return super().forward(x, labels)

    trainer = make(tmp_path, Large, n=40, per_device_train_batch_size=8, auto_find_batch_size=True)
    attachment = hf_optim.attach(trainer, "tlr", base={"name": "sgd", "lr": 0.1}, p=0.5)
    trainer.train()
    steps = trainer.state.max_steps
    assert steps >= 10 and attachment.optimizer.param_groups[0]["tlr_interval"] == int(0.5 * steps)


class Policy(Trainer):
    """As GRPO: inputs are made from the model, and the ratio is 1 wherever it is evaluated."""

    def _prepare_inputs(self, inputs):
        return super()._prepare_inputs(inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logp = model(inputs["x"])["logits"].log_softmax(-1)[:, 0]
        advantage = torch.linspace(-1, 1, len(logp))
        return -((logp - logp.detach()).exp() * advantage).mean()


class Divergence(Policy):
    """As GRPO with beta: a divergence from the first policy, zero and flat at first, and far from it later."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logp = model(inputs["x"])["logits"].log_softmax(-1)
        if not hasattr(self, "reference"):
            self.reference = (logp.detach() + self.away).log_softmax(-1)
        divergence = (self.reference.exp() * (self.reference - logp)).sum(-1).mean()
        return super().compute_loss(model, inputs) + 0.04 * divergence

    away = torch.zeros(3)


class Farther(Divergence):
    away = torch.tensor([0.3, 0.0, -0.3])


class PolicyInComputeLoss(Trainer):
    """The same loss in a trainer that takes its inputs as they come."""

    compute_loss = Policy.compute_loss


@pytest.mark.parametrize("name", ["smaran", "sls", "sps"])
@pytest.mark.parametrize("kind", [Policy, Divergence, Farther, PolicyInComputeLoss])
def test_a_policy_loss_is_refused(tmp_path, kind, name):
    trainer = make(tmp_path, trainer=kind, n=8)
    hf_optim.attach(trainer, name)
    before = weights(trainer)
    with pytest.raises(hf_optim.UserError, match="no function of them"):
        trainer.train()
    assert torch.equal(before, weights(trainer))


def test_rules_that_read_no_loss_train_policies_as_stock_does(tmp_path):
    stock = make(tmp_path, trainer=Policy, n=16, learning_rate=1e-2, optim="adamw_torch")
    attached = make(tmp_path, trainer=Policy, n=16, learning_rate=1e-2)
    hf_optim.attach(attached, "adamw")
    stock.train()
    attached.train()
    torch.testing.assert_close(weights(stock), weights(attached), rtol=0, atol=1e-6)


class Made(Trainer):
    """Makes its inputs, and its loss is a function: the check of the first step leaves no trace."""

    def _prepare_inputs(self, inputs):
        return super()._prepare_inputs({**inputs, "x": inputs["x"] * 1.5})


def test_the_check_of_the_first_step_leaves_no_trace(tmp_path):
    trainers = []
    for kind in (Made, Trainer):
        trainer = make(tmp_path, trainer=kind, n=24, dropout=0.2)
        if kind is Trainer:
            trainer.train_dataset = [{**row, "x": row["x"] * 1.5} for row in data(24)]
        hf_optim.attach(trainer, "smaran", lr=0.05)
        trainer.train()
        trainers.append(trainer)
    assert torch.equal(*map(weights, trainers))
    assert [r["loss"] for r in rows(trainers[0])] == [r["loss"] for r in rows(trainers[1])]


@pytest.mark.parametrize("name", ["adamw", "torch.optim:AdamW"])
def test_an_overflow_holds_the_schedule_back(tmp_path, name):
    """Two families under one schedule: a step that moved nothing is none for either."""
    trainer = make(tmp_path, n=16, lr_scheduler_type="linear", learning_rate=0.01)
    trainer.args.logging_nan_inf_filter = False
    trainer.train_dataset[0]["x"] = torch.full((8,), 3e38)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    hf_optim.attach(trainer, name, **({"fused": True} if ":" in name else {}))
    trainer.train()
    assert trainer.lr_scheduler.last_epoch == 3  # of four, one overflowed
    assert unwrapped(trainer.optimizer).param_groups[0]["lr"] == pytest.approx(0.01 * 0.25)
