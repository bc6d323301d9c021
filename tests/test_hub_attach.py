"""`attach`: what it takes from the arguments, what it logs, what it refuses."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hub_parts import Honest, Tiny, TinyConfig, data, make, rows, weights
from transformers import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    set_seed,
)

import hf_optim
from hf_optim.hub import backends


def _groups(trainer):
    return hf_optim.hub.feed.unwrapped(trainer.optimizer).param_groups


def test_hub_is_light():
    code = (
        "import sys, hf_optim, hf_optim.hub; bad = {'torch', 'transformers', 'accelerate'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


# --- hyper-parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "hyper", "lr", "decay"),
    [
        ({}, {}, 0.1, 0.01),  # SMARAN's own, not TrainingArguments' 5e-5 and 0
        ({"learning_rate": 0.02, "weight_decay": 0.3}, {}, 0.02, 0.3),
        ({"learning_rate": 0.02, "weight_decay": 0.3}, {"lr": 5e-5, "weight_decay": 0.0}, 5e-5, 0.0),
        ({}, {"lr": 0.7}, 0.7, 0.01),
    ],
    ids=["defaults", "arguments", "explicit wins", "explicit rate"],
)
def test_rate_and_decay(tmp_path, caplog, arguments, hyper, lr, decay):
    trainer = make(tmp_path, n=4, **arguments)
    hf_optim.attach(trainer, "smaran", **hyper)
    with caplog.at_level(logging.INFO, logger="hf_optim"):
        trainer.train()
        trainer.train()
    assert {group["lr"] for group in _groups(trainer)} == {lr}
    assert max(group["weight_decay"] for group in _groups(trainer)) == decay
    assert caplog.text.count(f"smaran: lr={lr}") == 1  # said once


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("tlr", {"base": "adamw"}),
        ("tlr", {"base": {"name": "adamw", "betas": (0.8, 0.9)}}),
        ("tlr_adamw", {}),
        ("tlr_adamw", {"base": {"betas": (0.8, 0.9)}}),
        ({"name": "tlr", "base": {"name": "adamw"}, "gamma": 0.2}, {}),
    ],
)
def test_rate_and_decay_go_to_the_innermost_optimizer(tmp_path, name, hyper):
    trainer = make(tmp_path, n=8, learning_rate=0.004, weight_decay=0.2)
    attachment = hf_optim.attach(trainer, name, **hyper)
    trainer.train()
    assert type(attachment.optimizer.base).__name__ == "AdamW"
    assert sorted((g["lr"], g["weight_decay"]) for g in _groups(trainer)) == [(0.004, 0.0), (0.004, 0.2)]


def test_arguments_are_read_when_training_begins(tmp_path):
    """A hyper-parameter search changes the arguments after attach, and rebuilds model and accelerator."""
    trainer = make(tmp_path, n=8, gradient_accumulation_steps=2)
    trainer.model_init = lambda: Tiny(TinyConfig())
    hf_optim.attach(trainer, "smaran")
    seen, before = [], trainer.accelerator

    rates = iter((0.03, 5e-5))

    def trial(_):  # what Trainer does for each trial, without the search backend
        trainer._trial = {"learning_rate": next(rates)}
        trainer.args.learning_rate = trainer._trial["learning_rate"]
        trainer.create_accelerator_and_postprocess()

    trainer._hp_search_setup = trial
    for _ in range(2):
        trainer.train()
        seen.append(_groups(trainer)[0]["lr"])
        assert trainer.accelerator is not before and rows(trainer)[-1]["hf_optim_V"] > 0
    assert seen == [0.03, 5e-5]  # a searched value counts even where it equals the default


def test_a_rule_without_a_default_rate_takes_the_arguments(tmp_path):
    trainer = make(tmp_path, n=4, learning_rate=0.02)
    hf_optim.attach(trainer, "hd_adam")
    trainer.train()
    assert _groups(trainer)[0]["initial_lr"] == 0.02
    trainer = make(tmp_path, n=4)
    hf_optim.attach(trainer, "hd_adam")
    with pytest.raises(hf_optim.UserError, match="give it, or set TrainingArguments.learning_rate"):
        trainer.train()


def test_a_foreign_rule_without_a_default_rate_and_a_rate_that_is_none_are_said(tmp_path):
    class Own(torch.optim.SGD):
        def __init__(self, params, lr):
            super().__init__(params, lr=lr)

    trainer = make(tmp_path, n=4)
    hf_optim.attach(trainer, Own)
    with pytest.raises(hf_optim.UserError, match="no default for lr: give it, or set TrainingArguments.learning_rate"):
        trainer.train()
    trainer = make(tmp_path, n=4, learning_rate=0.02)
    hf_optim.attach(trainer, Own)
    trainer.train()
    assert _groups(trainer)[0]["initial_lr"] == 0.02
    trainer = make(tmp_path, n=4)
    trainer.args.learning_rate = "0.05"
    hf_optim.attach(trainer, "smaran")
    with pytest.raises(hf_optim.UserError, match="learning_rate must be a number, got '0.05'"):
        trainer.train()


def test_decay_follows_the_module_type(tmp_path):
    trainer = make(tmp_path, n=4)
    hf_optim.attach(trainer, "adamw", weight_decay=0.5)
    trainer.train()
    decayed = {p for g in _groups(trainer) if g["weight_decay"] for p in g["params"]}
    assert decayed == {trainer.model.first.weight, trainer.model.last.weight}


def test_arguments_without_effect_are_said(tmp_path, caplog):
    trainer = make(tmp_path, n=4, adam_beta2=0.95, optim="adafactor")
    hf_optim.attach(trainer, "smaran")
    trainer.train()
    assert "optim=adafactor" in caplog.text.lower().replace("optimizernames.", "") and "adam_beta2=0.95" in caplog.text


# --- the log and the schedule ---------------------------------------------------------------------------------------


def test_schedule_and_adaptive_rate_compose(tmp_path):
    """The schedule's rate stays the schedule's; the rate that is logged is the one that was used."""
    trainer = make(tmp_path, n=80, lr_scheduler_type="linear", learning_rate=0.05)
    attachment = hf_optim.attach(trainer, "tlr", base="sgd", interval=2)
    used = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            group = attachment.optimizer.param_groups[0]
            used.append((group["lr"], group["lr"] * group["hf_optim_lr_scale"]))

    trainer.add_callback(Watch())
    trainer.train()
    logged = rows(trainer)
    assert len(logged) == 20
    assert [lr for lr, _ in used] == pytest.approx([0.05 * (1 - i / 20) for i in range(20)])
    assert [row["learning_rate"] for row in logged] == pytest.approx([lr for lr, _ in used])
    assert [row["effective_lr"] for row in logged] == pytest.approx([rate for _, rate in used])
    assert len({round(rate / lr, 9) for lr, rate in used}) > 3  # the wrapper did adapt
    assert all("hf_optim_lr_scale" in row for row in logged)


def test_smaran_logs_rate_and_figures(tmp_path):
    trainer = make(tmp_path, n=24, lr_scheduler_type="linear", eval_strategy="epoch")
    hf_optim.attach(trainer, "smaran")
    trainer.train()
    logged = rows(trainer)
    for i, row in enumerate(logged):
        assert row["effective_lr"] == pytest.approx(0.1 * (1 - i / 6) * row["hf_optim_V"])
        assert row["hf_optim_loss"] == pytest.approx(row["loss"], rel=1e-5)
    assert all("effective_lr" not in row for row in rows(trainer, "eval_loss") + rows(trainer, "train_loss"))
    # lr 0.1 times V_1 = f / sqrt(f^2) = 1 at the first step
    assert logged[0]["effective_lr"] == pytest.approx(0.1, rel=1e-5)


def test_foreign_optimizers_log_their_rate(tmp_path):
    trainer = make(tmp_path, n=8)
    hf_optim.attach(trainer, "torch.optim:NAdam", lr=0.003)
    trainer.train()
    assert [row["effective_lr"] for row in rows(trainer)] == [0.003, 0.003]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_rate_that_is_logged_is_the_rules_own_where_another_goes_first(tmp_path, wrapped):
    """Muon's AdamW has the first group, as where a model begins with embeddings: Trainer would log its rate."""

    def muon(model):
        params = list(model.parameters())
        ways = [("adamw", [p for p in params if p.dim() < 2]), ("muon", [p for p in params if p.dim() > 1])]
        groups = [{"params": some, "route": way} for way, some in ways]
        made = hf_optim.create("muon", groups, lr=0.02, adamw_lr=0.003)
        return hf_optim.create("lookahead", None, base=made) if wrapped else made

    trainer = make(tmp_path, n=8, lr_scheduler_type="linear")
    hf_optim.attach(trainer, muon)
    trainer.train()
    logged = rows(trainer)
    assert [row["effective_lr"] for row in logged] == pytest.approx([0.02, 0.01])
    assert [row["effective_lr_adamw"] for row in logged] == pytest.approx([0.003, 0.0015])
    stock = make(tmp_path, n=8, lr_scheduler_type="linear", learning_rate=0.02)
    stock.train()  # releases differ in whether they log the step's rate or the next one's
    assert [row["learning_rate"] for row in logged] == pytest.approx([row["learning_rate"] for row in rows(stock)])
    assert not any("effective_lr_1" in row for row in logged)


def test_steps_per_epoch_are_optimizer_steps(tmp_path):
    trainer = make(tmp_path, n=42, gradient_accumulation_steps=4)  # 11 batches, 3 steps
    attachment = hf_optim.attach(trainer, "tlr", base="sgd", p=0.67)
    trainer.train()
    assert attachment.optimizer.param_groups[0]["tlr_interval"] == int(0.67 * 3)


def test_stream_without_length_says_what_is_missing(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data(8))

    trainer = make(tmp_path, max_steps=2)
    trainer.train_dataset = Stream()
    hf_optim.attach(trainer, "tlr", base="sgd")
    with pytest.raises(hf_optim.UserError, match="steps_per_epoch or interval"):
        trainer.train()


def test_seq2seq_trainer_repairs_t5_and_trains(tmp_path):
    """T5's head ignores num_items_in_batch: unrepaired, its gradient would be twice as large."""
    config = T5Config(
        vocab_size=32,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    tokens = torch.randint(1, 32, (16, 6), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": t, "labels": t.flip(0)} for t in tokens]
    norms = {}
    for batch, accumulation in ((8, 1), (4, 2)):
        args = Seq2SeqTrainingArguments(
            str(tmp_path), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
            num_train_epochs=6, logging_steps=1, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            max_grad_norm=0.0, lr_scheduler_type="constant", eval_strategy="epoch", predict_with_generate=True,
        )  # fmt: skip
        set_seed(0)
        trainer = Seq2SeqTrainer(
            T5ForConditionalGeneration(config), args, train_dataset=dataset, eval_dataset=dataset[:4]
        )
        hf_optim.attach(trainer, "smaran")
        trainer.train()
        norms[accumulation] = rows(trainer)[0]["grad_norm"]
        losses = [row["loss"] for row in rows(trainer)]
        assert losses[-1] < losses[0]
    assert norms[2] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("name", ["smaran", "tlr_adamw"])
def test_best_model_is_loaded_and_bf16_works(tmp_path, name):
    trainer = make(
        tmp_path,
        Honest,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        bf16=True,
        gradient_accumulation_steps=2,
    )
    hf_optim.attach(trainer, name)
    trainer.train()
    best = trainer.state.best_metric
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_refusals_at_attach(tmp_path):
    trainer = make(tmp_path, n=4)
    with pytest.raises(hf_optim.UserError, match="smaran"):
        hf_optim.attach(trainer, "smarann")
    with pytest.raises(hf_optim.UserError, match="gamma"):
        hf_optim.attach(trainer, "smaran", gama=0.9)
    with pytest.raises(hf_optim.UserError, match="Session"):
        hf_optim.attach(object(), "smaran")
    hf_optim.attach(trainer, "smaran")
    with pytest.raises(hf_optim.UserError, match="smaran is already attached"):
        hf_optim.attach(trainer, "adamw")

    model = Tiny(TinyConfig())
    taken = make(tmp_path, optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None))
    with pytest.raises(hf_optim.UserError, match="already has an optimizer .SGD."):
        hf_optim.attach(taken, "smaran")
    with pytest.raises(hf_optim.UserError, match="leave that out"):
        hf_optim.attach(make(tmp_path, optimizer_cls_and_kwargs=hf_optim.factory("sgd")), "smaran")

    trained = make(tmp_path, n=4)
    trained.train()
    with pytest.raises(hf_optim.UserError, match="earlier train"):
        hf_optim.attach(trained, "smaran")


def test_attach_during_training_is_refused(tmp_path):
    class Late(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            trainer.optimizer = None
            hf_optim.attach(trainer, "smaran")

    trainer = make(tmp_path, n=4, callbacks=[Late()])
    with pytest.raises(hf_optim.UserError, match="during train"):
        trainer.train()


def test_a_trainer_that_builds_its_own_optimizer_is_found_out(tmp_path):
    class Stubborn(Trainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
            return self.optimizer

    trainer = make(tmp_path, n=4, trainer=Stubborn)
    hf_optim.attach(trainer, "adamw_agr")
    before = weights(trainer)
    with pytest.raises(hf_optim.UserError, match="its own SGD instead of the attached adamw_agr"):
        trainer.train()
    assert torch.equal(before, weights(trainer))


class _Backend:
    """An accelerator as far as `refuse` looks at one."""

    def __init__(self, kind, version=1, scaler=None, deepspeed=None):
        self.distributed_type, self.scaler = kind, scaler
        plugins = {"fsdp_plugin": SimpleNamespace(fsdp_version=version)}
        if deepspeed is not None:
            plugins["deepspeed_plugin"] = SimpleNamespace(deepspeed_config=deepspeed)
        self.state = SimpleNamespace(**plugins)


@pytest.mark.parametrize(
    ("kind", "version", "name", "refused"),
    [
        ("DEEPSPEED", 0, "smaran", "DeepSpeed"),
        ("DEEPSPEED", 0, "adamw_agr", "DeepSpeed"),
        ("DEEPSPEED", 0, "adan", None),
        ("FSDP", 1, "smaran", "fsdp_version 2"),
        ("FSDP", 1, "tlr_adamw", "fsdp_version 2"),
        ("FSDP", 1, "adamw", None),
        ("FSDP", 2, "smaran", None),
        ("MULTI_CPU", 1, "smaran", None),
    ],
)
def test_backends_that_hand_out_pieces(kind, version, name, refused):
    optimizer = hf_optim.create(name, torch.nn.Linear(2, 2))
    if refused is None:
        backends.refuse(_Backend(kind, version), optimizer, name)
    else:
        with pytest.raises(hf_optim.UserError, match=refused):
            backends.refuse(_Backend(kind, version), optimizer, name)


@pytest.mark.parametrize(
    ("name", "config", "refused"),
    [
        ("adamw", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, True),
        ("torch.optim:SGD", {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, True),
        ("torch.optim:AdamW", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, False),
        ("adamw", {"zero_optimization": {"offload_optimizer": {"device": "none"}}}, False),
        ("adamw", {"zero_optimization": {"stage": 2}}, False),
        (
            "adamw",
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False},
            False,
        ),
    ],
)
def test_deepspeed_puts_no_other_optimizer_in_ours_place(name, config, refused):
    """accelerate's `map_pytorch_optim_to_deepspeed` knows torch's Adam, AdamW and Adagrad; the rest becomes Adam."""
    optimizer = hf_optim.create(name, torch.nn.Linear(2, 2), lr=0.1)
    if not refused:
        backends.refuse(_Backend("DEEPSPEED", deepspeed=config), optimizer, name)
        return
    with pytest.raises(hf_optim.UserError, match="DeepSpeedCPUAdam in its place") as error:
        backends.refuse(_Backend("DEEPSPEED", deepspeed=config), optimizer, name)
    assert "\n" not in str(error.value)
