"""Optimizers reach a trainer as names, classes, instances, factories and import paths, and always train alike."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from hub_parts import Tiny, TinyConfig, make, weights

import hf_optim
from hf_optim.hub.feed import unwrapped


class Foreign(torch.optim.Optimizer):
    """Gradient descent with decoupled decay, by somebody else."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


def make_foreign(groups, lr=0.1, weight_decay=0.0):
    return Foreign(groups, lr, weight_decay)


def make_from_model(model, lr=0.1, weight_decay=0.0):
    decayed = [p for n, p in model.named_parameters() if n in ("first.weight", "last.weight")]
    plain = [p for n, p in model.named_parameters() if n not in ("first.weight", "last.weight")]
    return Foreign([{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr, weight_decay)


def by_hand(trainer):
    """The same steps in plain torch over the batches that the trainer's model has seen."""
    model = Tiny(TinyConfig())
    torch.manual_seed(0)
    from transformers import set_seed

    set_seed(0)
    model = Tiny(TinyConfig())
    for x, y in trainer.model.seen:
        model.zero_grad()
        model(x, y)["loss"].backward()
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.mul_(1 - 0.05 * (0.2 if n in ("first.weight", "last.weight") else 0.0)).sub_(0.05 * p.grad)
    return weights(model)


@pytest.mark.parametrize(
    "door",
    [Foreign, make_foreign, make_from_model, f"{Path(__file__)}:Foreign", f"{Path(__file__)}:make_from_model"],
    ids=["class", "factory of groups", "factory of a model", "path of a class", "path of a factory"],
)
def test_every_door_trains_as_by_hand(tmp_path, door):
    trainer = make(tmp_path, n=24)
    attachment = hf_optim.attach(trainer, door, lr=0.05, weight_decay=0.2)
    trainer.train()
    torch.testing.assert_close(weights(trainer), by_hand(trainer), rtol=0, atol=1e-6)
    assert attachment.name.endswith(("Foreign", "make_foreign", "make_from_model"))


def test_an_instance_over_the_trainers_model(tmp_path):
    trainer = make(tmp_path, n=24)
    mine = hf_optim.create(Foreign, trainer.model, lr=0.05, weight_decay=0.2)
    hf_optim.attach(trainer, mine)
    trainer.train()
    assert unwrapped(trainer.optimizer) is mine
    torch.testing.assert_close(weights(trainer), by_hand(trainer), rtol=0, atol=1e-6)


@pytest.mark.parametrize("door", ["factory", "wrapper", "partial"])
def test_a_class_goes_wherever_a_name_goes(tmp_path, door):
    hyper = {"lr": 0.05, "weight_decay": 0.2}
    given = hf_optim.factory(Foreign, **hyper) if door == "factory" else None
    trainer = make(tmp_path, n=24, optimizer_cls_and_kwargs=given)
    if door == "wrapper":  # that does nothing within this run
        hf_optim.attach(trainer, "lookahead", base={"name": Foreign, **hyper}, k=1000)
    elif door == "partial":
        hf_optim.attach(trainer, functools.partial(Foreign, **hyper), lr=0.05)
    trainer.train()
    torch.testing.assert_close(weights(trainer), by_hand(trainer), rtol=0, atol=1e-6)
    with pytest.raises(hf_optim.UserError, match="an instance over one model"):
        hf_optim.factory(trainer.optimizer.optimizer)


def test_a_class_of_this_library_is_its_name(tmp_path):
    by_name, by_class = make(tmp_path, n=16), make(tmp_path, n=16)
    hf_optim.attach(by_name, "smaran", gamma=0.8)
    hf_optim.attach(by_class, hf_optim.SMARAN, gamma=0.8)
    by_name.train()
    by_class.train()
    assert torch.equal(weights(by_name), weights(by_class))
    with pytest.raises(hf_optim.UserError, match="gama"):
        hf_optim.attach(make(tmp_path, n=4), hf_optim.SMARAN, gama=0.8)


def test_doors_that_do_not_open(tmp_path):
    other = hf_optim.create("sgd", Tiny(TinyConfig()))
    trainer = make(tmp_path, n=4)
    with pytest.raises(hf_optim.UserError, match="instance with hyper-parameters of its own"):
        hf_optim.attach(trainer, other, lr=0.1)
    hf_optim.attach(trainer, other)
    with pytest.raises(hf_optim.UserError, match="over other parameters than this trainer's model"):
        trainer.train()
    with pytest.raises(hf_optim.UserError, match="returned int"):
        broken = make(tmp_path, n=4)
        hf_optim.attach(broken, lambda params: 3)
        broken.train()
    with pytest.raises(hf_optim.UserError, match="not as int"):
        hf_optim.attach(make(tmp_path, n=4), 3)
