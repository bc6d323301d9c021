"""`Trainer(..., optimizer_cls_and_kwargs=factory("adamw_agr"))`: the optimizer alone, no feed, no log.

Trainer calls the first element without arguments and the result with the model (`X()(model, **kwargs)`), other
trainers with the model and the training arguments (`X()(model, args, **kwargs)`): both work. Neither names the trainer,
so the one that holds the factory is noted when its `train()` begins.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hf_optim.core import extras
from hf_optim.core.foreign import label
from hf_optim.core.notes import once
from hf_optim.errors import UserError
from hf_optim.hub import modes
from hf_optim.hub.arguments import settle, to_spec

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class Builder:
    """Builds one named optimizer over a model, its parameters divided as the trainer divides them.

    Args:
        name: of the optimizer.
        trainer: gives the trainer whose groups are taken; None, or a result of None, takes those of a plain Trainer.
    """

    def __init__(self, name: Any, trainer: Callable[[], Any] | None = None) -> None:
        self.name = name
        self._trainer = trainer

    def __call__(self, model: torch.nn.Module, args: Any = None, /, **hyper: Any) -> torch.optim.Optimizer:
        from transformers import Trainer

        from hf_optim import registry
        from hf_optim.core.groups import Parameters, describe
        from hf_optim.hub.trainer_groups import of_trainer

        spec = to_spec(self.name, hyper)
        called = label(spec["name"])
        if args is not None:
            spec, _, warnings = settle(spec, args, {})
            for line in warnings:
                once(f"{called}: {line}")
        trainer = None if self._trainer is None else self._trainer()
        if trainer is None:
            decayed = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
            source = Parameters(model, decayed=set(decayed))
        else:
            source = of_trainer(trainer, model)
        optimizer = registry.build(spec, source)
        logger.info("%s: %s", called, describe(optimizer.param_groups))
        if modes.holds(optimizer) is not None:
            once(
                f"{called}: a Trainer that was only given the optimizer saves what the last step or evaluation left in "
                "the parameters; hf_optim.attach sees to it that they are those that are evaluated"
            )
        return optimizer


class Factory:
    """`factory()` gives a builder; the trainer that holds the factory is known once it trains."""

    def __init__(self, name: Any) -> None:
        self.name = name
        self.trainer: Callable[[], Any] | None = None

    def __call__(self) -> Builder:
        return Builder(self.name, self.trainer)


def _note(trainer: Any) -> None:
    given = getattr(trainer, "optimizer_cls_and_kwargs", None)
    if given is not None and isinstance(given[0], Factory):
        from hf_optim.hub.probe import LossProbe

        given[0].trainer = weakref.ref(trainer)
        if LossProbe.applies(trainer):
            once(
                f"{label(given[0].name)}: a model that ignores num_items_in_batch trains with a loss and gradients too "
                "large in this run with accumulation or several processes, as under Trainer's own optimizer: a factory "
                "sees the optimizer alone; hf_optim.attach tries the loss and repairs it, and "
                "trainer.model_accepts_loss_kwargs = False says that it is a mean"
            )


def factory(name: Any, **hyper: Any) -> tuple[Any, dict[str, Any]]:
    """What the `optimizer_cls_and_kwargs` argument of a Trainer takes.

    Args:
        name: a registered name, an import path, a specification `{"name": ..., ...}`, a class or a factory.
        **hyper: its hyper-parameters. Give the rate here: Trainer passes neither `learning_rate` nor `weight_decay`
            on to a factory, so the rule's own defaults hold otherwise.

    Returns:
        `(callable, kwargs)` with `callable()(model, **kwargs)` the optimizer, over the groups of the trainer that
        trains with it (`get_decay_parameter_names` and `get_optimizer_cls_and_kwargs`, overridden or not), those that
        decay first; over a plain Trainer's where the optimizer is built before `train()`.

    Raises:
        UserError: unknown rule or hyper-parameter; an instance; an optimizer that steps only with a closure. A
            loss-aware rule is built, but its first `step` raises `MissingLoss` before anything moves: Trainer feeds no
            loss, `attach` does.
    """
    from hf_optim import registry
    from hf_optim.core.foreign import is_class

    with extras.needed("hf_optim.factory", "hf"):
        from hf_optim.hub import closures
        from hf_optim.hub.train_start import at_train

    spec = to_spec(name, hyper)
    if not (isinstance(spec["name"], str) or callable(spec["name"])):
        raise UserError(
            f"{label(name)} is an instance over one model, and a factory builds for any: give its class, or "
            "Trainer(optimizers=(instance, None))"
        )
    target = registry.resolve(spec["name"]) if isinstance(spec["name"], str) else spec["name"]
    if is_class(target) and closures.insists(target):
        raise UserError(
            f"{label(name)} steps only with a closure, which Trainer never passes: hf_optim.attach gives it one"
        )
    rest = {k: v for k, v in spec.items() if k != "name"}
    at_train(_note)
    return Factory(spec["name"]), rest
