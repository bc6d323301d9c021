"""The Trainer of a run: our schedules, exact evaluations, and a watch over its steps."""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import Trainer, TrainerCallback

from hf_optim.core import reduce
from hf_optim.core.numerals import decimal
from hf_optim.core.rewind import reshard
from hf_optim.experiment import resuming, sharding, shards
from hf_optim.experiment.checkpoint import read_adapters
from hf_optim.experiment.evaluator import Evaluator
from hf_optim.experiment.files import remove
from hf_optim.experiment.record import step_of
from hf_optim.experiment.spending import Spending
from hf_optim.hub import schedules
from hf_optim.hub.offline import offline

# What Trainer adds to its evaluation logs. The loss among them is an average of batch averages; ours is exact over
# ragged batches and processes, and goes by `measured_loss` until it is recorded.
UNWANTED = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
# The prefix of the figures of the train split that a run follows (`overrides: {train_curve: N}`).
FOLLOWED = "train_part"


class Diverged(RuntimeError):
    """The loss is no longer finite."""


class TaskTrainer(Trainer):
    """Trainer with our schedules, evaluated as `evaluator` says, its evaluation time kept apart."""

    def __init__(
        self, *, schedule: dict[str, Any], evaluator: Evaluator, drop_last: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(
            data_collator=evaluator.collate(),
            compute_metrics=evaluator.measure,
            preprocess_logits_for_metrics=evaluator.reduce,
            **kwargs,
        )
        self.schedule, self.evaluator, self.drop_last = schedule, evaluator, drop_last
        self.finished = False
        self.followed: Any = None
        self.spending = Spending()
        self.grad_norm: float | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """Trainer's, whose accelerator shards any model where it shards."""
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            sharding.adapt(self.accelerator)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's; of sharded weights it writes the shards alone (for going on), so the model is added, for
        evaluations. All processes go on with the buffers of the first one, which are the model's.
        """
        self._share_buffers()
        if output_dir is not None and _internal_call:  # a checkpoint
            # libraries read some of what an interrupted writer, or anybody, has left there, and keep the rest
            if self.args.should_save:
                remove(Path(output_dir).parent, Path(output_dir).name)
            self.accelerator.wait_for_everyone()
        super().save_model(output_dir, _internal_call)
        if self.is_fsdp_enabled and "FULL" not in str(self.accelerator.state.fsdp_plugin.state_dict_type):
            whole = self.accelerator.get_state_dict(self.model)
            if self.args.should_save:
                self._save(output_dir, state_dict=whole)

    def _save_rng_state(self, output_dir: str) -> None:
        """Trainer's, in every process before the first one writes the state, by which a checkpoint counts as whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Trainer's, of a checkpoint that asks for nothing else; `attach` adds what lies there under other names."""
        folder = Path(resume_from_checkpoint)
        shards_of_it = [p for p in folder.glob("pytorch_model_fsdp*") if p.is_dir() or p.suffix == ".bin"]
        if hasattr(self.model, "peft_config") and not (self.is_fsdp_enabled and shards_of_it):
            # PEFT leaves what lacks as it was, and seeks a file that lacks on the Hub, by the checkpoint's path
            read_adapters(self.model, folder)  # type: ignore[arg-type]
            return
        with shards.plain(), offline():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's, of plain data and of this run's settings."""
        if checkpoint is not None:
            with shards.plain(), resuming.as_specified(self, step_of(Path(checkpoint).name)):
                super()._load_optimizer_and_scheduler(checkpoint)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """A LambdaLR over every group's own rate, as far as the run is in steps or, if that is more, in its budget."""
        if self.lr_scheduler is None:
            chosen = optimizer if optimizer is not None else self.optimizer
            assert chosen is not None
            factor = schedules.factor(self.schedule, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                chosen, lambda step: factor(max(step, int(self.spending.share() * num_training_steps)))
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_train_dataloader(self) -> Any:
        """Trainer's; its own `dataloader_drop_last` would leave the last batch out of evaluations too."""
        self.args.dataloader_drop_last = self.drop_last
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = False

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; none for a run that goes on from its own end (it was killed as it was evaluated there), which
        Trainer would train for a step more.
        """
        if self.control.should_training_stop:
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Trainer's and what the task samples, timed apart, with the first process's buffers (batch norm) on every one.

        Before the first step nothing is sampled: it would say nothing and may cost as much as the training.
        """
        with self.spending.evaluating():
            try:
                return self._evaluated(*args, prefix=metric_key_prefix, **kwargs)
            finally:
                reshard([self.model])  # type: ignore[list-item]

    def uncounted(self) -> AbstractContextManager[None]:
        """Around what is no training (`hf_optim.hub.replay.uncounted`)."""
        return self.spending.evaluating()

    def _share_buffers(self) -> None:
        if reduce.distributed():
            assert self.model is not None
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def _evaluated(self, *args: Any, prefix: str, **kwargs: Any) -> Any:
        self._share_buffers()
        output = super().evaluation_loop(*args, metric_key_prefix=prefix, **kwargs)  # type: ignore[misc]
        step = self.state.global_step
        if step or self.finished:
            assert self.model is not None and output.metrics is not None
            split = "validation" if prefix == "eval" else prefix
            final = self.finished or step == self.state.max_steps
            sampled = self.evaluator.sample(self.model, split, step, final)  # type: ignore[arg-type]
            output.metrics.update({f"{prefix}_{key}": value for key, value in sampled.items()})
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer's, and after it the part of the train split that the run follows."""
        metrics = super().evaluate(*args, **kwargs)
        if self.followed is not None:
            output = self.evaluation_loop(
                self.get_eval_dataloader(self.followed), "followed", metric_key_prefix=FOLLOWED
            )
            self.log(output.metrics or {})
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with what was spent by then; without clipping it knows no gradient norm, so that is added too."""
        if "loss" in logs and self.grad_norm is not None:
            logs.setdefault("grad_norm", self.grad_norm)
        super().log({**logs, **self.spending.row()}, start_time)


class Watch(TrainerCallback):
    """Times the steps, measures the gradient norm of those that are logged, and stops at a loss that is not finite."""

    def __init__(self, label: str, progress: bool) -> None:
        self.label, self.progress = label, progress
        self.trainer: TaskTrainer | None = None
        self.step_seconds: list[float] = []
        self.optimizer_seconds: list[float] = []
        self.train_seconds = 0.0
        self._begun = 0.0
        self._bar: Any = None
        self._last_loss: float | None = None

    @property
    def begun(self) -> bool:
        """Whether a first step has."""
        return self._begun > 0

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        state.compute_steps(args, state.max_steps)  # Trainer would log, evaluate and save as often as a checkpoint says
        if self.progress and state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, leave=False, unit="step", desc=self.label
            )
        if self.trainer is not None:
            self.trainer.spending.begin(state.log_history)
            control.should_training_stop |= state.global_step >= state.max_steps or self.trainer.spending.share() >= 1
        step = optimizer.step

        @functools.wraps(step)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            begun = self._now()
            result = step(*arguments, **keywords)
            self.optimizer_seconds.append(self._now() - begun)
            return result

        optimizer.step = timed

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = self._now()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        step = state.global_step + 1
        due = step % args.logging_steps == 0 or (args.save_strategy == "steps" and step % args.save_steps == 0)
        if due and not args.max_grad_norm and self.trainer is not None:
            self.trainer.grad_norm = sharding.total_norm(p.grad for p in model.parameters() if p.grad is not None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step_seconds.append(self._now() - self._begun)
        if self.trainer is not None and self.trainer.spending.share() >= 1:
            control.should_training_stop = control.should_log = control.should_evaluate = True
        if self._bar is not None:
            self._bar.update()
        # The window of the logged loss is not in a checkpoint: close it there, and a resumed run logs the same rows.
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        logs = logs or {}
        for key, split in (("loss", "train"), ("eval_measured_loss", "validation")):
            if key in logs and not math.isfinite(logs[key]):
                raise Diverged(f"the {split} loss is not finite ({logs[key]}) at step {state.global_step}")
        self._last_loss = logs.get("loss", self._last_loss)
        if self.progress and state.is_world_process_zero and "eval_measured_loss" in logs:
            train = "" if self._last_loss is None else f"  train loss {decimal(self._last_loss, 4)}"
            rest = "".join(
                f"  {key.removeprefix('eval_')} {decimal(value, 4)}"
                for key, value in logs.items()
                if key.startswith("eval_") and key.removeprefix("eval_") not in UNWANTED and key != "eval_measured_loss"
            )
            tqdm.write(
                f"{self.label}  step {state.global_step}/{state.max_steps}{train}"
                f"  validation loss {decimal(logs['eval_measured_loss'], 4)}{rest}",
                file=sys.stderr,
            )

    @contextmanager
    def training(self, spending: Spending) -> Iterator[None]:
        """Around the training, which is timed without its evaluations; the bar goes with it, also if it fails."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.train_seconds = time.perf_counter() - begun - spending.evaluation_seconds
            if self._bar is not None:
                self._bar.close()
                self._bar = None
