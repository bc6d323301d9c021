"""Every family of optimizers in every situation of a Trainer: a cell trains and checks itself, or says what refused it.

`scripts/build_trainer_matrix.py` writes docs/trainer-matrix.md from what the cells return.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hub_parts import CHECKPOINTING, Honest, Tiny, TinyConfig, data, make, rows, weights
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

import hf_optim

#: family -> (optimizer, hyper-parameters)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("adan", {"lr": 0.01}),
    "transform": ("adamw_agr", {"lr": 0.01}),
    "loss-aware": ("smaran", {"lr": 0.05}),
    "line search": ("sls", {}),
    "wrapper": ("tlr", {"base": {"name": "adamw", "lr": 0.01}, "interval": 2}),
    "closure": ("torch.optim:LBFGS", {"lr": 0.1, "max_iter": 2}),
}
#: families that need the same batch again
REPLAYED = ("line search", "closure")
#: title -> cell: (folder, family) -> "yes", or "refused: why"
SITUATIONS: dict[str, Callable[[Path, str], str]] = {}


def situation(title: str) -> Callable[[Callable[[Path, str], str | None]], Callable[[Path, str], str | None]]:
    def add(cell: Callable[[Path, str], str | None]) -> Callable[[Path, str], str | None]:
        SITUATIONS[title] = lambda folder, family: cell(folder, family) or "yes"
        return cell

    return add


def attach(trainer: Any, family: str, **more: Any) -> Any:
    name, hyper = FAMILIES[family]
    return hf_optim.attach(trainer, name, **more, **hyper)


def trained(folder: Path, family: str, model: type[Tiny] = Honest, **arguments: Any) -> Any:
    """A run that has moved its weights, and whose log shows the rate in force and the loss that was fed."""
    trainer = make(folder, model, **arguments)
    before = weights(trainer)
    attach(trainer, family)
    trainer.train()
    checked(trainer, before, family)
    return trainer


def checked(trainer: Any, before: torch.Tensor, family: str) -> None:
    after, logged = weights(trainer), rows(trainer)
    assert torch.isfinite(after).all() and not torch.equal(before, after)
    assert logged and all(math.isfinite(row["effective_lr"]) for row in logged)
    if family == "loss-aware":
        for row in logged:
            assert abs(row["hf_optim_loss"] - row["loss"]) <= 1e-3 * abs(row["loss"])


@situation("Seq2SeqTrainer")
def seq2seq(folder: Path, family: str) -> None:
    args = Seq2SeqTrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=3, logging_steps=1, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Seq2SeqTrainer(Honest(TinyConfig()), args, train_dataset=data(12))
    before = weights(trainer)
    attach(trainer, family)
    trainer.train()
    checked(trainer, before, family)


@situation("label smoothing")
def smoothing(folder: Path, family: str) -> None:
    trained(folder, family, label_smoothing_factor=0.1, n=16)


@situation("accumulation, ragged last window")
def accumulation(folder: Path, family: str) -> None:
    """Micro-batches are the same step as one batch of their samples."""
    kw = {"n": 26, "optim": "adamw_torch_fused"}
    parts = trained(folder, family, gradient_accumulation_steps=2, **kw)
    whole = trained(folder, family, per_device_train_batch_size=8, **kw)
    assert parts.state.global_step == whole.state.global_step == 4
    assert torch.allclose(weights(parts), weights(whole), atol=2e-4)


@situation("max_grad_norm")
def clipping(folder: Path, family: str) -> str | None:
    trained(folder, family, max_grad_norm=1.0, n=16)
    return "yes, with a warning" if family in REPLAYED else None


@situation("bf16 autocast")
def bf16(folder: Path, family: str) -> None:
    trained(folder, family, bf16=True, n=16)


@situation("fp16 scaler, a skipped step")
def scaler(folder: Path, family: str) -> str | None:
    trainer = make(folder, Honest, n=16)
    trainer.train_dataset = data(16)
    trainer.args.logging_nan_inf_filter = False
    trainer.train_dataset[0]["x"] = torch.full((8,), 3e38)  # overflows in its batch, wherever shuffling puts it
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = weights(trainer)
    attachment = attach(trainer, family)
    if family in REPLAYED:
        try:
            trainer.train()
        except hf_optim.UserError as error:
            assert "fp16 loss scaling" in str(error) and torch.equal(before, weights(trainer))
            return "refused: use bf16"
        raise AssertionError("fp16 scaling was not refused")
    trainer.train()
    assert torch.isfinite(weights(trainer)).all() and not torch.equal(before, weights(trainer))
    assert trainer.accelerator.scaler.get_scale() == 4.0  # one overflow
    steps = [s["step"] for s in attachment.optimizer.state.values() if "step" in s]
    assert {int(s) for s in steps} == {3}
    return None


@situation("gradient checkpointing")
def checkpointing(folder: Path, family: str) -> None:
    from hub_language import model

    args = Seq2SeqTrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=2, logging_steps=1, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, **{CHECKPOINTING: True},
    )  # fmt: skip
    tokens = torch.randint(3, 17, (4, 6), generator=torch.Generator().manual_seed(0))
    gpt = model()
    trainer = Seq2SeqTrainer(gpt, args, train_dataset=[{"input_ids": t, "labels": t} for t in tokens])
    before = weights(trainer)
    attach(trainer, family)
    trainer.train()
    assert getattr(gpt, f"is_{CHECKPOINTING}")
    checked(trainer, before, family)


@situation("torch_compile")
def compiled(folder: Path, family: str) -> None:
    """Compiled by inductor: the model is fed and replayed as any other."""
    trained(folder, family, Tiny, n=8, torch_compile=True, torch_compile_backend="inductor")


@situation("every lr_scheduler_type")
def schedulers(folder: Path, family: str) -> None:
    """What is logged as the rate is what the schedule says for the rule's own rate."""
    more = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
            "warmup_stable_decay": {"num_decay_steps": 1}}  # fmt: skip
    for kind in SchedulerType:
        measured = kind.value in ("reduce_lr_on_plateau", "greedy")
        trainer = trained(
            folder, family, n=16, lr_scheduler_type=kind.value, lr_scheduler_kwargs=more.get(kind.value, {}),
            warmup_steps=0 if measured else 1, **({"eval_strategy": "steps", "eval_steps": 1} if measured else {}),
        )  # fmt: skip
        logged = [row["learning_rate"] for row in rows(trainer)]
        if measured:
            assert all(0 < rate <= 10 for rate in logged), kind
            continue
        base = hf_optim.hub.feed.unwrapped(trainer.optimizer).param_groups[0].get("initial_lr")
        dummy = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
        expected, schedule = (
            [],
            get_scheduler(
                kind,
                dummy,
                num_warmup_steps=1,
                num_training_steps=4,
                scheduler_specific_kwargs=more.get(kind.value, {}),
            ),
        )
        for _ in logged:
            expected.append(schedule.get_last_lr()[0])
            dummy.step()
            schedule.step()
        assert torch.allclose(torch.tensor(logged), torch.tensor(expected), rtol=1e-6), (kind, logged, expected)


@situation("multistep, step decay, warm restarts")
def named_schedules(folder: Path, family: str) -> None:
    for schedule, factors in (
        ({"name": "multistep", "at": [0.5, 0.75], "gamma": 0.1}, [1, 1, 0.1, 0.01]),
        ({"name": "step", "every": 1, "gamma": 0.5}, [1, 0.5, 0.25, 0.125]),
        ({"name": "cosine", "cycles": 2}, [1, 0.5, 1, 0.5]),
        ("constant", [1, 1, 1, 1]),
    ):
        trainer = make(folder, n=16, lr_scheduler_type="linear")
        attach(trainer, family, schedule=schedule)
        trainer.train()
        logged = [row["learning_rate"] for row in rows(trainer)]
        assert torch.allclose(torch.tensor(logged) / logged[0], torch.tensor(factors, dtype=torch.float32)), schedule


@situation("model_init and a search with Optuna")
def search(folder: Path, family: str) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trainer = make(folder, Honest, n=8, eval_strategy="epoch", gradient_accumulation_steps=2)
    trainer.model_init = lambda trial=None: Honest(TinyConfig())
    own = {k: v for k, v in FAMILIES[family][1].items() if k != "lr"}
    if "base" in own:
        own["base"] = "adamw"
    attachment = hf_optim.attach(trainer, FAMILIES[family][0], **own)
    seen: list[float] = []
    build = attachment._build

    def noting(*args: Any) -> Any:
        optimizer = build(*args)
        seen.append(optimizer.param_groups[0]["lr"])
        return optimizer

    attachment._build = noting  # type: ignore[method-assign]
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [0.02, 0.04])},
        lambda metrics: metrics["eval_loss"], n_trials=2, direction="minimize", backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": [0.02, 0.04]}, seed=0),
    )  # fmt: skip
    assert math.isfinite(best.objective)
    assert sorted(seen) == ([1.0, 1.0] if family == "line search" else [0.02, 0.04])  # sls searches its own step


@situation("load_best_model_at_end")
def best_model(folder: Path, family: str) -> None:
    trainer = trained(
        folder, family, n=16, num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True,
    )  # fmt: skip
    assert abs(trainer.evaluate()["eval_loss"] - trainer.state.best_metric) < 1e-6


@situation("early stopping")
def early(folder: Path, family: str) -> None:
    trainer = make(
        folder, Honest, n=8, num_train_epochs=5, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, callbacks=[EarlyStoppingCallback(1, early_stopping_threshold=1e9)],
    )  # fmt: skip
    attach(trainer, family)
    trainer.train()
    assert trainer.state.epoch == 2  # nothing improves that much
    assert "backward" not in vars(trainer.accelerator)  # nothing stays behind a run that was stopped


@situation("resume, bit for bit")
def resumed(folder: Path, family: str) -> None:
    def run(resume: str | None = None) -> torch.Tensor:
        trainer = make(
            folder, Honest, n=32, dropout=0.3, norm=True, save_strategy="steps", save_steps=3,
            gradient_accumulation_steps=2, lr_scheduler_type="cosine",
        )  # fmt: skip
        attach(trainer, family)
        trainer.train(resume_from_checkpoint=resume)
        return weights(trainer)

    assert torch.equal(run(), run(str(folder / "checkpoint-3")))
