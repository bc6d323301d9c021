"""Judging a model on its task: the same figures while it trains, at the end of a run and from a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch.utils.data import Subset
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments

from hf_optim.core.rewind import RandomState
from hf_optim.errors import UserError
from hf_optim.experiment.task import Data, Moment, Preset, Task, load
from hf_optim.experiment.trainer import UNWANTED, Diverged, TaskTrainer


class Judge:
    """Gives Trainer what `task` says about evaluation; files of what is generated go below `folder`."""

    def __init__(self, task: Task, data: Data, folder: Path | None) -> None:
        self.task, self.data, self.folder = task, data, folder
        self._latest: tuple[tuple[str, int], dict[str, float]] | None = None

    def collate(self) -> Any:
        """What makes a batch."""
        return self.task.collate(self.data)

    def reduce(self, logits: Any, labels: Any) -> Any:
        """`Task.reduce`, under the name that Trainer calls a batch's logits by."""
        return self.task.reduce(logits, labels)

    def measure(self, gathered: EvalPrediction) -> dict[str, float]:
        """`Task.measure` of everything gathered; its loss under a name that Trainer's own average does not take."""
        measured = self.task.measure(cast(Any, gathered.predictions), cast(Any, gathered.label_ids))
        return {("measured_loss" if key == "loss" else key): value for key, value in measured.items()}

    def sample(self, model: PreTrainedModel, split: str, step: int, final: bool) -> dict[str, float]:
        """`Task.sample`, without a trace in the random state; once for a split and step."""
        if split not in ("validation", "test"):
            return {}
        if self._latest is not None and self._latest[0] == (split, step):
            return self._latest[1]
        rank, processes = _world()
        moment = Moment(cast(Literal["validation", "test"], split), step, final, self.folder, rank, processes)
        state, training = RandomState(model.device), model.training
        model.eval()
        try:
            with torch.no_grad():
                figures = self.task.sample(model, self.data, moment)
        finally:
            model.train(training)
            state.restore()
        self._latest = (split, step), figures
        return figures


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def evaluate_checkpoint(
    task: str,
    model: str | None,
    size: str,
    checkpoint: Path,
    data: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """The metrics of a saved model on every split: the numbers that its run's record holds.

    Raises:
        UserError: no such checkpoint, or one of another model or of other data.
    """
    chosen = load(task)
    name = model or chosen.models[0]
    preset = chosen.with_options(name, chosen.preset(name, size), options or {})
    check_checkpoint(checkpoint)
    splits = chosen.data(preset, data)
    with quiet():
        loaded = read_model(chosen, name, checkpoint)
        chosen.suits(loaded, splits)
        trainer = TaskTrainer(
            schedule={"name": "constant"},
            judge=Judge(chosen, splits, None),
            model=loaded,
            args=arguments(checkpoint.parent, chosen, preset),
        )
        return final_metrics(trainer, splits, preset)


def check_checkpoint(checkpoint: Path) -> None:
    """Raise a `UserError` unless `checkpoint` is the folder of a saved model."""
    if not (checkpoint / "config.json").is_file():
        raise UserError(f"checkpoint: {checkpoint} holds no config.json: give a folder such as RUN/checkpoint-432")


def read_model(task: Task, name: str, checkpoint: Path) -> PreTrainedModel:
    """The model of a checkpoint; a `UserError` if it is of another class than the task's model `name`.

    A class that picks the model's own by its configuration (transformers' `Auto...`) takes any.
    """
    cls: Any = task.model_class(name)
    stored = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("architectures")
    if stored and cls.__name__ not in stored and not cls.__name__.startswith("Auto"):
        raise UserError(f"checkpoint: {checkpoint} holds {stored[0]}, but model {name!r} is {cls.__name__}")
    return cast(PreTrainedModel, cls.from_pretrained(checkpoint))


def arguments(folder: Path, task: Task, preset: Preset, **more: Any) -> TrainingArguments:
    """TrainingArguments of a run or an evaluation; `more` are TrainingArguments' own."""
    on_cpu = not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        disable_tqdm=True,
        remove_unused_columns=False,
        per_device_eval_batch_size=preset.evaluation_batch.value,
        label_names=list(task.label_names),
        # Without it several processes on CPU would be several unrelated runs.
        use_cpu=on_cpu,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not on_cpu,
        **{"report_to": "none", **more},
    )


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
    metrics["parameter_norm"] = float(torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()]))
    metrics["loss_gap"] = metrics["test_loss"] - metrics["train_loss"]
    if "test_accuracy" in metrics:
        metrics["accuracy_gap"] = metrics["train_accuracy"] - metrics["test_accuracy"]
    primary = trainer.judge.task.primary
    # Of the two losses in a row, Trainer's own is an average of batch averages.
    logged = f"eval_{'measured_loss' if primary.stem == 'loss' else primary.stem}"
    values = [row[logged] for row in trainer.state.log_history if logged in row]
    values.append(metrics[f"validation_{primary.stem}"])
    metrics[f"best_validation_{primary.stem}"] = max(values) if primary.greater_is_better else min(values)
    return metrics


def train_part(data: Data, limit: int | None) -> Any:
    """The train split as evaluations see it, or its first `limit` samples."""
    train: Any = data.train if data.train_evaluated is None else data.train_evaluated
    return Subset(train, range(limit)) if limit is not None and limit < len(train) else train


def named(logged: dict[str, Any], prefix: str, split: str) -> dict[str, float]:
    """Trainer's evaluation figures under our names: `eval_measured_loss` becomes `validation_loss`."""
    figures = {}
    for key, value in sorted(logged.items()):  # a checkpoint stores them sorted
        stem = key.removeprefix(f"{prefix}_")
        if key.startswith(f"{prefix}_") and stem not in UNWANTED:
            figures[f"{split}_{'loss' if stem == 'measured_loss' else stem}"] = value
    return figures


@contextmanager
def quiet() -> Iterator[None]:
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
