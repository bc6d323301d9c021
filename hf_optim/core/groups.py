"""Which parameters decay, which are matrices and which the head, decided by the type of the module that owns them.

Biases and the parameters of every normalisation layer are not decayed, whatever their shape or name. Embedding
tables decay, but are not weight matrices "of a convolutional or fully connected layer" (AGR, Section 3.1): a group of
embeddings carries `agr=False`. An output head tied to an embedding is that embedding: it stays out of AGR too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hf_optim.errors import UserError

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
) + ((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ())


def _is_norm(module: nn.Module) -> bool:
    """torch's norms, and the many hand-written ones, known by their class name (LlamaRMSNorm, T5LayerNorm, ...)."""
    return isinstance(module, NORMS) or type(module).__name__.lower().rstrip("0123456789d").endswith("norm")


def _owners(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str]]:
    """(name, parameter, kind) once a parameter; kind is matrix, head, embedding, plain (bias, norm) or other.

    A matrix is a two-dimensional weight or a convolution's; tokens, tables and stacks of matrices that a module holds
    as they are, are other.
    """
    kinds: dict[nn.Parameter, tuple[str, str]] = {}
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            if _is_norm(module) or name == "bias" or name.endswith("_bias") or name.startswith("bias_"):
                kind = "plain"
            elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                kind = "embedding"
            else:
                weight = "weight" in name and (p.dim() == 2 or isinstance(module, nn.modules.conv._ConvNd))
                kind = "matrix" if weight else "other"
            full = f"{prefix}.{name}" if prefix else name
            if p not in kinds:
                kinds[p] = (full, kind)
            elif kind == "embedding":  # a tied head: the table wins
                kinds[p] = (kinds[p][0], kind)
    head = _head(model, [p for p, (_, kind) in kinds.items() if kind == "matrix"])
    for p, (name, kind) in kinds.items():
        if p.requires_grad:
            yield name, p, "head" if p is head and kind == "matrix" else kind


def _head(model: nn.Module, matrices: list[nn.Parameter]) -> Any:
    """The weight of what a transformers model names as its output embeddings, else the last matrix."""
    named = None
    try:
        named = getattr(getattr(model, "module", model), "get_output_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):  # transformers' own for models without a head of words
        pass
    weight = getattr(named, "weight", None)
    return weight if weight is not None else matrices[-1] if matrices else None


def split(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    agr: bool = False,
    route: Callable[[str, nn.Parameter], str] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups of a model: every trainable parameter exactly once.

    Args:
        model: any module.
        weight_decay: decay of the decayed group, no decay for biases and norms; None makes one group of everything
            without a `weight_decay` entry (for rules that have none).
        agr: put embeddings in groups with `agr=False`.
        route: (kind, parameter) -> the `route` of its group, for rules with several. Groups then keep the parameters'
            names, and say a decay only where there is none: each route has its own.

    Returns:
        Non-empty groups, each `{"params": [...], "weight_decay": ..., ["agr": False], ["route": ...]}`.

    Raises:
        UserError: the model has no trainable parameter.
    """
    buckets: dict[tuple[float | None, bool, str | None], list[Any]] = {}
    for name, p, kind in _owners(model):
        decay = None if weight_decay is None else 0.0 if kind == "plain" else weight_decay
        if route is None:
            buckets.setdefault((decay, agr and kind == "embedding", None), []).append(p)
        else:
            buckets.setdefault((None if decay else decay, False, route(kind, p)), []).append((name, p))
    if not buckets:
        raise UserError(f"{type(model).__name__} has no trainable parameter: set requires_grad on what should train")
    groups: list[dict[str, Any]] = []
    for (decay, no_agr, way), params in buckets.items():
        group: dict[str, Any] = {"params": params}
        if decay is not None:
            group["weight_decay"] = decay
        if no_agr:
            group["agr"] = False
        if way is not None:
            group["route"] = way
        groups.append(group)
    return groups


def decays(model: nn.Module) -> dict[str, bool]:
    """Name of every trainable parameter -> whether weight decay applies to it."""
    return {name: kind != "plain" for name, _, kind in _owners(model)}


def as_groups(params: Any) -> list[dict[str, Any]]:
    """What torch accepts as `params`, checked early so that the error is one line."""
    if isinstance(params, torch.Tensor):
        raise UserError("params is one tensor: give an iterable of tensors, e.g. model.parameters() or [tensor]")
    params = list(params)
    if not params:
        raise UserError("the parameter list is empty: nothing to optimise")
    return params
