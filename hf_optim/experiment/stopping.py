"""What ends a run before its steps are made: a search that has seen enough of it, or want of patience."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from hf_optim.experiment.task import Primary


class Pruned(RuntimeError):
    """The run was stopped early, as its specification asks."""


class Pruner(TrainerCallback):
    """Stops a run whose best validation value so far is worse than `limits` ([step, value]) ask at that evaluation.

    It reads the logged values, which are in checkpoints, so that a resumed run is judged by all that it had.
    """

    def __init__(self, primary: Primary, limits: list[list[float]]) -> None:
        self.primary, self.limits = primary, {int(step): value for step, value in limits}

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        key = f"eval_{self.primary.stem}"
        values = [row[key] for row in state.log_history if row["step"] and key in row]
        limit = self.limits.get(state.global_step)
        if limit is None or not values:
            return
        better = max if self.primary.greater_is_better else min
        best = better(values)
        if limit != best and better(limit, best) == limit:
            raise Pruned(
                f"stopped at step {state.global_step}: the best validation {self.primary.stem} so far, "
                f"{best:.6g}, is worse than {limit:.6g}"
            )


class EarlyStopping(TrainerCallback):
    """Ends a run after `patience` evaluations without a lower validation loss; the run is whole, and shorter.

    It reads the logged losses, which are in checkpoints, so that a resumed run ends where it would have.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_evaluate(args, state, control)  # a run that goes on from where it ended

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        losses = {
            row["step"]: row["eval_measured_loss"] for row in state.log_history if "eval_measured_loss" in row
        }  # by step: an evaluation before the first one counts too
        values = [losses[step] for step in sorted(losses)]
        if values and len(values) - 1 - values.index(min(values)) >= self.patience:
            control.should_training_stop = True
