"""Optimizers on surfaces of two variables: who goes where (SMARAN, Figure 1). `hf-optim landscape beale`.

The point is one float64 tensor of shape (2,), and every step sees the exact function. AGR, which leaves vectors out by
default, runs with agr_scope="all". Rules that count in epochs are told that one has `EPOCH` steps.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_optim.errors import UserError
from hf_optim.toys.surfaces import SURFACES, Surface

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
        except UserError as error:
            why = str(error).partition(": ")[2].partition(";")[0] or str(error)
            path.note, path.sound = f"refuses step {k}: {why}", False
            break
        (a, b), value = x.detach().tolist(), float(surface.f(x[0], x[1]).detach())
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


# --- specifications --------------------------------------------------------------------------------------------------


def parse(text: str) -> dict[str, Any]:
    """An optimizer of the command line: a name, `wrapper(base)`, an import path, or a mapping in JSON or YAML.

    Raises:
        UserError: it is none of these, or names nothing.
    """
    from hf_optim import registry

    spec = _parse(text.strip())
    registry.check(with_rate(spec, RATES[0]) if takes_rate(spec) else spec)
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
    if text.endswith(")") and "(" in text and ":" not in text:
        name, _, base = text[:-1].partition("(")
        return {"name": name, "base": _parse(base)}
    return {"name": text}


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise UserError(f"optimizer {text}: not JSON; for YAML, pip install 'hf-optim[study]'") from None
    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError:
        raise UserError(f"optimizer {text}: neither JSON nor YAML") from None


def _numbers(value: Any) -> Any:
    """Numbers such as 1e-3, which YAML 1.1 takes for text."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def label_of(spec: Mapping[str, Any]) -> str:
    """The name with its hyper-parameters but the rate, and for a wrapper its base in brackets."""
    base = _mapping(spec.get("base"))
    inside = f"({label_of(base)})" if "name" in base else ""
    own = {**{k: v for k, v in base.items() if not inside}, **{k: v for k, v in spec.items() if k != "base"}}
    return " ".join([f"{spec['name']}{inside}", *(f"{k}={v}" for k, v in own.items() if k not in ("name", "lr"))])


def prepared(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification with agr_scope="all" wherever there is AGR and the scope is not given."""
    from hf_optim import registry

    made = dict(spec)
    if ":" not in made["name"] and "agr_scope" in registry.info(made["name"]).defaults:
        made.setdefault("agr_scope", "all")
    transform = made.get("grad_transform")
    if transform == "agr" or (isinstance(transform, Mapping) and transform.get("name") == "agr"):
        made["grad_transform"] = {"scope": "all", **({"name": "agr"} if transform == "agr" else transform)}
    if isinstance(made.get("base"), Mapping) and "name" in made["base"]:
        made["base"] = prepared(made["base"])
    elif isinstance(made.get("base"), str):
        made["base"] = prepared({"name": made["base"]})
    return made


def takes_rate(spec: Mapping[str, Any]) -> bool:
    """Whether the rate is to be chosen: the innermost base has one, it is not given, and its default is not 1 (the
    mark of methods that find the rate themselves)."""
    from hf_optim import registry

    if ":" in spec["name"]:
        import inspect

        return "lr" not in spec and "lr" in inspect.signature(registry.resolve(spec["name"])).parameters
    info = registry.info(spec["name"])
    if info.family == "wrapper":
        base = dict(info.base or {}) | _mapping(spec.get("base"))
        return "name" in base and takes_rate(base)
    return "lr" not in spec and ("lr" in info.required or info.defaults.get("lr", 1.0) != 1.0)


def with_rate(spec: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """The specification with this rate, in the innermost base."""
    from hf_optim import registry

    if ":" not in spec["name"] and registry.info(spec["name"]).family == "wrapper":
        base = _mapping(spec.get("base"))
        return {**spec, "base": with_rate(base, rate) if "name" in base else {**base, "lr": rate}}
    return {**spec, "lr": rate}


def rate_of(spec: Mapping[str, Any]) -> float | None:
    """The rate in a specification, or the default of what it names; None for methods without one."""
    from hf_optim import registry

    if "base" in spec:
        return rate_of(_mapping(spec["base"])) if "name" in _mapping(spec["base"]) else spec["base"].get("lr")
    if "lr" in spec or ":" in spec["name"]:
        return spec.get("lr")
    return registry.info(spec["name"]).defaults.get("lr")


def _mapping(base: Any) -> dict[str, Any]:
    return {"name": base} if isinstance(base, str) else dict(base or {})


# --- the command -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # type: ignore[override]
        raise UserError(f"{message}; see hf-optim landscape --help")


def main(argv: Sequence[str] | None = None) -> int:
    """`hf-optim landscape`: trajectories, a table, contour plots as PNG and HTML. Returns 0.

    Raises:
        UserError: an unknown surface, optimizer or hyper-parameter, or a missing matplotlib.
    """
    options = _options(argv)
    names = list(SURFACES) if options.surfaces == ["all"] else options.surfaces
    for name in names:
        if name not in SURFACES:
            raise UserError(f"unknown surface {name!r}: choose from {', '.join(SURFACES)}, or all")
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, got {options.steps}")
    specs: dict[str, dict[str, Any]] = {}
    for text in options.optimizers:
        spec = parse(text)
        label, n = label_of(spec), 2
        while label in specs:
            label, n = f"{label_of(spec)} {n}", n + 1
        specs[label] = spec
    rates = dict(_rate(text, specs) for text in options.lr)
    from hf_optim.toys import trajectory_plot as landscape_plot

    landscape_plot.check()
    for name in names:
        surface = SURFACES[name]
        start = tuple(options.start) if options.start else surface.start
        paths = []
        for label, spec in specs.items():
            given = with_rate(spec, rates[label]) if label in rates else spec
            paths.append((tuned if takes_rate(given) else follow)(surface, given, options.steps, start, label))
        chosen = [label for label, spec in specs.items() if label not in rates and takes_rate(spec)]
        notes = remarks(surface, paths, chosen)
        print(f"{surface.title}; start ({start[0]:g}, {start[1]:g}), at most {options.steps} steps")
        print(table([path.row(surface) for path in paths]))
        for note in notes:
            print(f"  {note}")
        if options.output is not None:
            for file in landscape_plot.write(Path(options.output), name, surface, paths, notes):
                print(f"  {file}")
        print()
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    rates = ", ".join(f"{rate:g}" for rate in RATES)
    parser = _Parser(
        prog="hf-optim landscape",
        description="Follow optimizers over a surface of two variables; writes "
        "a table, SURFACE.png and a self-contained SURFACE.html.",
        allow_abbrev=False,
    )
    parser.add_argument("surfaces", nargs="+", metavar="SURFACE", help=f"{', '.join(SURFACES)}, or all")
    parser.add_argument(
        "--optimizers",
        nargs="+",
        metavar="OPTIMIZER",
        default=["smaran", "adam", "sgd"],
        help="names, 'wrapper(base)', 'file.py:Class', or mappings such as "
        "'{name: sgd, momentum: 0.9}' (default: smaran adam sgd)",
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps at most (default: 100)")
    parser.add_argument(
        "--start", type=float, nargs=2, metavar=("X", "Y"), help="the first point (default: the surface's)"
    )
    parser.add_argument(
        "--lr",
        nargs="+",
        default=[],
        metavar="OPTIMIZER=RATE",
        help=f"fix rates; any other optimizer with a rate gets the one of {rates} that ends lowest, "
        f"on the saddle {SURFACES['saddle'].rate:g}",
    )
    parser.add_argument(
        "--output", metavar="DIR", default="landscapes", help="folder of the plots (default: landscapes)"
    )
    parser.add_argument("--no-plots", dest="output", action="store_const", const=None, help="print the tables only")
    return parser.parse_args(argv)


def _rate(text: str, specs: Mapping[str, Any]) -> tuple[str, float]:
    label, _, value = text.rpartition("=")
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if label not in specs or not rate >= 0:
        raise UserError(f"--lr {text}: give OPTIMIZER=RATE with an optimizer of --optimizers ({', '.join(specs)})")
    return label, rate


def remarks(surface: Surface, paths: Sequence[Trajectory], chosen: Sequence[str]) -> list[str]:
    """What a reader of the plot has to know: how rates were chosen, and what differs from the defaults."""
    from hf_optim.core.definitions import own_definitions

    found = []
    if chosen and surface.rate is not None:
        found.append(f"lr = {surface.rate:g} for {', '.join(chosen)}: no minimum, so nothing to choose it by")
    elif chosen:
        found.append(f"lr of {', '.join(chosen)}: the one of {', '.join(f'{r:g}' for r in RATES)} that ends lowest")
    agr = [path.label for path in paths if "agr_scope" in json.dumps(path.spec) or '"agr"' in json.dumps(path.spec)]
    for path in paths:
        found += [f"{path.label}, our definition: {text}" for text in own_definitions(path.spec)]
    if agr:
        found.append(f'{", ".join(agr)}: AGR on the vector (x, y), as with agr_scope="all"')
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `Trajectory.row` as text."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    header = ("optimizer", "lr", "final point", "f", "distance", f"steps to {CLOSE:g}", "")
    body = [
        (
            row["optimizer"],
            number(row["lr"], "g"),
            f"({row['x']:.4f}, {row['y']:.4f})",
            number(row["f"], ".3g"),
            number(row["distance"], ".3g"),
            number(row["steps"], "d"),
            row["note"],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *body)) for i in range(len(header) - 1)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(line[:-1], widths, strict=True)), line[-1]]).rstrip()
        for line in (header, *body)
    ]
    return "\n".join("  " + line for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
