"""What a trainer has decided about its parameters: its own groups and their order, taken over as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hf_optim.core.groups import DECAYS, Parameters

#: what stands in `args.weight_decay` while a trainer makes its groups, so that those that decay are known
_MARK = 0.123456789


def of_trainer(trainer: Any, model: nn.Module) -> Parameters:
    """The parameters that this trainer trains, divided as it would divide them for its own optimizer.

    Its own groups come from `get_optimizer_cls_and_kwargs` where it overrides that (sentence-transformers does, for
    losses with weights), else from `get_decay_parameter_names`, which it may override, too.
    """
    beside = _modules_beside(trainer, model)
    given = _own_groups(trainer, model)
    if given is not None:
        return Parameters(model, given=given, beside=beside)
    names = getattr(trainer, "get_decay_parameter_names", None)
    return Parameters(model, decayed=None if names is None else set(names(model)), beside=beside)


def _own_groups(trainer: Any, model: nn.Module) -> list[dict[str, Any]] | None:
    from transformers import Trainer
    from transformers.training_args import OptimizerNames

    stock = getattr(type(trainer), "get_optimizer_cls_and_kwargs", None) is Trainer.get_optimizer_cls_and_kwargs
    if stock and "get_optimizer_cls_and_kwargs" not in vars(trainer):
        return None
    args = trainer.args
    replaced = {"weight_decay": _MARK, "optim": OptimizerNames.ADAMW_TORCH, "optim_args": None}
    before = {key: getattr(args, key) for key in replaced}
    try:
        for key, value in replaced.items():
            setattr(args, key, value)
        _, kwargs = trainer.get_optimizer_cls_and_kwargs(args, model)
    finally:
        for key, value in before.items():
            setattr(args, key, value)
    for key in ("params", "model", "optimizer_dict"):
        groups = kwargs.get(key)
        if isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups):
            return [
                {
                    **g,
                    "params": list(g["params"]),
                    **({"weight_decay": DECAYS} if g.get("weight_decay") == _MARK else {}),
                }
                for g in groups
            ]
    return None


def _modules_beside(trainer: Any, model: nn.Module) -> dict[str, nn.Module]:
    """Modules that a trainer keeps beside its model: a loss with weights, several of them in a dict."""
    modules: dict[str, nn.Module] = {}
    for name, value in vars(trainer).items():
        for key, module in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(module, nn.Module) and name not in ("model", "model_wrapped", "ref_model"):
                modules[f"{name}.{key}" if key else name] = module
    return modules


class Beside:
    """Parameters that an optimizer trains and that lie outside of the trainer's model, in a loss with weights.

    Nobody else looks after them: DDP neither makes them alike in all processes nor averages their gradients, Trainer
    clears the model's gradients only, and its checkpoints leave them out.
    """

    FILE = "hf_optim_beside.safetensors"

    def __init__(self, trainer: Any, optimizer: Any) -> None:
        left = {p for g in optimizer.param_groups for p in g["params"]} - set(trainer.model.parameters())
        self._accelerator = trainer.accelerator
        self._params: dict[str, torch.Tensor] = {}
        for prefix, module in _modules_beside(trainer, trainer.model).items():
            for name, p in module.named_parameters(prefix):
                if p in left:
                    self._params[name] = p
                    left.remove(p)

    def spread(self) -> None:
        """All processes begin with the first one's."""
        if self._accelerator.num_processes > 1:
            for p in self._params.values():
                torch.distributed.broadcast(p.detach(), 0)

    def average(self) -> None:
        """Their gradients become the mean over processes; one that a process lacks is zero there."""
        if self._accelerator.num_processes == 1:
            return
        for p in self._params.values():
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            p.grad = self._accelerator.reduce(grad, reduction="mean")

    def clear(self) -> None:
        for p in self._params.values():
            p.grad = None

    def write(self, folder: Path) -> None:
        """Into a checkpoint, by the first process."""
        if self._params and self._accelerator.is_main_process and folder.is_dir():
            held = {name: p.detach().contiguous() for name, p in self._params.items()}
            save_file(held, folder / self.FILE)

    def read(self, folder: Path) -> str | None:
        """What a checkpoint holds of them, put into them; a sentence where it holds nothing."""
        file = folder / self.FILE
        held = load_file(file) if self._params and file.is_file() else {}
        fits = [name for name, p in self._params.items() if name in held and held[name].shape == p.shape]
        with torch.no_grad():
            for name in fits:
                self._params[name].copy_(held[name])
        lacking = [name for name in self._params if name not in fits]
        if not lacking:
            return None
        return (
            f"the checkpoint has the optimizer's state of {', '.join(lacking)}, but not what they held: they lie "
            "outside of the model, and begin anew unless they are loaded before train()"
        )


class Untrained:
    """Parameters that get a gradient and that no optimizer has: said once each.

    Args:
        modules: (name, module) of everything that a loss may reach.
        optimizers: what trains.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], optimizers: Iterable[Any]) -> None:
        self._optimizers = list(optimizers)
        trained = self._trained()
        self._left: list[tuple[str, torch.Tensor]] = []
        for prefix, module in modules:
            for name, p in module.named_parameters(prefix):
                if p not in trained:
                    trained.add(p)
                    self._left.append((name.removeprefix("module."), p))

    def _trained(self) -> set[torch.Tensor]:
        return {p for opt in self._optimizers for group in opt.param_groups for p in group["params"]}

    def late(self) -> str | None:
        """Before a step: a sentence about those that have a gradient now and had none so far."""
        if not any(p.grad is not None for _, p in self._left):
            return None
        trained = self._trained()  # a group may have been added since
        names = [name for name, p in self._left if p.grad is not None and p not in trained]
        self._left = [(name, p) for name, p in self._left if p.grad is None and p not in trained]
        if not names:
            return None
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return (
            f"{some} got a gradient and no optimizer has them, so they stay as they are: set requires_grad before the "
            "optimizer is built, or add them with add_param_group"
        )


def modules_of(trainer: Any) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of everything that a trainer's loss may reach."""
    yield "", trainer.model
    yield from _modules_beside(trainer, trainer.model).items()
