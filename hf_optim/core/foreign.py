"""Optimizers of other makes: a class, a factory that wants more than tensors, or an instance.

A factory says by the names of its arguments what it gets: `model`, `named_parameters` (pairs), `groups` (decayed and
undecayed parameters, as every optimizer made from a model has them) or `params` (tensors, or what `create` was given).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hf_optim.core.groups import Parameters
from hf_optim.errors import UserError, of_memory, one_line

#: what a factory may ask for
OFFERED = ("model", "named_parameters", "groups", "params")


def _bare(value: Any) -> Any:
    """What `functools.partial` has given arguments to."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def label(value: Any) -> str:
    """What messages call a name, a class, a factory or an instance."""
    value = _bare(value)
    if isinstance(value, str):
        return value
    return str(getattr(value, "rule", None) or getattr(value, "__name__", None) or type(value).__name__)


def told(value: Any) -> str:
    """What messages call a thing that is no optimizer."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def signature(value: Any, name: str) -> inspect.Signature:
    """What can be given to a class or a factory.

    Raises:
        UserError: it does not say: a function of C that makes no optimizer.
    """
    try:
        return inspect.signature(value)
    except (TypeError, ValueError):
        raise UserError(f"{name} is not a torch.optim.Optimizer class, nor a function that makes one") from None


def is_class(value: Any) -> bool:
    """Whether it is an optimizer class, with some of its arguments given or not."""
    value = _bare(value)
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def make(imported: Any, name: str, params_or_model: Any, hyper: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that a class, a factory or an instance stands for.

    Args:
        imported: the class, factory or instance.
        name: what errors call it.
        params_or_model: what torch's optimizers take, or a model's `Parameters`; None for an instance.
        hyper: keyword arguments.

    Raises:
        UserError: what `imported` raises, but for lacking memory; arguments that it has not; a factory that wants a
            model and gets tensors, or returns no optimizer; an instance with parameters or hyper-parameters beside it.
    """
    if isinstance(imported, torch.optim.Optimizer):
        if params_or_model is not None or hyper:
            raise UserError(
                f"{name} is an instance with parameters and hyper-parameters of its own: give None and none"
            )
        return imported
    try:
        if is_class(imported):
            optimizer = imported(_of_class(imported, params_or_model, hyper), **hyper)
        else:
            check_arguments(imported, name, hyper)
            optimizer = imported(**_offers(imported, name, params_or_model, hyper), **hyper)
    except (TypeError, ValueError) as error:
        ours = "missing 1 required positional argument: 'arguments'" in str(error)  # of a rule's base
        said = "its constructor has to hand over its arguments: super().__init__(params, locals())" if ours else error
        raise UserError(f"{name}: {said}") from None
    except Exception as error:
        if of_memory(error):
            raise
        raise UserError(f"{name}: {one_line(error)}") from error
    if isinstance(optimizer, torch.optim.Optimizer) and not _grouped(optimizer):
        raise UserError(f"{name}: its constructor has to call super().__init__(params, defaults)")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"{name} returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def _grouped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it has groups of tensors, as torch's constructor makes them of whatever it is given."""
    try:
        return all(isinstance(p, torch.Tensor) for group in optimizer.param_groups for p in group["params"])
    except (AttributeError, KeyError, TypeError):
        return False


def check_arguments(factory: Callable[..., Any], name: str, hyper: Mapping[str, Any]) -> None:
    """Raise UserError if a factory cannot be called with these hyper-parameters and what it may ask for."""
    asked, parameters = check_factory(factory, name), signature(factory, name).parameters
    try:
        inspect.signature(factory).bind(**dict.fromkeys(asked), **hyper)
    except TypeError as error:
        raise UserError(f"{name}: {error}; it takes {', '.join(k for k in parameters if k not in OFFERED)}") from None


def check_factory(factory: Callable[..., Any], name: str) -> list[str]:
    """What a factory asks for of what it may. Raises UserError if it is nothing, as of any other function."""
    asked = [k for k in signature(factory, name).parameters if k in OFFERED]
    if not asked:
        if callable(getattr(factory, "named_parameters", None)):
            raise UserError(f"{name} is a model, and the optimizer comes first: create(name, model)")
        raise UserError(
            f"{name} is no torch.optim.Optimizer; what makes one must ask for one of {', '.join(OFFERED)} by an "
            "argument's name"
        )
    return asked


def _default(function: Any, name: str) -> Any:
    parameter = inspect.signature(function).parameters.get(name)
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _of_class(cls: Any, given: Any, hyper: Mapping[str, Any]) -> Any:
    """A model's parameters as every class gets them: biases and norms are not decayed."""
    if not isinstance(given, Parameters):
        return list(given)
    decay = hyper.get("weight_decay", _default(cls, "weight_decay"))
    return given.groups(decay if isinstance(decay, (int, float)) else None, route=getattr(_bare(cls), "route", None))


def _groups(given: Parameters, decay: Any) -> list[dict[str, Any]]:
    """Decayed and undecayed parameters; without a number the factory's own decay holds for the first."""
    groups = given.groups(1.0)
    for group in groups:
        if group["weight_decay"] == 1.0:
            del group["weight_decay"]
            group |= {"weight_decay": decay} if isinstance(decay, (int, float)) else {}
    return groups


def _offers(factory: Callable[..., Any], name: str, given: Any, hyper: Mapping[str, Any]) -> dict[str, Any]:
    asked = [k for k in inspect.signature(factory).parameters if k in OFFERED]
    if not isinstance(given, Parameters):
        wanting = [k for k in asked if k in ("model", "named_parameters")]
        if wanting:
            raise UserError(f"{name} asks for {wanting[0]}: give the model instead of its parameters")
        return dict.fromkeys(asked, list(given))
    decay = hyper.get("weight_decay", _default(factory, "weight_decay"))
    values: dict[str, Callable[[], Any]] = {
        "model": lambda: given.model,
        "named_parameters": lambda: [(n, p) for p, n in given.names.items()],
        "groups": lambda: _groups(given, decay),
        "params": lambda: list(given.names),
    }
    return {k: values[k]() for k in asked}
