"""The plain factory: the optimizer alone, with decay groups, in both signatures that trainers use."""

from __future__ import annotations

import pytest
import torch
from hub_parts import Careless, Tiny, TinyConfig, make, weights
from transformers import TrainingArguments

import hf_optim
from hf_optim.core.notes import once
from hf_optim.hub.factories import _note


def test_trainer_takes_the_factory(tmp_path):
    trainer = make(tmp_path, optimizer_cls_and_kwargs=hf_optim.factory("adamw_agr", lr=0.01, weight_decay=0.5))
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is hf_optim.AdamWAGR
    decayed = {p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {trainer.model.first.weight, trainer.model.last.weight}
    assert {g["lr"] for g in optimizer.param_groups} == {0.01}


def test_factory_and_attach_train_alike(tmp_path):
    plain = make(tmp_path, optimizer_cls_and_kwargs=hf_optim.factory("adan_agr", lr=0.01))
    attached = make(tmp_path)
    hf_optim.attach(attached, "adan_agr", lr=0.01)
    plain.train()
    attached.train()
    assert torch.equal(weights(plain), weights(attached))


@pytest.mark.parametrize("spec", ["smaran", {"name": "smaran", "gamma": 0.8}])
def test_loss_aware_rule_without_the_feed_raises_before_anything_moves(tmp_path, spec):
    trainer = make(tmp_path, optimizer_cls_and_kwargs=hf_optim.factory(spec))
    before = weights(trainer)
    with pytest.raises(hf_optim.MissingLoss, match="attach"):
        trainer.train()
    assert torch.equal(before, weights(trainer))


def test_both_signatures(tmp_path):
    cls, kwargs = hf_optim.factory("tlr", base={"name": "sgd", "momentum": 0.9}, interval=3)
    model = Tiny(TinyConfig())
    optimizer = cls()(model, **kwargs)
    assert optimizer.param_groups[0]["lr"] == 1e-3 and optimizer.param_groups[0]["momentum"] == 0.9
    args = TrainingArguments(str(tmp_path), learning_rate=0.25, use_cpu=True, report_to=[])
    two = cls()(model, args, **kwargs)
    assert two.param_groups[0]["lr"] == 0.25
    three = cls()(model, args, **{**kwargs, "base": {"name": "sgd", "lr": 0.5}})
    assert three.param_groups[0]["lr"] == 0.5


def test_mistakes_are_found_at_once():
    with pytest.raises(hf_optim.UserError, match="adamw_agr"):
        hf_optim.factory("adamw_arg")
    with pytest.raises(hf_optim.UserError, match="betas"):
        hf_optim.factory("adamw_agr", beta=0.9)
    with pytest.raises(hf_optim.UserError, match="needs a name"):
        hf_optim.factory({"lr": 0.1})


@pytest.mark.parametrize(("model", "windows", "warned"), [(Careless, 2, True), (Careless, 1, False), (Tiny, 2, False)])
def test_a_factory_says_what_it_cannot_repair(tmp_path, caplog, model, windows, warned):
    """A loss that may be inflated by accumulation, where Trainer leaves its division to the model."""
    once.cache_clear()
    made = hf_optim.factory("adamw", lr=0.01)
    trainer = make(tmp_path, model, gradient_accumulation_steps=windows, optimizer_cls_and_kwargs=made)
    for _ in range(2):
        with caplog.at_level("WARNING", "hf_optim"):
            _note(trainer)
    told = [r.getMessage() for r in caplog.records if "ignores num_items_in_batch" in r.getMessage()]
    assert len(told) == warned and all("hf_optim.attach tries the loss" in line for line in told)
