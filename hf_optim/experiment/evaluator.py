"""What a task says about evaluation, in the form that Trainer asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch.utils.data import Subset
from transformers import EvalPrediction, PreTrainedModel, TrainingArguments

from hf_optim.core.rewind import RandomState
from hf_optim.experiment.precision import check_precision, trainer_arguments
from hf_optim.experiment.task import Data, Moment, Preset, Task


class Evaluator:
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


def arguments(
    folder: Path,
    task: Task,
    preset: Preset,
    *,
    precision: str,
    compile_model: bool = False,
    workers: int = 0,
    **more: Any,
) -> TrainingArguments:
    """TrainingArguments of a run or an evaluation; `more` are TrainingArguments' own.

    Raises:
        UserError: the machine does not compute in `precision`.
    """
    check_precision(precision)
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
        dataloader_num_workers=workers,
        torch_compile=compile_model,
        **trainer_arguments(precision),
        **{"report_to": "none", **more},
    )


def train_part(data: Data, limit: int | None) -> Any:
    """The train split as evaluations see it, or its first `limit` samples."""
    train: Any = data.train if data.train_evaluated is None else data.train_evaluated
    return Subset(train, range(limit)) if limit is not None and limit < len(train) else train


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and advice; what it calls an error holds texts of a checkpoint as they are,
    and what ends its work it raises, too.
    """
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
