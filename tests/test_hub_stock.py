"""`attach(trainer, "adamw")` is Trainer's own run, from the beginning and from either's checkpoint."""

from __future__ import annotations

import pytest
import torch
from hub_parts import Honest, make, rows, weights

import hf_optim


def run(folder, attached, optim="adamw_torch", resume=None):
    trainer = make(
        folder,
        Honest,
        n=56,
        norm=True,
        optim=optim,
        learning_rate=1e-2,
        weight_decay=0.1,
        max_grad_norm=1.0,
        adam_epsilon=1e-4,  # the gradient of a bias before a norm is rounding, which Adam would make steps of
        num_train_epochs=2,
        gradient_accumulation_steps=3,
        lr_scheduler_type="cosine",
        save_strategy="steps",
        save_steps=7,
    )
    if attached:
        hf_optim.attach(trainer, attached)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    return run(folder, ""), folder


@pytest.fixture(scope="module")
def attached(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attached")
    return run(folder, "adamw"), folder


def test_the_losses_are_the_stock_runs(stock, attached):
    """With the same arguments: rate, decay and its groups, schedule, clipping."""
    wanted, losses = ([row["loss"] for row in rows(trainer)] for trainer, _ in (stock, attached))
    assert len(wanted) == 10 and losses == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(weights(attached[0]), weights(stock[0]), rtol=1e-5, atol=5e-6)
    decays = [[g["weight_decay"] for g in trainer.optimizer.param_groups] for trainer, _ in (stock, attached)]
    assert decays == [[0.1, 0.0], [0.1, 0.0]]


@pytest.mark.parametrize("first", ["stock", "attached"])
def test_either_goes_on_with_the_others_checkpoint(first, stock, attached):
    (whole, _), folder = stock, (stock if first == "stock" else attached)[1]
    trainer = run(folder, "adamw" if first == "stock" else "", resume=str(folder / "checkpoint-7"))
    assert trainer.state.global_step == 10
    torch.testing.assert_close(weights(trainer), weights(whole), rtol=1e-5, atol=5e-6)


def test_another_rules_run_is_not_gone_on_with(stock, caplog):
    if "decoupled_weight_decay" not in torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))]).param_groups[0]:
        run(stock[1], "adam", resume=str(stock[1] / "checkpoint-7"))  # it does not say which of the two wrote it
        assert "cannot be told apart without it" in caplog.text
        return
    with pytest.raises(hf_optim.BadCheckpoint, match="decoupled_weight_decay = True, this optimizer False"):
        run(stock[1], "adam", resume=str(stock[1] / "checkpoint-7"))
