"""One run: a task's Trainer with an attached optimizer, from seed to record."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments, set_seed

import hf_optim
from hf_optim import records, registry
from hf_optim.errors import UserError
from hf_optim.task import Data, Preset, RunSpec, Task, load
from hf_optim.task_trainer import UNWANTED, Diverged, TaskTrainer, Watch

EVALUATION_BATCH = 256
LOGS_PER_RUN = 60
SPEC = "spec.json"


@dataclass(frozen=True)
class Budget:
    """The numbers of a run: the preset's, with the spec's overrides, for this many processes."""

    steps: int
    steps_per_epoch: int
    per_device: int
    accumulation: int
    eval_every: int
    log_every: int
    max_grad_norm: float
    drop_last: bool
    schedule: dict[str, Any]


def budget(spec: RunSpec, preset: Preset, samples: int, processes: int) -> Budget:
    """Work the numbers out; a `UserError` if the batch does not divide or the data are fewer than a batch."""
    given = spec.overrides
    batch, accumulation = given.get("batch_size", preset.batch_size.value), given.get("gradient_accumulation_steps", 1)
    if batch % (processes * accumulation):
        raise UserError(
            f"overrides: batch_size {batch} is the whole step's and must divide by {processes} process(es) x "
            f"{accumulation} accumulation step(s)"
        )
    drop_last = preset.drop_last.value
    if drop_last and samples < batch:
        raise UserError(f"data: {samples} train samples are fewer than one batch of {batch}: set overrides batch_size")
    per_epoch = samples // batch if drop_last else math.ceil(samples / batch)
    steps = given.get("steps", per_epoch * given.get("epochs", preset.epochs.value))
    return Budget(
        steps=steps,
        steps_per_epoch=per_epoch,
        per_device=batch // (processes * accumulation),
        accumulation=accumulation,
        eval_every=given.get("eval_every", per_epoch),
        log_every=max(1, steps // LOGS_PER_RUN),
        max_grad_norm=float(given.get("max_grad_norm", preset.max_grad_norm.value)),
        drop_last=drop_last,
        schedule=spec.schedule or preset.schedule.value,
    )


def run(spec: RunSpec, folder: Path, *, progress: bool, checkpoint_every: int | None, resume: bool) -> dict[str, Any]:
    """See `hf_optim.task.train`."""
    started, processes = datetime.now(UTC), int(os.environ.get("WORLD_SIZE", "1"))
    first = int(os.environ.get("RANK", "0")) == 0
    task, model_name, preset = spec.check()
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"checkpoint_every: expected 1 or more, got {checkpoint_every}")
    data = task.data(preset, spec.data)
    numbers = budget(spec, preset, len(data.train), processes)  # type: ignore[arg-type]
    set_seed(spec.seed)
    model = task.model(model_name, preset, data)
    registry.build(spec.optimizer, model)  # values out of range are the user's error, not a failed run
    checkpoint = _last_checkpoint(folder) if resume else None
    if first:
        _prepare(folder, spec, keep=checkpoint is not None, checkpoints=checkpoint_every is not None)

    records.reset_peak_memory()
    label = f"{spec.task}/{model_name} {spec.size} {spec.optimizer['name']} seed {spec.seed}"
    if progress and first:
        where = f" on {processes} processes" if processes > 1 else ""
        print(f"{label}: {numbers.steps} steps of {data.name}{where}", file=sys.stderr, flush=True)
    watch = Watch(label, progress)
    error: str | None = None
    metrics: dict[str, float] = {}
    seconds = 0.0
    trainer: TaskTrainer | None = None
    with _quiet():
        try:
            trainer = _trainer(task, spec, model, data, numbers, folder, checkpoint_every, watch, checkpoint is None)
            hf_optim.attach(trainer, spec.optimizer)
            begun = time.perf_counter()
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            finally:
                seconds = time.perf_counter() - begun - trainer.evaluation_seconds
            metrics = _final_metrics(task, trainer, data)
        except Exception as problem:
            if processes > 1 and _lost(problem):  # says nothing about this run: no record, so that it is run again
                raise UserError(
                    f"another process of this run has died or hangs ({records.one_line(problem)}): no record was "
                    "written; start it again with --resume"
                ) from problem
            error, metrics = records.one_line(problem), {}
    history = _history(trainer.state.log_history) if trainer is not None else []
    record = {
        "id": spec.id,
        "spec": spec.to_dict(),
        "status": "ok" if error is None else "failed",
        "error": error,
        "metrics": metrics,
        "primary": {"name": task.primary.name, "greater_is_better": task.primary.greater_is_better},
        "history": records.HISTORY,
        "time": {
            "train_seconds": round(seconds, 3),
            "step_ms_median": _median_ms(watch.step_seconds),
            "optimizer_ms_median": _median_ms(watch.optimizer_seconds),
            "steps": trainer.state.global_step if trainer is not None else 0,
        },
        "memory": {
            "optimizer_state_bytes": _state_bytes(trainer),
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_rss_bytes": records.peak_memory(),
        },
        "environment": records.environment(processes, str(trainer.args.device) if trainer is not None else "unknown"),
        "data": {"name": data.name, "fingerprint": data.fingerprint, "note": data.note},
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if first:
        records.write_rows(folder / records.HISTORY, history)
        records.write_json(folder / records.RECORD, record)
    return record


def _lost(problem: Exception) -> bool:
    """Whether a collective failed. NCCL has an error class; gloo raises what only its text tells from others."""
    text = str(problem)
    return isinstance(problem, torch.distributed.DistError) or any(word in text for word in ("gloo", "Gloo", "NCCL"))


def evaluate_checkpoint(
    task: str, model: str | None, size: str, checkpoint: Path, data: str | None = None
) -> dict[str, float]:
    """The metrics of a saved model on every split: the numbers that its run's record holds.

    Raises:
        UserError: no such checkpoint, or one of another model.
    """
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint: {checkpoint} holds no config.json: give a folder such as RUN/checkpoint-432")
    chosen = load(task)
    name = model or chosen.models[0]
    preset = chosen.preset(name, size)
    splits = chosen.data(preset, data)
    with _quiet():
        cls = chosen.model_class(name)
        stored = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("architectures")
        if stored and cls.__name__ not in stored:
            raise UserError(f"checkpoint: {checkpoint} holds {stored[0]}, but model {name!r} is {cls.__name__}")
        trainer = TaskTrainer(
            schedule={"name": "constant"},
            model=cls.from_pretrained(checkpoint),
            args=_arguments(checkpoint.parent, per_device_eval_batch_size=EVALUATION_BATCH),
            data_collator=chosen.collate(),
            compute_metrics=functools.partial(_measure, chosen),
        )
        return _final_metrics(chosen, trainer, splits)


def _arguments(folder: Path, **more: Any) -> TrainingArguments:
    on_cpu = not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        # Without it several processes on CPU would be several unrelated runs.
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not on_cpu,
        **more,
    )


def _trainer(
    task: Task,
    spec: RunSpec,
    model: PreTrainedModel,
    data: Data,
    numbers: Budget,
    folder: Path,
    checkpoint_every: int | None,
    watch: Watch,
    fresh: bool,
) -> TaskTrainer:
    arguments = _arguments(
        folder,
        seed=spec.seed,
        data_seed=spec.seed,
        max_steps=numbers.steps,
        per_device_train_batch_size=numbers.per_device,
        per_device_eval_batch_size=EVALUATION_BATCH,
        gradient_accumulation_steps=numbers.accumulation,
        max_grad_norm=numbers.max_grad_norm,
        eval_strategy="steps",
        eval_steps=numbers.eval_every,
        eval_on_start=fresh,
        logging_strategy="steps",
        logging_steps=numbers.log_every,
        # A NaN must be seen, not replaced by the average.
        logging_nan_inf_filter=False,
        save_strategy="no" if checkpoint_every is None else "steps",
        save_steps=checkpoint_every or 500,
    )
    trainer = TaskTrainer(
        schedule=numbers.schedule,
        drop_last=numbers.drop_last,
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=task.collate(),
        compute_metrics=functools.partial(_measure, task),
        callbacks=[watch],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    watch.trainer = trainer
    return trainer


def _measure(task: Task, gathered: EvalPrediction) -> dict[str, float]:
    """`Task.measure` of everything gathered; its loss under a name that Trainer's own average does not take."""
    measured = task.measure(cast(Any, gathered.predictions), cast(Any, gathered.label_ids))
    return {("measured_loss" if key == "loss" else key): value for key, value in measured.items()}


def _final_metrics(task: Task, trainer: TaskTrainer, data: Data) -> dict[str, float]:
    """Every split in evaluation mode, the gaps, and the best validation value on the way."""
    metrics: dict[str, float] = {}
    for split, dataset in (("test", data.test), ("train", data.train), ("validation", data.validation)):
        output = trainer.predict(dataset, metric_key_prefix=split)
        if len(output.predictions) != len(dataset):  # type: ignore[arg-type]
            raise RuntimeError(f"{split}: {len(output.predictions)} predictions of {len(dataset)} samples")  # type: ignore[arg-type]
        metrics.update(_named(output.metrics or {}, split, split))
    for key in [key for key, value in metrics.items() if not math.isfinite(value)]:
        raise Diverged(f"{key} is not finite at the end of the run")
    metrics["loss_gap"] = metrics["test_loss"] - metrics["train_loss"]
    if "test_accuracy" in metrics:
        metrics["accuracy_gap"] = metrics["train_accuracy"] - metrics["test_accuracy"]
    stem = task.primary.stem
    values = [row[f"eval_{stem}"] for row in trainer.state.log_history if f"eval_{stem}" in row]
    values.append(metrics[f"validation_{stem}"])
    metrics[f"best_validation_{stem}"] = max(values) if task.primary.greater_is_better else min(values)
    return metrics


def _named(logged: dict[str, Any], prefix: str, split: str) -> dict[str, float]:
    """Trainer's evaluation figures under our names: `eval_measured_loss` becomes `validation_loss`."""
    named = {}
    for key, value in sorted(logged.items()):  # a checkpoint stores them sorted
        stem = key.removeprefix(f"{prefix}_")
        if key.startswith(f"{prefix}_") and stem not in UNWANTED:
            named[f"{split}_{'loss' if stem == 'measured_loss' else stem}"] = value
    return named


def _history(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainer's log as rows of ours; its summary of the whole run is left out."""
    rows = []
    names = {"loss": "train_loss", "learning_rate": "lr"}
    for entry in log:
        where = {"step": entry["step"], "epoch": round(entry.get("epoch") or 0.0, 4)}
        if any(key.startswith("eval_") for key in entry):
            rows.append({**where, **_named(entry, "eval", "validation")})
        elif "loss" in entry:
            rest = {names.get(key, key): value for key, value in sorted(entry.items()) if key not in ("step", "epoch")}
            rows.append({**where, **rest})
    return rows


def _median_ms(seconds: list[float]) -> float | None:
    return round(1000 * statistics.median(seconds), 4) if seconds else None


def _state_bytes(trainer: TaskTrainer | None) -> int:
    if trainer is None or trainer.optimizer is None:
        return 0
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    return records.tensor_bytes(dict(inner.state))


def _prepare(folder: Path, spec: RunSpec, *, keep: bool, checkpoints: bool) -> None:
    """Make the folder and clear an older run out of it; `keep` leaves the checkpoints of the run that goes on."""
    stored = folder / SPEC
    if keep and stored.is_file() and json.loads(stored.read_text(encoding="utf-8")) != spec.to_dict():
        raise UserError(f"resume: {folder} holds checkpoints of another run (see its {SPEC}): choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: cannot make {folder}: {error.strerror}") from error
    for name in (records.RECORD, records.HISTORY):
        (folder / name).unlink(missing_ok=True)
    if not keep:
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
        stored.unlink(missing_ok=True)
    if checkpoints or keep:
        records.write_json(stored, spec.to_dict())


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that was written whole: Trainer writes its state file last."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(path.name.rpartition("-")[2]), str(path)))
        except (OSError, ValueError):
            continue
    return max(whole)[1] if whole else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
