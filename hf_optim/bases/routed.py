"""Rules that treat matrices and the rest differently: every parameter group goes one of two ways.

A group says which in `route`. Made from a model, groups follow the modules (`hf_optim.core.groups.split`); a group
without `route` is divided by dimensions. `routes()` tells what went where.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from hf_optim.bases import checkpoint
from hf_optim.bases.optimizer import Optimizer
from hf_optim.core.groups import as_group
from hf_optim.core.notes import once
from hf_optim.core.validate import no_choice
from hf_optim.errors import BadCheckpoint, UserError


class Routed(Optimizer):
    """Base of rules with two routes. `h.route` tells hooks which of them a group goes."""

    #: what matrices go by, and what the rest goes by
    routed: ClassVar[tuple[str, str]] = ("matrix", "vector")
    #: hyper-parameters that the second route takes from others: name -> whose default is its
    beside: ClassVar[dict[str, str]] = {}
    _said = False

    @classmethod
    def route(cls, kind: str, p: torch.Tensor) -> str:
        """The route of a model's parameter whose `kind` is matrix, head, embedding, plain (bias, norm) or other."""
        return cls.routed[p.dim() < 2]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; without a `route` it becomes one or two, by the dimensions of its tensors."""
        group = as_group(param_group)
        route, params = group.pop("route", None), group.get("params")
        if route is not None and route not in self.routed:
            raise UserError(f"{self.rule}: a group's {no_choice('route', route, self.routed)}")
        if route is not None or isinstance(params, set):  # a set has no order: torch refuses it
            self._add(group, route or self.routed[0])
            return
        params = [params] if isinstance(params, torch.Tensor) else list(params or ())
        routes: dict[str, list[Any]] = {}
        for entry in params:
            p = entry[1] if isinstance(entry, tuple) else entry
            routes.setdefault(self.routed[p.dim() < 2], []).append(entry)
        for way, some in routes.items() if routes else [(self.routed[0], params)]:
            self._add({**group, "params": some}, way)
        self._say(params)

    def _add(self, group: dict[str, Any], route: str) -> None:
        if route == self.routed[1]:
            for name, other in self.beside.items():
                group.setdefault(name, group.get(other, self.defaults[other]))
        super().add_param_group(group)
        self.param_groups[-1]["route"] = route

    def _say(self, params: list[Any]) -> None:
        """That embeddings and heads could not be told apart, once, where the rule would tell them apart."""
        if not self._said and type(self).route.__func__ is not Routed.route.__func__:  # type: ignore[attr-defined]
            self._said = True
            shapes = tuple((entry[1] if isinstance(entry, tuple) else entry).shape for entry in params)
            once(
                f"{self.rule} was given tensors, not a model: those of two dimensions and more go by {self.routed[0]}, "
                "embeddings and heads among them; give the model, or groups with 'route'",
                shapes,
            )

    def _hyper(self, group: dict[str, Any]) -> SimpleNamespace:
        h = super()._hyper(group)
        h.route = group["route"]
        return h

    def _ways(self) -> Iterator[tuple[str, torch.Tensor, str]]:
        for i, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"group {i}, tensor {j}" for j in range(len(group["params"]))]
            for name, p in zip(names, group["params"], strict=True):
                yield name, p, group["route"]

    def ways(self) -> list[str]:
        """What each group goes by: empty for the rule itself, else the second route's name."""
        return ["" if group["route"] == self.routed[0] else self.routed[1] for group in self.param_groups]

    def routes(self) -> dict[str, str]:
        """Every parameter's route, by its name in the model or, made from tensors, by its place."""
        return {name: route for name, _, route in self._ways()}

    def figures(self) -> dict[str, float]:
        """The rule's figures, and how many numbers go which way."""
        sizes = dict.fromkeys((f"{route}_parameters" for route in self.routed), 0.0)
        for _, p, route in self._ways():
            sizes[f"{route}_parameters"] += p.numel()
        return {**super().figures(), **sizes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every rule's; a checkpoint in which tensors went other ways is refused, too."""
        checkpoint.form(self.rule, state_dict)
        for i, (mine, theirs) in enumerate(zip(self.param_groups, state_dict["param_groups"], strict=False)):
            if theirs.get("made_by") == self.rule and theirs.get("route") != mine["route"]:
                raise BadCheckpoint(
                    f"{self.rule}: group {i} of the checkpoint went by {theirs.get('route')}, here by {mine['route']}: "
                    "route the parameters as the run that wrote it did"
                )
        super().load_state_dict(state_dict)
