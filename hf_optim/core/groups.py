"""Which parameters decay, which are matrices and which the head: decided once, for every optimizer alike.

Biases (tables of them, too) and the parameters of every normalisation layer are not decayed, nor what the model itself
names in `no_weight_decay()`, as timm's models do; a trainer that has groups of its own decides instead. Groups that
decay come first. Embedding tables decay, but are not weight matrices "of a convolutional or fully connected layer"
(AGR, Section 3.1): a group of embeddings carries `agr=False`. An output head tied to an embedding is that embedding:
it stays out of AGR too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from hf_optim.core.wording import counted
from hf_optim.errors import UserError

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
) + ((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ())


#: stands for the rule's own decay in a group that somebody else has made
DECAYS = object()


def _is_norm(module: nn.Module) -> bool:
    """torch's norms, and the many hand-written ones, known by their class name (LlamaRMSNorm, T5LayerNorm, ...)."""
    return isinstance(module, NORMS) or type(module).__name__.lower().rstrip("0123456789d").endswith("norm")


def _owners(model: nn.Module, frozen: bool = False) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """(name, parameter, the module that owns it first) once a trainable parameter; `frozen` ones, too."""
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            if (p.requires_grad or frozen) and p not in seen:
                yield f"{prefix}.{name}" if prefix else name, p, module
            seen.add(p)


def _plain(name: str, module: nn.Module) -> bool:
    """A bias, a table of biases, or a part of a norm."""
    return _is_norm(module) or any("bias" in part for part in name.lower().split(".")[-2:])


def _tables(model: nn.Module) -> set[torch.Tensor]:
    """Embeddings, wherever they are tied to."""
    return {m.weight for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}


def _kinds(model: nn.Module) -> dict[torch.Tensor, str]:
    """matrix, head, embedding, plain (bias, norm) or other of every parameter.

    A matrix is a two-dimensional weight or a convolution's; tokens, tables and stacks of matrices that a module holds
    as they are, are other.
    """
    tables = _tables(model)
    kinds: dict[torch.Tensor, str] = {}
    for name, p, module in _owners(model, frozen=True):
        if _plain(name, module):
            kinds[p] = "plain"
        elif p in tables:
            kinds[p] = "embedding"
        else:
            weight = "weight" in name.rsplit(".", 1)[-1]
            matrix = weight and (p.dim() == 2 or isinstance(module, nn.modules.conv._ConvNd))
            kinds[p] = "matrix" if matrix else "other"
    head = _head(model, [p for p, kind in kinds.items() if kind == "matrix"])
    if kinds.get(head) == "matrix":
        kinds[head] = "head"
    return kinds


def _head(model: nn.Module, matrices: list[torch.Tensor]) -> Any:
    """The weight of what a transformers model names as its output embeddings, else the last matrix."""
    named = None
    try:
        named = getattr(getattr(model, "module", model), "get_output_embeddings", lambda: None)()
    except (AttributeError, NotImplementedError):  # transformers' own for models without a head of words
        pass
    weight = getattr(named, "weight", None)
    return weight if weight is not None else matrices[-1] if matrices else None


def named_by_model(model: nn.Module) -> set[str]:
    """Parameters that the model, or a part of it, says not to decay (`no_weight_decay()`, with wildcards)."""
    names = [name for name, _ in model.named_parameters()]
    exempt: set[str] = set()
    for prefix, module in model.named_modules():
        own = getattr(module, "no_weight_decay", None)
        for pattern in own() if callable(own) else ():
            full = f"{prefix}.{pattern}" if prefix else pattern
            exempt |= {name for name in names if fnmatchcase(name, full)}
    return exempt


class Parameters:
    """What an optimizer trains: the parameters of a model, and which of them decay.

    Args:
        model: any module.
        decayed: names of those that decay, as a trainer has decided; None decides by module type.
        given: whole groups as a trainer has made them, with `weight_decay` = DECAYS where the rule's own decay belongs.
        beside: modules that are trained, too, and are no part of the model (a loss with weights), by name.
    """

    def __init__(
        self,
        model: nn.Module,
        decayed: Collection[str] | None = None,
        given: Sequence[Mapping[str, Any]] | None = None,
        beside: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.model = model
        owners = list(_owners(model))
        known = {p for _, p, _ in owners}
        self._kinds = _kinds(model)
        self._tables = _tables(model)
        for prefix, module in (beside or {}).items():
            owners += [(f"{prefix}.{n}", p, owner) for n, p, owner in _owners(module) if p not in known]
            self._kinds = {**_kinds(module), **self._kinds}
            self._tables |= _tables(module)
        self.names: dict[torch.Tensor, str] = {p: name for name, p, _ in owners}
        if given is not None:
            self._given = [{**group, "params": list(group["params"])} for group in given]
            return
        exempt = named_by_model(model)
        if decayed is None:
            exempt |= {name for name, _, owner in owners if _plain(name, owner)}
        own = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        stays = {n for n, _ in own if n not in exempt and (decayed is None or n in decayed)}
        self._given = [
            {"params": [p for n, p in own if n in stays], "weight_decay": DECAYS},
            {"params": [p for n, p in own if n not in stays], "weight_decay": 0.0},
        ]

    def groups(
        self,
        weight_decay: float | None = None,
        *,
        opt_out: str = "",
        route: Callable[[str, Any], str] | None = None,
    ) -> list[dict[str, Any]]:
        """Every trainable parameter exactly once, those that decay first.

        Args:
            weight_decay: decay of the groups that decay; None for rules without one: groups carry no such entry, and
                are one unless somebody made them.
            opt_out: a transform's key of groups: embeddings come in groups where it is False; "" for no division.
            route: (kind, parameter) -> the `route` of its group, for rules with several. Groups then keep the
                parameters' names, and say a decay only where it is not the rule's: each route has its own.

        Returns:
            Non-empty groups, each `{"params": [...], ["weight_decay": ...], [opt_out: False], ["route": ...], ...}`.

        Raises:
            UserError: there is no trainable parameter.
        """
        given = self._given
        if weight_decay is None and all(set(group) == {"params", "weight_decay"} for group in given):
            every = {p for group in given for p in group["params"]}
            given = [{"params": [p for p in self.names if p in every]}]
        groups: list[dict[str, Any]] = []
        for group in given:
            rest = {k: v for k, v in group.items() if k not in ("params", "weight_decay")}
            own = group.get("weight_decay", DECAYS)
            if weight_decay is not None and not (route is not None and own is DECAYS):
                rest["weight_decay"] = weight_decay if own is DECAYS else own
            parts: dict[Any, list[Any]] = {}
            for p in group["params"]:
                if route is not None:
                    way = route(self._kinds.get(p, "other"), p)
                    parts.setdefault(("route", way), []).append((self.names.get(p, ""), p))
                else:
                    parts.setdefault((opt_out, False) if opt_out and p in self._tables else None, []).append(p)
            order = sorted(parts, key=lambda key: key is not None and key[0] == opt_out)
            groups += [{"params": parts[key], **rest, **({} if key is None else {key[0]: key[1]})} for key in order]
        if not groups:
            raise UserError(
                f"{type(self.model).__name__} has no trainable parameter: set requires_grad on what should train"
            )
        return groups

    def earlier(self, weight_decay: float | None, *, apart: bool = False) -> list[list[str]]:
        """The names group by group as release 0.1.0 divided this model: groups in the order in which a parameter of
        theirs comes first, and tables of biases decayed; with `apart`, embeddings have one. Its checkpoints hold no
        names."""
        buckets: dict[tuple[float | None, bool], list[str]] = {}
        for name, p, owner in _owners(self.model):
            last = name.rsplit(".", 1)[-1]
            plain = _is_norm(owner) or last == "bias" or last.endswith("_bias") or last.startswith("bias_")
            decay = None if weight_decay is None else 0.0 if plain else weight_decay
            buckets.setdefault((decay, apart and not plain and p in self._tables), []).append(name)
        return list(buckets.values())


def split(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    opt_out: str = "",
    route: Callable[[str, Any], str] | None = None,
) -> list[dict[str, Any]]:
    """`Parameters(model).groups(...)`: parameter groups of a model, divided by module type."""
    return Parameters(model).groups(weight_decay, opt_out=opt_out, route=route)


def decays(model: nn.Module) -> dict[str, bool]:
    """Name of every trainable parameter -> whether weight decay applies to it."""
    source = Parameters(model)
    return {source.names[p]: group["weight_decay"] is DECAYS for group in source._given for p in group["params"]}


def describe(groups: Sequence[Mapping[str, Any]]) -> str:
    """The division in a few words, for logs and reports: `weight decay 0.01 on 2 tensors, 0 on 4`."""
    if not any("weight_decay" in group for group in groups):
        return f"no weight decay, {counted(sum(len(group['params']) for group in groups), 'tensor')}"
    counts: dict[float, int] = {}
    for group in groups:
        decay = float(group.get("weight_decay", 0.0))
        counts[decay] = counts.get(decay, 0) + len(group["params"])
    first, *rest = counts.items()
    return f"weight decay {first[0]:g} on {counted(first[1], 'tensor')}" + "".join(f", {d:g} on {n}" for d, n in rest)


def as_groups(params: Any) -> list[dict[str, Any]]:
    """What torch accepts as `params`, checked early so that the error is one line."""
    if isinstance(params, torch.Tensor):
        raise UserError("params is one tensor: give an iterable of tensors, e.g. model.parameters() or [tensor]")
    if isinstance(params, Mapping):
        raise UserError("params is a mapping: give a list of groups, e.g. [{'params': [tensor], 'lr': 0.1}]")
    try:
        groups = list(params)
    except TypeError:
        raise UserError(f"params is {_kind(params)}: give an iterable of tensors, e.g. model.parameters()") from None
    if not groups:
        raise UserError("the parameter list is empty: nothing to optimise")
    return groups


def as_group(group: Any) -> dict[str, Any]:
    """A group as torch takes it, its tensors in a list, checked early as `as_groups`."""
    if not isinstance(group, Mapping) or "params" not in group:
        raise UserError(f"a parameter group is a mapping with 'params', got {_kind(group)}")
    params = group["params"]
    if isinstance(params, (torch.Tensor, set)):  # torch takes the one and refuses the other
        return dict(group)
    if not isinstance(params, Iterable):
        raise UserError(f"a parameter group's params are {_kind(params)}: give an iterable of tensors")
    entries = list(params)
    for entry in entries:
        p = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        if not isinstance(p, torch.Tensor):
            raise UserError(f"a parameter group's params hold {_kind(p)}: give tensors, groups only in the outer list")
        if nn.parameter.is_lazy(p):
            raise UserError("a parameter of a lazy module has no shape yet: run the model once before this")
    return {**group, "params": entries}


def _kind(value: Any) -> str:
    return "None" if value is None else f"something of type {type(value).__name__}"
