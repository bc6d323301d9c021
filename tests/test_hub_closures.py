"""Closures: LBFGS, SAM and their kind in a Trainer or a Session, by repeating the window's batches with gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from hub_parts import LINE_SEARCH, Honest, Tiny, TinyConfig, data, make, rows, weights
from torch.nn import functional
from transformers import TrainerCallback

import hf_optim
from hf_optim.hub import closures

FILE = Path(__file__).with_name("hub_closures.py")
SAM, TWICE = f"{FILE}:SAM", f"{FILE}:Twice"


class Fed(TrainerCallback):
    """The losses that the feed has seen, and the gradients of each window."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.losses.append(float(self.attachment.feed.fed))


def _trained(folder, name, model=Tiny, closure=None, hyper=None, **arguments):
    fed = Fed()
    trainer = make(folder, model, callbacks=[fed], **arguments)
    fed.attachment = hf_optim.attach(trainer, name, closure=closure, **(hyper or {}))
    trainer.train()
    return trainer, fed.attachment.optimizer, fed.losses


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 4},
        {"gradient_accumulation_steps": 2, "label_smoothing_factor": 0.1},
        {"bf16": True},
        {"max_grad_norm": 0.05},
    ],
    ids=["accumulation", "smoothing", "bf16", "clipping"],
)
@pytest.mark.parametrize("model", [Tiny, Honest])
def test_closure_repeats_loss_and_gradients_bitwise(tmp_path, model, arguments):
    """With dropout, BatchNorm and a ragged last window."""
    trainer, optimizer, fed = _trained(tmp_path, TWICE, model, n=42, dropout=0.4, norm=True, **arguments)
    assert optimizer.values == fed and len(fed) == trainer.state.global_step
    assert set(optimizer.differences) == {0.0}
    assert all(row["closure_calls"] == 1 for row in rows(trainer))


def test_a_closure_leaves_no_trace_but_gradients(tmp_path):
    """Evaluating each window twice trains as SGD does: random numbers, BatchNorm and counters are untouched."""
    kw = {"dropout": 0.4, "norm": True, "gradient_accumulation_steps": 2, "include_num_input_tokens_seen": "all"}
    states = []
    for name in ("torch.optim:SGD", TWICE):
        trainer = make(tmp_path, **kw)
        hf_optim.attach(trainer, name, lr=0.1)
        trainer.train()
        states.append((weights(trainer), torch.get_rng_state(), trainer.state.num_input_tokens_seen))
    assert torch.equal(states[0][0], states[1][0]) and torch.equal(states[0][1], states[1][1])
    assert states[0][2] == states[1][2] > 0
    assert "hf_optim" not in getattr(trainer.optimizer.step, "__module__", "")  # nothing stays behind


def test_spectral_norm_reads_the_buffers_of_the_window(tmp_path):
    """Its forward pass reads a buffer that it writes: a replay that starts from the wrong one gives another loss."""
    fed = Fed()
    trainer = make(tmp_path, callbacks=[fed], gradient_accumulation_steps=2)
    torch.nn.utils.parametrizations.spectral_norm(trainer.model.first)
    fed.attachment = hf_optim.attach(trainer, TWICE)
    trainer.train()
    assert fed.attachment.optimizer.values == fed.losses and set(fed.attachment.optimizer.differences) == {0.0}


def test_lbfgs_fits_a_batch_in_a_few_steps(tmp_path):
    """By import path; what Trainer's batches give is what a plain loop with torch's own closure gives."""
    trainer = make(tmp_path, n=16, per_device_train_batch_size=16, num_train_epochs=4)
    plain = Tiny(TinyConfig())
    plain.load_state_dict(trainer.model.state_dict())
    hf_optim.attach(trainer, "torch.optim:LBFGS", lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
    trainer.train()
    optimizer = torch.optim.LBFGS(plain.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
    seen = trainer.model.seen[0::1]
    batches = [seen[0]]
    for batch in seen:  # the evaluations of one step see one batch
        if not torch.equal(batch[0], batches[-1][0]):
            batches.append(batch)
    assert len(batches) == 4
    for x, labels in batches:

        def closure(x=x, labels=labels):
            optimizer.zero_grad()
            loss = plain(x, labels)["loss"]
            loss.backward()
            return loss

        optimizer.step(closure)
    assert torch.equal(weights(trainer), weights(plain))
    losses = [row["loss"] for row in rows(trainer)]
    assert losses[-1] < losses[0] / 10 and rows(trainer)[0]["closure_calls"] >= 5


def test_lbfgs_under_accumulation_steps_on_the_whole_window(tmp_path):
    ends = []
    for batch, accumulation in ((16, 1), (4, 4)):
        trainer = make(
            tmp_path, Honest, n=48, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
        )
        hf_optim.attach(trainer, "torch.optim:LBFGS", lr=0.5, max_iter=4)
        trainer.train()
        ends.append(weights(trainer))
    assert torch.allclose(*ends, atol=1e-4)


@pytest.mark.parametrize("name", ["Silent", "Handing"])
def test_a_closure_that_is_called_unasked_is_told_of(tmp_path, name):
    trainer = make(tmp_path)
    hf_optim.attach(trainer, f"{FILE}:{name}")
    with pytest.raises(hf_optim.UserError, match="give closure=True, or let its class say needs_closure = True"):
        trainer.train()


def test_another_none_that_is_called_is_no_closure(tmp_path):
    trainer = make(tmp_path)
    hf_optim.attach(trainer, f"{FILE}:Broken")
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        trainer.train()


def test_sam_needs_to_be_told_of(tmp_path):
    trainer = make(tmp_path)
    hf_optim.attach(trainer, SAM)
    before = weights(trainer)
    with pytest.raises(hf_optim.UserError, match="give closure=True"):
        trainer.train()
    assert torch.equal(before, weights(trainer))
    trainer, optimizer, fed = _trained(tmp_path, SAM, closure=True, hyper={"lr": 0.05}, dropout=0.2)
    assert len(optimizer.values) == len(fed) == 11
    # to first order, the worst point at distance rho has a loss rho |g| above
    norms = [row["grad_norm"] for row in rows(trainer)]
    rise = [b - a for a, b in zip(fed, optimizer.values, strict=True)]
    assert rise == pytest.approx([0.05 * n for n in norms], rel=0.2)


def test_exact_tlr_works_with_a_closure(tmp_path):
    """lookahead=True evaluates the gradient at a second point of the same batch."""
    trainer, optimizer, _ = _trained(
        tmp_path, "tlr", closure=True, hyper={"base": {"name": "sgd", "lr": 0.05}, "interval": 2, "lookahead": True}
    )
    assert optimizer.param_groups[0]["hf_optim_lr_scale"] != 1.0


def test_loss_aware_rules_and_line_searches_take_a_closure_too(tmp_path):
    ends = []
    for closure in (None, True):
        trainer, _, _ = _trained(tmp_path, "smaran", closure=closure, dropout=0.3, hyper={"lr": 0.05})
        ends.append(weights(trainer))
    assert torch.equal(*ends)
    trainer, _, _ = _trained(tmp_path, "sls", closure=True)
    assert all(row["closure_calls"] >= 2 for row in rows(trainer))


def test_which_optimizers_want_a_closure():
    model = torch.nn.Linear(2, 2)
    for name, wanted in (("torch.optim:LBFGS", True), (TWICE, True), (SAM, False), ("adamw", False), ("sls", False)):
        assert closures.wanted(hf_optim.create(name, model)) is wanted, name
    assert closures.wanted(hf_optim.create("tlr", model, base={"name": TWICE}))
    with pytest.raises(hf_optim.UserError, match="steps only with a closure"):
        closures.choice(hf_optim.create(TWICE, model), False, "twice")


def test_closures_are_refused_where_they_would_be_wrong(tmp_path, caplog):
    scaled = make(tmp_path)
    scaled.accelerator.scaler = torch.amp.GradScaler("cpu")
    hf_optim.attach(scaled, "torch.optim:LBFGS")
    with pytest.raises(hf_optim.UserError, match="fp16 loss scaling.*use bf16"):
        scaled.train()
    trainer = make(tmp_path, n=4, max_grad_norm=1.0)
    hf_optim.attach(trainer, "torch.optim:LBFGS")
    trainer.train()
    assert "set max_grad_norm=0" in caplog.text


def test_lbfgs_resumes_bit_for_bit(tmp_path):
    def run(resume=None):
        trainer = make(tmp_path, n=48, dropout=0.2, norm=True, save_strategy="steps", save_steps=5)
        hf_optim.attach(trainer, "torch.optim:LBFGS", lr=0.3, max_iter=3)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer)

    assert torch.equal(run(), run(str(tmp_path / "checkpoint-5")))


# --- an Accelerate loop ---------------------------------------------------------------------------------------------


@pytest.fixture
def accelerator():
    GradientState._reset_state()
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    GradientState._reset_state()


def test_session_hands_closures_to_lbfgs_and_others(accelerator):
    for name, closure in ((TWICE, None), (SAM, True), ("torch.optim:LBFGS", None)):
        torch.manual_seed(0)
        model = Tiny(TinyConfig(dropout=0.3, norm=True)).train()
        optimizer = hf_optim.create(name, model)
        loader = torch.utils.data.DataLoader(data(16), batch_size=4)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        session = hf_optim.Session(accelerator, optimizer, closure=closure)
        first, values = weights(model), []
        for batch in loader:
            with accelerator.accumulate(model):

                def noisy(model=model, batch=batch):
                    return functional.cross_entropy(
                        model.logits(batch["x"] + torch.randn_like(batch["x"])), batch["labels"]
                    )

                noise = session.loss(noisy)
                values.append(float(noise))
                session.step()
        assert session.figures()["closure_calls"] >= 1 and not torch.equal(first, weights(model))
        if name == TWICE:
            assert optimizer.optimizer.values == pytest.approx([sum(values[:2]) / 2, sum(values[2:]) / 2])
            assert set(optimizer.optimizer.differences) == {0.0}
        session.close()


def test_session_says_what_to_do_and_leaves_other_models_alone(accelerator):
    accelerator.gradient_accumulation_steps = 1
    mine, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    mine, other, optimizer = accelerator.prepare(mine, other, hf_optim.create(SAM, mine))
    x = torch.ones(1, 2)
    session = hf_optim.Session(accelerator, optimizer)
    session.loss(lambda: other(mine(x)).square().sum())
    with pytest.raises(hf_optim.UserError, match="give closure=True"):
        session.step()
    session.close()
    session = hf_optim.Session(accelerator, optimizer, closure=True)
    optimizer.zero_grad()
    other.zero_grad()
    session.loss(lambda: other(mine(x)).square().sum())
    kept = other.weight.grad.clone()
    session.step()
    assert torch.equal(other.weight.grad, kept)  # as one backward pass left it


def test_line_search_by_import_path_is_not_mistaken_for_a_closure(tmp_path):
    _, optimizer, _ = _trained(tmp_path, LINE_SEARCH)
    assert all(a == b for a, b in optimizer.pairs)
