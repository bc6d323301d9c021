"""One run: a task's Trainer with an attached optimizer, from seed to record."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, set_seed

from hf_optim import registry
from hf_optim.core.safe_text import terminal
from hf_optim.core.wording import counted
from hf_optim.errors import DamagedCheckpoint, UserError, one_line
from hf_optim.experiment import flops, footprint, precision, resuming, sharding, trackers
from hf_optim.experiment import record as records
from hf_optim.experiment.budget import Budget, budget, resampled
from hf_optim.experiment.checkpoint import last_checkpoint, pickled_weights
from hf_optim.experiment.evaluation import final_metrics, named
from hf_optim.experiment.evaluator import Evaluator, arguments, quiet, train_part
from hf_optim.experiment.files import check_tree, read_json, remove, write_json, write_rows, writing
from hf_optim.experiment.own_training import OwnTraining
from hf_optim.experiment.spec import AUTO, RunSpec
from hf_optim.experiment.spending import SPENT, Spending
from hf_optim.experiment.stopping import EarlyStopping, Pruned, Pruner
from hf_optim.experiment.task import Data, Preset, Task, check_run, read_data
from hf_optim.experiment.trainer import FOLLOWED, TaskTrainer, Watch
from hf_optim.hub import attach, modes
from hf_optim.hub.schedules import described, unreached


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
        DamagedCheckpoint: with `resume`; there is no record.
    """
    folder = Path(folder)
    started, processes = datetime.now(UTC), int(os.environ.get("WORLD_SIZE", "1"))
    first = int(os.environ.get("RANK", "0")) == 0
    _check_devices()
    task, model_name, preset = check_run(spec)
    if checkpoint_every is not None and checkpoint_every < 1:
        raise UserError(f"checkpoint_every: expected 1 or more, got {checkpoint_every}")
    trackers.check(report_to)
    trackers.check_settings(report_to, Path(os.environ.get("WANDB_DIR") or "."))
    trackers.check_folder(report_to, folder)
    if isinstance(task, OwnTraining):
        return task.run(spec, folder)
    data = read_data(task, preset, spec.data)
    if "split_seed" in spec.overrides:
        data = resampled(data, spec.overrides["split_seed"])
    numbers = budget(spec, preset, len(data.train), processes)  # type: ignore[arg-type]
    set_seed(spec.overrides.get("init_seed", spec.seed))
    model = task.model(model_name, preset, data)
    optimizer = registry.build(spec.optimizer, model)  # values out of range are the user's error, not a failed run
    precision.check_precision(numbers.precision)
    precision.check_launcher(numbers.precision, numbers.compile_model)
    if spec.overrides.get("gradient_accumulation_steps") == AUTO:
        batch = flops.probe(train_part(data, None), task.collate(data))
        needs = footprint.measure(model, footprint.slots_of(optimizer), batch, numbers.precision)
        numbers = numbers.in_parts(needs.parts(numbers.per_device, footprint.available()))
    checkpoint = last_checkpoint(folder, training=True) if resume else None
    if first:
        _prepare(folder, spec, keep=checkpoint is not None, checkpoints=checkpoint_every is not None)
    if checkpoint is not None and int(checkpoint.rpartition("-")[2]) > numbers.steps:
        raise DamagedCheckpoint(
            f"resume: {checkpoint} is beyond the run's {counted(numbers.steps, 'step')}: take it away"
        )
    if checkpoint is not None:
        resuming.check(Path(checkpoint))
    cost = flops.cost(model, train_part(data, None), task.collate(data))

    records.reset_peak_memory()
    label = terminal(f"{spec.task}/{model_name} {spec.size} {spec.optimizer['name']} seed {spec.seed}")
    if progress and first:
        where = f" on {processes} processes" if processes > 1 else ""
        print(terminal(f"{label}: {counted(numbers.steps, 'step')} of {data.name}{where}"), file=sys.stderr, flush=True)
        if late := unreached(numbers.schedule, numbers.steps):
            print(terminal(f"warning: {late}"), file=sys.stderr, flush=True)
    watch = Watch(label, progress)
    named_as = {"run_name": run_name, "project": project}
    tracking = {"report_to": list(report_to) or "none", **{k: v for k, v in named_as.items() if v is not None}}
    error: str | None = None
    pruned = False
    metrics: dict[str, float] = {}
    seconds = 0.0
    trainer: TaskTrainer | None = None
    with quiet(), precision.products(numbers.precision):
        try:
            trainer = _trainer(
                task, spec, preset, model, data, numbers, folder, checkpoint_every, watch, checkpoint is None, tracking
            )
            if trainer.is_fsdp_enabled and "sharpness" in spec.overrides:
                raise UserError("overrides: sharpness needs whole weights: hf-optim inspect has it of a checkpoint")
            if sharding.wanted() and not trainer.is_fsdp_enabled and first:
                print("FSDP2 needs GPUs: every process has all of the weights (DDP)", file=sys.stderr, flush=True)
            trainer.spending = Spending(numbers.passes, numbers.seconds, cost, processes)
            trainer.spending.watch(model, compiled=numbers.compile_model)
            attach(trainer, optimizer)
            begun = time.perf_counter()
            try:
                trainer.train(resume_from_checkpoint=checkpoint)
            except Exception as problem:
                if checkpoint is not None and not watch.begun:
                    raise DamagedCheckpoint(_damaged(checkpoint, problem)) from problem
                raise
            finally:
                seconds = time.perf_counter() - begun - trainer.spending.evaluation_seconds
                watch.close()
            metrics = final_metrics(trainer, data, preset)
            if "sharpness" in spec.overrides:
                metrics["sharpness"] = _sharpness(trainer, data, spec.overrides["sharpness"])
        except DamagedCheckpoint:
            raise
        except Exception as problem:
            if processes > 1 and _lost(problem):  # says nothing about this run: no record, so that it is run again
                raise UserError(
                    f"another process of this run has died or hangs ({one_line(problem)}): no record was "
                    "written; start it again with --resume"
                ) from problem
            error, metrics, pruned = one_line(problem), {}, isinstance(problem, Pruned)
    history = _history(trainer.state.log_history) if trainer is not None else []
    samples = folder / records.SAMPLES
    record = {
        "id": spec.id,
        "spec": spec.to_dict(),
        "status": "ok" if error is None else "failed",
        "error": error,
        **({"pruned": pruned} if spec.pruning else {}),
        "metrics": metrics,
        "primary": {"name": task.primary.name, "greater_is_better": task.primary.greater_is_better},
        "history": records.HISTORY,
        "samples": sorted(str(path.relative_to(folder)) for path in samples.rglob("*") if path.is_file()),
        "time": {
            "train_seconds": round(seconds, 3),
            **_speed(numbers, cost, len(watch.step_seconds), trainer, len(data.train), seconds),  # type: ignore[arg-type]
            "step_ms_median": _median_ms(watch.step_seconds),
            "optimizer_ms_median": _median_ms(watch.optimizer_seconds),
            "steps": trainer.state.global_step if trainer is not None else 0,
            "epochs": round(trainer.state.global_step / numbers.steps_per_epoch, 4) if trainer is not None else 0.0,
            "forward_passes": trainer.spending.forward if trainer is not None else 0,
            "backward_passes": trainer.spending.backward if trainer is not None else 0,
        },
        "memory": {
            "optimizer_state_bytes": _state_bytes(trainer),
            "parameters": sum(p.numel() for p in model.parameters()),
            "peak_rss_bytes": records.peak_memory(),
            "peak_card_bytes": records.peak_card_memory(),
        },
        "execution": {
            "batch_size": numbers.batch,
            "schedule": described(numbers.schedule),
            "max_grad_norm": numbers.max_grad_norm,
            "precision": numbers.precision,
            "compile_model": numbers.compile_model,
            "workers": numbers.workers,
            "samples_at_a_time": numbers.per_device,
            "gradient_accumulation_steps": numbers.accumulation,
            "sharded": trainer is not None and trainer.is_fsdp_enabled,
        },
        "environment": records.environment(processes, str(trainer.args.device) if trainer is not None else "unknown"),
        "groups": _groups(trainer),
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "note": data.note,
            "train_samples": len(data.train),  # type: ignore[arg-type]
            "validation_samples": len(data.validation),  # type: ignore[arg-type]
            "test_samples": len(data.test),  # type: ignore[arg-type]
        },
        "known_losses": dict(data.facts.get("known_losses", {})),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if first and not folder.is_dir():
        raise UserError(f"{folder} was moved or removed while the run was in it: no record was written")
    if first:
        write_rows(folder, records.HISTORY, history)
        write_json(folder, records.RECORD, record)
    return record


def _check_devices() -> None:
    """NCCL refuses processes that share a GPU, in words that do not say so."""
    here, cards = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > cards > 0 and not os.environ.get("ACCELERATE_USE_CPU"):
        raise UserError(
            f"{here} processes on this machine would share {counted(cards, 'GPU')}: start {cards}, or "
            "hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def _damaged(checkpoint: str, problem: Exception) -> str:
    # What torch says of other than plain data is how to run it.
    why = "it holds more than plain data" if isinstance(problem, UnpicklingError) else one_line(problem)[:200]
    return f"resume: {checkpoint} cannot be gone on with ({why}): take it away and start again"


def _lost(problem: Exception) -> bool:
    """Whether a collective failed. NCCL has an error class; gloo raises what only its text tells from others."""
    text = str(problem)
    return isinstance(problem, torch.distributed.DistError) or any(word in text for word in ("gloo", "Gloo", "NCCL"))


def _trainer(
    task: Task,
    spec: RunSpec,
    preset: Preset,
    model: PreTrainedModel,
    data: Data,
    numbers: Budget,
    folder: Path,
    checkpoint_every: int | None,
    watch: Watch,
    fresh: bool,
    tracking: dict[str, Any],
) -> TaskTrainer:
    trainer = TaskTrainer(
        schedule=numbers.schedule,
        drop_last=numbers.drop_last,
        evaluator=Evaluator(task, data, folder),
        model=model,
        args=arguments(
            folder,
            task,
            preset,
            **tracking,
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
            eval_on_start=fresh,
            logging_strategy="steps",
            logging_steps=numbers.log_every,
            # A NaN must be seen, not replaced by the average.
            logging_nan_inf_filter=False,
            save_strategy="no" if checkpoint_every is None else "steps",
            save_steps=checkpoint_every or 500,
        ),
        train_dataset=data.train,
        eval_dataset=data.validation,
        callbacks=[watch, *task.callbacks(model, preset, numbers.steps)],
    )
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


def _history(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainer's log as rows of ours; its summary of the whole run is left out."""
    rows = []
    names = {"loss": "train_loss", "learning_rate": "lr"}
    for entry in log:
        where = {"step": entry["step"], "epoch": round(entry.get("epoch") or 0.0, 4)}
        where |= {key: entry[key] for key in SPENT if key in entry}
        if any(key.startswith("eval_") for key in entry):
            rows.append({**where, **named(entry, "eval", "validation")})
        elif any(key.startswith(f"{FOLLOWED}_") for key in entry):
            rows.append({**where, **named(entry, FOLLOWED, FOLLOWED)})
        elif "loss" in entry:
            rest = {names.get(key, key): value for key, value in sorted(entry.items()) if key not in where}
            rows.append({**where, **rest})
    return rows


def _speed(
    numbers: Budget,
    cost: flops.PassCost | None,
    steps: int,
    trainer: TaskTrainer | None,
    samples: int,
    seconds: float,
) -> dict[str, float | None]:
    """Samples and tokens a second of the `steps` steps of this part of the run; operations of a plain step, which makes
    one forward and one backward pass.
    """
    end = trainer.state.global_step if trainer is not None else 0
    rate = (numbers.trained(end, samples) - numbers.trained(end - steps, samples)) / seconds if steps else None
    tokens = cost.tokens if cost is not None else None
    return {
        "samples_per_second": rate and round(rate, 4),
        "tokens_per_second": None if rate is None or tokens is None else round(rate * tokens, 2),
        "flops_per_step": None if cost is None else cost.both * numbers.batch,
    }


def _median_ms(seconds: list[float]) -> float | None:
    return round(1000 * statistics.median(seconds), 4) if seconds else None


def _state_bytes(trainer: TaskTrainer | None) -> int:
    if trainer is None or trainer.optimizer is None:
        return 0
    inner = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    # what evaluating keeps to go back is no state of training
    state = {p: {k: v for k, v in own.items() if k != "y"} for p, own in inner.state.items()}
    return records.tensor_bytes(state if modes.holds(inner) == "average" else dict(inner.state))


def _groups(trainer: TaskTrainer | None) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: how many parameters each has, which way they go, and what may differ between
    groups.
    """
    optimizer = trainer.optimizer if trainer is not None else None
    kept = ["route", "weight_decay", *_opt_outs(optimizer)]
    return [
        {
            "parameters": sum(p.numel() for p in group["params"]),
            **{key: group[key] for key in kept if isinstance(group.get(key), int | float | str)},
        }
        for group in getattr(optimizer, "param_groups", ())
    ]


def _opt_outs(optimizer: Any) -> list[str]:
    """The keys with which groups opt out of the transforms of an optimizer and of what it wraps."""
    keys = []
    while optimizer is not None:
        keys.append(getattr(getattr(optimizer, "transform", None), "opt_out", ""))
        optimizer = getattr(optimizer, "optimizer", None) or getattr(optimizer, "base", None)
    return [key for key in keys if key]


def _prepare(folder: Path, spec: RunSpec, *, keep: bool, checkpoints: bool) -> None:
    """Make the folder and clear an older run out of it; `keep` leaves the checkpoints of the run that goes on."""
    stored = folder / records.SPEC
    try:
        if keep and os.path.lexists(stored) and read_json(folder, stored.name) != spec.to_dict():
            raise UserError(
                f"resume: {folder} holds checkpoints of another run (see its {records.SPEC}): choose another folder"
            )
        if keep:  # all of it is read, or written into
            for name in (records.SAMPLES, *(path.name for path in folder.glob("checkpoint-*"))):
                check_tree(folder / name)
                pickled_weights(folder / name)  # which names what lies elsewhere
    except (OSError, ValueError) as error:
        raise error if isinstance(error, UserError) else UserError(f"resume: {folder}: {one_line(error)}") from error
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in (records.RECORD, records.HISTORY):
            remove(folder, name)
        if not keep:
            for old in (folder / records.SAMPLES, stored, *folder.glob("checkpoint-*")):
                remove(folder, old.name)
        if checkpoints or keep:
            write_json(folder, records.SPEC, spec.to_dict())
