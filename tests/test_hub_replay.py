"""The same batch evaluated again gives the same loss bit for bit, and leaves no trace."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from hub_parts import CHECKPOINTING, LINE_SEARCH, Honest, Tiny, make, rows, weights
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    set_seed,
)

import hf_optim
from hf_optim.core.rewind import RandomState
from hf_optim.hub.replay import untouched


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 4, "label_smoothing_factor": 0.1},
        {"gradient_accumulation_steps": 2, "bf16": True},
    ],
    ids=["accumulation", "smoothing", "bf16"],
)
@pytest.mark.parametrize("model", [Tiny, Honest])
def test_replay_equals_the_fed_loss_bitwise(tmp_path, model, arguments):
    trainer = make(tmp_path, model, n=42, dropout=0.4, norm=True, eval_strategy="epoch", **arguments)
    attachment = hf_optim.attach(trainer, LINE_SEARCH)
    trainer.train()
    pairs = attachment.optimizer.pairs
    assert len(pairs) == trainer.state.global_step
    assert all(fed == again for fed, again in pairs), pairs
    assert all(trial == trial for trial in attachment.optimizer.trials)


def test_replay_of_a_transformer_with_activation_checkpointing(tmp_path):
    """Dropout inside attention, a second forward pass inside backward, and a loss that had to be repaired."""
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    tokens = torch.randint(1, 32, (12, 6), generator=torch.Generator().manual_seed(0))
    args = Seq2SeqTrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, num_train_epochs=1, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, **{CHECKPOINTING: True},
    )  # fmt: skip
    set_seed(0)
    trainer = Seq2SeqTrainer(
        T5ForConditionalGeneration(config), args, train_dataset=[{"input_ids": t, "labels": t.flip(0)} for t in tokens]
    )
    attachment = hf_optim.attach(trainer, LINE_SEARCH)
    trainer.train()
    assert getattr(trainer.model, f"is_{CHECKPOINTING}") and trainer.model_accepts_loss_kwargs is False
    assert len(attachment.optimizer.pairs) == 3 and all(a == b for a, b in attachment.optimizer.pairs)


def test_evaluations_leave_no_trace(tmp_path):
    """Steps of size zero with twenty evaluations each: random numbers, BatchNorm and counts are as with none."""
    states, tokens = [], []
    for evaluated in (True, False):
        trainer = make(tmp_path, dropout=0.4, norm=True, include_num_input_tokens_seen="all")
        attachment = hf_optim.attach(trainer, *((LINE_SEARCH,) if evaluated else ("sgd",)), lr=0.0)
        trainer.train()
        states.append((weights(trainer), torch.get_rng_state(), [row["loss"] for row in rows(trainer)]))
        tokens.append(trainer.state.num_input_tokens_seen)
    assert len(attachment.optimizer.param_groups) > 0
    assert torch.equal(states[0][0], states[1][0]) and torch.equal(states[0][1], states[1][1])
    assert states[0][2] == states[1][2]
    assert tokens[0] == tokens[1] > 0


def test_trainers_that_count_and_prepare_are_replayed_once(tmp_path):
    """Preparation (generation, in some trainers) is not repeated, and what compute_loss counts is put back."""

    class Counting(Trainer):
        def _prepare_inputs(self, inputs):
            self.prepared = getattr(self, "prepared", 0) + self.model.training
            inputs = super()._prepare_inputs(inputs)
            return {**inputs, "x": inputs["x"] + 0.1 * torch.randn_like(inputs["x"])}

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            self.calls = getattr(self, "calls", 0) + 1
            self.metrics_seen["train"].append(1.0)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    trainer = make(tmp_path, trainer=Counting, n=40, gradient_accumulation_steps=2)
    trainer.calls, trainer.metrics_seen = 0, defaultdict(list)
    seen = trainer.metrics_seen
    attachment = hf_optim.attach(trainer, LINE_SEARCH)
    trainer.train()
    assert all(fed == again for fed, again in attachment.optimizer.pairs)
    assert trainer.prepared == 10 and trainer.calls == 10
    assert trainer.metrics_seen is seen and len(seen["train"]) == 10


def test_unrepeatable_loss_is_refused_at_the_first_step(tmp_path):
    class Drawing(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return loss * (1 + next(self.stream))

    trainer = make(tmp_path, trainer=Drawing)
    trainer.stream = iter(range(10_000))
    hf_optim.attach(trainer, LINE_SEARCH)
    before = weights(trainer)
    with pytest.raises(hf_optim.UserError, match="evaluated again"):
        trainer.train()
    assert torch.equal(before, weights(trainer))


def test_line_search_warns_about_clipping(tmp_path, caplog):
    for norm, warned in ((1.0, True), (0.0, False)):
        caplog.clear()
        trainer = make(tmp_path, n=4, max_grad_norm=norm)
        hf_optim.attach(trainer, LINE_SEARCH)
        trainer.train()
        assert ("set max_grad_norm=0" in caplog.text) is warned


def test_untouched_restores_modes_buffers_and_generators():
    import random

    import numpy

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout())
    model.train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    RandomState(torch.device("cpu"))
    states = (torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy())
    with untouched([model], torch.device("cpu")):
        model.train()
        y = model(torch.randn(5, 3))
        assert not y.requires_grad
        random.random(), numpy.random.rand()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, True, False]
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert (states[2] == numpy.random.get_state()[1]).all()
