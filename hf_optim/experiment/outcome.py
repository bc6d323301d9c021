"""What a run came to, and the record of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from hf_optim.core import importing
from hf_optim.experiment import record as records
from hf_optim.experiment.evaluation import named
from hf_optim.experiment.preparation import Prepared
from hf_optim.experiment.spending import SPENT
from hf_optim.experiment.trainer import FOLLOWED, Watch
from hf_optim.hub import modes
from hf_optim.hub.schedules import described


@dataclass(frozen=True)
class Measured:
    """The figures of a run; the defaults are those of one that has no Trainer, which could not be made."""

    metrics: dict[str, float]
    error: str | None
    pruned: bool
    seconds: float
    step_seconds: list[float]
    optimizer_seconds: list[float]
    history: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    forward_passes: int = 0
    backward_passes: int = 0
    state_bytes: int = 0
    groups: list[dict[str, Any]] = field(default_factory=list)
    sharded: bool = False
    device: str = "unknown"


def measured(watch: Watch, metrics: dict[str, float], error: str | None, pruned: bool) -> Measured:
    """What `watch` saw of a run that ended with these metrics or this error."""
    seen = Measured(metrics, error, pruned, watch.train_seconds, watch.step_seconds, watch.optimizer_seconds)
    trainer = watch.trainer
    if trainer is None:
        return seen
    return replace(
        seen,
        history=_history(trainer.state.log_history),
        steps=trainer.state.global_step,
        forward_passes=trainer.spending.forward,
        backward_passes=trainer.spending.backward,
        state_bytes=_state_bytes(trainer.optimizer),
        groups=_groups(trainer.optimizer),
        sharded=trainer.is_fsdp_enabled,
        device=str(trainer.args.device),
    )


def record(run: Prepared, seen: Measured) -> dict[str, Any]:
    """What `record.json` holds of a run that ends now."""
    spec, task, numbers, data = run.spec, run.task, run.numbers, run.data
    samples = run.folder / records.SAMPLES
    return {
        "id": spec.id,
        "spec": spec.to_dict(),
        "status": "ok" if seen.error is None else "failed",
        "error": seen.error,
        **({"pruned": seen.pruned} if spec.pruning else {}),
        "metrics": seen.metrics,
        "primary": {"name": task.primary.name, "greater_is_better": task.primary.greater_is_better},
        "history": records.HISTORY,
        "samples": sorted(str(path.relative_to(run.folder)) for path in samples.rglob("*") if path.is_file()),
        "time": {
            "train_seconds": round(seen.seconds, 3),
            **_speed(run, seen),
            "step_ms_median": _median_ms(seen.step_seconds),
            "optimizer_ms_median": _median_ms(seen.optimizer_seconds),
            "steps": seen.steps,
            "epochs": round(seen.steps / numbers.steps_per_epoch, 4),
            "forward_passes": seen.forward_passes,
            "backward_passes": seen.backward_passes,
        },
        "memory": {
            "optimizer_state_bytes": seen.state_bytes,
            "parameters": sum(p.numel() for p in run.model.parameters()),
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
            "sharded": seen.sharded,
        },
        "environment": records.environment(run.processes, seen.device),
        "code": importing.digests(spec.to_dict()),
        "groups": seen.groups,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "note": data.note,
            "train_samples": len(data.train),  # type: ignore[arg-type]
            "validation_samples": len(data.validation),  # type: ignore[arg-type]
            "test_samples": len(data.test),  # type: ignore[arg-type]
        },
        "known_losses": dict(data.facts.get("known_losses", {})),
        "started": run.started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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


def _speed(run: Prepared, seen: Measured) -> dict[str, float | None]:
    """Samples and tokens a second of the steps of this part of the run; operations of a plain step, which makes one
    forward and one backward pass.
    """
    numbers, cost, samples = run.numbers, run.cost, len(run.data.train)  # type: ignore[arg-type]
    steps, end = len(seen.step_seconds), seen.steps
    rate = (numbers.trained(end, samples) - numbers.trained(end - steps, samples)) / seen.seconds if steps else None
    tokens = cost.tokens if cost is not None else None
    return {
        "samples_per_second": rate and round(rate, 4),
        "tokens_per_second": None if rate is None or tokens is None else round(rate * tokens, 2),
        "flops_per_step": None if cost is None else cost.both * numbers.batch,
    }


def _median_ms(seconds: list[float]) -> float | None:
    return round(1000 * statistics.median(seconds), 4) if seconds else None


def _state_bytes(optimizer: Any) -> int:
    if optimizer is None:
        return 0
    inner = getattr(optimizer, "optimizer", optimizer)
    # what evaluating keeps to go back is no state of training
    state = {p: {k: v for k, v in own.items() if k != "y"} for p, own in inner.state.items()}
    return records.tensor_bytes(state if modes.holds(inner) == "average" else dict(inner.state))


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: how many parameters each has, which way they go, and what may differ between
    groups.
    """
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
