"""The loss that is fed is the mean loss of the effective batch, computed here a second time, from the definition."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hub_parts import Careless, Honest, Tiny, make, rows, weights
from torch.nn import functional
from transformers import TrainerCallback

import hf_optim


class Independent(TrainerCallback):
    """Computes the objective of each window from the batches that the model saw, before the step moves anything."""

    def __init__(self, smoothing: float, per_sample: bool) -> None:
        self.smoothing, self.per_sample = smoothing, per_sample
        self.expected: list[float] = []
        self.fed: list[float] = []
        self.attachment: hf_optim.hub.Attachment | None = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        window, model.seen = model.seen, []
        assert self.attachment is not None and self.attachment.feed is not None
        with torch.no_grad():
            losses = []
            for x, labels in window:
                losses.append(
                    functional.cross_entropy(
                        deepcopy(model).logits(x), labels, label_smoothing=self.smoothing, reduction="none"
                    )
                )
        # A Trainer whose smoothing forgets the number of items is repaired: it takes the mean of the batches' means.
        if self.per_sample and self.attachment.trainer.model_accepts_loss_kwargs:
            self.expected.append(torch.cat(losses).mean().item())
        else:
            self.expected.append(sum(part.mean().item() for part in losses) / len(losses))
        self.fed.append(float(self.attachment.feed.fed))


def _watched(tmp_path, model, smoothing, per_sample, **arguments):
    watch = Independent(smoothing, per_sample)
    # 42 samples: batches of 4, the last of 2
    trainer = make(tmp_path, model, n=42, eval_strategy="steps", eval_steps=2, **arguments)
    watch.attachment = hf_optim.attach(trainer, "smaran", lr=0.05)
    trainer.add_callback(watch)
    # Label smoothing takes the labels out of the inputs: let the model note them where they come in.
    if smoothing:
        smoother = trainer.label_smoother

        def noting(outputs, labels, **kwargs):
            if trainer.model.training and torch.is_grad_enabled():
                trainer.model.seen[-1] = (trainer.model.seen[-1][0], labels)
            return smoother(outputs, labels, **kwargs)

        trainer.label_smoother = noting
    trainer.train()
    return trainer, watch


@pytest.mark.parametrize(
    ("model", "smoothing", "per_sample"),
    [(Tiny, 0.0, False), (Honest, 0.0, True), (Tiny, 0.1, False), (Honest, 0.1, True)],
    ids=["plain", "token-counts", "smoothing", "smoothing-and-counts"],
)
def test_fed_loss_equals_the_definition(tmp_path, model, smoothing, per_sample):
    trainer, watch = _watched(
        tmp_path, model, smoothing, per_sample, gradient_accumulation_steps=4, label_smoothing_factor=smoothing
    )
    assert trainer.state.global_step == 3  # windows of 4, 4 and 3 micro-batches
    assert len(rows(trainer, "eval_loss")) >= 1  # evaluation in between does not count
    assert watch.fed == pytest.approx(watch.expected, rel=1e-6)
    assert [row["hf_optim_loss"] for row in rows(trainer)] == pytest.approx(watch.fed)


def test_a_foreign_optimizer_is_told_the_loss_by_its_own_method(tmp_path):
    class Reads(torch.optim.SGD):
        needs = {"loss"}

    class Told(Reads):
        heard: list = []

        def feed(self, loss=None, evaluate=None):
            self.heard.append(loss if loss is None else float(loss))

    trainer = make(tmp_path / "told", n=8, logging_steps=1)
    hf_optim.attach(trainer, Told, lr=0.01)
    trainer.train()
    assert [v for v in Told.heard if v is not None] == pytest.approx(
        [row["loss"] for row in trainer.state.log_history if "loss" in row], abs=1e-4
    )
    trainer = make(tmp_path / "deaf", n=8)
    hf_optim.attach(trainer, Reads, lr=0.01)
    with pytest.raises(hf_optim.UserError, match="Reads says that it needs the loss, and has no method"):
        trainer.train()


def test_two_backward_calls_a_step_are_both_seen(tmp_path):
    from transformers import Trainer

    class Twice(Trainer):
        """A second objective, as an auxiliary loss would be, with a backward call of its own."""

        def training_step(self, model, inputs, num_items_in_batch=None):
            first = super().training_step(model, dict(inputs), num_items_in_batch)
            second = sum(p.square().sum() for p in model.parameters()) / 100
            self.accelerator.backward(second)
            self.sums.append(float(first) + float(second.detach()))
            return first

    trainer = make(tmp_path, trainer=Twice, gradient_accumulation_steps=2)
    trainer.sums = []
    attachment = hf_optim.attach(trainer, "smaran")
    fed = []

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            fed.append(float(attachment.feed.fed))

    trainer.add_callback(Watch())
    trainer.train()
    # Trainer divides its own loss by 2 inside training_step; what it returns is the divided one.
    pairs = [sum(trainer.sums[i : i + 2]) for i in range(0, len(trainer.sums), 2)]
    assert fed == pytest.approx(pairs, rel=1e-6)


def test_careless_model_is_repaired(tmp_path, caplog):
    """Its gradient at accumulation 4 is that of one batch of the same 16 samples, not four times as large."""
    trainers = {}
    for name, batch, accumulation in (("whole", 16, 1), ("parts", 4, 4)):
        trainer = make(
            tmp_path / name,
            Careless,
            n=48,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
        )
        hf_optim.attach(trainer, "smaran")
        trainer.train()
        trainers[name] = trainer
    norms = {k: [row["grad_norm"] for row in rows(t)] for k, t in trainers.items()}
    assert norms["parts"] == pytest.approx(norms["whole"], rel=1e-4)
    assert torch.allclose(weights(trainers["parts"]), weights(trainers["whole"]), atol=1e-6)
    assert trainers["parts"].model_accepts_loss_kwargs is False
    assert "Careless ignores num_items_in_batch" in caplog.text and "4 times too large" in caplog.text


def test_careless_model_is_repaired_for_rules_that_need_no_loss(tmp_path):
    trainer = make(tmp_path, Careless, gradient_accumulation_steps=4)
    hf_optim.attach(trainer, "adamw")
    trainer.train()
    assert trainer.model_accepts_loss_kwargs is False


def test_honest_model_is_left_alone_and_the_probe_leaves_no_trace(tmp_path, caplog):
    """With dropout and BatchNorm, a run with the probe is bit for bit the run without it."""
    states = []
    for probed in (True, False):
        trainer = make(tmp_path, Honest, dropout=0.4, norm=True, gradient_accumulation_steps=2)
        hf_optim.attach(trainer, "sgd", lr=0.1)
        if not probed:
            trainer.loss_is_scaled_for_ga = True  # what Trainer would decide, said by hand: nothing to probe
        trainer.train()
        assert trainer.model_accepts_loss_kwargs is True
        states.append(weights(trainer))
    assert torch.equal(*states)
    assert "num_items_in_batch" not in caplog.text


def test_overridden_compute_loss_is_reported_not_changed(tmp_path, caplog):
    from transformers import Trainer

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    trainer = make(tmp_path, Careless, trainer=Own, gradient_accumulation_steps=4)
    hf_optim.attach(trainer, "sgd", lr=0.1)
    trainer.train()
    assert trainer.model_accepts_loss_kwargs is True
    assert "100% of the loss of Careless does not scale" in caplog.text


def test_nothing_stays_behind_after_training(tmp_path):
    trainer = make(tmp_path)
    attachment = hf_optim.attach(trainer, "smaran")
    trainer.train()
    assert "backward" not in vars(trainer.accelerator) and "compute_loss" not in vars(trainer)
    assert attachment.feed is None
    attachment.optimizer.zero_grad()
    for p in trainer.model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(hf_optim.MissingLoss):  # the last loss has not leaked into a step outside
        attachment.optimizer.step()


def test_a_training_that_raised_does_not_disturb_the_next(tmp_path):
    class Trip(TrainerCallback):
        armed = True

        def on_substep_end(self, *args, **kwargs):
            if self.armed:
                type(self).armed = False
                raise KeyboardInterrupt

    trainer = make(tmp_path, gradient_accumulation_steps=2, callbacks=[Trip()])
    watch = Independent(0.0, False)
    watch.attachment = hf_optim.attach(trainer, "smaran")
    trainer.add_callback(watch)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.model.seen = []
    trainer.train()
    assert watch.fed == pytest.approx(watch.expected, rel=1e-6)
    assert [row["hf_optim_loss"] for row in rows(trainer)] == pytest.approx(watch.expected, rel=1e-6)
