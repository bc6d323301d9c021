"""Lightning with its own package: each run is the same loop in plain torch, and what it would get wrong is said."""

from __future__ import annotations

import inspect
import logging

import pytest
import torch
from hub_parts import Tiny, TinyConfig, data, weights
from torch.nn import functional
from transformers import set_seed

import hf_optim

lightning = pytest.importorskip("lightning")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from hf_optim.hub.lightning import LightningFeed  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:Be aware that when using")
ROWS = data(32)
BATCHES = [
    (torch.stack([r["x"] for r in rows]), torch.stack([r["labels"] for r in rows]))
    for rows in (ROWS[i : i + 4] for i in range(0, 32, 4))
]


def tiny():
    set_seed(0)
    return Tiny(TinyConfig())


class Module(lightning.LightningModule):
    """A classifier, a head beside it that its optimizer may not have, and what validation has seen of the weights."""

    def __init__(self, name, head=False, **hyper):
        super().__init__()
        self.model, self.spec, self.seen = tiny(), (name, hyper), []
        self.head = torch.nn.Linear(3, 3) if head else torch.nn.Identity()

    def training_step(self, batch, index):
        return functional.cross_entropy(self.head(self.model.logits(batch[0])), batch[1])

    def validation_step(self, batch, index):
        self.seen.append(weights(self.model))

    def configure_optimizers(self):
        self.built = hf_optim.create(self.spec[0], self.model, **self.spec[1])
        return self.built


#: a checkpoint is read with its objects; before Lightning 2.6 all were
WHOLE = {"weights_only": False} if "weights_only" in inspect.signature(lightning.Trainer.fit).parameters else {}


def fit(module, folder, validation=False, callbacks=(), resume=None, **more):
    loader = torch.utils.data.DataLoader(BATCHES, batch_size=None)
    lightning.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=bool(callbacks), enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0,
        callbacks=[*callbacks, LightningFeed()], **{"max_epochs": 1, **more},
    ).fit(module, loader, loader if validation else None, ckpt_path=resume, **WHOLE)  # fmt: skip
    return module


def by_hand(name, steps, accumulation=1, epochs=1, **hyper):
    """The same steps over windows of batches; the last window of an epoch may be short."""
    model = tiny()
    opt = hf_optim.create(name, model, **hyper)
    if hasattr(opt, "train"):
        opt.train()
    windows = [BATCHES[i : i + accumulation] for i in range(0, len(BATCHES), accumulation)] * epochs
    for window in windows[:steps]:
        opt.zero_grad()
        total = 0.0
        for x, y in window:
            loss = functional.cross_entropy(model.logits(x), y) / accumulation
            loss.backward()
            total += loss.detach()
        opt.step(loss=total) if hasattr(opt, "feed") else opt.step()
    return model, opt


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_loss_is_that_of_the_whole_window(tmp_path, accumulation):
    """Also of the last window of an epoch, which is short; and the epoch's length in steps is told."""
    fitted = fit(Module("smaran", lr=0.05), tmp_path, max_epochs=2, accumulate_grad_batches=accumulation)
    model, _ = by_hand("smaran", 99, accumulation, 2, lr=0.05)
    torch.testing.assert_close(weights(fitted.model), weights(model), rtol=0, atol=1e-6)
    told = fit(Module("tlr_sgd", p=0.5), tmp_path, accumulate_grad_batches=accumulation).built
    assert told.param_groups[0]["tlr_interval"] == (4 if accumulation == 1 else 1)


def test_a_line_search_evaluates_one_batch(tmp_path):
    with pytest.raises(hf_optim.UserError, match="accumulate_grad_batches=1"):
        fit(Module("sls"), tmp_path, accumulate_grad_batches=3)
    assert not torch.equal(weights(fit(Module("sls"), tmp_path).model), weights(tiny()))


@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedulefree:AdamWScheduleFree"])
@pytest.mark.parametrize("saves", [{"every_n_epochs": 1}, {"every_n_train_steps": 3}])
@pytest.mark.parametrize("alone", [False, True])
def test_what_is_evaluated_and_saved_is_the_average(tmp_path, name, saves, alone):
    """With an optimizer that knows two sets of weights; `alone`, a checkpoint holds nothing but weights."""
    pytest.importorskip("schedulefree")
    keeping = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, save_weights_only=alone, **saves)
    fitted = fit(Module(name, lr=0.05), tmp_path, validation=True, callbacks=[keeping])
    files = list(tmp_path.glob("*.ckpt"))
    assert len(files) == (1 if "every_n_epochs" in saves else 2)
    for file in files:
        checkpoint = torch.load(file, weights_only=False)
        model, opt = by_hand(name, checkpoint["global_step"], lr=0.05)
        opt.eval()
        saved = {n: checkpoint["state_dict"][f"model.{n}"] for n, _ in model.named_parameters()}
        for n, p in model.named_parameters():
            torch.testing.assert_close(saved[n], p.detach(), rtol=0, atol=1e-6)
    model, opt = by_hand(name, 8, lr=0.05)
    at_y = weights(model)
    opt.eval()
    torch.testing.assert_close(fitted.seen[-1], weights(model), rtol=0, atol=1e-6)
    torch.testing.assert_close(weights(fitted.model), weights(model), rtol=0, atol=1e-6)
    assert not torch.allclose(at_y, weights(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["schedule_free_sgd", "smaran", "tlr_adamw"])
def test_a_run_is_gone_on_with_bit_for_bit(tmp_path, name):
    hyper = {"interval": 2} if name == "tlr_adamw" else {"lr": 0.05}
    keeping = ModelCheckpoint(dirpath=tmp_path, save_top_k=-1, every_n_epochs=1)
    whole = fit(Module(name, **hyper), tmp_path, callbacks=[keeping], max_epochs=2)
    first = next(file for file in tmp_path.glob("*.ckpt") if "epoch=0" in file.name)
    resumed = fit(Module(name, **hyper), tmp_path, max_epochs=2, resume=first)
    assert torch.equal(weights(whole.model), weights(resumed.model))


def test_what_would_be_wrong_in_silence_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="hf_optim")
    fit(Module("adan", head=True, lr=0.01, weight_decay=0.25), tmp_path)
    assert caplog.text.count("Adan: weight decay 0.25 on 2 tensors, 0 on 4") == 1
    assert caplog.text.count("head.weight, head.bias got a gradient and no optimizer has them") == 1
    fit(Module("adan", lr=0.01), tmp_path, gradient_clip_val=1.0)
    assert "gradient_clip_val" not in caplog.text
    fit(Module("sps"), tmp_path, gradient_clip_val=1.0)
    assert "gradient_clip_val=1.0 shortens the gradient that SPS divides the loss by" in caplog.text
