"""One run: a task's Trainer with an attached optimizer, from seed to record."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers

from hf_optim.core.safe_text import line
from hf_optim.core.wording import counted
from hf_optim.errors import DamagedCheckpoint, UserError, one_line
from hf_optim.experiment import feeding, outcome, precision, resuming, sharding, trackers
from hf_optim.experiment import record as records
from hf_optim.experiment.disk import check_error, check_given
from hf_optim.experiment.evaluation import final_metrics
from hf_optim.experiment.evaluator import Evaluator, arguments, quiet, train_part
from hf_optim.experiment.outcome import Measured, measured
from hf_optim.experiment.own_training import OwnTraining
from hf_optim.experiment.preparation import Prepared, check_devices, prepare
from hf_optim.experiment.spec import RunSpec
from hf_optim.experiment.spending import Spending
from hf_optim.experiment.stopping import EarlyStopping, Pruned, Pruner
from hf_optim.experiment.task import Data, check_run
from hf_optim.experiment.trainer import TaskTrainer, Watch
from hf_optim.hub import attach
from hf_optim.hub.schedules import unreached


def train(
    spec: RunSpec,
    folder: str | Path,
    *,
    progress: bool = True,
    checkpoint_every: int | None = None,
    resume: bool = False,
    report_to: Sequence[str] = (),
    run_name: str | None = None,
    project: str | None = None,
) -> dict[str, Any]:
    """Run `spec` and leave `history.jsonl` and, last of all, `record.json` in `folder`; gives the record.

    A run that crashes or diverges (a loss that is not finite) is a record with status "failed" and its reason in one
    line. An interrupted run leaves no record: call it again. Under `torchrun` every process calls it with the same
    arguments and the first one writes.

    Args:
        spec: the run.
        folder: made if missing; an older record in it is removed first.
        progress: one line on stderr an evaluation, and a bar on a terminal.
        checkpoint_every: write a checkpoint every so many steps and at the end (`folder/checkpoint-STEP`).
        resume: go on from the folder's last whole checkpoint, bit-identically; without one, start again.
        report_to: trackers that transformers knows, as "tensorboard", "trackio" or "wandb", fed beside history.jsonl;
            a training of your own feeds them itself.
        run_name, project: what a tracker calls the run, and what it puts it under; default its own choice.

    Raises:
        UserError: what can be known to be wrong before anything is written: names, values, data files.
        DamagedCheckpoint: with `resume`; no record was written.
        Unwritable: the disk is full, or takes no file of that size; there is no record.
    """
    folder, started = Path(folder), datetime.now(UTC)
    check_devices()
    task, model_name, preset = check_run(spec)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"checkpoint_every: expected 1 or more, got {checkpoint_every}")
    trackers.check(report_to)
    trackers.check_settings(report_to, Path(os.environ.get("WANDB_DIR") or "."))
    trackers.check_folder(report_to, folder)
    if isinstance(task, OwnTraining):
        return task.run(spec, folder)
    named_as = {"run_name": run_name, "project": project}
    run = prepare(
        spec,
        folder,
        task,
        model_name,
        preset,
        checkpoint_every=checkpoint_every,
        resume=resume,
        tracking={"report_to": list(report_to) or "none", **{k: v for k, v in named_as.items() if v is not None}},
        started=started,
    )
    records.reset_peak_memory()
    label = line(f"{spec.task}/{model_name} {spec.size} {spec.optimizer['name']} seed {spec.seed}")
    if progress and run.first:
        _announce(run, label)
    seen = _run(run, Watch(label, progress))
    record = outcome.record(run, seen)
    if run.first and not folder.is_dir():
        raise UserError(f"{folder} was moved or removed while the run was in it: no record was written")
    if run.first:
        records.leave(folder, seen.history, record)
    return record


def _announce(run: Prepared, label: str) -> None:
    where = f" on {run.processes} processes" if run.processes > 1 else ""
    steps = counted(run.numbers.steps, "step")
    print(line(f"{label}: {steps} of {run.data.name}{where}"), file=sys.stderr, flush=True)
    warnings = [unreached(run.numbers.schedule, run.numbers.steps)]
    if run.checkpoint is not None and not resuming.drawn_on(Path(run.checkpoint), run.processes):
        written = f"{run.checkpoint} was written by another number of processes"
        warnings.append(f"{written}: from there on other random numbers are drawn")
    for warning in filter(None, warnings):
        print(line(f"warning: {warning}"), file=sys.stderr, flush=True)


def _run(run: Prepared, watch: Watch) -> Measured:
    """Trains and evaluates; what goes wrong on the way is the run's result, unless it says nothing about the run."""
    error: str | None = None
    pruned = False
    metrics: dict[str, float] = {}
    with quiet(), precision.products(run.numbers.precision):
        try:
            metrics = _trained(run, watch)
        except DamagedCheckpoint:
            raise
        except Exception as problem:
            if run.processes > 1 and _lost(problem):  # no record, so that it is run again
                raise UserError(
                    f"another process of this run has died or hangs ({one_line(problem)}): no record was "
                    "written; start it again with --resume"
                ) from problem
            check_error(run.folder, problem)
            error, pruned = one_line(problem), isinstance(problem, Pruned)
    return measured(watch, metrics, error, pruned)


def _trained(run: Prepared, watch: Watch) -> dict[str, float]:
    """The metrics of the trained model."""
    numbers, overrides = run.numbers, run.spec.overrides
    trainer = _trainer(run, watch)
    if trainer.is_fsdp_enabled and "sharpness" in overrides:
        raise UserError("overrides: sharpness needs whole weights: hf-optim inspect has it of a checkpoint")
    if sharding.wanted() and not trainer.is_fsdp_enabled and run.first:
        print("FSDP2 needs GPUs: every process has all of the weights (DDP)", file=sys.stderr, flush=True)
    trainer.spending = Spending(numbers.passes, numbers.seconds, run.cost, run.processes)
    trainer.spending.watch(run.model, compiled=numbers.compile_model)
    attach(trainer, run.optimizer)
    try:
        with watch.training(trainer.spending):
            trainer.train(resume_from_checkpoint=run.checkpoint)
    except Exception as problem:
        if run.checkpoint is not None and not watch.begun:
            check_given(run.checkpoint, problem)
            raise DamagedCheckpoint(_damaged(run.checkpoint, problem)) from problem
        raise
    metrics = final_metrics(trainer, run.data, run.preset)
    if "sharpness" in overrides:
        metrics["sharpness"] = _sharpness(trainer, run.data, overrides["sharpness"])
    return metrics


def _damaged(checkpoint: str, problem: Exception) -> str:
    # What torch says of other than plain data is how to run it.
    why = "it holds more than plain data" if isinstance(problem, UnpicklingError) else one_line(problem)[:200]
    return f"resume: {checkpoint} cannot be gone on with ({why}): take it away and start again"


def _lost(problem: Exception) -> bool:
    """Whether a collective failed. NCCL has an error class; gloo raises what only its text tells from others."""
    text = str(problem)
    return isinstance(problem, torch.distributed.DistError) or any(word in text for word in ("gloo", "Gloo", "NCCL"))


def _trainer(run: Prepared, watch: Watch) -> TaskTrainer:
    """The run's Trainer, made known to `watch` once it is whole."""
    spec, task, data, numbers = run.spec, run.task, run.data, run.numbers
    args = arguments(
        run.folder,
        task,
        run.preset,
        **run.tracking,
        seed=spec.seed,
        data_seed=spec.overrides.get("order_seed", spec.seed),
        max_steps=numbers.steps,
        precision=numbers.precision,
        compile_model=numbers.compile_model,
        workers=numbers.workers,
        per_device_train_batch_size=numbers.per_device,
        gradient_accumulation_steps=numbers.accumulation,
        max_grad_norm=numbers.max_grad_norm,
        eval_strategy="steps",
        eval_steps=numbers.eval_every,
        eval_on_start=run.checkpoint is None,
        logging_strategy="steps",
        logging_steps=numbers.log_every,
        # A NaN must be seen, not replaced by the average.
        logging_nan_inf_filter=False,
        save_strategy="no" if run.checkpoint_every is None else "steps",
        save_steps=run.checkpoint_every or 500,
    )
    reports, args.report_to = list(args.report_to or ()), []  # Trainer would let them change the run
    fed = feeding.callbacks(reports, args.device)
    trainer = TaskTrainer(
        schedule=numbers.schedule,
        drop_last=numbers.drop_last,
        evaluator=Evaluator(task, data, run.folder),
        model=run.model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        callbacks=[*fed, watch, *task.callbacks(run.model, run.preset, numbers.steps)],
    )
    args.report_to = reports  # which pages of trackers show
    if "train_curve" in spec.overrides:
        trainer.followed = train_part(data, spec.overrides["train_curve"])
    if "patience" in spec.overrides:
        trainer.add_callback(EarlyStopping(spec.overrides["patience"]))
    if spec.pruning:
        trainer.add_callback(Pruner(task.primary, spec.pruning))
    trainer.remove_callback(transformers.PrinterCallback)
    watch.trainer = trainer
    return trainer


def _sharpness(trainer: TaskTrainer, data: Data, samples: int) -> float:
    from hf_optim.curvature import hessian
    from hf_optim.curvature.solution import gather

    model = trainer.accelerator.unwrap_model(trainer.model)
    return hessian.sharpness(gather(model, train_part(data, None), trainer.evaluator.collate(), samples))
