"""`attach`: what can be seen to be wrong before a training begins is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_optim.core.foreign import label, told
from hf_optim.errors import UserError
from hf_optim.hub import schedules
from hf_optim.hub.arguments import to_spec
from hf_optim.hub.attachment import Attachment
from hf_optim.hub.feed import unwrapped


def attach(
    trainer: Any,
    name: Any,
    *,
    closure: bool | None = None,
    schedule: str | Mapping[str, Any] | None = None,
    **hyper: Any,
) -> Attachment:
    """Train `trainer` with the named optimizer; call it before `trainer.train()`.

    Args:
        trainer: a `transformers.Trainer` or a subclass (`Seq2SeqTrainer`, ...), as it is.
        name: a registered name, an import path, or a specification `{"name": ..., ...}`; wrappers nest with `base`.
            Also an optimizer class, a factory (called with what its arguments ask for: `model`, `named_parameters`,
            `groups`, `params`), or an instance over the trainer's model.
        closure: give every step a closure that repeats the window's batches with gradients. None: where the optimizer
            asks for one (LBFGS; `needs_closure = True`). SAM and its kind, which take one but do not say so: True.
        schedule: a schedule of `hf_optim.hub.schedules` instead of `TrainingArguments.lr_scheduler_type`, by name or as
            `{"name": "multistep", "at": [0.5, 0.75], "gamma": 0.1}`; `{"name": "cosine", "cycles": 3}` restarts warm.
        **hyper: its hyper-parameters. `lr` and `weight_decay` come from here, else from `TrainingArguments` where
            they were set (differ from the default, or a hyper-parameter search sets them), else from the rule; rules
            that Trainer has itself (adamw) take the arguments as Trainer does. "args" takes the argument's value. One
            warning says so where the rate or decay in force is not the argument's.

    Returns:
        The attachment; its `optimizer` is the optimizer once training has begun.

    Parameters are divided into groups as the trainer divides them. The mean loss of the whole effective batch is
    fed to rules that need it, and the same batches are evaluated again for line searches. A loss that the model forgets
    to normalise under accumulation is repaired and reported. The log gains `effective_lr`, the rate that was used, and
    the optimizer's own figures.

    Raises:
        UserError: unknown rule or hyper-parameter; not a Trainer; attached twice; training has begun; the trainer has
            an optimizer or a schedule of its own; a backend (FSDP1, DeepSpeed, fp16 scaling) that cannot do what the
            rule needs. Each at once or when training begins, before anything moves.
    """
    if isinstance(trainer, type):
        raise UserError(f"attach needs a Trainer that is built, not {told(trainer)}: attach(Trainer(...), name)")
    missing = _lacking(trainer)
    if missing and not _lacking(name):
        raise UserError("attach takes the trainer first: attach(trainer, name)")
    if missing:
        raise UserError(
            f"attach needs a transformers Trainer, and {type(trainer).__name__} has no {missing[0]}: use "
            "hf_optim.Session for a loop of your own"
        )
    spec = to_spec(name, hyper, settled=False)
    if closure is not None and not isinstance(closure, bool):
        raise UserError(f"closure must be True, False or None (where the optimizer asks for one), got {closure!r}")
    if schedule is not None:
        schedule = schedules.check_schedule({"name": schedule} if isinstance(schedule, str) else schedule)
        declared = type(trainer.args).__dataclass_fields__["lr_scheduler_type"].default
        if trainer.args.lr_scheduler_type != declared:
            raise UserError(
                f"there are two schedules: schedule={schedule['name']!r} and TrainingArguments.lr_scheduler_type="
                f"{getattr(trainer.args.lr_scheduler_type, 'value', trainer.args.lr_scheduler_type)!r}; leave one out"
            )
        if getattr(trainer.args, "warmup_steps", 0):
            raise UserError("a schedule given to attach has a warmup of its own: leave TrainingArguments' out")
    present = [c for c in trainer.callback_handler.callbacks if isinstance(c, Attachment)]
    if present:
        raise UserError(
            f"{present[0].name} is already attached to this trainer: build a new trainer for {label(spec['name'])}"
        )
    if getattr(trainer, "is_in_train", False):
        raise UserError("attach was called during train(): call it before")
    if trainer.optimizer is not None:
        raise UserError(
            f"the trainer already has an optimizer ({type(unwrapped(trainer.optimizer)).__name__}), from "
            "optimizers=(...) or from an earlier train(): build the trainer without one, and attach before train()"
        )
    if trainer.lr_scheduler is not None:
        raise UserError(
            "the trainer was given a schedule for another optimizer: use TrainingArguments.lr_scheduler_type instead"
        )
    if getattr(trainer, "optimizer_cls_and_kwargs", None) is not None:
        raise UserError("the trainer already has optimizer_cls_and_kwargs: leave that out, attach builds the optimizer")
    return Attachment(trainer, spec, closure, schedule)


def _lacking(trainer: Any) -> list[str]:
    """What of a Trainer it has not."""
    return [a for a in ("accelerator", "add_callback", "create_optimizer", "log") if not hasattr(trainer, a)]
