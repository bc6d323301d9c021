"""Optimizers followed over surfaces of two variables: who goes where.

The point is one float64 tensor of shape (2,), and every step sees the exact function. A transform that leaves vectors
out by default takes them here. Rules that count in epochs are told that one has `EPOCH` steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_optim import registry
from hf_optim.core import extras
from hf_optim.errors import UserError, one_line
from hf_optim.toys.surfaces import Surface

if TYPE_CHECKING:
    import torch

#: an optimizer without a given rate gets the one of these that ends lowest
RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)


#: the smoother a path, the longer the windows that TLR needs (K = 10 here): K = 1 compares nearly equal updates
EPOCH = 50


#: "there": f within this of its lowest value
CLOSE = 1e-3


@dataclass
class Trajectory:
    """Where one optimizer went: `points` and `values` of f there, the start first, and how it ended."""

    label: str
    spec: dict[str, Any]
    points: list[tuple[float, float]]
    values: list[float]
    note: str = ""
    #: it neither stopped with an error nor ran away to where f is not small
    sound: bool = True

    def row(self, surface: Surface) -> dict[str, Any]:
        """What the table shows: rate, final point, f there, distance to the nearest minimum, first step within
        `CLOSE` (None if there was none), note."""
        x, y = self.points[-1]
        near = [math.hypot(x - a, y - b) for a, b in surface.minima]
        there = next((k for k, v in enumerate(self.values) if v <= CLOSE), None) if surface.minima else None
        return {
            "optimizer": self.label,
            "lr": rate_of(self.spec),
            "x": x,
            "y": y,
            "f": self.values[-1],
            "distance": min(near, default=None),
            "steps": there,
            "note": self.note,
        }


def follow(
    surface: Surface, spec: Mapping[str, Any], steps: int, start: tuple[float, float], label: str | None = None
) -> Trajectory:
    """The trajectory of one optimizer.

    It ends early where the point runs away (sound = False) or leaves the saddle, or where a rule refuses the loss.

    Args:
        surface: one of `SURFACES`.
        spec: name, hyper-parameters and base, as `hf_optim.create` takes them; any torch.optim.Optimizer by its path.
        steps: at most so many.
        start: the first point.
        label: of the trajectory; the specification's own by default.

    Raises:
        UserError: the specification is wrong.
    """
    import torch

    import hf_optim

    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    spec = prepared(spec)
    opt: Any = hf_optim.create(spec["name"], [x], **{k: v for k, v in spec.items() if k != "name"})
    if hasattr(opt, "set_steps_per_epoch"):
        opt.set_steps_per_epoch(EPOCH)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = surface.f(x[0], x[1])
        loss.backward()
        return loss

    path = Trajectory(label or label_of(spec), spec, [start], [float(surface.f(x[0], x[1]).detach())])
    for k in range(1, steps + 1):
        try:
            opt.step(closure)
            (a, b), value = x.detach().tolist(), float(surface.f(x[0], x[1]).detach())
        except UserError as error:
            why = str(error).partition(": ")[2].partition(";")[0] or str(error)
            path.note, path.sound = f"refuses step {k}: {why}", False
            break
        except Exception as error:  # a class of somebody's own may raise, and leave behind, anything
            path.note, path.sound = f"fails at step {k}: {one_line(error)}", False
            break
        if not all(map(math.isfinite, (a, b, value))) or max(abs(a), abs(b)) > 100 * max(map(abs, surface.box)):
            path.note, path.sound = f"diverged at step {k}", False
            break
        path.points.append((a, b))
        path.values.append(value)
        if not surface.minima and value < -(max(surface.box) ** 2):
            path.note = f"left the saddle at step {k}"
            break
    return path


def tuned(
    surface: Surface, spec: Mapping[str, Any], steps: int, start: tuple[float, float], label: str | None = None
) -> Trajectory:
    """`follow` with the rate of `RATES` that ends lowest; every optimizer is given the same nine."""
    if surface.rate is not None:
        return follow(surface, with_rate(spec, surface.rate), steps, start, label)
    tries = [follow(surface, with_rate(spec, rate), steps, start, label) for rate in RATES]
    sound = [path for path in tries if path.sound]
    return min(sound, key=lambda path: path.values[-1]) if sound else tries[-1]


def parse(text: str, labelled: bool = False) -> dict[str, Any]:
    """An optimizer of the command line: a name, `wrapper(base)`, an import path, or a mapping in JSON or YAML, which
    may have a `label` where it is `labelled`.

    Raises:
        UserError: it is none of these, or names nothing.
    """

    spec = _parse(text.strip())
    bare = {key: value for key, value in spec.items() if key != "label"} if labelled else spec
    registry.check_spec(with_rate(bare, RATES[0]) if takes_rate(bare) else bare)
    return spec


def _parse(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        try:
            spec = json.loads(text)
        except json.JSONDecodeError:
            spec = _yaml(text)
        if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
            raise UserError(f"optimizer {text}: a mapping needs a name, as in '{{name: sgd, momentum: 0.9}}'")
        return spec
    name, bracket, base = text[:-1].partition("(")
    if text.endswith(")") and bracket and (name.isidentifier() or ":" not in text):  # a folder may have brackets, too
        return {"name": name, "base": _parse(base)}
    return {"name": text}


def _yaml(text: str) -> Any:
    with extras.needed(f"optimizer {text}: not JSON, and YAML", "study"):
        import yaml

        from hf_optim.core import yaml12
    try:
        return yaml12.load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"optimizer {text}: neither JSON nor YAML") from None


def label_of(spec: Mapping[str, Any]) -> str:
    """The name with its hyper-parameters but the rate, and for a wrapper its base in brackets."""
    base = _mapping(spec.get("base"))
    inside = f"({label_of(base)})" if "name" in base else ""
    own = {**{k: v for k, v in base.items() if not inside}, **{k: v for k, v in spec.items() if k != "base"}}
    return " ".join([f"{spec['name']}{inside}", *(f"{k}={v}" for k, v in own.items() if k not in ("name", "lr"))])


def prepared(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification with the arguments with which a transform takes vectors, too, where they are not given."""
    from hf_optim import transforms  # torch comes with them
    from hf_optim.core.rule import Transform

    complete = dict(spec)
    complete |= {k: v for k, v in _everywhere(complete).items() if k not in complete}
    transform = complete.get("grad_transform")
    if transform is not None and not isinstance(transform, Transform):
        mapping = {"name": transform} if isinstance(transform, str) else transform
        more = transforms.make(mapping).everywhere
        complete["grad_transform"] = {**more, **mapping} if more else transform
    if isinstance(complete.get("base"), Mapping) and "name" in complete["base"]:
        complete["base"] = prepared(complete["base"])
    elif isinstance(complete.get("base"), str):
        complete["base"] = prepared({"name": complete["base"]})
    return complete


def _everywhere(spec: Mapping[str, Any]) -> dict[str, Any]:
    told = getattr(registry.resolve(spec["name"]), "everywhere", {})
    return dict(told) if isinstance(told, Mapping) else {}  # a class of somebody's own means another thing by it


def on_vectors(spec: Mapping[str, Any]) -> list[str]:
    """The arguments of a prepared specification that let a transform take vectors, too, as `name="value"`."""
    from hf_optim import transforms  # torch comes with them

    given = [(spec, _everywhere(spec))]
    transform = spec.get("grad_transform")
    if isinstance(transform, Mapping):
        given.append((transform, transforms.make(transform).everywhere))
    texts = [f"{k}={json.dumps(v)}" for own, more in given for k, v in more.items() if own.get(k) == v]
    base = spec.get("base")
    return texts + (on_vectors(base) if isinstance(base, Mapping) and "name" in base else [])


def takes_rate(spec: Mapping[str, Any]) -> bool:
    """Whether the rate is to be chosen: the innermost base has one, it is not given, and its default is not 1 (the
    mark of methods that find the rate themselves)."""

    if ":" in spec["name"]:
        from hf_optim.core.foreign import signature

        return "lr" not in spec and "lr" in signature(registry.resolve(spec["name"]), spec["name"]).parameters
    info = registry.info(spec["name"])
    if info.family == "wrapper":
        inner = registry.inner(info, spec.get("base"))
        return inner is not None and takes_rate(inner)
    return "lr" not in spec and ("lr" in info.required or info.defaults.get("lr", 1.0) != 1.0)


def with_rate(spec: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """The specification with this rate, in the innermost base."""

    if ":" not in spec["name"] and registry.info(spec["name"]).family == "wrapper":
        base = _mapping(spec.get("base"))
        return {**spec, "base": with_rate(base, rate) if "name" in base else {**base, "lr": rate}}
    return {**spec, "lr": rate}


def rate_of(spec: Mapping[str, Any]) -> float | None:
    """The rate in a specification, or the default of what it names; None for methods without one."""

    if "base" in spec:
        return rate_of(_mapping(spec["base"])) if "name" in _mapping(spec["base"]) else spec["base"].get("lr")
    if "lr" in spec or ":" in spec["name"]:
        return spec.get("lr")
    return registry.info(spec["name"]).defaults.get("lr")


def _mapping(base: Any) -> dict[str, Any]:
    return {"name": base} if isinstance(base, str) else dict(base or {})
