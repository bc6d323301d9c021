"""Judging a model on its task: the same figures while it trains, at the end of a run and from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_optim.experiment.budget import resampled
from hf_optim.experiment.checkpoint import ADAPTERS, check_checkpoint, judged, read_adapters, read_model
from hf_optim.experiment.evaluator import Evaluator, arguments, quiet, train_part
from hf_optim.experiment.precision import check_precision, products
from hf_optim.experiment.sharding import total_norm
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.task import Data, Preset, check_run, read_data
from hf_optim.experiment.trainer import UNWANTED, Diverged, TaskTrainer


@dataclass(frozen=True)
class Evaluated:
    """What a checkpoint scores, and on what."""

    metrics: dict[str, float]
    data: str
    fingerprint: str
    samples: int
    """Of the test split."""
    precision: str


def evaluate(spec: RunSpec, checkpoint: Path) -> Evaluated:
    """A saved model on every split of the run `spec`: the numbers that its record holds, but for the best validation
    value, of which a checkpoint knows its own moment's. `spec.optimizer` is not looked at.

    Raises:
        UserError: no such checkpoint, or one of another model or of other data.
    """
    task, name, preset = check_run(spec)
    adapted = (checkpoint / ADAPTERS).is_file()
    if not adapted:
        check_checkpoint(checkpoint)
    chosen = spec.overrides.get("precision", preset.precision.value)
    check_precision(chosen)
    data = read_data(task, preset, spec.data)
    if "split_seed" in spec.overrides:
        data = resampled(data, spec.overrides["split_seed"])
    with quiet(), products(chosen), judged(checkpoint):
        if adapted:
            model = read_adapters(task.model(name, preset, data), checkpoint)
        else:
            model = read_model(task, name, checkpoint)
        task.suits(model, data)
        trainer = TaskTrainer(
            schedule={"name": "constant"},
            evaluator=Evaluator(task, data, None),
            model=model,
            args=arguments(
                checkpoint.parent,
                task,
                preset,
                precision=chosen,
                compile_model=spec.overrides.get("compile_model", False),
                workers=spec.overrides.get("workers", 0),
            ),
        )
        metrics = final_metrics(trainer, data, preset)
    return Evaluated(metrics, data.name, data.fingerprint, len(data.test), chosen)  # type: ignore[arg-type]


def evaluate_checkpoint(
    task: str,
    model: str | None,
    size: str,
    checkpoint: Path,
    data: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """`evaluate`'s metrics, of a checkpoint whose run is known by its names."""
    spec = RunSpec(task, model, size, {"name": "sgd"}, data=data, options=dict(options or {}))
    return evaluate(spec, checkpoint).metrics


def final_metrics(trainer: TaskTrainer, data: Data, preset: Preset) -> dict[str, float]:
    """Every split in evaluation mode, the gaps, and the best validation value on the way."""
    metrics: dict[str, float] = {}
    train = train_part(data, preset.train_evaluation.value)
    trainer.finished = True
    for split, dataset in (("validation", data.validation), ("test", data.test), ("train", train)):
        output = trainer.predict(dataset, metric_key_prefix=split)
        if len(output.predictions) != len(dataset):  # type: ignore[arg-type]
            raise RuntimeError(f"{split}: {len(output.predictions)} predictions of {len(dataset)} samples")  # type: ignore[arg-type]
        metrics.update(named(output.metrics or {}, split, split))
    for key in [key for key, value in metrics.items() if not math.isfinite(value)]:
        raise Diverged(f"{key} is not finite at the end of the run")
    model = trainer.model
    assert model is not None
    metrics["parameter_norm"] = total_norm(p.detach() for p in model.parameters())
    metrics["loss_gap"] = metrics["test_loss"] - metrics["train_loss"]
    if "test_accuracy" in metrics:
        metrics["accuracy_gap"] = metrics["train_accuracy"] - metrics["test_accuracy"]
    primary = trainer.evaluator.task.primary
    # Of the two losses in a row, Trainer's own is an average of batch averages.
    logged = f"eval_{'measured_loss' if primary.stem == 'loss' else primary.stem}"
    values = [row[logged] for row in trainer.state.log_history if logged in row]
    values.append(metrics[f"validation_{primary.stem}"])
    metrics[f"best_validation_{primary.stem}"] = max(values) if primary.greater_is_better else min(values)
    return metrics


def named(logged: dict[str, Any], prefix: str, split: str) -> dict[str, float]:
    """Trainer's evaluation figures under our names: `eval_measured_loss` becomes `validation_loss`."""
    figures = {}
    for key, value in sorted(logged.items()):  # a checkpoint stores them sorted
        stem = key.removeprefix(f"{prefix}_")
        if key.startswith(f"{prefix}_") and stem not in UNWANTED:
            figures[f"{split}_{'loss' if stem == 'measured_loss' else stem}"] = value
    return figures
