"""`attach(trainer, "smaran", gamma=0.9)`: any rule in an unmodified transformers Trainer.

Nothing is subclassed. The trainer is told how to build the optimizer; a callback watches the accelerator's `backward`
during training, feeds the loss where a rule needs it, and adds the rate in force and the optimizer's own figures to
the trainer's log.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from hf_optim import registry
from hf_optim.core.foreign import label
from hf_optim.core.groups import Parameters, describe
from hf_optim.core.rewind import RandomState
from hf_optim.core.wording import counted
from hf_optim.errors import UserError
from hf_optim.hub import backends, closures, companion, modes, renamed, schedules
from hf_optim.hub.arguments import innermost, meaningless, settle, trial_parameters
from hf_optim.hub.feed import LossFeed, needs, unwrapped
from hf_optim.hub.monitor import Monitor
from hf_optim.hub.probe import LossProbe
from hf_optim.hub.rates import LoggedRates
from hf_optim.hub.replay import Replay, counters_kept, uncounted
from hf_optim.hub.trainer_groups import Beside, Untrained, modules_of, of_trainer

logger = logging.getLogger(__name__)

_REPLAY_ADVICE = (
    "this trainer draws data or randomness outside of _prepare_inputs, so a line search cannot be trusted with it"
)


class Attachment(TrainerCallback):
    """What `attach` leaves on a trainer.

    Attributes:
        spec: the specification as given.
        optimizer: the optimizer now in use, not wrapped; None before the trainer has built it.
        feed: the loss feed while training; None for rules that need no loss.
        closure: what every step is given while training; None for optimizers that need none.
    """

    def __init__(
        self,
        trainer: Any,
        spec: Mapping[str, Any],
        closure: bool | None = None,
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        self.trainer = trainer
        self.spec = dict(spec)
        self.name = label(spec["name"])
        self._closure_asked = closure
        self.schedule = schedule
        self.closure: closures.Closure | None = None
        self.optimizer: Any = None
        self.feed: LossFeed | None = None
        self._replay: Replay | None = None
        self._probe: LossProbe | None = None
        self._untrained: Untrained | None = None
        self._beside: Beside | None = None
        self._rates = LoggedRates()
        self._said: set[str] = set()
        self._patched: dict[str, tuple[Any, Any, bool]] = {}
        self._brief = False
        self._call: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None
        self._given: Any = None
        self._inner_log = trainer.log
        trainer.optimizer_cls_and_kwargs = (self._factory, {})
        trainer.log = self._log
        self._inner_load = getattr(trainer, "_load_optimizer_and_scheduler", None)
        if self._inner_load is not None:
            trainer._load_optimizer_and_scheduler = self._load_state
        if schedule is not None:
            trainer.create_scheduler = self._create_scheduler
        inner = getattr(trainer, "_inner_training_loop", None)
        if inner is not None:  # an exception must not leave methods of this training behind

            @functools.wraps(inner)
            def loop(*args: Any, **kwargs: Any) -> Any:
                try:
                    return inner(*args, **kwargs)
                finally:
                    self._release()

            trainer._inner_training_loop = loop
        trainer.add_callback(self)

    # --- building ---------------------------------------------------------------------------------------------------

    def _factory(self) -> Callable[..., Any]:
        """Trainer takes what is not a class for a factory of factories: called bare, then with the model."""
        return self._build

    def _build(self, model: torch.nn.Module, *_: Any) -> Any:
        trainer = self.trainer
        spec, lines, warnings = settle(self.spec, trainer.args, trial_parameters(trainer))
        for level, some in ((logging.INFO, lines), (logging.WARNING, warnings)):
            for line in some:
                self._say(level, f"{self.name}: {line}")
        ignored = meaningless(trainer.args, innermost(spec))
        if ignored:
            self._say(
                logging.WARNING,
                f"{', '.join(ignored)} of TrainingArguments without effect: {self.name} takes its own "
                "hyper-parameters through attach",
            )
        optimizer = self._from_spec(spec, of_trainer(trainer, model))
        self._say(logging.INFO, f"{self.name}: {describe(optimizer.param_groups)}, as this trainer divides them")
        closing = closures.choice(optimizer, self._closure_asked, self.name)
        backends.refuse(trainer.accelerator, optimizer, self.name, closing)
        self.optimizer = optimizer
        return optimizer

    def _from_spec(self, spec: dict[str, Any], source: Parameters) -> Any:
        name = spec.pop("name")
        if not isinstance(name, torch.optim.Optimizer):
            return registry.create(name, source, **spec)
        owned = [p for group in name.param_groups for p in group["params"]]
        if not any(p in source.names for p in owned):
            raise UserError(
                f"{self.name} is an instance over other parameters than this trainer's model has now: make it from "
                "trainer.model, or give a name, a class or a factory, which are built anew for every model"
            )
        return name

    def _create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        trainer = self.trainer
        if trainer.lr_scheduler is None:
            factor = schedules.factor(self.schedule or {}, num_training_steps)
            if late := schedules.unreached(self.schedule or {}, num_training_steps):
                self._say(logging.WARNING, f"{self.name}: {late}")
            used = trainer.optimizer if optimizer is None else optimizer
            trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(used, factor)
            trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    def _say(self, level: int, line: str) -> None:
        if line not in self._said and self.trainer.args.process_index == 0:
            logger.log(level, line)
        self._said.add(line)

    # --- the course of a training -----------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        self._release()  # what a training that raised has left
        self._assert_ours()
        name = self.name
        backends.tell_skips(trainer.accelerator, self.optimizer)
        closing = closures.choice(self.optimizer, self._closure_asked, name)
        backends.refuse(trainer.accelerator, self.optimizer, name, closing)
        self._tell_epoch(kwargs.get("train_dataloader"))
        first = getattr(self.optimizer, "first_change", int)()
        if first >= state.max_steps > 0:
            self._say(
                logging.WARNING,
                f"{name}: the rate changes after {counted(first, 'step')} at the earliest and the run has "
                f"{state.max_steps}: it stays what it is; give a smaller p or interval",
            )
        schedule = self.schedule["name"] if self.schedule else str(getattr(args.lr_scheduler_type, "value", ""))
        if modes.holds(self.optimizer) and not schedule.startswith("constant"):
            self._say(
                logging.WARNING,
                f"{name} averages in a schedule's place, and the schedule {schedule!r} changes its rate as well: set "
                "lr_scheduler_type='constant' (TrainingArguments' default is 'linear')",
            )
        shortened = backends.clipping(self.optimizer, name, closing)
        if args.max_grad_norm and shortened:
            self._say(
                logging.WARNING,
                f"max_grad_norm={args.max_grad_norm} (TrainingArguments' default is 1.0) {shortened}: "
                f"set max_grad_norm=0{' for a line search' if closing else ''}",
            )
        wanted = needs(self.optimizer)
        self._brief = not ("evaluate" in wanted or closing)
        if not self._brief or ("loss" in wanted and _has_own_loss(trainer)):
            self._replay = Replay(trainer.accelerator, lambda: [trainer.model])
            self._replay.around = partial(counters_kept, trainer)
            self._patch(trainer, "training_step", self._training_step)
            self._patch(trainer, "_prepare_inputs", self._prepare_inputs)
        self._beside = Beside(trainer, self.optimizer)
        self._beside.spread()
        if closing:
            assert self._replay is not None
            self.closure = closures.Closure(self._replay, self.optimizer, args.max_grad_norm, self._beside.average)
        self._hand_over_closures()
        for method in ("save_model", "_load_best_model"):
            self._patch(trainer, method, partial(self._with_the_answer, method))
        if wanted or closing:
            self.feed = LossFeed(trainer.accelerator, self.optimizer, None if self._brief else self._replay)
            self.feed.wrappers.add(trainer.model_wrapped)
            self.feed.install()
            if self._replay is not None:
                self._replay.feed = self.feed
        for monitor in trainer.callback_handler.callbacks:
            if isinstance(monitor, Monitor):
                monitor.join(self)
        self._untrained = Untrained(modules_of(trainer), [self.optimizer])
        if LossProbe.applies(trainer):
            self._probe = LossProbe(trainer)
            self._probe.install()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._assert_ours()
        line = self._untrained.late() if self._untrained is not None else None
        if line is not None:
            self._say(logging.WARNING, f"{self.name}: {line}")
        self._rates.remember(self.optimizer)
        if self._beside is not None:
            self._beside.average()
        if self._replay is not None:
            with uncounted(self.trainer):
                if "evaluate" in needs(self.optimizer) or self.closure is not None:
                    self._replay.check_once(_REPLAY_ADVICE)
                if needs(self.optimizer):
                    self._replay.check_moves(self.optimizer)
            if self._brief:
                self._forget_batches()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.feed is not None:
            self.feed.reset()
        if self._replay is not None:
            self._replay.reset()
        if self._beside is not None:
            self._beside.clear()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        companion.write(args, {**self.spec, "name": self.name}, state.global_step, modes.holds(self.optimizer))
        if self._beside is not None:
            self._beside.write(companion.folder(args, state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        modes.evaluate(self.optimizer)
        self._release()

    def _load_state(self, checkpoint: Any, *args: Any, **kwargs: Any) -> Any:
        for line in companion.differences(self.trainer.args, {**self.spec, "name": self.name}, checkpoint):
            self._say(logging.WARNING, f"{self.name}: {line}")
        assert self._inner_load is not None
        result = self._inner_load(checkpoint, *args, **kwargs)
        if checkpoint is not None:
            if (lost := companion.lost(Path(checkpoint))) is not None and not self.trainer.is_deepspeed_enabled:
                self._say(logging.WARNING, f"{self.name}: {lost}")
            self._complete(checkpoint)
            lacking = Beside(self.trainer, self.optimizer).read(Path(checkpoint))
            if lacking is not None:
                self._say(logging.WARNING, f"{self.name}: {lacking}")
        return result

    def _complete(self, checkpoint: str) -> None:
        """Weights that Trainer has not found in a checkpoint of its own; where the model is whole."""
        kind = str(getattr(self.trainer.accelerator.distributed_type, "value", "")).upper()
        line = None if kind in ("FSDP", "DEEPSPEED") else renamed.complete(self.trainer.model, Path(checkpoint))
        if line is not None:
            self._say(logging.WARNING, f"{self.name}: {line}")

    def _assert_ours(self) -> None:
        used = self.trainer.optimizer
        while used is not None and used is not self.optimizer:  # through Accelerate's wrapper and an engine's own
            used = getattr(used, "optimizer", None)
        if self.optimizer is None or used is None:
            other = type(unwrapped(self.trainer.optimizer)).__name__
            raise UserError(
                f"this {type(self.trainer).__name__} trains with its own {other} instead of the attached "
                f"{self.name}: it overrides create_optimizer, or trainer.optimizer was set after attach"
            )

    def _tell_epoch(self, dataloader: Any) -> None:
        """Optimizer steps in an epoch, for rules whose interval is a share of one and that were not given it."""
        tell = getattr(self.optimizer, "set_steps_per_epoch", None)
        try:
            batches = len(dataloader)
        except TypeError:  # a stream has no length; a rule that cannot do without says so at its first step
            return
        if tell is not None:
            tell(max(1, math.ceil(batches / self.trainer.args.gradient_accumulation_steps)))

    def _release(self) -> None:
        if self.feed is not None:
            self.feed.remove()
        if self._probe is not None:
            self._probe.remove()
        for name in list(self._patched):
            self._unpatch(name)
        self.feed = self.closure = self._replay = self._probe = self._call = self._given = self._untrained = None

    def _unpatch(self, name: str) -> None:
        owner, before, own = self._patched.pop(name)
        if own:
            setattr(owner, name, before)
        else:
            vars(owner).pop(name, None)

    def _forget_batches(self) -> None:
        """After the first step, where the batches were kept only to see whether the loss is a function."""
        for name in ("training_step", "_prepare_inputs"):
            self._unpatch(name)
        self._replay, self._brief = None, False

    def _patch(self, owner: Any, name: str, method: Callable[..., Any]) -> None:
        self._patched[name] = (owner, getattr(owner, name), name in vars(owner))
        setattr(owner, name, method)

    def _with_the_answer(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What is saved are the weights that are evaluated; the next training step goes back to its own."""
        modes.evaluate(self.optimizer)
        result = self._patched[method][1](*args, **kwargs)
        best = self.trainer.state.best_model_checkpoint
        if method == "_load_best_model" and best is not None:
            self._complete(best)
        return result

    def _hand_over_closures(self) -> None:
        """Stand in for the step of Accelerate's wrapper, which Trainer calls with nothing."""
        original = self.trainer.optimizer.step

        def step(closure: Any = None) -> Any:
            if self.closure is not None:
                return self.closure.step(original)
            with closures.explained(self.name):
                return original(closure)

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # the original counts for the scheduler
        self._patch(self.trainer.optimizer, "step", step)

    # --- the log ----------------------------------------------------------------------------------------------------

    def _log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.optimizer is not None:
            logs.update(self._rates.figures(self.optimizer))
            self._tell_rate(logs)
            if self.closure is not None:
                logs["closure_calls"] = float(self.closure.last_calls)
            for monitor in self.trainer.callback_handler.callbacks:
                if isinstance(monitor, Monitor):
                    logs.update(monitor.figures())
        self._inner_log(logs, *args, **kwargs)

    def _tell_rate(self, logs: dict[str, float]) -> None:
        """Trainer logs the rate of the first group, which is not always one that goes by the rule: that of the step
        or, in other releases, of the next one."""
        first = self._rates.first(self.optimizer)
        if first and "learning_rate" in logs and hasattr(self.trainer.lr_scheduler, "get_last_lr"):
            used = self._rates.scheduled()
            now = [float(rate) for rate in self.trainer.lr_scheduler.get_last_lr()]
            of_step = len(used) == len(now) and math.isclose(logs["learning_rate"], used[0], rel_tol=1e-6)
            logs["learning_rate"] = (used if of_step else now)[first]

    # --- keeping the window's batches, for rules that evaluate them again --------------------------------------------

    def _training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._call = (model, args, kwargs)
        try:
            return self._patched["training_step"][1](model, inputs, *args, **kwargs)
        finally:
            self._call = None

    def _prepare_inputs(self, inputs: Any) -> Any:
        if self._given is not None:
            return self._given
        prepared = self._patched["_prepare_inputs"][1](inputs)
        if self._call is not None and self._replay is not None:
            # From here on the step is deterministic given inputs and random state; generation and the like lie before.
            model, args, kwargs = self._call
            again = partial(self._again, model, copy.copy(prepared), args, kwargs)
            self._replay.record(again, RandomState(self.trainer.accelerator.device))
            self._call = None
        return prepared

    def _again(self, model: Any, prepared: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._given = copy.copy(prepared)  # label smoothing takes the labels out of what it is given
        try:
            self._patched["training_step"][1](model, self._given, *args, **kwargs)
        finally:
            self._given = None


def _has_own_loss(trainer: Any) -> bool:
    """Whether a trainer makes its batches or its loss itself, as those do whose loss is a policy's: it need not be a
    function of the parameters."""
    from transformers import Trainer

    own = any(getattr(type(trainer), n, None) is not getattr(Trainer, n) for n in ("_prepare_inputs", "compute_loss"))
    return own or getattr(trainer, "compute_loss_func", None) is not None
