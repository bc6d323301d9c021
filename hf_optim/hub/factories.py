"""`Trainer(..., optimizer_cls_and_kwargs=factory("adamw_agr"))`: the optimizer alone, no feed, no log.

Trainer calls the first element without arguments and the result with the model (`X()(model, **kwargs)`), other
trainers with the model and the training arguments (`X()(model, args, **kwargs)`): both work.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_optim.hub import modes
from hf_optim.hub.arguments import settle, to_spec

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class Builder:
    """Builds one named optimizer over a model, its parameters divided as Trainer divides them."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, model: torch.nn.Module, args: Any = None, /, **hyper: Any) -> torch.optim.Optimizer:
        from transformers import Trainer

        from hf_optim import registry
        from hf_optim.core.groups import Parameters

        spec = to_spec(self.name, hyper)
        if args is not None:
            spec, _, warnings = settle(spec, args, {})
            for line in warnings:
                logger.warning("%s: %s", spec["name"], line)
        decayed = Trainer.get_decay_parameter_names(None, model)  # type: ignore[arg-type]
        optimizer = registry.build(spec, Parameters(model, decayed=set(decayed)))
        if modes.holds(optimizer) is not None:
            logger.warning(
                "%s: a Trainer that was only given the optimizer saves what the last step or evaluation left in the "
                "parameters; hf_optim.attach sees to it that they are those that are evaluated",
                spec["name"],
            )
        return optimizer


def factory(name: str | Mapping[str, Any], **hyper: Any) -> tuple[Any, dict[str, Any]]:
    """What the `optimizer_cls_and_kwargs` argument of a Trainer takes.

    Args:
        name: a registered name, an import path, or a specification `{"name": ..., ...}`.
        **hyper: its hyper-parameters. Give the rate here: Trainer passes neither `learning_rate` nor `weight_decay`
            on to a factory, so the rule's own defaults hold otherwise.

    Returns:
        `(callable, kwargs)` with `callable()(model, **kwargs)` the optimizer, over Trainer's own groups: those that
        decay first. A factory sees no trainer: one that divides in a way of its own needs `attach`.

    Raises:
        UserError: unknown rule or hyper-parameter. A loss-aware rule is built, but its first `step` raises
            `MissingLoss` before anything moves: Trainer feeds no loss, `attach` does.
    """
    spec = to_spec(name, hyper)
    rest = {k: v for k, v in spec.items() if k != "name"}
    return partial(Builder, spec["name"]), rest
